// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changes of an image's header on request, see edit.h.
 */
#include <linux/device-mapper.h>
#include <linux/slab.h>

#include "alloc.h"
#include "commit.h"
#include "edit.h"
#include "image.h"
#include "l2.h"
#include "zero.h"

/* Names of backing files are looked for this far into the first cluster. */
#define RELINK_BYTES	(64U << 10)

/* Backing links */

static int decode(struct qc_image *img, const void *buf, u32 len,
		  struct qcow2_header *h)
{
	struct qcow2_fault fault;

	if (!qcow2_header_decode(buf, len, h, &fault))
		return 0;
	qc_image_log_fault(img, &fault);
	return -EINVAL;
}

/* The name first, where nothing uses it yet; then the block that refers to it. */
static int write_link(struct qc_image *img, void *buf,
		      const struct qcow2_relink *link)
{
	u32 unit = bdev_logical_block_size(img->bdev);
	int err = 0;

	if (link->name_offset) {
		u32 first = round_down(link->name_offset, unit);
		u32 end = round_up(link->name_offset + link->name_len, unit);

		err = qc_image_rw(img, REQ_OP_WRITE, first, buf + first,
				  end - first);
		if (!err)
			err = blkdev_issue_flush(img->bdev);
	}
	if (!err)
		err = qc_image_rw(img, REQ_OP_WRITE, 0, buf, unit);
	return err ? err : blkdev_issue_flush(img->bdev);
}

static int relink(struct qc_image *img, void *buf, u32 len, const char *format,
		  const char *name)
{
	u32 unit = bdev_logical_block_size(img->bdev);
	struct qcow2_relink link = {};
	struct qcow2_fault fault;
	struct qcow2_header h;
	int err;

	err = qc_image_rw(img, REQ_OP_READ, 0, buf, len);
	if (!err)
		err = decode(img, buf, len, &h);
	if (err)
		return err;
	if (qcow2_relink(buf, len, &h, unit, name, strlen(name), format, &link,
			 &fault)) {
		DMERR("%pg: cannot change the backing file: %s at offset %llu is %llu: %s",
		      img->bdev, fault.field, fault.where, fault.value,
		      fault.why);
		return -ENOSPC;
	}
	return write_link(img, buf, &link);
}

int qc_edit_relink(struct qc_image *img, const char *format, const char *name)
{
	u32 unit = bdev_logical_block_size(img->bdev);
	u32 len = min(img->h.cluster_size, RELINK_BYTES);
	void *buf;
	int err;

	if (format && img->raw_data) {
		DMERR("%pg: its external data file is a raw image: no backing file",
		      img->bdev);
		return -EINVAL;
	}
	err = qc_commit_barrier(img);
	if (err)
		return err;
	len = round_down(min_t(u64, len, READ_ONCE(img->dev_bytes)), unit);
	buf = kmalloc(len, GFP_NOIO);
	if (!buf)
		return -ENOMEM;
	mutex_lock(&img->header_lock);
	err = relink(img, buf, len, format, format ? name : "");
	mutex_unlock(&img->header_lock);
	kfree(buf);
	return err;
}

/* Size */

static void edit_l1(struct qcow2_disk_header *d, const void *data)
{
	const struct qcow2_header *h = data;

	d->l1_table_offset = cpu_to_be64(h->l1_table_offset);
	d->l1_size = cpu_to_be32(h->l1_size);
}

static void edit_size(struct qcow2_disk_header *d, const void *data)
{
	const struct qcow2_header *h = data;

	d->size = cpu_to_be64(h->size);
}

static int edit_durably(struct qc_image *img, const struct qcow2_header *h,
			void (*edit)(struct qcow2_disk_header *d,
				     const void *data))
{
	int err = qc_image_edit_header(img, edit, h);

	return err ? err : blkdev_issue_flush(img->bdev);
}

/* The table at its new place: what it has, and zeroes. */
static int write_l1(struct qc_image *img, u64 host, u64 bytes)
{
	int err = qc_alloc_zero_host(img, host, bytes);
	struct qc_block *b;
	unsigned long key;

	xa_for_each(&img->tables[QC_L1], key, b) {
		if (err)
			return err;
		err = qc_image_rw(img, REQ_OP_WRITE,
				  host + (u64)key * img->block_bytes, b->data,
				  img->block_bytes);
	}
	return err;
}

