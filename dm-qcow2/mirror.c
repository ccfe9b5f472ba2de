// SPDX-License-Identifier: GPL-2.0-only
/*
 * The mirror of a target, see mirror.h.
 */
#include <linux/device-mapper.h>
#include <linux/dm-io.h>
#include <linux/dm-kcopyd.h>
#include <linux/slab.h>

#include "commit.h"
#include "rw.h"
#include "write.h"
#include "zero.h"

struct qc_mirror {
	struct dm_target *ti;
	struct dm_dev *dev;
	struct dm_kcopyd_client *kcopyd;
	bool broken;			/* lock; read without */
	bool final;			/* lock */
	struct work_struct event;
	spinlock_t lock;		/* ranges, broken, final */
	struct list_head ranges;	/* in the order of their arrival */
};

/**
 * struct window - a range that is being copied
 * @m: the mirror
 * @range: in its list
 * @granted: the range is ours
 * @pending: extents in flight, and one for who makes them
 * @err: first error
 * @done: @pending is 0
 */
struct window {
	struct qc_mirror *m;
	struct qc_mirror_range range;
	struct completion granted;
	atomic_t pending;
	int err;
	struct completion done;
};

/* Data of one extent, on its way to the mirror. */
struct extent_copy {
	struct window *w;
	struct qc_place place;
};

static void mirror_event(struct work_struct *work)
{
	struct qc_mirror *m = container_of(work, struct qc_mirror, event);

	DMERR("%s: writing to the mirror %s failed: it is not used any more",
	      dm_device_name(dm_table_get_md(m->ti->table)), m->dev->name);
	dm_table_event(m->ti->table);
}

static int check_device(struct dm_target *ti, struct block_device *bdev)
{
	if (bdev_nr_sectors(bdev) >= ti->len)
		return 0;
	ti->error = "The mirror is shorter than the table line";
	return -EINVAL;
}

struct qc_mirror *qc_mirror_create(struct dm_target *ti, const char *path)
{
	struct qc_mirror *m = kzalloc(sizeof(*m), GFP_KERNEL);
	int err;

	if (!m) {
		ti->error = "No memory for the mirror";
		return ERR_PTR(-ENOMEM);
	}
	m->ti = ti;
	spin_lock_init(&m->lock);
	INIT_LIST_HEAD(&m->ranges);
	INIT_WORK(&m->event, mirror_event);
	err = dm_get_device(ti, path, QC_MODE_READ | QC_MODE_WRITE, &m->dev);
	if (err) {
		ti->error = "Cannot open the mirror";
		kfree(m);
		return ERR_PTR(err);
	}
	err = check_device(ti, m->dev->bdev);
	if (!err) {
		m->kcopyd = dm_kcopyd_client_create(NULL);
		err = PTR_ERR_OR_ZERO(m->kcopyd);
	}
	if (err) {
		dm_put_device(ti, m->dev);
		kfree(m);
		return ERR_PTR(err);
	}
	return m;
}

void qc_mirror_destroy(struct qc_mirror *m)
{
	if (!m)
		return;
	flush_work(&m->event);
	dm_kcopyd_client_destroy(m->kcopyd);
	dm_put_device(m->ti, m->dev);
	kfree(m);
}

const char *qc_mirror_name(const struct qc_mirror *m)
{
	return m->dev->name;
}

struct block_device *qc_mirror_bdev(const struct qc_mirror *m)
{
	return m->dev->bdev;
}

bool qc_mirror_broken(const struct qc_mirror *m)
{
	return READ_ONCE(m->broken);
}

/* Under the lock: a write that is acknowledged is in the mirror, or not final. */
bool qc_mirror_break(struct qc_mirror *m)
{
	unsigned long flags;
	bool final;

	spin_lock_irqsave(&m->lock, flags);
	final = m->final;
	if (!final && !m->broken)
		schedule_work(&m->event);
	if (!final)
		WRITE_ONCE(m->broken, true);
	spin_unlock_irqrestore(&m->lock, flags);
	return final;
}

