// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocating writes that need not wait, see light.h.
 */
#include <linux/blkdev.h>
#include <linux/sizes.h>

#include "commit.h"
#include "io.h"
#include "light.h"
#include "piece.h"

/*
 * The largest one.  Larger ones have work items of their own, so that several CPUs
 * copy them where the device is memory.
 */
#define LIGHT_BYTES	SZ_64K
/* So many at once: the list of locked ranges is searched for each of them. */
#define LIGHT_MOST	128

/* One for all targets, see light.h */
static struct workqueue_struct *written_wq;

bool qc_light_maybe(const struct qc_target *t, const struct bio *bio, u64 start)
{
	const struct qc_image *img = t->top;
	u64 size;

	if (!bio || bio_op(bio) != REQ_OP_WRITE || !img || img->external ||
	    t->mirror || bio->bi_iter.bi_size > LIGHT_BYTES)
		return false;
	/* Whoever sends that may sleep, see map_write(). */
	if ((bio->bi_opf & REQ_NOWAIT) && !bdev_nowait(img->data_bdev))
		return false;
	size = bio->bi_iter.bi_size;
	/* Else the rest of its clusters has to be written, too. */
	return !((start | size) & (qc_sub_size(img) - 1)) ||
		qc_alloc_next_virgin(img);
}

/* Does all of it read as zeroes, as far as is in memory? */
static bool zeroes_known(struct qc_target *t, u64 guest, u64 end)
{
	while (guest < end) {
		struct qc_place place;

		qc_chain_lookup(&t->chain, 0, guest, end - guest, &place);
		qc_place_leave(&place);
		if (place.ext.map != QC_MAP_ZERO)
			return false;
		guest += place.ext.len;
	}
	return true;
}

/* Has the active image nothing of a guest cluster that is to be kept? */
static bool nothing_kept(struct qc_image *img, u64 guest, u64 end)
{
	bool ret = true;

	rcu_read_lock();
	while (guest < end && ret) {
		struct qc_extent ext;

		qc_l2_lookup(img, guest, end - guest, &ext);
		ret = (ext.map == QC_MAP_NONE || ext.map == QC_MAP_ZERO) &&
			!ext.beyond;
		guest += ext.len;
	}
	rcu_read_unlock();
	return ret;
}

static struct qc_piece light_piece(struct qc_io *io)
{
	struct qc_image *img = io->t->top;
	struct qc_piece p = {
		.pos = io->pos,
		.len = io->end - io->pos,
		.fill = QC_FILL_DATA,
		.start = round_down(io->pos, img->h.cluster_size),
		.clusters = qc_clusters_of(img, io->pos, io->end),
	};

	qc_piece_bounds(img, &p);
	return p;
}

/*
 * Is there nothing to be done for the piece but to write the guest's data?  @reserved:
 * the host cluster that it has already, or 0.
 */
static bool piece_is_light(struct qc_target *t, struct qc_piece *p, u64 reserved)
{
	struct qc_image *img = t->top;
	u64 end = p->start + ((u64)p->clusters << img->h.cluster_bits);

	p->copies = p->from < p->pos || p->pos + p->len < p->to;
	if (p->copies && (reserved || !qc_alloc_next_virgin(img) ||
			  !zeroes_known(t, p->from, p->pos) ||
			  !zeroes_known(t, p->pos + p->len, p->to)))
		return false;
	if (!reserved && (p->start < p->from || p->to < end) &&
	    !(nothing_kept(img, p->start, p->from) &&
	      nothing_kept(img, p->to, end)))
		return false;
	return qc_l2_writable(img, p->start);
}

/* Returns false where nothing was allocated. */
static bool light_alloc(struct qc_image *img, struct qc_piece *p, u64 reserved)
{
	struct qc_run run;

	p->in_place = reserved;
	if (reserved) {
		p->host = reserved;
		return p->clusters == 1 && reserved + (p->to - p->start) <=
			READ_ONCE(img->dev_bytes);
	}
	if (!qc_alloc_try(img, p->clusters, p->copies, &run))
		return false;
	p->host = run.start << img->h.cluster_bits;
	return true;
}

static void light_end_io(struct bio *bio)
{
	struct qc_part *part = container_of(bio, struct qc_part, bio);
	struct qc_io *io = part->io;

	if (bio->bi_status)
		qc_io_fail(io, bio->bi_status);
	bio_put(bio);
	/* Within submit_bio(): who sent it is about to look. */
	if (in_task() && READ_ONCE(io->t->light_task) == current)
		llist_add(&io->batch, &io->t->written_here);
	else
		qc_io_batch(io, &io->t->written, written_wq,
			    &io->t->written_work);
}

static void light_submit(struct qc_io *io, const struct qc_piece *p)
{
	struct qc_part *part = qc_part_new(io, p->pos, p->len);
	u64 host = p->host + (p->pos - p->start);

	io->host = p->host;
	io->in_place = p->in_place;
	if (p->copies)
		atomic64_add(p->clusters, &io->t->top->nr_cow);
	bio_set_dev(&part->bio, io->t->top->data_bdev);
	part->bio.bi_iter.bi_sector = host >> SECTOR_SHIFT;
	part->bio.bi_end_io = light_end_io;
	submit_bio_noacct(&part->bio);
}

