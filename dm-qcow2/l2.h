/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The mapping of one image: guest offset -> L2 entry.
 *
 * An extended L2 entry has a second word, the bitmap of the cluster's subclusters;
 * words.h has how both are read and changed.
 *
 * The place of a subcluster in its host cluster is no other's.  One that is dropped
 * while others stay may be allocated again, and its place be written, before the
 * drop is durable and with I/O to it in flight.  After a crash, sectors of it read
 * as before the drop, or as after it: both are right until something is flushed, and
 * then the drop is durable.  Only the host cluster as a whole is freed, and that as
 * any other.
 *
 * The same holds for a whole cluster in an external data file, see image.h: it has
 * one place there, and nothing is freed.  Who looks it up meanwhile and who writes
 * it are beside each other, in whatever order.  Its entry names it by the flag
 * COPIED, as the offset may be 0 (spec, "Standard Cluster Descriptor").
 */
#ifndef DM_QCOW2_L2_H
#define DM_QCOW2_L2_H

#include <linux/types.h>

struct qc_image;

/**
 * enum qc_map - how a guest range is mapped
 * @QC_MAP_NONE: not in this image: see the layer below
 * @QC_MAP_ZERO: zeroes
 * @QC_MAP_DATA: on the data device at @host; shared with a snapshot or read only:
 *	must not be written in place
 * @QC_MAP_OWNED: on the data device at @host, this image's alone
 * @QC_MAP_PACKED: compressed, see unpack.h
 * @QC_MAP_MISS: unknown until qc_l2_load() has read the L2 table
 * @QC_MAP_BAD: invalid, see qc_l2_complain()
 */
enum qc_map {
	QC_MAP_NONE,
	QC_MAP_ZERO,
	QC_MAP_DATA,
	QC_MAP_OWNED,
	QC_MAP_PACKED,
	QC_MAP_MISS,
	QC_MAP_BAD,
};

/**
 * struct qc_extent - result of a lookup
 * @map: how the range is mapped
 * @safe: the mapping is durable
 * @beyond: zeroes because the device ends before the cluster does, or before it
 *	starts, which is allocated; they are none once the device is longer; of qc_l2_lookup() only
 * @host: byte offset on the device, for QC_MAP_DATA and QC_MAP_OWNED; for
 *	QC_MAP_ZERO and QC_MAP_NONE that of the host cluster kept for the first
 *	guest cluster if there is one and it is this image's alone, else 0; for
 *	QC_MAP_PACKED the offset in the decompressed cluster
 * @packed: for QC_MAP_PACKED the L2 entry
 * @len: bytes from the guest offset on that are mapped alike
 */
struct qc_extent {
	enum qc_map map;
	bool safe;
	bool beyond;
	u64 host;
	u64 packed;
	u64 len;
};

/* What an invalid entry becomes in memory; such a block is never written. */
#define QC_ENTRY_POISON		(~0ULL)

/**
 * qc_l2_lookup() - look up a guest range
 * @img: the image
 * @guest: byte offset, below the virtual size
 * @len: bytes wanted, at least 1
 * @ext: result; its length is 1 to @len
 *
 * Context: RCU read section; takes no lock, does not sleep.
 */
void qc_l2_lookup(struct qc_image *img, u64 guest, u64 len,
		  struct qc_extent *ext);

/**
 * qc_l2_passes() - is a guest range not in an image, for sure?
 * @img: the image
 * @guest: byte offset, below the virtual size
 * @len: bytes wanted, at least 1; less where it passes only those
 *
 * What qc_l2_lookup() says is QC_MAP_NONE, found in fewer steps where that is so
 * for a whole L2 table, or for a small range.  Chains are long, and most of their
 * layers have nothing for a range.
 *
 * Context: RCU read section; takes no lock, does not sleep.
 * Return: true, or false: look it up.
 */
bool qc_l2_passes(struct qc_image *img, u64 guest, u64 *len);

/**
 * qc_l2_load() - read the part of the L2 table that maps a guest offset
 * @img: the image
 * @guest: byte offset
 *
 * Checks all its entries, so that lookups need not.
 *
 * Context: may sleep; no lock of the image held but range locks.
 * Return: 0 or a negative error.
 */
int qc_l2_load(struct qc_image *img, u64 guest);

