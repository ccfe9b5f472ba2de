// SPDX-License-Identifier: GPL-2.0-only
/*
 * The slow path, see write.h.
 */
#include <linux/device-mapper.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "alloc.h"
#include "commit.h"
#include "rw.h"
#include "write.h"
#include "zero.h"

static unsigned int no_space_timeout = 60;
module_param(no_space_timeout, uint, 0644);
MODULE_PARM_DESC(no_space_timeout,
		 "How long writes wait for space, in seconds; 0: for ever");

/* Bios for when memory is gone; who has one does not wait for another. */
#define CHILD_RESERVE	4
/* Pages that are copied at once */
#define COPY_ORDER	4

/* Until memory is asked for again */
#define MEMORY_MSEC	20

/* What a step of the slow path says of the bio it worked on. */
enum step {
	STEP_NEXT,		/* go on at io->pos */
	STEP_DEFERRED,		/* somebody else queues the bio again */
	STEP_FAILED,		/* io->status is set */
};

/* What an allocated piece is filled with, the rest is copied. */
enum fill {
	FILL_DATA,
	FILL_ZERO,
	FILL_COPY,
};

/**
 * struct piece - guest clusters that get host clusters
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
struct piece {
	u64 pos;
	u64 len;
	enum fill fill;
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

/* A part of a guest bio on its way to a device. */
struct child {
	struct qc_io *io;
	struct qc_place place;
	struct bio bio;
};

static void io_fail(struct qc_io *io, blk_status_t status)
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

static void io_put(struct qc_io *io)
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

/* The clusters that @len bytes at io->pos lie in. */
static bool lock_clusters(struct qc_image *img, struct qc_io *io, u64 len)
{
	return range_lock(img, io, round_down(io->pos, img->h.cluster_size),
			  round_up(io->pos + len, img->h.cluster_size));
}

static void queue_list(struct list_head *list)
{
	struct qc_io *io, *next;

	list_for_each_entry_safe(io, next, list, wait) {
		list_del(&io->wait);
		queue_work(io->t->wq, &io->work);
	}
}

static void range_unlock(struct qc_image *img, struct qc_io *io)
{
	LIST_HEAD(waiters);

	spin_lock_irq(&img->range_lock);
	list_del(&io->range);
	list_splice_init(&io->range_waiters, &waiters);
	spin_unlock_irq(&img->range_lock);
	queue_list(&waiters);
}

/* Pieces of the guest bio */

static struct child *child_new(struct qc_io *io, u64 pos, u64 len)
{
	struct bio *parent = io->bio;
	struct bio *bio = bio_alloc_clone(parent->bi_bdev, parent, GFP_NOIO,
					  &io->t->bios);
	struct child *child = container_of(bio, struct child, bio);

	child->io = io;
	child->place.counted = false;
	bio_advance(bio, pos - io->start);
	bio->bi_iter.bi_size = len;
	bio->bi_opf &= ~(REQ_PREFLUSH | REQ_NOWAIT | REQ_POLLED);
	/* Over a raw image nothing is left to do once the device has it. */
	if (io->t->top)
		bio->bi_opf &= ~REQ_FUA;
	return child;
}

static void child_end_io(struct bio *bio)
{
	struct child *child = container_of(bio, struct child, bio);
	struct qc_io *io = child->io;

	if (bio->bi_status)
		io_fail(io, bio->bi_status);
	qc_place_leave(&child->place);
	bio_put(bio);
	io_put(io);
}

/* Send a part of the bio to where the lookup found it; it ends by itself. */
static void child_submit(struct qc_io *io, const struct qc_place *place)
{
	struct child *child = child_new(io, io->pos, place->ext.len);

	child->place = *place;
	bio_set_dev(&child->bio, place->layer->bdev);
	child->bio.bi_iter.bi_sector = place->ext.host >> SECTOR_SHIFT;
	child->bio.bi_end_io = child_end_io;
	atomic_inc(&io->pending);
	submit_bio_noacct(&child->bio);
}

static void child_zero(struct qc_io *io, u64 len)
{
	struct child *child = child_new(io, io->pos, len);

	zero_fill_bio(&child->bio);
	bio_put(&child->bio);
}

/* Write a part of the bio to a new place and wait for it. */
static int child_write_wait(struct qc_io *io, u64 pos, u64 len, u64 host)
{
	struct child *child = child_new(io, pos, len);
	int err;

	bio_set_dev(&child->bio, io->t->top->data_bdev);
	child->bio.bi_iter.bi_sector = host >> SECTOR_SHIFT;
	err = submit_bio_wait(&child->bio);
	bio_put(&child->bio);
	return err;
}

/* Copy-on-write */

/* As many pages in a row as there are, or NULL: then @order is that of one */
static struct page *copy_pages(unsigned int *order)
{
	struct page *page;

	for (*order = COPY_ORDER; ; (*order)--) {
		page = alloc_pages(GFP_NOWAIT | __GFP_NOWARN | __GFP_NORETRY,
				   *order);
		if (page || !*order)
			return page;
	}
}

