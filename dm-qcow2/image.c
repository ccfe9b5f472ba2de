// SPDX-License-Identifier: GPL-2.0-only
/*
 * One open qcow2 image, see image.h.
 */
#include <linux/device-mapper.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "alloc.h"
#include "bitmaps.h"
#include "commit.h"
#include "edit.h"
#include "image.h"
#include "snapshot.h"
#include "unpack.h"

/* Headers, with the feature name table, are read as far as this. */
#define HEADER_READ_BYTES	4096U
/* Copies of blocks for when memory is gone: a commit's, and a table's that moves */
#define WB_RESERVE		2

/* The list of images and their users. */
DEFINE_MUTEX(qc_images_lock);
LIST_HEAD(qc_images);

int qc_image_rw(struct qc_image *img, blk_opf_t op, u64 host, void *buf,
		u32 len)
{
	struct bio_vec vec;
	struct bio bio;
	int err;

	if (host + len > READ_ONCE(img->dev_bytes) || host + len < host)
		return -EIO;
	bio_init(&bio, img->bdev, &vec, 1, op | REQ_META);
	bio.bi_iter.bi_sector = host >> SECTOR_SHIFT;
	__bio_add_page(&bio, virt_to_page(buf), len, offset_in_page(buf));
	err = submit_bio_wait(&bio);
	bio_uninit(&bio);
	return err;
}

/* The part of [host, host + len) that lies in the sectors-aligned block read. */
static int read_block(struct qc_image *img, u64 block, void *bounce)
{
	u64 end = img->dev_bytes;
	u32 len = QC_BLOCK_MAX_BYTES;

	memset(bounce, 0, len);
	if (block >= end)
		return 0;
	return qc_image_rw(img, REQ_OP_READ, block, bounce,
			   min_t(u64, len, end - block));
}

int qc_image_read_bytes(struct qc_image *img, u64 host, void *buf, u32 len)
{
	void *bounce = kmalloc(QC_BLOCK_MAX_BYTES, GFP_NOIO);
	int err = 0;

	if (!bounce)
		return -ENOMEM;
	while (len && !err) {
		u32 skip = host & (QC_BLOCK_MAX_BYTES - 1);
		u32 n = min(len, QC_BLOCK_MAX_BYTES - skip);

		err = read_block(img, host - skip, bounce);
		memcpy(buf, bounce + skip, n);
		buf += n;
		host += n;
		len -= n;
	}
	kfree(bounce);
	return err;
}

/* Read, change and write back one aligned unit; @len bytes lie within it. */
int qc_image_write_bytes(struct qc_image *img, u64 host, const void *buf,
			 u32 len)
{
	u32 unit = bdev_logical_block_size(img->bdev);
	u32 skip = host & (unit - 1);
	void *bounce = mempool_alloc(img->wb_pool, GFP_NOIO);
	int err;

	err = qc_image_rw(img, REQ_OP_READ, host - skip, bounce, unit);
	if (!err) {
		memcpy(bounce + skip, buf, len);
		err = qc_image_rw(img, REQ_OP_WRITE, host - skip, bounce, unit);
	}
	mempool_free(bounce, img->wb_pool);
	return err;
}

int qc_image_edit_header(struct qc_image *img,
			 void (*edit)(struct qcow2_disk_header *d,
				      const void *data),
			 const void *data)
{
	u32 unit = bdev_logical_block_size(img->bdev);
	struct qcow2_disk_header *d = mempool_alloc(img->wb_pool, GFP_NOIO);
	int err;

	mutex_lock(&img->header_lock);
	err = qc_image_rw(img, REQ_OP_READ, 0, d, unit);
	if (!err) {
		edit(d, data);
		err = qc_image_rw(img, REQ_OP_WRITE, 0, d, unit);
	}
	mutex_unlock(&img->header_lock);
	mempool_free(d, img->wb_pool);
	return err;
}

static void edit_owned(struct qcow2_disk_header *d, const void *data)
{
	const struct qcow2_header *h = data;

	d->refcount_table_offset = cpu_to_be64(h->refcount_table_offset);
	d->refcount_table_clusters = cpu_to_be32(h->refcount_table_clusters);
	if (h->version >= 3)
		d->autoclear_features = cpu_to_be64(h->autoclear);
}