/* The range is locked.  Returns false where nothing was begun. */
static bool light_begin(struct qc_io *io)
{
	struct qc_target *t = io->t;
	struct qc_image *img = t->top;
	struct qc_piece p = light_piece(io);
	struct qc_extent ext;
	u64 reserved;

	/* What was seen before the lock may have changed. */
	rcu_read_lock();
	qc_l2_lookup(img, p.pos, p.len, &ext);
	rcu_read_unlock();
	if ((ext.map != QC_MAP_NONE && ext.map != QC_MAP_ZERO) || ext.beyond ||
	    ext.len < p.len)
		return false;
	reserved = qc_kept_host(&ext);
	if (!piece_is_light(t, &p, reserved) || !light_alloc(img, &p, reserved))
		return false;
	atomic_inc(&t->nr_light);
	light_submit(io, &p);
	return true;
}

/* Returns false where it is to be done by a work item of its own, from io->pos on. */
static bool light_write(struct qc_io *io)
{
	struct qc_target *t = io->t;
	struct qc_image *img = t->top;
	struct qc_place place;

	if (!READ_ONCE(t->writable) || READ_ONCE(img->mode) != QC_RW ||
	    qc_commit_must_wait(img))
		return false;
	qc_chain_lookup(&t->chain, 0, io->pos, io->end - io->pos, &place);
	if (place.layer == &t->chain.layer[0] &&
	    place.ext.map == QC_MAP_OWNED) {
		/* Another write has brought it in meanwhile. */
		qc_part_submit(io, &place);
		io->pos += place.ext.len;
		if (io->pos < io->end)
			return false;
		qc_io_put(io);
		return true;
	}
	qc_place_leave(&place);
	if (io->end - io->pos > qc_slice_left(img, io->pos) ||
	    atomic_read(&t->nr_light) >= LIGHT_MOST)
		return false;
	if (!qc_io_lock(img, io, io->end - io->pos))
		return true;
	if (light_begin(io))
		return true;
	qc_io_unlock(img, io);
	return false;
}

static void light_left(struct qc_target *t)
{
	if (atomic_dec_and_test(&t->nr_light))
		wake_up_all(&t->light_wait);
}

/* The data is there: make the entries. */
static void light_written(struct qc_io *io)
{
	struct qc_target *t = io->t;
	struct qc_image *img = t->top;
	struct qc_piece p = light_piece(io);

	if (READ_ONCE(io->status) ||
	    !qc_l2_map_now(img, p.from, p.to - p.from, io->host)) {
		io->light = false;
		io->unfinished = true;
		qc_io_queue(io);
		return;
	}
	qc_io_unlock(img, io);
	io->pos = io->end;
	qc_io_put(io);
	light_left(t);
}

static void end_written(struct llist_head *written)
{
	struct llist_node *list = llist_reverse_order(llist_del_all(written));
	struct qc_io *io, *next;

	llist_for_each_entry_safe(io, next, list, batch) {
		light_written(io);
		cond_resched();
	}
}

void qc_light_written(struct work_struct *work)
{
	end_written(&container_of(work, struct qc_target,
				  written_work)->written);
}

static void light_try(struct qc_io *io)
{
	if (light_write(io))
		return;
	io->light = false;
	qc_io_queue(io);
}

void qc_light_work(struct work_struct *work)
{
	struct qc_target *t = container_of(work, struct qc_target, light_work);
	struct llist_node *list = llist_reverse_order(llist_del_all(&t->light));
	struct qc_io *io, *next;
	struct blk_plug plug;

	WRITE_ONCE(t->light_task, current);
	blk_start_plug(&plug);
	llist_for_each_entry_safe(io, next, list, batch) {
		light_try(io);
		cond_resched();
	}
	blk_finish_plug(&plug);
	WRITE_ONCE(t->light_task, NULL);
	end_written(&t->written_here);
}

/* Is it worth to wait and try again? */
static bool may_come_right(blk_status_t status)
{
	return status == BLK_STS_NOSPC || status == BLK_STS_AGAIN;
}

void qc_light_finish(struct qc_io *io)
{
	struct qc_target *t = io->t;
	struct qc_image *img = t->top;
	struct qc_piece p = light_piece(io);
	struct qc_run run = {
		.start = io->host >> img->h.cluster_bits,
		.count = p.clusters,
	};
	int err = 0;

	io->unfinished = false;
	p.host = io->host;
	p.in_place = io->in_place;
	if (!io->status)
		err = qc_piece_map(img, &p, &run);
	else if (!p.in_place)
		qc_alloc_undo(img, &run);
	if (err)
		qc_io_fail(io, errno_to_blk_status(err));
	/* The only part has ended: nobody else looks at the status. */
	if (!err && may_come_right(io->status))
		io->status = BLK_STS_OK;
	else
		io->pos = io->end;
	qc_io_unlock(img, io);
	light_left(t);
}

int qc_light_init(void)
{
	written_wq = alloc_workqueue("qcow2-written",
				     WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	return written_wq ? 0 : -ENOMEM;
}

void qc_light_exit(void)
{
	destroy_workqueue(written_wq);
}
