/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Allocation and copy-on-write: guest clusters get host clusters.
 *
 * In this order: an L2 table of the image's own, host clusters, all that they are
 * to hold, and then the entries.  A failure gives the host clusters back.
 */
#ifndef DM_QCOW2_PIECE_H
#define DM_QCOW2_PIECE_H

#include "alloc.h"
#include "write.h"

/**
 * enum qc_fill - what an allocated piece is filled with; the rest is copied
 * @QC_FILL_DATA: the guest's data
 * @QC_FILL_ZERO: zeroes
 * @QC_FILL_COPY: what the guest reads there now
 */
enum qc_fill {
	QC_FILL_DATA,
	QC_FILL_ZERO,
	QC_FILL_COPY,
};

/**
 * struct qc_piece - guest clusters that get host clusters
 * @pos: first guest byte to write
 * @len: bytes to write
 * @fill: with what
 * @from: guest offset from which on there is data then
 * @to: where that ends; with extended L2 these are ends of subclusters
 * @start: guest offset of the first cluster
 * @clusters: how many
 * @host: byte offset of the first host cluster
 * @copies: a part is copied or zeroed
 * @in_place: the host cluster was there before, or is in an external data file
 * @whole: whole clusters get data: there are no subclusters, or none yet
 * @virgin: the host clusters are known to read as zeroes
 */
struct qc_piece {
	u64 pos;
	u64 len;
	enum qc_fill fill;
	u64 from;
	u64 to;
	u64 start;
	u32 clusters;
	u64 host;
	bool copies;
	bool in_place;
	bool whole;
	bool virgin;
};

/** qc_clusters_of() - how many clusters do the bytes from @start to @end lie in? */
static inline u32 qc_clusters_of(const struct qc_image *img, u64 start, u64 end)
{
	return ((end - 1) >> img->h.cluster_bits) -
		(start >> img->h.cluster_bits) + 1;
}

/** qc_sub_size() - bytes of what an entry can say something of: of a subcluster */
static inline u64 qc_sub_size(const struct qc_image *img)
{
	return 1ULL << img->h.sub_bits;
}

/**
 * qc_change_len() - what a change of @len bytes at a guest offset covers: up to the
 * image's end all
 */
static inline u64 qc_change_len(const struct qc_image *img, u64 guest, u64 len)
{
	u64 end = guest + len;

	return round_up(end, end < img->h.size ? qc_sub_size(img)
					       : img->h.cluster_size) - guest;
}

/** qc_slice_left() - bytes from @guest to the end of the L2 slice that maps it */
static inline u64 qc_slice_left(const struct qc_image *img, u64 guest)
{
	u64 span = 1ULL << img->slice_shift;

	return span - (guest & (span - 1));
}

/**
 * qc_kept_host() - the host cluster that a range not mapped to it has all the same,
 * or 0
 */
static inline u64 qc_kept_host(const struct qc_extent *ext)
{
	return ext->map == QC_MAP_ZERO || ext->map == QC_MAP_NONE ?
		ext->host : 0;
}

/**
 * qc_piece_bounds() - set @from and @to of a piece
 * @img: the image
 * @p: @pos, @len and @whole are set
 */
void qc_piece_bounds(const struct qc_image *img, struct qc_piece *p);

/**
 * qc_piece_map() - make the entries of a piece, now that all contents are there
 * @img: the image
 * @p: the piece; its range is locked
 * @run: its host clusters, unless @p->in_place
 *
 * Where that fails (the slice was dropped meanwhile and cannot be read again), what
 * no entry refers to is given back.
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_piece_map(struct qc_image *img, const struct qc_piece *p,
		 struct qc_run *run);

/**
 * qc_piece_write() - allocate, fill, map
 * @io: the io; its range is locked
 * @p: @pos, @len, @fill, @start, @clusters and @whole are set; @len may become
 *	shorter
 * @reserved: byte offset of the host cluster that the only one has already, or 0
 *
 * The entries change only when all the clusters' contents have been written.
 *
 * Context: may sleep.
 * Return: 0 or a negative error: -ENOSPC, -EAGAIN without memory to decompress.
 */
int qc_piece_write(struct qc_io *io, struct qc_piece *p, u64 reserved);

#endif /* DM_QCOW2_PIECE_H */