static int copy_data(struct qc_target *t, const struct qc_place *place,
		     u64 host)
{
	u64 left = place->ext.len;
	u64 from = place->ext.host;
	unsigned int order;
	struct page *page;
	void *buf;
	int err = 0;

	page = copy_pages(&order);
	if (!page)
		mutex_lock(&t->copy_lock);
	buf = page ? page_address(page) : t->copy_buf;
	while (left && !err) {
		u32 n = min_t(u64, left, PAGE_SIZE << order);

		err = qc_device_rw(place->layer->bdev, REQ_OP_READ, from, buf,
				   n);
		if (!err)
			err = qc_device_rw(t->top->data_bdev, REQ_OP_WRITE,
					   host, buf, n);
		from += n;
		host += n;
		left -= n;
	}
	if (page)
		__free_pages(page, order);
	else
		mutex_unlock(&t->copy_lock);
	return err;
}

static int copy_packed(struct qc_target *t, const struct qc_place *place,
		       u64 host)
{
	struct qc_unpack u;
	int err = qc_unpack_place(t, place, &u);

	if (err)
		return err;
	err = qc_device_rw(t->top->data_bdev, REQ_OP_WRITE, host,
			   u.data + place->ext.host, place->ext.len);
	qc_unpack_put(&u);
	return err;
}

static int write_zeroes(struct qc_target *t, u64 host, u64 len)
{
	return qc_device_zero(t->top->data_bdev, host, len, false);
}

static int copy_place(struct qc_target *t, const struct qc_place *place,
		      u64 host, bool virgin)
{
	switch (place->ext.map) {
	case QC_MAP_ZERO:
		return virgin ? 0 : write_zeroes(t, host, place->ext.len);
	case QC_MAP_PACKED:
		return copy_packed(t, place, host);
	default:
		return copy_data(t, place, host);
	}
}

/*
 * Fill a part of a new cluster with what the guest reads there now: the old
 * contents, of whatever layer.  Never leaves what the device happened to hold.
 */
static int fill_old(struct qc_target *t, u64 guest, u64 len, u64 host,
		    bool virgin)
{
	while (len) {
		struct qc_place place;
		int err = qc_chain_resolve(&t->chain, 0, guest, len, &place);

		if (err)
			return err;
		err = copy_place(t, &place, host, virgin);
		qc_place_leave(&place);
		if (err)
			return err;
		guest += place.ext.len;
		host += place.ext.len;
		len -= place.ext.len;
	}
	return 0;
}

static int fill_new(struct qc_io *io, const struct piece *p)
{
	u64 host = p->host + (p->pos - p->start);

	switch (p->fill) {
	case FILL_DATA:
		return child_write_wait(io, p->pos, p->len, host);
	case FILL_ZERO:
		return p->virgin ? 0 : write_zeroes(io->t, host, p->len);
	case FILL_COPY:
		break;
	}
	return fill_old(io->t, p->pos, p->len, host, p->virgin);
}

static bool on_device(enum qc_map map)
{
	return map == QC_MAP_DATA || map == QC_MAP_OWNED;
}

/*
 * Subclusters beside those written: what is allocated in a cluster shared with
 * a snapshot, or one that the device ends in, has to be in the new host cluster as
 * well.  Nothing can drop the mapping, as the range is locked, so no epoch is
 * needed.
 */
static int keep_subclusters(struct qc_target *t, struct piece *p, u64 guest,
			    u64 end)
{
	struct qc_place place = { .layer = &t->chain.layer[0] };
	int err = 0;

	while (guest < end && !err) {
		err = qc_l2_find(t->top, guest, end - guest, &place.ext);
		if (err)
			break;
		if (on_device(place.ext.map) || place.ext.beyond) {
			p->copies = true;
			err = copy_place(t, &place,
					 p->host + (guest - p->start),
					 p->virgin);
		}
		guest += place.ext.len;
	}
	return err;
}

static int keep_others(struct qc_target *t, struct piece *p)
{
	u64 end = p->start + ((u64)p->clusters << t->top->h.cluster_bits);
	int err;

	if (p->in_place)
		return 0;
	err = keep_subclusters(t, p, p->start, p->from);
	return err ? err : keep_subclusters(t, p, p->to, end);
}

/* A data file may end in its last cluster: there is nothing behind. */
static u64 fill_end(const struct qc_image *img, const struct piece *p)
{
	return img->external ? min(p->to, READ_ONCE(img->data_bytes)) : p->to;
}

static int fill_piece(struct qc_io *io, struct piece *p)
{
	u64 end = fill_end(io->t->top, p);
	u64 tail = p->pos + p->len;
	int err;

	p->copies = p->pos > p->from || tail < end || p->fill == FILL_COPY;
	err = keep_others(io->t, p);
	if (p->copies)
		atomic64_add(p->clusters, &io->t->top->nr_cow);
	if (!err)
		err = fill_old(io->t, p->from, p->pos - p->from,
			       p->host + (p->from - p->start), p->virgin);
	if (!err)
		err = fill_old(io->t, tail, end - tail,
			       p->host + (tail - p->start), p->virgin);
	return err ? err : fill_new(io, p);
}