int qc_mirror_final(struct qc_mirror *m)
{
	int err = 0;

	spin_lock_irq(&m->lock);
	if (m->broken)
		err = -EIO;
	else
		m->final = true;
	spin_unlock_irq(&m->lock);
	return err;
}

bool qc_mirror_flush(struct qc_mirror *m)
{
	if (READ_ONCE(m->broken))
		return false;
	if (qc_flush_left_out(QC_FLUSH_MIRROR) ||
	    !blkdev_issue_flush(m->dev->bdev))
		return READ_ONCE(m->final);
	/* Not even after qc_mirror_final(): nobody is told of it otherwise. */
	WRITE_ONCE(m->broken, true);
	schedule_work(&m->event);
	return false;
}

/* Ranges */

static bool overlap(const struct qc_mirror_range *a,
		    const struct qc_mirror_range *b)
{
	return a->start < b->end && b->start < a->end;
}

/* Does one that came before @range overlap with it?  Under the lock. */
static bool must_wait(struct qc_mirror *m, const struct qc_mirror_range *range)
{
	struct qc_mirror_range *other;

	list_for_each_entry(other, &m->ranges, node) {
		if (other == range)
			return false;
		if (overlap(other, range))
			return true;
	}
	return false;
}

bool qc_mirror_enter(struct qc_mirror *m, struct qc_mirror_range *range,
		     u64 start, u64 end,
		     void (*granted)(struct qc_mirror_range *range))
{
	unsigned long flags;
	bool mine;

	range->start = start;
	range->end = end;
	range->granted = granted;
	spin_lock_irqsave(&m->lock, flags);
	list_add_tail(&range->node, &m->ranges);
	mine = !must_wait(m, range);
	range->waiting = !mine;
	spin_unlock_irqrestore(&m->lock, flags);
	return mine;
}

void qc_mirror_leave(struct qc_mirror *m, struct qc_mirror_range *range)
{
	struct qc_mirror_range *other;
	unsigned long flags;

	spin_lock_irqsave(&m->lock, flags);
	list_del(&range->node);
	list_for_each_entry(other, &m->ranges, node) {
		if (!other->waiting || !overlap(other, range) ||
		    must_wait(m, other))
			continue;
		other->waiting = false;
		/* It cannot leave, nor free itself, without this lock. */
		other->granted(other);
	}
	spin_unlock_irqrestore(&m->lock, flags);
}

/* Zeroes */

int qc_mirror_zero(struct qc_mirror *m, u64 guest, u64 len)
{
	return qc_device_zero(m->dev->bdev, guest, len, true);
}

/* Copying */

static void window_put(struct window *w)
{
	if (atomic_dec_and_test(&w->pending))
		complete(&w->done);
}

static void window_granted(struct qc_mirror_range *range)
{
	complete(&container_of(range, struct window, range)->granted);
}

static void window_enter(struct window *w, struct qc_mirror *m, u64 start,
			 u64 end)
{
	w->m = m;
	w->err = 0;
	init_completion(&w->granted);
	init_completion(&w->done);
	atomic_set(&w->pending, 1);
	if (!qc_mirror_enter(m, &w->range, start, end, window_granted))
		wait_for_completion(&w->granted);
}

/* The guest waits for what it wants to write here: until all is copied. */
static int window_leave(struct window *w)
{
	window_put(w);
	wait_for_completion_io(&w->done);
	qc_mirror_leave(w->m, &w->range);
	return w->err;
}

static void extent_copied(int read_err, unsigned long write_err, void *context)
{
	struct extent_copy *e = context;
	struct window *w = e->w;

	if (read_err || write_err)
		WRITE_ONCE(w->err, -EIO);
	qc_place_leave(&e->place);
	kfree(e);
	window_put(w);
}

