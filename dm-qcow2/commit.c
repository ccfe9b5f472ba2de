// SPDX-License-Identifier: GPL-2.0-only
/*
 * The metadata commit, see commit.h.
 */
#include <linux/device-mapper.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "alloc.h"
#include "commit.h"
#include "image.h"

static unsigned int commit_interval_ms = 1000;
module_param(commit_interval_ms, uint, 0644);
MODULE_PARM_DESC(commit_interval_ms,
		 "How long changed metadata may wait for a commit, in ms");

#ifdef DM_QCOW2_FAULTS
static unsigned int skip_flush;
module_param(skip_flush, uint, 0644);
MODULE_PARM_DESC(skip_flush,
		 "Crash tests only: flushes to leave out");

bool qc_flush_left_out(enum qc_flush phase)
{
	return READ_ONCE(skip_flush) & phase;
}
#endif

/**
 * struct qc_commit - what a commit has taken at the freeze
 * @blocks: by table
 * @frees: clusters that lose a reference
 * @waiters: requests
 * @header: the refcount table moved
 * @h: the header as of the freeze
 * @pending: writes in flight, and one for the submitter
 * @status: first error of a write
 * @done: @pending is 0
 */
struct qc_commit {
	struct list_head blocks[QC_NR_TABLES];
	struct list_head frees;
	struct bio_list waiters;
	bool header;
	struct qcow2_header h;
	atomic_t pending;
	blk_status_t status;
	struct completion done;
};

struct commit_bio {
	struct qc_commit *commit;
	struct qc_block *block;
	struct bio_vec vec;
	struct bio bio;
};

/* Whoever has one gives it back when its write ends: any number will do. */
mempool_t *qc_commit_bio_pool(void)
{
	return mempool_create_kmalloc_pool(4, sizeof(struct commit_bio));
}

void qc_commit_schedule(struct qc_image *img)
{
	unsigned long delay =
		msecs_to_jiffies(READ_ONCE(commit_interval_ms));

	if (img->nr_dirty > qc_cache_dirty_limit(img))
		qc_commit_kick(img);
	else
		queue_delayed_work(img->wq, &img->commit_work, delay);
}

void qc_commit_kick(struct qc_image *img)
{
	if (img->wq)
		mod_delayed_work(img->wq, &img->commit_work, 0);
}

void qc_commit_wait_bio(struct qc_image *img, struct bio *bio)
{
	unsigned long flags;

	spin_lock_irqsave(&img->wait_lock, flags);
	bio_list_add(&img->wait_bios, bio);
	spin_unlock_irqrestore(&img->wait_lock, flags);
	qc_commit_kick(img);
}

static void take_waiters(struct qc_image *img, struct bio_list *list)
{
	spin_lock_irq(&img->wait_lock);
	bio_list_merge(list, &img->wait_bios);
	bio_list_init(&img->wait_bios);
	spin_unlock_irq(&img->wait_lock);
}

static void end_waiters(struct bio_list *list, blk_status_t status)
{
	struct bio *bio;

	while ((bio = bio_list_pop(list))) {
		bio->bi_status = status;
		bio_endio(bio);
	}
}

static void freeze(struct qc_image *img, struct qc_commit *c)
{
	struct qc_block *b, *next;
	int t;

	mutex_lock(&img->meta_lock);
	for (t = 0; t < QC_NR_TABLES; t++) {
		INIT_LIST_HEAD(&c->blocks[t]);
		list_for_each_entry_safe(b, next, &img->dirty[t], dirty_node) {
			list_del_init(&b->dirty_node);
			b->wb_host = b->host;
			b->frozen = true;
			WRITE_ONCE(b->in_commit, true);
			/* Never neither: lookups read the two without a lock. */
			smp_wmb();
			WRITE_ONCE(b->dirty, false);
			list_add_tail(&b->commit_node, &c->blocks[t]);
		}
	}
	img->nr_dirty = 0;
	INIT_LIST_HEAD(&c->frees);
	list_splice_init(&img->frees, &c->frees);
	c->header = img->header_dirty;
	img->header_dirty = false;
	c->h = img->h;
	WRITE_ONCE(img->commit_seq, img->commit_seq + 1);
	take_waiters(img, &c->waiters);
	mutex_unlock(&img->meta_lock);
}