/* Waiting for space, or for memory */

static void space_again(struct work_struct *work)
{
	struct qc_target *t = container_of(to_delayed_work(work),
					   struct qc_target, space_work);
	LIST_HEAD(list);

	spin_lock_irq(&t->space_lock);
	list_splice_init(&t->space_ios, &list);
	spin_unlock_irq(&t->space_lock);
	queue_list(&list);
}

static bool space_timed_out(struct qc_io *io)
{
	unsigned int secs = READ_ONCE(no_space_timeout);

	if (!io->waited) {
		io->waited = true;
		io->space_since = jiffies;
	}
	return secs && time_after(jiffies, io->space_since +
				  (unsigned long)secs * HZ);
}

/* Is a commit or a reap under way that gives clusters back? */
static bool space_will_come(struct qc_image *img)
{
	if (!READ_ONCE(img->nr_frees))
		return false;
	qc_commit_kick(img);
	wait_event_timeout(img->commit_wait, !READ_ONCE(img->nr_frees),
			   HZ / 10);
	return true;
}

static enum step no_space(struct qc_io *io)
{
	struct qc_target *t = io->t;
	enum step ret = STEP_FAILED;

	if (space_will_come(t->top))
		return STEP_NEXT;
	qc_image_set_mode(t->top, QC_NO_SPACE);
	spin_lock_irq(&t->space_lock);
	if (t->suspending && t->requeue && io->bio) {
		io_fail(io, BLK_STS_DM_REQUEUE);
	} else if (t->suspending || t->error_if_no_space || !io->bio ||
		   space_timed_out(io)) {
		io_fail(io, BLK_STS_NOSPC);
	} else {
		list_add_tail(&io->wait, &t->space_ios);
		queue_delayed_work(t->wq, &t->space_work, HZ);
		ret = STEP_DEFERRED;
	}
	spin_unlock_irq(&t->space_lock);
	return ret;
}

/* It holds nothing while it waits, and no thread. */
static enum step no_memory(struct qc_io *io)
{
	struct qc_target *t = io->t;
	enum step ret = STEP_FAILED;

	spin_lock_irq(&t->space_lock);
	if (t->suspending && t->requeue && io->bio) {
		io_fail(io, BLK_STS_DM_REQUEUE);
	} else if (!READ_ONCE(io->status)) {
		list_add_tail(&io->wait, &t->space_ios);
		mod_delayed_work(t->wq, &t->space_work,
				 msecs_to_jiffies(MEMORY_MSEC));
		ret = STEP_DEFERRED;
	}
	spin_unlock_irq(&t->space_lock);
	return ret;
}

void qc_write_presuspend(struct qc_target *t, bool requeue)
{
	spin_lock_irq(&t->space_lock);
	t->suspending = true;
	t->requeue = requeue;
	spin_unlock_irq(&t->space_lock);
	mod_delayed_work(t->wq, &t->space_work, 0);
	/* Messages at work see that they are to stop. */
	down_write(&t->jobs);
	up_write(&t->jobs);
}

void qc_write_resume(struct qc_target *t)
{
	spin_lock_irq(&t->space_lock);
	t->suspending = false;
	t->requeue = false;
	spin_unlock_irq(&t->space_lock);
}

/* Allocating writes */

static u32 clusters_of(const struct qc_image *img, u64 start, u64 end)
{
	return ((end - 1) >> img->h.cluster_bits) -
		(start >> img->h.cluster_bits) + 1;
}

static u64 sub_size(const struct qc_image *img)
{
	return 1ULL << img->h.sub_bits;
}

/* What a change of @len bytes at a guest offset covers: to the image's end all. */
static u64 change_len(const struct qc_image *img, u64 guest, u64 len)
{
	u64 end = guest + len;

	return round_up(end, end < img->h.size ? sub_size(img)
					       : img->h.cluster_size) - guest;
}

static void piece_bounds(const struct qc_image *img, struct piece *p)
{
	u64 unit = p->whole ? img->h.cluster_size : sub_size(img);

	p->from = round_down(p->pos, unit);
	p->to = round_up(p->pos + p->len, unit);
}

/* Give the piece host clusters; it may become shorter. */
static int piece_alloc(struct qc_image *img, struct piece *p, u64 reserved,
		       struct qc_run *run)
{
	u32 bits = img->h.cluster_bits;
	int err;

	if (img->external) {
		/* Nothing to allocate: each cluster has its place. */
		p->host = p->start;
		p->in_place = true;
		p->virgin = false;
		piece_bounds(img, p);
		return 0;
	}
	if (reserved) {
		/* A cluster that has its host cluster already. */
		run->start = reserved >> bits;
		run->count = 1;
		run->virgin = false;
	} else {
		err = qc_alloc(img, p->clusters, run);
		if (err)
			return err;
	}
	p->clusters = run->count;
	p->host = run->start << bits;
	p->in_place = reserved;
	/* Zeroes of the device are none through dm-crypt. */
	p->virgin = run->virgin && img->data_bdev == img->bdev;
	p->len = min(p->len, p->start + ((u64)p->clusters << bits) - p->pos);
	piece_bounds(img, p);
	return reserved ? qc_alloc_reaches(img, p->host + (p->to - p->start)) :
		0;
}