int qc_image_write_header(struct qc_image *img, const struct qcow2_header *h)
{
	return qc_image_edit_header(img, edit_owned, h);
}

/*
 * Nothing else of the header changes: a refcount table that has moved in memory
 * may not have been written yet.
 */
static void edit_corrupt(struct qcow2_disk_header *d, const void *data)
{
	d->incompatible_features |= cpu_to_be64(QCOW2_INCOMPAT_CORRUPT);
}

static int write_corrupt_bit(struct qc_image *img)
{
	int err = qc_image_edit_header(img, edit_corrupt, NULL);

	return err ? err : blkdev_issue_flush(img->bdev);
}

void qc_image_event(struct qc_image *img)
{
	mutex_lock(&img->event_lock);
	if (img->writer)
		dm_table_event(img->writer->ti->table);
	mutex_unlock(&img->event_lock);
}

void qc_image_fail(struct qc_image *img, const char *reason,
		   const char *fmt, ...)
{
	struct va_format vaf;
	va_list args;
	bool first;

	mutex_lock(&img->meta_lock);
	first = qc_image_writable(img);
	if (first) {
		img->reason = reason;
		WRITE_ONCE(img->mode, QC_FAILED);
	}
	mutex_unlock(&img->meta_lock);
	va_start(args, fmt);
	vaf.fmt = fmt;
	vaf.va = &args;
	if (first)
		DMERR("%pg: %pV; the image is read-only now", img->bdev, &vaf);
	else
		DMERR_LIMIT("%pg: %pV", img->bdev, &vaf);
	va_end(args);
	if (!first)
		return;
	/* Requests that wait for a commit, for space, for memory: end them. */
	qc_commit_kick(img);
	wake_up_all(&img->commit_wait);
	qc_image_event(img);
}

void qc_image_corrupt(struct qc_image *img, const char *fmt, ...)
{
	bool writing = qc_image_writable(img);
	struct va_format vaf;
	va_list args;

	va_start(args, fmt);
	vaf.fmt = fmt;
	vaf.va = &args;
	qc_image_fail(img, "corrupt_metadata", "%pV", &vaf);
	va_end(args);
	if (!writing || img->h.version < 3)
		return;
	if (write_corrupt_bit(img))
		DMERR("%pg: cannot set the corrupt bit in the header",
		      img->bdev);
}

void qc_image_set_mode(struct qc_image *img, enum qc_mode mode)
{
	bool changed;

	mutex_lock(&img->meta_lock);
	changed = qc_image_writable(img) && img->mode != mode;
	if (changed)
		WRITE_ONCE(img->mode, mode);
	mutex_unlock(&img->meta_lock);
	if (!changed)
		return;
	if (mode == QC_NO_SPACE)
		DMWARN("%pg: no free cluster left on the device", img->bdev);
	else
		DMINFO("%pg: there are free clusters again", img->bdev);
	qc_image_event(img);
}

int qc_image_flush_all(struct qc_image *img)
{
	int err = 0;

	if (img->external)
		err = blkdev_issue_flush(img->data_bdev);
	return err ? err : blkdev_issue_flush(img->bdev);
}

/* What the image can use of its device; dm-crypt may have less of it. */
static u64 image_bytes(const struct qc_image *img, bool external)
{
	u64 bytes = bdev_nr_bytes(img->bdev);

	return external ? bytes :
		min_t(u64, bytes, bdev_nr_bytes(img->data_bdev));
}

bool qc_image_refresh_size(struct qc_image *img)
{
	u64 bytes = image_bytes(img, img->external);

	if (bytes <= img->dev_bytes)
		return false;
	WRITE_ONCE(img->dev_bytes, bytes);
	if (!img->external)
		WRITE_ONCE(img->data_bytes, bytes);
	return true;
}

void qc_image_log_fault(struct qc_image *img, const struct qcow2_fault *fault)
{
	DMERR("%pg: %s at offset %llu is %llu: %s", img->bdev, fault->field,
	      fault->where, fault->value, fault->why);
}