static void commit_bio_done(struct qc_commit *c)
{
	if (atomic_dec_and_test(&c->pending))
		complete(&c->done);
}

static void commit_end_io(struct bio *bio)
{
	struct commit_bio *cb = container_of(bio, struct commit_bio, bio);
	struct qc_commit *c = cb->commit;
	struct qc_block *b = cb->block;

	if (bio->bi_status)
		WRITE_ONCE(c->status, bio->bi_status);
	mempool_free(b->wb_data, b->img->wb_pool);
	b->wb_data = NULL;
	bio_uninit(bio);
	mempool_free(cb, b->img->bio_pool);
	commit_bio_done(c);
}

/* Make the copy that is written, unless a change had to make it already. */
static void copy_block(struct qc_image *img, struct qc_block *b)
{
	void *copy = mempool_alloc(img->wb_pool, GFP_NOIO);

	mutex_lock(&img->meta_lock);
	if (!b->wb_data) {
		memcpy(copy, b->data, img->block_bytes);
		b->wb_data = copy;
		copy = NULL;
	}
	b->frozen = false;
	mutex_unlock(&img->meta_lock);
	if (copy)
		mempool_free(copy, img->wb_pool);
}

static void write_block(struct qc_image *img, struct qc_commit *c,
			struct qc_block *b)
{
	struct commit_bio *cb;
	struct bio *bio;
	u32 len;

	copy_block(img, b);
	cb = mempool_alloc(img->bio_pool, GFP_NOIO);
	bio = &cb->bio;
	bio_init(bio, img->bdev, &cb->vec, 1, REQ_OP_WRITE | REQ_META);
	cb->commit = c;
	cb->block = b;
	bio->bi_iter.bi_sector = b->wb_host >> SECTOR_SHIFT;
	bio->bi_end_io = commit_end_io;
	/* The L1 table may end with the device, in the middle of a block. */
	len = min_t(u64, img->block_bytes, img->dev_bytes - b->wb_host);
	__bio_add_page(bio, virt_to_page(b->wb_data), len,
		       offset_in_page(b->wb_data));
	atomic_inc(&c->pending);
	submit_bio_noacct(bio);
}

static int write_blocks(struct qc_image *img, struct qc_commit *c,
			enum qc_table first, enum qc_table second)
{
	struct qc_block *b;

	atomic_set(&c->pending, 1);
	init_completion(&c->done);
	list_for_each_entry(b, &c->blocks[first], commit_node)
		write_block(img, c, b);
	if (second != first)
		list_for_each_entry(b, &c->blocks[second], commit_node)
			write_block(img, c, b);
	commit_bio_done(c);
	wait_for_completion_io(&c->done);
	return blk_status_to_errno(READ_ONCE(c->status));
}

static int flush(struct qc_image *img, enum qc_flush phase)
{
	return qc_flush_left_out(phase) ? 0 : blkdev_issue_flush(img->bdev);
}

static int phase_1a(struct qc_image *img, struct qc_commit *c)
{
	int err = write_blocks(img, c, QC_RB, c->header ? QC_RT : QC_RB);

	if (!err && img->external && !qc_flush_left_out(QC_FLUSH_DATA))
		err = blkdev_issue_flush(img->data_bdev);
	return err ? err : flush(img, QC_FLUSH_1A);
}

static int phase_1b(struct qc_image *img, struct qc_commit *c)
{
	int err;

	if (list_empty(&c->blocks[QC_RT]))
		return 0;
	err = c->header ? qc_image_write_header(img, &c->h)
			: write_blocks(img, c, QC_RT, QC_RT);
	return err ? err : flush(img, QC_FLUSH_1B);
}

static int phase_2(struct qc_image *img, struct qc_commit *c)
{
	int err;

	if (list_empty(&c->blocks[QC_L2]) && list_empty(&c->blocks[QC_L1]))
		return 0;
	err = write_blocks(img, c, QC_L2, QC_L1);
	return err ? err : flush(img, QC_FLUSH_2);
}

static bool nothing_to_do(const struct qc_commit *c)
{
	int t;

	for (t = 0; t < QC_NR_TABLES; t++)
		if (!list_empty(&c->blocks[t]))
			return false;
	return list_empty(&c->frees) && bio_list_empty(&c->waiters);
}