/*
 * Entries of the piece's clusters, now that their contents are there.  Where that
 * fails (the slice was dropped meanwhile and cannot be read again), what no entry
 * refers to is given back.
 */
static int piece_map(struct qc_image *img, const struct piece *p,
		     struct qc_run *run)
{
	u64 done, mapped;
	int err;

	err = qc_l2_set(img, p->from, p->to - p->from, QC_L2_MAP, p->host,
			&done);
	if (!err || p->in_place)
		return err;
	mapped = (p->from + done - p->start) >> img->h.cluster_bits;
	run->start += mapped;
	run->count -= mapped;
	qc_alloc_undo(img, run);
	return err;
}

/*
 * Allocate, fill, map.  The range is locked.  The entries change only when all
 * the clusters' contents have been written.
 */
static int piece_write(struct qc_io *io, struct piece *p, u64 reserved)
{
	struct qc_image *img = io->t->top;
	struct qc_run run;
	int err;

	err = qc_l2_make_writable(img, p->start);
	if (!err)
		err = piece_alloc(img, p, reserved, &run);
	if (err)
		return err;
	err = fill_piece(io, p);
	if (err) {
		if (!p->in_place)
			qc_alloc_undo(img, &run);
		return err;
	}
	return piece_map(img, p, &run);
}

/* Bytes from @guest to the end of the L2 slice that maps it. */
static u64 slice_left(const struct qc_image *img, u64 guest)
{
	u64 span = 1ULL << img->slice_shift;

	return span - (guest & (span - 1));
}

static enum step io_error(struct qc_io *io, int err)
{
	io_fail(io, errno_to_blk_status(err));
	return STEP_FAILED;
}

/* The host cluster that a range not mapped to it has all the same, or 0. */
static u64 kept_host(const struct qc_extent *ext)
{
	return ext->map == QC_MAP_ZERO || ext->map == QC_MAP_NONE ?
		ext->host : 0;
}

/*
 * The data file reads as zeroes here, as the entries do: they can become those of
 * data before there is any.  The guest's would show in the data file alone if it
 * came there first and the entries did not survive a crash.
 */
static int raw_data_prepare(struct qc_io *io, struct piece *p)
{
	int err;

	p->fill = FILL_COPY;
	err = piece_write(io, p, 0);
	if (!err)
		err = qc_commit_barrier(io->t->top);
	if (!err)
		io->durable = p->pos + p->len;
	return err;
}

/*
 * Allocate clusters for @len bytes at io->pos, which a lookup found not owned.
 * Returns how many bytes were done, 0 to look again, -EINPROGRESS where somebody
 * else queues the bio again, or an error.
 */
static s64 alloc_range(struct qc_io *io, u64 len, enum fill fill)
{
	struct qc_image *img = io->t->top;
	struct qc_extent ext;
	struct piece p = {
		.pos = io->pos,
		.fill = fill,
		.start = round_down(io->pos, img->h.cluster_size),
	};
	int err;

	len = min(len, slice_left(img, io->pos));
	if (!lock_clusters(img, io, len))
		return -EINPROGRESS;
	/* What was seen before the lock may have changed. */
	err = qc_l2_find(img, io->pos, len, &ext);
	if (!err && ext.map != QC_MAP_OWNED) {
		p.len = ext.len;
		p.clusters = clusters_of(img, io->pos, io->pos + p.len);
		p.whole = ext.map == QC_MAP_PACKED;
		err = img->raw_data ? raw_data_prepare(io, &p) :
			piece_write(io, &p, kept_host(&ext));
	}
	range_unlock(img, io);
	if (err)
		return err;
	return img->raw_data && fill != FILL_COPY ? 0 : p.len;
}

static enum step alloc_step(struct qc_io *io, u64 len, enum fill fill)
{
	s64 done = alloc_range(io, len, fill);

	if (done == -EINPROGRESS)
		return STEP_DEFERRED;
	if (done == -ENOSPC)
		return no_space(io);
	if (done == -EAGAIN)
		return no_memory(io);
	if (done < 0)
		return io_error(io, done);
	io->pos += done;
	return STEP_NEXT;
}

/*
 * Write in place.  An entry that another write has just made may have to be durable
 * first; whether its neighbours in the slice are by then does not matter.
 */
static enum step write_owned(struct qc_io *io, struct qc_place *place)
{
	u64 end = io->pos + place->ext.len;
	int err;

	if (!place->ext.safe && qc_entry_first(io->t)) {
		if (io->durable <= io->pos) {
			qc_place_leave(place);
			err = qc_commit_barrier(io->t->top);
			io->durable = end;
			return err ? io_error(io, err) : STEP_NEXT;
		}
		end = min(end, io->durable);
		place->ext.len = end - io->pos;
	}
	child_submit(io, place);
	io->pos = end;
	return STEP_NEXT;
}