static int copy_extent(struct window *w, const struct qc_place *place,
		       u64 guest)
{
	struct extent_copy *e = kmalloc(sizeof(*e), GFP_NOIO);
	sector_t sectors = place->ext.len >> SECTOR_SHIFT;
	struct dm_io_region from = {
		.bdev = place->layer->bdev,
		.sector = place->ext.host >> SECTOR_SHIFT,
		.count = sectors,
	};
	struct dm_io_region to = {
		.bdev = w->m->dev->bdev,
		.sector = guest >> SECTOR_SHIFT,
		.count = sectors,
	};

	if (!e)
		return -ENOMEM;
	e->w = w;
	e->place = *place;
	atomic_inc(&w->pending);
	dm_kcopyd_copy(w->m->kcopyd, &from, 1, &to, 0, extent_copied, e);
	return 0;
}

/* Compressed: there is nothing on the device that could be copied as it is. */
static int copy_packed(struct qc_target *t, struct window *w,
		       const struct qc_place *place, u64 guest)
{
	struct qc_unpack u;
	int err = qc_unpack_place(t, place, &u);

	if (err)
		return err;
	err = qc_device_rw(w->m->dev->bdev, REQ_OP_WRITE, guest,
			   u.data + place->ext.host, place->ext.len);
	qc_unpack_put(&u);
	return err;
}

static int copy_place(struct qc_target *t, struct window *w,
		      struct qc_place *place, u64 guest)
{
	int err;

	if (place->ext.map == QC_MAP_ZERO)
		return qc_mirror_zero(w->m, guest, place->ext.len);
	if (place->ext.map == QC_MAP_PACKED) {
		err = copy_packed(t, w, place, guest);
		qc_place_leave(place);
		return err;
	}
	err = copy_extent(w, place, guest);
	if (err)
		qc_place_leave(place);
	return err;
}

/* What is at @c->start, within the window that ends at @end. */
static int copy_step(struct qc_target *t, struct window *w,
		     struct qc_mirror_copy *c, u64 end)
{
	struct qc_place place;
	u64 len;
	int err;

	err = qc_chain_resolve(&t->chain, 0, c->start, end - c->start, &place);
	if (err)
		return err;
	len = place.ext.len;
	if (place.index >= c->layers) {
		qc_place_leave(&place);
	} else {
		err = copy_place(t, w, &place, c->start);
		if (!err && place.ext.map != QC_MAP_ZERO)
			c->copied += len;
	}
	if (!err)
		c->start += len;
	return err;
}

static int copy_window(struct qc_target *t, struct qc_mirror_copy *c, u64 end)
{
	u64 start = c->start;
	struct window w;
	int err = 0, ret;

	window_enter(&w, t->mirror, start, end);
	while (c->start < end && !err)
		err = copy_step(t, &w, c, end);
	ret = window_leave(&w);
	if (!err)
		err = ret;
	if (err)
		c->start = start;
	return err;
}

/* How far nothing is owned from @c->start on: no need to hold up writes. */
static int skip_unowned(struct qc_target *t, struct qc_mirror_copy *c)
{
	struct qc_place place;
	int err;

	err = qc_chain_resolve(&t->chain, 0, c->start, c->end - c->start,
			       &place);
	if (err)
		return err;
	qc_place_leave(&place);
	if (place.index >= c->layers)
		c->start += place.ext.len;
	return 0;
}

int qc_mirror_copy(struct qc_target *t, struct qc_mirror_copy *c)
{
	u32 lookups = 0;
	int err = 0;

	while (!err && c->start < c->end && c->copied < QC_JOB_BYTES &&
	       ++lookups <= QC_JOB_LOOKUPS && !READ_ONCE(t->suspending)) {
		u64 before = c->start;

		if (qc_mirror_broken(t->mirror))
			return -EIO;
		err = skip_unowned(t, c);
		if (!err && c->start == before)
			err = copy_window(t, c, min(c->end, before +
						    QC_JOB_STEP_BYTES));
	}
	return err;
}
