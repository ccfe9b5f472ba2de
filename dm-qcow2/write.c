// SPDX-License-Identifier: GPL-2.0-only
/*
 * The slow path, see write.h.
 */
#include <linux/device-mapper.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "commit.h"
#include "io.h"
#include "light.h"
#include "piece.h"
#include "write.h"
#include "zero.h"

static unsigned int no_space_timeout = 60;
module_param(no_space_timeout, uint, 0644);
MODULE_PARM_DESC(no_space_timeout,
		 "How long writes wait for space, in seconds; 0: for ever");

/* Bios for when memory is gone; who has one does not wait for another. */
#define PART_RESERVE	4
/* Until memory is asked for again */
#define MEMORY_MSEC	20

/* What a step of the slow path says of the bio it worked on. */
enum step {
	STEP_NEXT,		/* go on at io->pos */
	STEP_DEFERRED,		/* somebody else queues the bio again */
	STEP_FAILED,		/* io->status is set */
};

/* Waiting for space, or for memory */

static void space_again(struct work_struct *work)
{
	struct qc_target *t = container_of(to_delayed_work(work),
					   struct qc_target, space_work);
	LIST_HEAD(list);

	spin_lock_irq(&t->space_lock);
	list_splice_init(&t->space_ios, &list);
	spin_unlock_irq(&t->space_lock);
	qc_io_queue_all(&list);
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
		qc_io_fail(io, BLK_STS_DM_REQUEUE);
	} else if (t->suspending || t->error_if_no_space || !io->bio ||
		   space_timed_out(io)) {
		qc_io_fail(io, BLK_STS_NOSPC);
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
		qc_io_fail(io, BLK_STS_DM_REQUEUE);
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

static enum step io_error(struct qc_io *io, int err)
{
	qc_io_fail(io, errno_to_blk_status(err));
	return STEP_FAILED;
}

/*
 * The data file reads as zeroes here, as the entries do: they can become those of
 * data before there is any.  The guest's would show in the data file alone if it
 * came there first and the entries did not survive a crash.
 */
static int raw_data_prepare(struct qc_io *io, struct qc_piece *p)
{
	int err;

	p->fill = QC_FILL_COPY;
	err = qc_piece_write(io, p, 0);
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
static s64 alloc_range(struct qc_io *io, u64 len, enum qc_fill fill)
{
	struct qc_image *img = io->t->top;
	struct qc_extent ext;
	struct qc_piece p = {
		.pos = io->pos,
		.fill = fill,
		.start = round_down(io->pos, img->h.cluster_size),
	};
	bool moves;
	int err;

	len = min(len, qc_slice_left(img, io->pos));
	if (!qc_io_lock(img, io, len))
		return -EINPROGRESS;
	/* What was seen before the lock may have changed. */
	err = qc_l2_find(img, io->pos, len, &ext);
	if (!err && ext.map != QC_MAP_OWNED) {
		p.len = ext.len;
		p.clusters = qc_clusters_of(img, io->pos, io->pos + p.len);
		p.whole = ext.map == QC_MAP_PACKED;
		/* What it has on the device may be the image's own. */
		moves = ext.beyond && !img->external;
		if (moves)
			qc_l2_move_begin(img, p.start);
		err = img->raw_data ? raw_data_prepare(io, &p) :
			qc_piece_write(io, &p, qc_kept_host(&ext));
		if (moves)
			qc_l2_move_end(img);
	}
	qc_io_unlock(img, io);
	if (err)
		return err;
	return img->raw_data && fill != QC_FILL_COPY ? 0 : p.len;
}

static enum step alloc_step(struct qc_io *io, u64 len, enum qc_fill fill)
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
	qc_part_submit(io, place);
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
	return alloc_step(io, io->end - io->pos, QC_FILL_DATA);
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
	return alloc_range(io, len, QC_FILL_COPY) == -EINPROGRESS ?
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
		qc_part_zero(io, place->ext.len);
		break;
	case QC_MAP_PACKED:
		err = read_packed(io, place);
		qc_place_leave(place);
		break;
	default:
		qc_part_submit(io, place);
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
		return alloc_step(io, ext.len, QC_FILL_ZERO);
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
	return alloc_step(io, ext.len, QC_FILL_ZERO);
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
				     qc_change_len(img, io->pos, ext->len), op, 0,
				     NULL);
}

/* What can change by itself: of a compressed cluster nothing but all. */
static u64 unit_of(const struct qc_image *img, const struct qc_extent *ext)
{
	return ext->map == QC_MAP_PACKED ? img->h.cluster_size : qc_sub_size(img);
}