static enum step write_step(struct qc_io *io)
{
	struct qc_target *t = io->t;
	struct qc_place place;

	if (!qc_may_write(t))
		return io_error(io, -EIO);
	if (t->top)
		qc_commit_throttle(t->top);
	qc_chain_lookup(&t->chain, 0, io->pos, io->end - io->pos, &place);
	if (place.layer == &t->chain.layer[0]) {
		if (place.ext.map == QC_MAP_OWNED)
			return write_owned(io, &place);
		if (place.ext.map == QC_MAP_MISS ||
		    place.ext.map == QC_MAP_BAD) {
			struct qc_extent ext;
			int err = qc_l2_find(t->top, io->pos,
					     io->end - io->pos, &ext);

			return err ? io_error(io, err) : STEP_NEXT;
		}
	}
	qc_place_leave(&place);
	return alloc_step(io, io->end - io->pos, FILL_DATA);
}

/* Reads */

/* Bring what a lower layer has into the top image; a failure is no error. */
static enum step populate(struct qc_io *io, u64 len)
{
	struct qc_image *img = io->t->top;

	if (READ_ONCE(img->mode) != QC_RW)
		return STEP_NEXT;
	qc_commit_throttle(img);
	/* It is read next, from where it is then. */
	return alloc_range(io, len, FILL_COPY) == -EINPROGRESS ?
		STEP_DEFERRED : STEP_NEXT;
}

static int read_packed(struct qc_io *io, const struct qc_place *place)
{
	struct qc_unpack u;
	int err = qc_unpack_place(io->t, place, &u);

	if (err)
		return err;
	qc_unpack_to_bio(&u, place->ext.host, io->bio, io->pos - io->start,
			 place->ext.len);
	qc_unpack_put(&u);
	return 0;
}

static enum step read_place(struct qc_io *io, struct qc_place *place)
{
	int err = 0;

	switch (place->ext.map) {
	case QC_MAP_ZERO:
		child_zero(io, place->ext.len);
		break;
	case QC_MAP_PACKED:
		err = read_packed(io, place);
		qc_place_leave(place);
		break;
	default:
		child_submit(io, place);
	}
	if (err == -EAGAIN)
		return no_memory(io);
	if (err)
		return io_error(io, err);
	io->pos += place->ext.len;
	return STEP_NEXT;
}

static enum step read_step(struct qc_io *io)
{
	struct qc_target *t = io->t;
	struct qc_place place;
	int err;

	err = qc_chain_resolve(&t->chain, 0, io->pos, io->end - io->pos,
			       &place);
	if (!err && qc_wants_populate(t, &place)) {
		u64 len = place.ext.len;

		qc_place_leave(&place);
		if (populate(io, len) == STEP_DEFERRED)
			return STEP_DEFERRED;
		err = qc_chain_resolve(&t->chain, 0, io->pos, len, &place);
	}
	return err ? io_error(io, err) : read_place(io, &place);
}

/* Discard and write-zeroes */

/* Bytes from @guest on that read as zeroes from layer @first down. */
static int zero_below(struct qc_target *t, u32 first, u64 guest, u64 len,
		      u64 *zero)
{
	u64 pos = guest;

	while (pos < guest + len) {
		struct qc_place place;
		int err = qc_chain_resolve(&t->chain, first, pos,
					   guest + len - pos, &place);

		if (err)
			return err;
		qc_place_leave(&place);
		if (place.ext.map != QC_MAP_ZERO)
			break;
		pos += place.ext.len;
	}
	*zero = pos - guest;
	return 0;
}

/* Both ends of a mirror must read the same: there a discard writes zeroes. */
static bool is_discard(struct qc_io *io)
{
	return bio_op(io->bio) == REQ_OP_DISCARD && !io->t->mirror;
}

static bool may_unmap(struct qc_io *io)
{
	return is_discard(io) || !(io->bio->bi_opf & REQ_NOUNMAP);
}

/* Zero a part of an owned cluster in place. */
static enum step zero_owned(struct qc_io *io, u64 len)
{
	struct qc_target *t = io->t;
	bool unmap = t->top->external && may_unmap(io) && !t->no_discard;
	struct qc_place place;
	int err;

	qc_chain_lookup(&t->chain, 0, io->pos, len, &place);
	if (place.ext.map != QC_MAP_OWNED) {
		qc_place_leave(&place);
		return STEP_NEXT;
	}
	err = qc_device_zero(t->top->data_bdev, place.ext.host, place.ext.len,
			     unmap);
	qc_place_leave(&place);
	if (err)
		return io_error(io, err);
	io->pos += place.ext.len;
	return STEP_NEXT;
}

/*
 * Zeroes where entries cannot say so: parts of clusters, version 2, data files that
 * are raw images as well.
 */
static enum step zero_data(struct qc_io *io, u64 len)
{
	struct qc_target *t = io->t;
	/* Behind the end that the image had the data file may hold anything. */
	bool stale = t->top->raw_data && t->grow;
	struct qc_extent ext;
	u64 zero = 0;
	int err;