/**
 * qc_l2_find() - look up a guest range, and read what that takes
 * @img: the image
 * @guest: byte offset, below the virtual size
 * @len: bytes wanted, at least 1
 * @ext: result, as of qc_l2_lookup(), but neither a miss nor bad
 *
 * Context: may sleep; no lock of the image held but range locks or state_lock.
 * Return: 0 or a negative error; a bad entry is logged.
 */
int qc_l2_find(struct qc_image *img, u64 guest, u64 len, struct qc_extent *ext);

/**
 * qc_l2_move_begin() - a guest cluster that is owned gets another host cluster
 * @img: the image, writable
 * @guest: byte offset of the cluster, which is range locked
 *
 * Guests write in place without a range lock.  From now on nobody does so here:
 * lookups find QC_MAP_DATA instead of QC_MAP_OWNED.  When this returns, no such
 * write is in flight any more, and what the cluster has can be copied.
 *
 * Context: may sleep until all I/O to the image's host clusters has ended that is
 * in flight; qc_l2_move_end() is due.
 */
void qc_l2_move_begin(struct qc_image *img, u64 guest);

/** qc_l2_move_end() - the entry has changed, or stays as it was */
void qc_l2_move_end(struct qc_image *img);

/**
 * qc_l2_complain() - log why a guest offset is QC_MAP_BAD
 * @img: the image
 * @guest: byte offset
 *
 * Context: any but hard interrupt.
 */
void qc_l2_complain(struct qc_image *img, u64 guest);

/**
 * qc_l2_make_writable() - make sure that a guest offset has an L2 table of
 * the active image's own
 * @img: the image, writable
 * @guest: byte offset
 *
 * Allocates a table, or copies one shared with an internal snapshot.  The new
 * table's contents are written, not flushed, before the L1 entry changes in
 * memory; the commit flushes before it writes the L1 entry.
 *
 * Context: may sleep; no lock held but range locks.
 * Return: 0, -ENOSPC or another negative error.
 */
int qc_l2_make_writable(struct qc_image *img, u64 guest);

/**
 * qc_l2_writable() - has qc_l2_make_writable() nothing to do?
 * @img: the image, writable
 * @guest: byte offset
 *
 * Once so, it stays so as long as the image is active.
 *
 * Context: any, does not sleep.
 */
bool qc_l2_writable(struct qc_image *img, u64 guest);

/**
 * enum qc_l2_op - a change of L2 entries
 * @QC_L2_MAP: to data in host clusters that are this image's alone
 * @QC_L2_ZERO: reads as zeroes, host cluster freed
 * @QC_L2_ZERO_KEEP: reads as zeroes, host cluster kept where it is owned
 * @QC_L2_UNMAP: not in this image, host cluster freed
 *
 * With extended L2 a host cluster is freed when no subcluster is left in it.
 */
enum qc_l2_op {
	QC_L2_MAP,
	QC_L2_ZERO,
	QC_L2_ZERO_KEEP,
	QC_L2_UNMAP,
};

/**
 * qc_l2_set() - change L2 entries
 * @img: the image, writable; qc_l2_make_writable() was called
 * @guest: byte offset, aligned to clusters, with extended L2 to subclusters
 * @len: bytes, aligned likewise; all in the same L2 table block.  Compressed
 *	clusters change as a whole.
 * @op: what they become
 * @host: for QC_L2_MAP, byte offset of the host cluster of the first guest
 *	cluster; the others follow.  What is allocated then has been written
 *	there (need not be flushed).
 * @done: how many of the bytes have changed, whole clusters where that fails;
 *	may be NULL
 *
 * Clusters that lose their reference are freed once the change is durable, but not
 * those of an external data file.
 *
 * Context: may sleep; the guest clusters are range locked.
 * Return: 0 or a negative error: the entries from @done on are as they were.
 */
int qc_l2_set(struct qc_image *img, u64 guest, u64 len, enum qc_l2_op op,
	      u64 host, u64 *done);

/**
 * qc_l2_map_now() - as qc_l2_set() with QC_L2_MAP, where that need not wait
 * @img: the image, writable; qc_l2_make_writable() was called
 * @guest: as of qc_l2_set()
 * @len: as of qc_l2_set()
 * @host: as of qc_l2_set()
 *
 * Not where a host cluster is to be freed, or the slice is not in memory.
 *
 * Context: as qc_l2_set(); sleeps for short locks only.
 * Return: false where nothing was changed.
 */
bool qc_l2_map_now(struct qc_image *img, u64 guest, u64 len, u64 host);

#endif /* DM_QCOW2_L2_H */