/* Blocks of a failed commit stay dirty: memory is the only place they are. */
static void thaw_one(struct qc_image *img, struct qc_block *b, bool failed)
{
	bool map = b->table == QC_L1 || b->table == QC_L2;

	list_del_init(&b->commit_node);
	if (b->frozen) {
		mempool_free(b->wb_data, img->wb_pool);
		b->wb_data = NULL;
		b->frozen = false;
	}
	if (failed && !b->dirty) {
		b->dirty = true;
		list_add_tail(&b->dirty_node, &img->dirty[b->table]);
		img->nr_dirty++;
	}
	WRITE_ONCE(b->in_commit, false);
	if (map && !b->dirty)
		atomic_dec(&img->nr_unsafe);
}

static void thaw(struct qc_image *img, struct qc_commit *c, bool failed)
{
	struct qc_block *b, *next;
	struct qc_free *rec, *tmp;
	bool reap;
	int t;

	mutex_lock(&img->meta_lock);
	for (t = 0; t < QC_NR_TABLES; t++)
		list_for_each_entry_safe(b, next, &c->blocks[t], commit_node)
			thaw_one(img, b, failed);
	if (failed) {
		list_for_each_entry_safe(rec, tmp, &c->frees, node) {
			mempool_free(rec, img->free_pool);
			img->nr_frees--;
		}
	} else {
		list_splice_tail_init(&c->frees, &img->reapable);
	}
	reap = !list_empty(&img->reapable);
	WRITE_ONCE(img->commit_done, img->commit_seq);
	mutex_unlock(&img->meta_lock);
	wake_up_all(&img->commit_wait);
	if (reap)
		queue_work(img->reap_wq, &img->reap_work);
}

static bool failed_already(struct qc_image *img)
{
	struct bio_list waiters = BIO_EMPTY_LIST;

	if (qc_image_writable(img))
		return false;
	take_waiters(img, &waiters);
	end_waiters(&waiters, BLK_STS_IOERR);
	wake_up_all(&img->commit_wait);
	return true;
}

void qc_commit_work(struct work_struct *work)
{
	struct qc_image *img = container_of(to_delayed_work(work),
					    struct qc_image, commit_work);
	struct qc_commit c = { .waiters = BIO_EMPTY_LIST };
	int err = 0;

	if (failed_already(img))
		return;
	freeze(img, &c);
	if (!nothing_to_do(&c)) {
		err = phase_1a(img, &c);
		if (!err)
			err = phase_1b(img, &c);
		if (!err)
			err = phase_2(img, &c);
		img->nr_commits++;
	}
	if (err)
		qc_image_fail(img, "metadata_write_error",
			      "writing metadata failed: %d", err);
	thaw(img, &c, err);
	end_waiters(&c.waiters, err ? BLK_STS_IOERR : BLK_STS_OK);
}

static bool quiet(struct qc_image *img)
{
	bool ret;

	mutex_lock(&img->meta_lock);
	ret = !img->nr_dirty && !img->nr_frees;
	mutex_unlock(&img->meta_lock);
	return ret || !qc_image_writable(img);
}

void qc_commit_sync(struct qc_image *img)
{
	do {
		qc_commit_kick(img);
		flush_delayed_work(&img->commit_work);
		flush_work(&img->reap_work);
	} while (!quiet(img));
	cancel_delayed_work_sync(&img->commit_work);
}

int qc_commit_barrier(struct qc_image *img)
{
	u64 want;

	mutex_lock(&img->meta_lock);
	/* One that has frozen its blocks already does not count. */
	want = img->commit_seq + 1;
	mutex_unlock(&img->meta_lock);
	qc_commit_kick(img);
	wait_event(img->commit_wait, READ_ONCE(img->commit_done) >= want ||
		   !qc_image_writable(img));
	if (!qc_image_writable(img))
		return -EIO;
	return qc_image_flush_all(img);
}

bool qc_commit_must_wait(const struct qc_image *img)
{
	return READ_ONCE(img->nr_dirty) > 2 * qc_cache_dirty_limit(img);
}

void qc_commit_throttle(struct qc_image *img)
{
	if (!qc_commit_must_wait(img))
		return;
	qc_commit_kick(img);
	wait_event(img->commit_wait, !qc_commit_must_wait(img) ||
		   !qc_image_writable(img));
}