	if (is_discard(io) && (!t->top->raw_data || t->no_discard)) {
		io->pos += len;
		return STEP_NEXT;
	}
	err = qc_l2_find(t->top, io->pos, len, &ext);
	if (err)
		return io_error(io, err);
	if (ext.map == QC_MAP_OWNED)
		return zero_owned(io, ext.len);
	if (stale)
		return alloc_step(io, ext.len, FILL_ZERO);
	if (ext.map == QC_MAP_NONE && !t->explicit_zeroes) {
		err = zero_below(t, 1, io->pos, ext.len, &zero);
		if (err)
			return io_error(io, err);
	} else if (ext.map == QC_MAP_ZERO && !ext.beyond) {
		zero = ext.len;
	}
	if (zero) {
		io->pos += zero;
		return STEP_NEXT;
	}
	return alloc_step(io, ext.len, FILL_ZERO);
}

/* Which change of the entries makes whole clusters read as zeroes? */
static enum qc_l2_op drop_op(struct qc_io *io, bool below_zero)
{
	if (!is_discard(io) && (io->bio->bi_opf & REQ_NOUNMAP) &&
	    io->t->top->h.version >= 3)
		return QC_L2_ZERO_KEEP;
	return below_zero ? QC_L2_UNMAP : QC_L2_ZERO;
}

/*
 * Give space of an external data file back: zeroes, while the entries still say
 * that there is data, since later the place may hold other data.
 */
static void punch_data(struct qc_io *io, const struct qc_extent *ext)
{
	struct block_device *bdev = io->t->top->data_bdev;
	u64 done, n;

	if (ext->map != QC_MAP_OWNED || io->t->no_discard ||
	    !bdev_write_zeroes_sectors(bdev))
		return;
	for (done = 0; done < ext->len; done += n) {
		n = min_t(u64, ext->len - done, SZ_1G);
		/* A hint: what the device does not do costs space. */
		qc_device_drop(bdev, REQ_OP_WRITE_ZEROES, ext->host + done, n);
	}
}

/* Whole clusters, range locked, all mapped alike. */
static int drop_locked(struct qc_io *io, const struct qc_extent *ext,
		       bool below_zero)
{
	struct qc_image *img = io->t->top;
	enum qc_l2_op op = drop_op(io, below_zero);
	int err;

	if (ext->map == QC_MAP_NONE && op != QC_L2_ZERO)
		op = below_zero ? QC_L2_UNMAP : QC_L2_ZERO;
	if (ext->map == QC_MAP_NONE && op == QC_L2_UNMAP)
		return 0;
	if (ext->map == QC_MAP_ZERO && op == QC_L2_ZERO_KEEP && !ext->beyond)
		return 0;
	err = qc_l2_make_writable(img, io->pos);
	if (!err && img->external && op != QC_L2_ZERO_KEEP)
		punch_data(io, ext);
	return err ? err : qc_l2_set(img, io->pos,
				     change_len(img, io->pos, ext->len), op, 0,
				     NULL);
}

/* What can change by itself: of a compressed cluster nothing but all. */
static u64 unit_of(const struct qc_image *img, const struct qc_extent *ext)
{
	return ext->map == QC_MAP_PACKED ? img->h.cluster_size : sub_size(img);
}

/* Is it a part of a compressed cluster? */
static bool part_of_packed(const struct qc_image *img, u64 guest,
			   const struct qc_extent *ext)
{
	return ext->map == QC_MAP_PACKED &&
		(ext->host || change_len(img, guest, ext->len) <
		 img->h.cluster_size);
}

/*
 * Whole clusters or subclusters from io->pos on: @len bytes, which the end of
 * the image may cut short.
 */
static enum step drop_clusters(struct qc_io *io, u64 len)
{
	struct qc_target *t = io->t;
	struct qc_image *img = t->top;
	u64 mask = sub_size(img) - 1;
	struct qc_extent ext;
	u64 zero = 0;
	int err;

	len = min(len, slice_left(img, io->pos));
	if (!lock_clusters(img, io, len))
		return STEP_DEFERRED;
	err = qc_l2_find(img, io->pos, len, &ext);
	if (!err && !t->explicit_zeroes)
		err = zero_below(t, 1, io->pos, ext.len, &zero);
	if (!err && zero < ext.len) {
		zero &= ~(unit_of(img, &ext) - 1);
		if (zero)
			ext.len = zero;
	}
	/* Version 2 has no zero clusters to hide what is below. */
	if (!err && ((!zero && img->h.version < 3) ||
		     part_of_packed(img, io->pos, &ext))) {
		range_unlock(img, io);
		return zero_data(io, min(ext.len, mask + 1));
	}
	if (!err)
		err = drop_locked(io, &ext, zero);
	range_unlock(img, io);
	if (err == -ENOSPC)
		return no_space(io);
	if (err)
		return io_error(io, err);
	io->pos += ext.len;
	return STEP_NEXT;
}