/* Is it a part of a compressed cluster? */
static bool part_of_packed(const struct qc_image *img, u64 guest,
			   const struct qc_extent *ext)
{
	return ext->map == QC_MAP_PACKED &&
		(ext->host || qc_change_len(img, guest, ext->len) <
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
	u64 mask = qc_sub_size(img) - 1;
	struct qc_extent ext;
	u64 zero = 0;
	int err;

	len = min(len, qc_slice_left(img, io->pos));
	if (!qc_io_lock(img, io, len))
		return STEP_DEFERRED;
	err = qc_l2_find(img, io->pos, len, &ext);
	/* Where the device ends in a cluster, the rest goes with the first part. */
	if (!err)
		ext.len = min(len, qc_change_len(img, io->pos, ext.len));
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
		qc_io_unlock(img, io);
		return zero_data(io, min(ext.len, mask + 1));
	}
	if (!err)
		err = drop_locked(io, &ext, zero);
	qc_io_unlock(img, io);
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
	mask = qc_sub_size(img) - 1;
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

	len = min(len, qc_slice_left(img, io->pos));
	if (!qc_io_lock(img, io, len))
		return STEP_DEFERRED;
	err = qc_l2_find(img, io->pos, len, &ext);
	if (!err && ext.map == QC_MAP_NONE)
		err = qc_l2_make_writable(img, io->pos);
	if (!err && ext.map == QC_MAP_NONE)
		err = qc_l2_set(img, io->pos,
				qc_change_len(img, io->pos, ext.len), QC_L2_ZERO,
				0, NULL);
	qc_io_unlock(img, io);
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
	step = alloc_step(io, min_t(u64, len, QC_JOB_STEP_BYTES), QC_FILL_COPY);
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
	u64 mask = qc_sub_size(img) - 1;
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
	struct qc_part *part = container_of(bio, struct qc_part, bio);
	struct qc_io *io = part->io;

	if (bio->bi_status && qc_mirror_break(io->t->mirror))
		qc_io_fail(io, bio->bi_status);
	bio_put(bio);
	qc_io_put(io);
}

static void mirror_send(struct qc_io *io)
{
	struct qc_mirror *m = io->t->mirror;
	struct qc_part *part;
	int err;

	io->mirror_due = false;
	if (qc_mirror_broken(m))
		return;
	if (bio_op(io->bio) != REQ_OP_WRITE) {
		err = qc_mirror_zero(m, io->start, io->end - io->start);
		if (err && qc_mirror_break(m))
			qc_io_fail(io, errno_to_blk_status(err));
		return;
	}
	part = qc_part_new(io, io->start, io->end - io->start);
	part->bio.bi_opf &= ~REQ_FUA;
	bio_set_dev(&part->bio, qc_mirror_bdev(m));
	part->bio.bi_iter.bi_sector = io->start >> SECTOR_SHIFT;
	part->bio.bi_end_io = mirror_end_io;
	atomic_inc(&io->pending);
	submit_bio_noacct(&part->bio);
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
	if (io->unfinished)
		qc_light_finish(io);
	while (step == STEP_NEXT && io->pos < io->end)
		step = io_step(io);
	/* Deferred: the bio belongs to somebody else by now. */
	if (step != STEP_DEFERRED)
		qc_io_put(io);
}

static void io_init(struct qc_target *t, struct qc_io *io, struct bio *bio,
		    u64 start, u64 len)
{
	io->t = t;
	io->bio = bio;
	io->status = BLK_STS_OK;
	io->waited = false;
	io->light = qc_light_maybe(t, bio, start);
	io->unfinished = false;
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
	qc_io_queue(io);
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

void qc_write_drain(struct qc_target *t)
{
	flush_workqueue(t->wq);
	wait_event(t->light_wait, !atomic_read(&t->nr_light));
	/* What has met a range that was locked until now. */
	flush_workqueue(t->wq);
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
	INIT_WORK(&t->light_work, qc_light_work);
	INIT_WORK(&t->written_work, qc_light_written);
	init_llist_head(&t->light);
	init_llist_head(&t->written);
	init_llist_head(&t->written_here);
	init_waitqueue_head(&t->light_wait);
	t->wq = alloc_workqueue("qcow2/%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 64,
				dm_device_name(dm_table_get_md(t->ti->table)));
	if (!t->wq)
		return -ENOMEM;
	if (t->writable) {
		t->copy_buf = (void *)__get_free_page(GFP_KERNEL);
		if (!t->copy_buf)
			return -ENOMEM;
	}
	return bioset_init(&t->bios, PART_RESERVE, offsetof(struct qc_part, bio),
			   0);
}

void qc_write_exit(struct qc_target *t)
{
	if (t->wq) {
		/* Nobody is in qc_io_batch() any more. */
		synchronize_rcu_expedited();
		cancel_work_sync(&t->written_work);
		cancel_delayed_work_sync(&t->space_work);
		destroy_workqueue(t->wq);
	}
	free_page((unsigned long)t->copy_buf);
	qc_reserve_exit(&t->reserve);
	bioset_exit(&t->bios);
}