/* Name of an incompatible feature that we do not know, from the image. */
static void log_unknown_feature(struct qc_image *img, const void *buf, u32 len,
				const struct qcow2_header *h, int bit)
{
	u32 offset = h->header_length;
	struct qcow2_fault fault;
	struct qcow2_ext ext;

	while (qcow2_ext_next(buf, len, offset, h, &ext, &fault) == 1) {
		const u8 *entry = buf + ext.data_offset;
		u32 left;

		offset = ext.next_offset;
		if (ext.type != QCOW2_EXT_FEATURE_TABLE)
			continue;
		/* 48 bytes: type (0: incompatible), bit, name */
		for (left = ext.len; left >= 48; left -= 48, entry += 48) {
			if (entry[0] || entry[1] != bit)
				continue;
			DMERR("%pg: incompatible feature \"%.*s\" (bit %d): not supported",
			      img->bdev, 46, entry + 2, bit);
			return;
		}
	}
	DMERR("%pg: unknown incompatible feature bit %d: not supported",
	      img->bdev, bit);
}

static int check_features(struct qc_image *img, const void *buf, u32 len,
			  const struct qcow2_header *h)
{
	u64 refused = h->incompatible & ~QCOW2_INCOMPAT_KNOWN;

	if (h->crypt_method == QCOW2_CRYPT_AES) {
		DMERR("%pg: legacy AES: not supported, its IVs can be predicted; convert to LUKS",
		      img->bdev);
		return -EOPNOTSUPP;
	}
	if (!refused)
		return 0;
	log_unknown_feature(img, buf, len, h, __ffs64(refused));
	return -EOPNOTSUPP;
}

/* Is there a device for the guest data if, and only if, the header asks for it? */
static int check_data_device(struct qc_image *img,
			     const struct qcow2_header *h)
{
	bool given = img->data_bdev != img->bdev;
	u64 bytes = bdev_nr_bytes(img->data_bdev);

	if (given && !qcow2_external(h) && !h->crypt_method) {
		DMERR("%pg: keeps the guest data itself: its data device must be -",
		      img->bdev);
		return -EINVAL;
	}
	if (!given && qcow2_external(h)) {
		DMERR("%pg: its data is in an external data file: give the device of that",
		      img->bdev);
		return -EINVAL;
	}
	if (!given && h->crypt_method) {
		DMERR("%pg: LUKS encryption: give a dm-crypt device over this one as data device",
		      img->bdev);
		return -EINVAL;
	}
	if (!qcow2_external(h))
		return 0;
	if (bytes < round_up(h->size, SECTOR_SIZE)) {
		DMERR("%pg: the data device %pg has %llu bytes, fewer than the image (%llu)",
		      img->bdev, img->data_bdev, bytes, h->size);
		return -EINVAL;
	}
	if (img->snapshot) {
		DMERR("%pg: an external data file has no snapshots", img->bdev);
		return -EINVAL;
	}
	return 0;
}

/* Clusters are written in pieces of logical blocks of both devices. */
static int check_clusters(struct qc_image *img, const struct qcow2_header *h)
{
	u32 unit = max(bdev_logical_block_size(img->bdev),
		       bdev_logical_block_size(img->data_bdev));

	if (1U << h->sub_bits >= unit)
		return 0;
	DMERR("%pg: %sclusters of %u bytes are smaller than logical blocks (%u)",
	      img->bdev, h->l2_entry_bytes == 16 ? "sub" : "", 1U << h->sub_bits,
	      unit);
	return -EINVAL;
}

/* Read and check the header.  Returns 0 or a negative error, logged. */
static int read_header(struct qc_image *img, struct qcow2_header *h)
{
	struct qcow2_fault fault;
	void *buf = kmalloc(HEADER_READ_BYTES, GFP_KERNEL);
	int err;

	if (!buf)
		return -ENOMEM;
	img->dev_bytes = bdev_nr_bytes(img->bdev);
	err = qc_image_read_bytes(img, 0, buf, HEADER_READ_BYTES);
	if (err) {
		DMERR("%pg: cannot read the header: %d", img->bdev, err);
	} else if (qcow2_header_decode(buf, HEADER_READ_BYTES, h, &fault) ||
		   qcow2_header_check_bounds(h, img->dev_bytes, &fault)) {
		qc_image_log_fault(img, &fault);
		err = -EINVAL;
	} else {
		err = check_features(img, buf, HEADER_READ_BYTES, h);
	}
	kfree(buf);
	if (!err)
		err = check_data_device(img, h);
	if (!err)
		err = check_clusters(img, h);
	if (err)
		return err;
	img->dev_bytes = image_bytes(img, qcow2_external(h));
	img->data_bytes = qcow2_external(h) ? bdev_nr_bytes(img->data_bdev) :
		img->dev_bytes;
	return img->snapshot ? qc_snapshot_apply(img, h, img->snapshot) : 0;
}