/* A raw image: the device must not lose the ability when one becomes the top. */
static enum step drop_raw(struct qc_io *io)
{
	struct block_device *bdev = io->t->chain.layer[0].dev->bdev;
	bool unmap = !(io->bio->bi_opf & REQ_NOUNMAP);
	u64 len = io->end - io->pos;
	int err = 0;

	if (!is_discard(io))
		err = qc_device_zero(bdev, io->pos, len, unmap);
	else if (bdev_max_discard_sectors(bdev) && !io->t->no_discard)
		err = qc_device_drop(bdev, REQ_OP_DISCARD, io->pos, len);
	if (err)
		return io_error(io, err);
	io->pos = io->end;
	return STEP_NEXT;
}

static enum step drop_step(struct qc_io *io)
{
	struct qc_image *img = io->t->top;
	u64 left = io->end - io->pos;
	u64 mask, whole;

	if (!img)
		return drop_raw(io);
	mask = sub_size(img) - 1;
	whole = left & ~mask;
	if (!qc_may_write(io->t))
		return io_error(io, -EIO);
	qc_commit_throttle(img);
	if (img->raw_data)
		return zero_data(io, left);
	if (io->pos & mask)
		return zero_data(io, min(left, mask + 1 - (io->pos & mask)));
	/* The last cluster counts as whole where the image ends in it. */
	if (io->end >= img->h.size)
		whole = left;
	return whole ? drop_clusters(io, whole) : zero_data(io, left);
}

/* Populate: see qc_populate() */

/* Whole clusters that the top image does not have become zero entries. */
static enum step populate_zeroes(struct qc_io *io, u64 len)
{
	struct qc_image *img = io->t->top;
	struct qc_extent ext;
	int err;

	len = min(len, slice_left(img, io->pos));
	if (!lock_clusters(img, io, len))
		return STEP_DEFERRED;
	err = qc_l2_find(img, io->pos, len, &ext);
	if (!err && ext.map == QC_MAP_NONE)
		err = qc_l2_make_writable(img, io->pos);
	if (!err && ext.map == QC_MAP_NONE)
		err = qc_l2_set(img, io->pos,
				change_len(img, io->pos, ext.len), QC_L2_ZERO,
				0, NULL);
	range_unlock(img, io);
	if (err == -ENOSPC)
		return no_space(io);
	if (err)
		return io_error(io, err);
	io->pos += ext.len;
	return STEP_NEXT;
}

static enum step populate_copy(struct qc_io *io, u64 len)
{
	u64 start = io->pos;
	enum step step;

	/* Guest writes to the range wait for it, and so does a suspend. */
	step = alloc_step(io, min_t(u64, len, QC_JOB_STEP_BYTES), FILL_COPY);
	io->populate->copied += io->pos - start;
	return step;
}

/*
 * @len bytes from io->pos on read as zeroes: must the top image say so?  Parts
 * of clusters, and version 2, have no other way than to copy.
 */
static enum step populate_hide(struct qc_io *io, u64 len)
{
	struct qc_populate *p = io->populate;
	struct qc_image *img = io->t->top;
	u64 mask = sub_size(img) - 1;
	u64 whole = io->pos + len >= img->h.size ? len : len & ~mask;
	u64 zero = 0;
	int err = 0;

	if (!p->zeroes)
		err = zero_below(io->t, p->layers, io->pos, len, &zero);
	if (err)
		return io_error(io, err);
	if (zero) {
		io->pos += zero;
		return STEP_NEXT;
	}
	if ((io->pos & mask) || !whole || img->h.version < 3)
		return populate_copy(io, min(len, mask + 1 - (io->pos & mask)));
	return populate_zeroes(io, p->zeroes ? whole : min(whole, mask + 1));
}

static bool populate_stops(struct qc_io *io)
{
	struct qc_populate *p = io->populate;

	return p->copied >= QC_JOB_BYTES || ++p->lookups > QC_JOB_LOOKUPS ||
		READ_ONCE(io->t->suspending);
}

static enum step populate_step(struct qc_io *io)
{
	struct qc_populate *p = io->populate;
	struct qc_target *t = io->t;
	struct qc_place place;
	u64 len;
	int err;

	if (populate_stops(io)) {
		io->end = io->pos;
		return STEP_NEXT;
	}
	if (!qc_may_write(t))
		return io_error(io, -EIO);
	qc_commit_throttle(t->top);
	err = qc_chain_resolve(&t->chain, 0, io->pos, io->end - io->pos,
			       &place);
	if (err)
		return io_error(io, err);
	qc_place_leave(&place);
	len = place.ext.len;
	/* What nobody owns reads as zeroes, too: not so in another chain. */
	if (place.index && (place.index < p->layers ||
			    (p->zeroes && !place.layer)))
		return place.ext.map == QC_MAP_ZERO ? populate_hide(io, len) :
			populate_copy(io, len);
	io->pos += len;
	return STEP_NEXT;
}

/* The mirror's part of a write */

static void mirror_end_io(struct bio *bio)
{
	struct child *child = container_of(bio, struct child, bio);
	struct qc_io *io = child->io;

	if (bio->bi_status && qc_mirror_break(io->t->mirror))
		io_fail(io, bio->bi_status);
	bio_put(bio);
	io_put(io);
}