/* In one section of meta_lock; readers find the same entries all the time. */
static void switch_l1(struct qc_image *img, const struct qcow2_header *h,
		      struct qc_free *rec)
{
	u64 start = img->h.l1_table_offset >> img->h.cluster_bits;
	u64 clusters = DIV_ROUND_UP_ULL((u64)img->h.l1_size * 8,
					img->h.cluster_size);
	u64 first = h->l1_table_offset >> h->cluster_bits;
	u64 count = DIV_ROUND_UP_ULL((u64)h->l1_size * 8, h->cluster_size);
	struct qc_block *b;
	unsigned long key;
	u64 i;

	mutex_lock(&img->meta_lock);
	xa_for_each(&img->tables[QC_L1], key, b)
		b->host = h->l1_table_offset + (u64)key * img->block_bytes;
	for (i = 0; i < count; i++)
		qc_metaset_add(&img->metaset, first + i);
	if (clusters)
		qc_free_add(img, rec, start, clusters);
	qc_free_end(img, rec);
	img->h.l1_table_offset = h->l1_table_offset;
	img->h.l1_size = h->l1_size;
	mutex_unlock(&img->meta_lock);
}

/*
 * A longer L1 table, elsewhere.  Its clusters are counted and it is written
 * before the header refers to it; the old one is freed afterwards, by a commit.
 */
static int move_l1(struct qc_image *img, u32 entries)
{
	struct qcow2_header h = img->h;
	u64 clusters, first;
	int err;

	clusters = DIV_ROUND_UP_ULL((u64)entries * 8, h.cluster_size);
	err = qc_alloc_area(img, clusters, &first);
	if (err)
		return err;
	h.l1_table_offset = first << h.cluster_bits;
	h.l1_size = entries;
	err = write_l1(img, h.l1_table_offset, clusters << h.cluster_bits);
	/* Refcounts and the table, before the header refers to it */
	if (!err)
		err = qc_commit_barrier(img);
	if (!err)
		err = edit_durably(img, &h, edit_l1);
	if (err)
		return err;
	switch_l1(img, &h, qc_free_begin(img));
	return 0;
}

int qc_edit_grow(struct qc_image *img, u64 bytes)
{
	u64 entries = qcow2_l1_entries(&img->h, bytes);
	int err = 0;

	if (bytes <= img->h.size)
		return 0;
	if (img->h.version < 3 && img->h.nb_snapshots) {
		DMERR("%pg: snapshots of version 2 have the size of the image: it cannot grow",
		      img->bdev);
		return -EOPNOTSUPP;
	}
	if (img->external)
		WRITE_ONCE(img->data_bytes, bdev_nr_bytes(img->data_bdev));
	if (img->external && bytes > img->data_bytes) {
		DMERR("%pg: the data device %pg is too short for an image of %llu bytes",
		      img->bdev, img->data_bdev, bytes);
		return -ENOSPC;
	}
	if (entries > QCOW2_MAX_L1_BYTES / 8) {
		DMERR("%pg: clusters of %u bytes are too small for an image of %llu bytes",
		      img->bdev, img->h.cluster_size, bytes);
		return -EFBIG;
	}
	if (entries > img->h.l1_size)
		err = move_l1(img, entries);
	if (err) {
		DMERR("%pg: cannot make the L1 table longer: %d", img->bdev,
		      err);
		return err;
	}
	img->disk_size = img->h.size;
	img->h.size = bytes;
	return 0;
}

int qc_edit_size(struct qc_image *img)
{
	int err = qc_commit_barrier(img);

	if (!err)
		err = edit_durably(img, &img->h, edit_size);
	if (!err)
		img->disk_size = 0;
	return err;
}