static void set_geometry(struct qc_image *img, const struct qcow2_header *h)
{
	img->h = *h;
	img->external = qcow2_external(h);
	img->raw_data = qcow2_raw_data(h);
	img->block_bytes = min_t(u32, h->cluster_size, QC_BLOCK_MAX_BYTES);
	img->block_entry_bits = ilog2(img->block_bytes) - 3;
	img->block_ref_bits = ilog2(img->block_bytes) + 3 - h->refcount_order;
	/* Of 8 or 16 bytes each */
	img->slice_bits = ilog2(img->block_bytes / h->l2_entry_bytes);
	img->slice_shift = img->slice_bits + h->cluster_bits;
	img->table_shift = h->l2_bits + h->cluster_bits;
}

static void epoch_release(struct percpu_ref *ref)
{
	complete(&container_of(ref, struct qc_epoch, ref)->drained);
}

static int epoch_init(struct qc_image *img)
{
	int i, err;

	for (i = 0; i < ARRAY_SIZE(img->epochs); i++) {
		init_completion(&img->epochs[i].drained);
		err = percpu_ref_init(&img->epochs[i].ref, epoch_release,
				      PERCPU_REF_ALLOW_REINIT, GFP_KERNEL);
		if (err)
			return err;
	}
	return 0;
}

static void epoch_exit(struct qc_image *img)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(img->epochs); i++)
		percpu_ref_exit(&img->epochs[i].ref);
}

void qc_epoch_drain(struct qc_image *img)
{
	struct qc_epoch *old;

	mutex_lock(&img->drain_lock);
	/* Lookups that saw the old mapping have entered the present epoch. */
	synchronize_rcu();
	old = &img->epochs[img->epoch_now];
	reinit_completion(&old->drained);
	WRITE_ONCE(img->epoch_now, !img->epoch_now);
	percpu_ref_kill(&old->ref);
	wait_for_completion_io(&old->drained);
	percpu_ref_reinit(&old->ref);
	mutex_unlock(&img->drain_lock);
}

static void image_init(struct qc_image *img, struct block_device *bdev,
		       struct block_device *data)
{
	int i;

	img->bdev = bdev;
	img->data_bdev = data;
	img->dev = bdev->bd_dev;
	img->mode = QC_RO;
	mutex_init(&img->state_lock);
	mutex_init(&img->event_lock);
	mutex_init(&img->header_lock);
	mutex_init(&img->meta_lock);
	mutex_init(&img->l2_lock);
	mutex_init(&img->move_lock);
	mutex_init(&img->drain_lock);
	img->moving = U64_MAX;
	mutex_init(&img->alloc_lock);
	for (i = 0; i < QC_LOAD_LOCKS; i++)
		mutex_init(&img->load_lock[i]);
	for (i = 0; i < QC_NR_TABLES; i++) {
		xa_init(&img->tables[i]);
		INIT_LIST_HEAD(&img->dirty[i]);
	}
	INIT_LIST_HEAD(&img->lru);
	INIT_LIST_HEAD(&img->frees);
	INIT_LIST_HEAD(&img->reapable);
	INIT_LIST_HEAD(&img->ranges);
	spin_lock_init(&img->wait_lock);
	spin_lock_init(&img->range_lock);
	bio_list_init(&img->wait_bios);
	init_waitqueue_head(&img->commit_wait);
	INIT_DELAYED_WORK(&img->commit_work, qc_commit_work);
	INIT_WORK(&img->reap_work, qc_alloc_reap);
}

/* Forget all that was read: another geometry or contents may follow. */
static void drop_cached(struct qc_image *img)
{
	qc_unpack_drop(img);
	qc_block_drop_all(img);
}