static void mirror_send(struct qc_io *io)
{
	struct qc_mirror *m = io->t->mirror;
	struct child *child;
	int err;

	io->mirror_due = false;
	if (qc_mirror_broken(m))
		return;
	if (bio_op(io->bio) != REQ_OP_WRITE) {
		err = qc_mirror_zero(m, io->start, io->end - io->start);
		if (err && qc_mirror_break(m))
			io_fail(io, errno_to_blk_status(err));
		return;
	}
	child = child_new(io, io->start, io->end - io->start);
	child->bio.bi_opf &= ~REQ_FUA;
	bio_set_dev(&child->bio, qc_mirror_bdev(m));
	child->bio.bi_iter.bi_sector = io->start >> SECTOR_SHIFT;
	child->bio.bi_end_io = mirror_end_io;
	atomic_inc(&io->pending);
	submit_bio_noacct(&child->bio);
}

/* The work item */

static enum step io_step(struct qc_io *io)
{
	if (!io->bio)
		return populate_step(io);
	switch (bio_op(io->bio)) {
	case REQ_OP_READ:
		return read_step(io);
	case REQ_OP_WRITE:
		return write_step(io);
	default:
		return drop_step(io);
	}
}

static void io_work(struct work_struct *work)
{
	struct qc_io *io = container_of(work, struct qc_io, work);
	enum step step = STEP_NEXT;

	if (io->mirror_due)
		mirror_send(io);
	while (step == STEP_NEXT && io->pos < io->end)
		step = io_step(io);
	/* Deferred: the bio belongs to somebody else by now. */
	if (step != STEP_DEFERRED)
		io_put(io);
}

static void io_init(struct qc_target *t, struct qc_io *io, struct bio *bio,
		    u64 start, u64 len)
{
	io->t = t;
	io->bio = bio;
	io->status = BLK_STS_OK;
	io->waited = false;
	io->mirror_due = false;
	io->wait_commit = bio && t->top && (bio->bi_opf & REQ_FUA);
	io->start = start;
	io->pos = start;
	io->end = start + len;
	io->durable = start;
	atomic_set(&io->pending, 1);
	INIT_WORK(&io->work, io_work);
}

void qc_io_defer(struct qc_target *t, struct bio *bio, u64 start)
{
	struct qc_io *io = dm_per_bio_data(bio, sizeof(*io));

	io_init(t, io, bio, start, bio->bi_iter.bi_size);
	queue_work(t->wq, &io->work);
}

static void mirror_granted(struct qc_mirror_range *range)
{
	struct qc_io *io = container_of(range, struct qc_io, mirror);

	queue_work(io->t->wq, &io->work);
}

void qc_io_mirror(struct qc_target *t, struct bio *bio, u64 start)
{
	struct qc_io *io = dm_per_bio_data(bio, sizeof(*io));
	u64 end = start + bio->bi_iter.bi_size;

	io_init(t, io, bio, start, bio->bi_iter.bi_size);
	io->mirror_due = true;
	io->mirrored = true;
	if (qc_mirror_enter(t->mirror, &io->mirror, start, end,
			    mirror_granted))
		queue_work(t->wq, &io->work);
}

int qc_populate(struct qc_target *t, struct qc_populate *p)
{
	struct qc_io *io = kzalloc(sizeof(*io), GFP_NOIO);
	int err;

	if (!io)
		return -ENOMEM;
	io_init(t, io, NULL, p->start, p->end - p->start);
	io->populate = p;
	init_completion(&p->done);
	queue_work(t->wq, &io->work);
	wait_for_completion(&p->done);
	/* The work item may still be in its last instructions. */
	flush_work(&io->work);
	err = blk_status_to_errno(io->status);
	p->start = io->pos;
	kfree(io);
	return err;
}

int qc_write_init(struct qc_target *t)
{
	mutex_init(&t->copy_lock);
	qc_reserve_init(&t->reserve);
	init_rwsem(&t->jobs);
	mutex_init(&t->final_lock);
	spin_lock_init(&t->space_lock);
	INIT_LIST_HEAD(&t->space_ios);
	INIT_DELAYED_WORK(&t->space_work, space_again);
	t->wq = alloc_workqueue("qcow2/%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 64,
				dm_device_name(dm_table_get_md(t->ti->table)));
	if (!t->wq)
		return -ENOMEM;
	if (t->writable) {
		t->copy_buf = (void *)__get_free_page(GFP_KERNEL);
		if (!t->copy_buf)
			return -ENOMEM;
	}
	return bioset_init(&t->bios, CHILD_RESERVE, offsetof(struct child, bio),
			   0);
}

void qc_write_exit(struct qc_target *t)
{
	if (t->wq) {
		cancel_delayed_work_sync(&t->space_work);
		destroy_workqueue(t->wq);
	}
	free_page((unsigned long)t->copy_buf);
	qc_reserve_exit(&t->reserve);
	bioset_exit(&t->bios);
}