/* Nothing was shown of the last cluster's rest so far: anything may be there. */
static int zero_tail(struct qc_image *img, u64 old)
{
	u64 pos = round_up(old, SECTOR_SIZE);
	u64 end = min(round_up(pos, img->h.cluster_size),
		      round_up(img->h.size, SECTOR_SIZE));
	struct qc_extent ext;
	int err = 0;

	for (; pos < end && !err; pos += ext.len) {
		err = qc_l2_find(img, pos, end - pos, &ext);
		if (err || ext.map == QC_MAP_NONE || ext.map == QC_MAP_ZERO)
			continue;
		if (ext.map != QC_MAP_OWNED) {
			DMERR("%pg: cannot grow in use: the last cluster is packed or shared",
			      img->bdev);
			return -EOPNOTSUPP;
		}
		err = qc_device_zero(img->data_bdev, ext.host, ext.len, false);
	}
	return err;
}

/*
 * The table may have entries behind the end: the state of a virtual machine,
 * which is kept there (specification, "Snapshots"), after a snapshot that has one
 * was applied.  They would become contents of the disk.
 */
static int check_behind(struct qc_image *img, u64 old, u64 mapped)
{
	u64 end = min(mapped, img->h.size);
	u64 pos = round_up(old, img->h.cluster_size);
	struct qc_extent ext;
	int err = 0;

	for (; pos < end && !err; pos += ext.len) {
		err = qc_l2_find(img, pos, end - pos, &ext);
		if (err || ext.map == QC_MAP_NONE || ext.map == QC_MAP_ZERO)
			continue;
		DMERR("%pg: cannot grow in use: it has clusters behind its end (machine state?)",
		      img->bdev);
		return -EOPNOTSUPP;
	}
	return err;
}

/* It reads as zeroes in the image, and has to do so in the data file by itself. */
static int zero_raw_data(struct qc_image *img, u64 old)
{
	u64 start = round_up(old, SECTOR_SIZE);
	u64 end = round_up(img->h.size, SECTOR_SIZE);

	if (!bdev_write_zeroes_sectors(img->data_bdev)) {
		DMERR("%pg: cannot grow in use: the data device %pg has no fast zeroes",
		      img->bdev, img->data_bdev);
		return -EOPNOTSUPP;
	}
	return qc_device_zero(img->data_bdev, start, end - start, true);
}

int qc_edit_extend(struct qc_image *img, u64 bytes, u64 below)
{
	u64 mapped = (u64)img->h.l1_size << (img->h.l2_bits +
					     img->h.cluster_bits);
	u64 old = img->h.size;
	int err;

	if (bytes <= old)
		return 0;
	if (below > round_up(old, SECTOR_SIZE)) {
		DMERR("%pg: cannot grow in use: the layer below is longer",
		      img->bdev);
		return -EOPNOTSUPP;
	}
	err = qc_edit_grow(img, bytes);
	if (!err)
		err = check_behind(img, old, mapped);
	if (!err)
		err = img->raw_data ? zero_raw_data(img, old) :
			zero_tail(img, old);
	/* Flushes first */
	return err ? err : qc_edit_size(img);
}

/* Retiring an image whose contents another one has */

int qc_edit_retire_prepare(struct qc_image *img, struct qc_area *area)
{
	u64 bytes = (u64)img->h.l1_size * 8;
	int err;

	if (img->h.nb_snapshots) {
		DMERR("%pg: internal snapshots need the backing file as it was",
		      img->bdev);
		return -EOPNOTSUPP;
	}
	area->count = DIV_ROUND_UP_ULL(bytes, img->h.cluster_size);
	if (!area->count)
		return 0;
	err = qc_alloc_area(img, area->count, &area->start);
	if (err) {
		area->count = 0;
		return err;
	}
	err = qc_alloc_zero_host(img, area->start << img->h.cluster_bits,
				 area->count << img->h.cluster_bits);
	/* Refcounts and zeroes, before the header refers to them */
	if (!err)
		err = qc_commit_barrier(img);
	if (err)
		qc_edit_retire_undo(img, area);
	return err;
}

void qc_edit_retire_undo(struct qc_image *img, struct qc_area *area)
{
	struct qc_run run = { .start = area->start, .count = area->count };

	if (area->count && qc_image_writable(img))
		qc_alloc_undo(img, &run);
	area->count = 0;
}

int qc_edit_retire(struct qc_image *img, const struct qc_area *area)
{
	struct qcow2_header h = img->h;

	if (!area->count)
		return 0;
	h.l1_table_offset = area->start << h.cluster_bits;
	return edit_durably(img, &h, edit_l1);
}
