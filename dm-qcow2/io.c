// SPDX-License-Identifier: GPL-2.0-only
/*
 * The life of a bio in the slow path, see io.h.
 */
#include <linux/device-mapper.h>

#include "commit.h"
#include "io.h"

void qc_io_fail(struct qc_io *io, blk_status_t status)
{
	cmpxchg(&io->status, BLK_STS_OK, status);
}

static void io_end(struct qc_io *io)
{
	struct bio *bio = io->bio;

	if (!bio) {
		complete(&io->populate->done);
		return;
	}
	if (io->wait_commit && !io->status) {
		io->wait_commit = false;
		qc_commit_wait_bio(io->t->top, bio);
		return;
	}
	io->wait_commit = false;
	bio->bi_status = io->status;
	bio_endio(bio);
}

void qc_io_put(struct qc_io *io)
{
	if (atomic_dec_and_test(&io->pending))
		io_end(io);
}

/* Range locks */

static bool range_lock(struct qc_image *img, struct qc_io *io, u64 start,
		       u64 end)
{
	struct qc_io *other;

	spin_lock_irq(&img->range_lock);
	list_for_each_entry(other, &img->ranges, range) {
		if (start >= other->range_end || end <= other->range_start)
			continue;
		list_add_tail(&io->wait, &other->range_waiters);
		spin_unlock_irq(&img->range_lock);
		return false;
	}
	io->range_start = start;
	io->range_end = end;
	INIT_LIST_HEAD(&io->range_waiters);
	list_add(&io->range, &img->ranges);
	spin_unlock_irq(&img->range_lock);
	return true;
}

bool qc_io_lock(struct qc_image *img, struct qc_io *io, u64 len)
{
	return range_lock(img, io, round_down(io->pos, img->h.cluster_size),
			  round_up(io->pos + len, img->h.cluster_size));
}

void qc_io_batch(struct qc_io *io, struct llist_head *list,
		 struct workqueue_struct *wq, struct work_struct *work)
{
	/*
	 * Once in the list, the bio may end, and the last one of a target may be that:
	 * qc_write_exit() waits for whoever is here.
	 */
	rcu_read_lock();
	/* Who comes to an empty list has the work item look at it. */
	if (llist_add(&io->batch, list))
		queue_work(wq, work);
	rcu_read_unlock();
}

void qc_io_queue(struct qc_io *io)
{
	struct qc_target *t = io->t;

	if (io->light)
		qc_io_batch(io, &t->light, t->wq, &t->light_work);
	else
		queue_work(t->wq, &io->work);
}

void qc_io_queue_all(struct list_head *list)
{
	struct qc_io *io, *next;

	list_for_each_entry_safe(io, next, list, wait) {
		list_del(&io->wait);
		qc_io_queue(io);
	}
}

void qc_io_unlock(struct qc_image *img, struct qc_io *io)
{
	LIST_HEAD(waiters);

	spin_lock_irq(&img->range_lock);
	list_del(&io->range);
	list_splice_init(&io->range_waiters, &waiters);
	spin_unlock_irq(&img->range_lock);
	qc_io_queue_all(&waiters);
}

/* Pieces of the guest bio */

struct qc_part *qc_part_new(struct qc_io *io, u64 pos, u64 len)
{
	struct bio *parent = io->bio;
	struct bio *bio = bio_alloc_clone(parent->bi_bdev, parent, GFP_NOIO,
					  &io->t->bios);
	struct qc_part *part = container_of(bio, struct qc_part, bio);

	part->io = io;
	part->place.counted = false;
	bio_advance(bio, pos - io->start);
	bio->bi_iter.bi_size = len;
	bio->bi_opf &= ~(REQ_PREFLUSH | REQ_NOWAIT | REQ_POLLED);
	/* Over a raw image nothing is left to do once the device has it. */
	if (io->t->top)
		bio->bi_opf &= ~REQ_FUA;
	return part;
}

static void part_end_io(struct bio *bio)
{
	struct qc_part *part = container_of(bio, struct qc_part, bio);
	struct qc_io *io = part->io;

	if (bio->bi_status)
		qc_io_fail(io, bio->bi_status);
	qc_place_leave(&part->place);
	bio_put(bio);
	qc_io_put(io);
}

void qc_part_submit(struct qc_io *io, const struct qc_place *place)
{
	struct qc_part *part = qc_part_new(io, io->pos, place->ext.len);

	part->place = *place;
	bio_set_dev(&part->bio, place->layer->bdev);
	part->bio.bi_iter.bi_sector = place->ext.host >> SECTOR_SHIFT;
	part->bio.bi_end_io = part_end_io;
	atomic_inc(&io->pending);
	submit_bio_noacct(&part->bio);
}

void qc_part_zero(struct qc_io *io, u64 len)
{
	struct qc_part *part = qc_part_new(io, io->pos, len);

	zero_fill_bio(&part->bio);
	bio_put(&part->bio);
}

int qc_part_write(struct qc_io *io, u64 pos, u64 len, u64 host)
{
	struct qc_part *part = qc_part_new(io, pos, len);
	int err;

	bio_set_dev(&part->bio, io->t->top->data_bdev);
	part->bio.bi_iter.bi_sector = host >> SECTOR_SHIFT;
	err = submit_bio_wait(&part->bio);
	bio_put(&part->bio);
	return err;
}