static void image_free(struct qc_image *img)
{
	if (img->wq) {
		cancel_delayed_work_sync(&img->commit_work);
		destroy_workqueue(img->wq);
	}
	if (img->reap_wq)
		destroy_workqueue(img->reap_wq);
	drop_cached(img);
	qc_metaset_clear(&img->metaset);
	mempool_destroy(img->wb_pool);
	mempool_destroy(img->free_pool);
	mempool_destroy(img->bio_pool);
	epoch_exit(img);
	kfree(img->snapshot);
	kfree(img);
}

static bool same_view(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

static struct qc_image *image_find(dev_t dev, const char *snapshot)
{
	struct qc_image *img;

	list_for_each_entry(img, &qc_images, node)
		if (img->dev == dev && same_view(img->snapshot, snapshot))
			return img;
	return NULL;
}

static struct qc_image *image_new(struct block_device *bdev,
				  struct block_device *data,
				  const char *snapshot)
{
	struct qc_image *img = kzalloc(sizeof(*img), GFP_KERNEL);

	if (!img)
		return ERR_PTR(-ENOMEM);
	image_init(img, bdev, data);
	if (snapshot)
		img->snapshot = kstrdup(snapshot, GFP_KERNEL);
	if ((snapshot && !img->snapshot) || epoch_init(img)) {
		image_free(img);
		return ERR_PTR(-ENOMEM);
	}
	return img;
}

/* One image has one place for its data, whoever looks at it. */
static bool other_data(struct block_device *bdev, struct block_device *data)
{
	struct qc_image *img;

	list_for_each_entry(img, &qc_images, node) {
		if (img->dev != bdev->bd_dev || img->data_bdev == data)
			continue;
		DMERR("%pg: in use with another data device, %pg", bdev,
		      img->data_bdev);
		return true;
	}
	return false;
}

/* Find or make the object; it is counted, and its header not read yet. */
static struct qc_image *image_ref(struct block_device *bdev,
				  struct block_device *data,
				  const char *snapshot)
{
	struct qc_image *img;

	mutex_lock(&qc_images_lock);
	img = image_find(bdev->bd_dev, snapshot);
	if (other_data(bdev, data)) {
		img = ERR_PTR(-EBUSY);
	} else if (!img) {
		img = image_new(bdev, data, snapshot);
		if (!IS_ERR(img))
			list_add(&img->node, &qc_images);
	}
	if (!IS_ERR(img))
		img->users++;
	mutex_unlock(&qc_images_lock);
	return img;
}

u64 qc_image_bytes(struct qc_image *img, const struct qc_writer *writer)
{
	u64 bytes;

	mutex_lock(&img->state_lock);
	bytes = img->disk_size && (!writer || img->writer != writer) ?
		img->disk_size : img->h.size;
	mutex_unlock(&img->state_lock);
	return bytes;
}

static int image_read_geometry(struct qc_image *img)
{
	struct qcow2_header h;
	int err = 0;

	mutex_lock(&img->state_lock);
	if (!img->active) {
		err = read_header(img, &h);
		/* Blocks of the old geometry would have another size. */
		if (!err) {
			drop_cached(img);
			set_geometry(img, &h);
		}
	}
	mutex_unlock(&img->state_lock);
	return err;
}

static struct qc_image *image_get(struct block_device *bdev,
				  struct block_device *data,
				  const char *snapshot)
{
	struct qc_image *img;
	int err;

	if (bdev_logical_block_size(bdev) > QC_BLOCK_MAX_BYTES ||
	    bdev_logical_block_size(data) > QC_BLOCK_MAX_BYTES) {
		DMERR("%pg, %pg: logical blocks larger than 4096 bytes", bdev,
		      data);
		return ERR_PTR(-EINVAL);
	}
	img = image_ref(bdev, data, snapshot);
	if (IS_ERR(img))
		return img;
	err = image_read_geometry(img);
	if (!err)
		return img;
	qc_image_put(img);
	return ERR_PTR(err);
}

struct qc_image *qc_image_get(struct block_device *bdev,
			      struct block_device *data, const char *snapshot,
			      char **error)
{
	/* Reclaim must not wait for a device whose resume waits for us. */
	unsigned int noio = memalloc_noio_save();
	struct qc_image *img = image_get(bdev, data ?: bdev, snapshot);

	memalloc_noio_restore(noio);
	if (IS_ERR(img))
		*error = "Cannot use an image (the line before says which and why)";
	return img;
}

void qc_image_put(struct qc_image *img)
{
	mutex_lock(&qc_images_lock);
	if (--img->users) {
		mutex_unlock(&qc_images_lock);
		return;
	}
	list_del(&img->node);
	mutex_unlock(&qc_images_lock);
	image_free(img);
}

static int load_l1(struct qc_image *img)
{
	u64 bytes = (u64)img->h.l1_size * 8;
	u64 pos;

	for (pos = 0; pos < bytes; pos += img->block_bytes) {
		u32 len = min_t(u64, bytes - pos, img->block_bytes);
		u64 host = img->h.l1_table_offset + pos;
		struct qc_block *b = qc_block_new(img, QC_L1,
						  pos / img->block_bytes, host);
		int err;

		memset(b->data, 0, img->block_bytes);
		err = qc_image_read_bytes(img, host, b->data, len);
		if (err) {
			DMERR("%pg: cannot read the L1 table at %llu: %d",
			      img->bdev, host, err);
			qc_block_free(b);
			return err;
		}
		/* Huge images are sparse: see enum qc_table. */
		if (pos && !memchr_inv(b->data, 0, img->block_bytes)) {
			qc_block_free(b);
			continue;
		}
		mutex_lock(&img->meta_lock);
		qc_block_insert(b);
		mutex_unlock(&img->meta_lock);
	}
	return 0;
}

/* Blocks only a writer needs; stale as soon as it stops. */
static void drop_refcounts(struct qc_image *img)
{
	static const enum qc_table tables[] = { QC_RT, QC_RB };
	struct qc_block *b;
	unsigned long key;
	int i;

	mutex_lock(&img->meta_lock);
	for (i = 0; i < ARRAY_SIZE(tables); i++)
		xa_for_each(&img->tables[tables[i]], key, b)
			qc_block_drop(b);
	qc_metaset_clear(&img->metaset);
	mutex_unlock(&img->meta_lock);
}

/* Read all anew: tools may have edited the image while no target was active. */
static int image_load(struct qc_image *img)
{
	struct qcow2_header h;
	int err;

	drop_refcounts(img);
	drop_cached(img);
	img->mode = QC_RO;
	img->header_dirty = false;
	err = read_header(img, &h);
	if (err)
		return err;
	set_geometry(img, &h);
	return load_l1(img);
}

/*
 * Slices read before were not checked against the metadata that a writer knows
 * of.  Without them a lookup misses, and they are read and checked again.
 */
static void drop_slices(struct qc_image *img)
{
	struct qc_block *b;
	unsigned long key;

	mutex_lock(&img->meta_lock);
	xa_for_each(&img->tables[QC_L2], key, b)
		qc_block_drop(b);
	mutex_unlock(&img->meta_lock);
}

static int writer_resources(struct qc_image *img)
{
	if (img->wq)
		return 0;
	if (!img->wb_pool)
		img->wb_pool = mempool_create_kmalloc_pool(WB_RESERVE,
							   QC_BLOCK_MAX_BYTES);
	if (!img->free_pool)
		img->free_pool =
			mempool_create_kmalloc_pool(4, sizeof(struct qc_free));
	if (!img->bio_pool)
		img->bio_pool = qc_commit_bio_pool();
	if (!img->wb_pool || !img->free_pool || !img->bio_pool)
		return -ENOMEM;
	if (!img->reap_wq)
		img->reap_wq = alloc_workqueue("qcow2-reap/%pg",
					       WQ_MEM_RECLAIM | WQ_UNBOUND, 1,
					       img->bdev);
	if (!img->reap_wq)
		return -ENOMEM;
	img->wq = alloc_workqueue("qcow2-commit/%pg",
				  WQ_MEM_RECLAIM | WQ_UNBOUND, 1, img->bdev);
	return img->wq ? 0 : -ENOMEM;
}

static int check_writable(struct qc_image *img)
{
	if (img->snapshot) {
		DMERR("%pg: an internal snapshot is read-only", img->bdev);
		return -EROFS;
	}
	if (bdev_read_only(img->bdev)) {
		DMERR("%pg: the device is read-only", img->bdev);
		return -EROFS;
	}
	if (bdev_read_only(img->data_bdev)) {
		DMERR("%pg: the data device %pg is read-only", img->bdev,
		      img->data_bdev);
		return -EROFS;
	}
	if (img->external && img->h.nb_snapshots) {
		DMERR("%pg: internal snapshots and an external data file: not fit for writing",
		      img->bdev);
		return -EROFS;
	}
	if (img->raw_data && img->h.backing_file_offset) {
		DMERR("%pg: a backing file and a raw external data file: not fit for writing",
		      img->bdev);
		return -EROFS;
	}
	if (img->h.incompatible & QCOW2_INCOMPAT_DIRTY) {
		DMERR("%pg: the dirty bit is set: not fit for writing; run qemu-img check -r all",
		      img->bdev);
		return -EROFS;
	}
	if (img->h.incompatible & QCOW2_INCOMPAT_CORRUPT) {
		DMERR("%pg: the corrupt bit is set: not fit for writing; run qemu-img check -r all",
		      img->bdev);
		return -EROFS;
	}
	return 0;
}

/*
 * Clear the autoclear bits that we do not maintain.  Bitmaps are marked in use
 * instead: without the bit nobody would know of their clusters.
 */
static int clear_autoclear(struct qc_image *img)
{
	u64 kept = img->h.autoclear & QCOW2_AUTOCLEAR_BITMAPS;
	struct qcow2_header h = img->h;
	int err = 0;

	if (img->raw_data)
		kept |= QCOW2_AUTOCLEAR_DATA_FILE_RAW;
	if (!img->h.autoclear)
		return 0;
	if (kept & QCOW2_AUTOCLEAR_BITMAPS)
		err = qc_bitmaps_mark_in_use(img);
	if (err)
		return err;
	h.autoclear = kept;
	if (kept != img->h.autoclear)
		err = qc_image_write_header(img, &h);
	if (!err)
		err = blkdev_issue_flush(img->bdev);
	/* Where it failed the next writer tries again. */
	if (!err)
		img->h.autoclear = kept;
	return err;
}

static void set_writer(struct qc_image *img, struct qc_writer *writer)
{
	mutex_lock(&img->event_lock);
	img->writer = writer;
	mutex_unlock(&img->event_lock);
}

static void free_records(struct qc_image *img)
{
	struct qc_free *rec, *next;

	mutex_lock(&img->meta_lock);
	list_splice_init(&img->reapable, &img->frees);
	list_for_each_entry_safe(rec, next, &img->frees, node) {
		list_del(&rec->node);
		mempool_free(rec, img->free_pool);
	}
	img->nr_frees = 0;
	mutex_unlock(&img->meta_lock);
}

static void stop_writing(struct qc_image *img)
{
	qc_commit_sync(img);
	set_writer(img, NULL);
	/* Only a failed image has any left; its clusters leak. */
	free_records(img);
	if (img->mode != QC_FAILED) {
		img->mode = QC_RO;
		drop_refcounts(img);
	}
	/* The header has the old one still; readers may stay. */
	if (img->disk_size)
		img->h.size = img->disk_size;
	img->disk_size = 0;
}

/*
 * Does the L1 table in memory differ from the image's?  1 if it does.  The header
 * alone does not tell: who deletes a snapshot and makes another one may get the
 * same clusters for the snapshot table again, but other COPIED flags.
 */
static int l1_edited(struct qc_image *img)
{
	u64 bytes = (u64)img->h.l1_size * 8;
	void *buf = kmalloc(QC_BLOCK_MAX_BYTES, GFP_KERNEL);
	int ret = 0;
	u64 pos;

	if (!buf)
		return -ENOMEM;
	for (pos = 0; pos < bytes && !ret; pos += img->block_bytes) {
		u32 len = min_t(u64, bytes - pos, img->block_bytes);
		struct qc_block *b = xa_load(&img->tables[QC_L1],
					     pos / img->block_bytes);

		ret = qc_image_read_bytes(img, img->h.l1_table_offset + pos, buf,
					  len);
		if (!ret && (b ? !!memcmp(b->data, buf, len) :
			     !!memchr_inv(buf, 0, len)))
			ret = 1;
	}
	kfree(buf);
	return ret;
}

static bool header_edited(const struct qc_image *img,
			  const struct qcow2_header *h)
{
	return h->size != img->h.size || h->l1_size != img->h.l1_size ||
		h->l1_table_offset != img->h.l1_table_offset ||
		h->refcount_table_offset != img->h.refcount_table_offset ||
		h->nb_snapshots != img->h.nb_snapshots ||
		h->snapshots_offset != img->h.snapshots_offset ||
		h->incompatible != img->h.incompatible ||
		h->autoclear != img->h.autoclear;
}

/*
 * While nobody wrote it, tools may have edited the image.  What is in memory then
 * is that of readers, for whom nothing is read anew: their L1 table would be
 * written as if it were still the image's, and bitmaps made meanwhile would not
 * be marked as in use.
 */
static int check_unedited(struct qc_image *img)
{
	struct qcow2_header h;
	int ret;

	if (!img->active)
		return 0;
	ret = read_header(img, &h);
	if (!ret)
		ret = header_edited(img, &h) ? 1 : l1_edited(img);
	if (ret <= 0)
		return ret;
	DMERR("%pg: edited while another device reads it: suspend that one first",
	      img->bdev);
	return -EBUSY;
}

static int start_writing(struct qc_image *img, struct qc_writer *writer)
{
	int err = check_writable(img);

	if (!err && img->mode == QC_FAILED) {
		DMERR("%pg: failed, and still in use by another device",
		      img->bdev);
		err = -EBUSY;
	}
	if (!err)
		err = check_unedited(img);
	if (!err)
		err = writer_resources(img);
	if (!err)
		err = qc_alloc_open(img);
	if (!err)
		err = clear_autoclear(img);
	if (err) {
		drop_refcounts(img);
		return err;
	}
	set_writer(img, writer);
	/*
	 * Of the object's first writer only: clusters that were written and
	 * freed since may lie behind the last one in use.
	 */
	img->zero_from = img->zero_from_spent ? U64_MAX : writer->zero_from;
	img->zero_from_spent = true;
	img->no_discard = writer->no_discard;
	img->reason = NULL;
	img->nr_commits = 0;
	img->nr_allocated = 0;
	atomic64_set(&img->nr_cow, 0);
	WRITE_ONCE(img->mode, QC_RW);
	/* Then: what a reader finds wrong from here on fails the image. */
	drop_slices(img);
	return 0;
}

/*
 * The present writer gives way.  What it was given is durable before the new
 * one begins: its guests may have been told so about another image.
 */
static int take_over(struct qc_image *img, struct qc_writer *writer)
{
	int err;

	if (!img->writer->yields) {
		DMERR("%pg: the image is written by another device already",
		      img->bdev);
		return -EBUSY;
	}
	img->writer->revoke(img->writer);
	err = qc_commit_barrier(img);
	if (err) {
		DMERR("%pg: cannot take the image over: %d", img->bdev, err);
		return err;
	}
	set_writer(img, writer);
	img->no_discard = writer->no_discard;
	return 0;
}

static int begin_writing(struct qc_image *img, struct qc_writer *writer)
{
	int err;

	if (img->writer)
		return take_over(img, writer);
	err = start_writing(img, writer);
	if (err || !writer->grow_to)
		return err;
	err = writer->extend ?
		qc_edit_extend(img, writer->grow_to, writer->below) :
		qc_edit_grow(img, writer->grow_to);
	if (err)
		stop_writing(img);
	return err;
}

int qc_image_activate(struct qc_image *img, struct qc_writer *writer)
{
	unsigned int noio = memalloc_noio_save();
	int err = 0;

	mutex_lock(&img->state_lock);
	if (!img->active)
		err = image_load(img);
	if (!err && writer)
		err = begin_writing(img, writer);
	if (!err)
		img->active++;
	mutex_unlock(&img->state_lock);
	memalloc_noio_restore(noio);
	return err;
}

void qc_image_deactivate(struct qc_image *img, struct qc_writer *writer)
{
	unsigned int noio = memalloc_noio_save();

	mutex_lock(&img->state_lock);
	/* Unless another writer has taken over */
	if (writer && img->writer == writer)
		stop_writing(img);
	if (!--img->active)
		drop_cached(img);
	mutex_unlock(&img->state_lock);
	memalloc_noio_restore(noio);
}
