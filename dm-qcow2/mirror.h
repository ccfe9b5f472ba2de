/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A second device that gets what is written: the other end of a commit or copy
 * of an image in use.
 *
 * Guest writes go to the top image and to the mirror, a message copies what was
 * there before.  Both take their range in one list first, in the order in which
 * they come: who overlaps with one before it waits for that one to leave.  So
 * both ends see overlapping writes in the same order, and a copy never brings
 * an older state over a newer one.
 *
 * The top image is the authority: what the guest is told depends on it alone.  A
 * mirror that fails is broken from then on, nothing is sent to it any more, and
 * the status says so.
 *
 * Locks: the list's spinlock is a leaf, taken with interrupts off.  A range is
 * outside all locks of an image: it is entered before, and left after, the I/O
 * to both.
 */
#ifndef DM_QCOW2_MIRROR_H
#define DM_QCOW2_MIRROR_H

#include <linux/blk_types.h>
#include <linux/list.h>
#include <linux/types.h>

struct block_device;
struct dm_target;
struct qc_mirror;
struct qc_target;

/**
 * struct qc_mirror_range - a guest range that is being written or copied
 * @node: in the mirror's list
 * @start: guest offset in bytes
 * @end: where it ends
 * @waiting: one before it overlaps
 * @granted: called when it need not wait any more
 */
struct qc_mirror_range {
	struct list_head node;
	u64 start;
	u64 end;
	bool waiting;
	void (*granted)(struct qc_mirror_range *range);
};

/**
 * qc_mirror_create() - open a mirror
 * @ti: target that it is for
 * @path: device
 *
 * Context: may sleep; ctr.
 * Return: the mirror or ERR_PTR, then ti->error is set.
 */
struct qc_mirror *qc_mirror_create(struct dm_target *ti, const char *path);

/** qc_mirror_destroy() - close it; dtr; NULL is none */
void qc_mirror_destroy(struct qc_mirror *m);

/** qc_mirror_name() - major:minor of its device */
const char *qc_mirror_name(const struct qc_mirror *m);

/** qc_mirror_bdev() - its device */
struct block_device *qc_mirror_bdev(const struct qc_mirror *m);

/** qc_mirror_broken() - has it failed? */
bool qc_mirror_broken(const struct qc_mirror *m);

/**
 * qc_mirror_break() - a write to the mirror failed
 * @m: the mirror
 *
 * Context: any.
 * Return: whether the guest's write has to fail as well: after qc_mirror_final()
 */
bool qc_mirror_break(struct qc_mirror *m);

/**
 * qc_mirror_final() - the mirror is about to take the place of the device
 * @m: the mirror
 *
 * From now on the guest's writes fail with those to the mirror: none that it
 * was told to have succeeded can be missing there.
 *
 * Context: any.
 * Return: 0, or -EIO where the mirror is broken already.
 */
int qc_mirror_final(struct qc_mirror *m);

/**
 * qc_mirror_flush() - make durable what the mirror has
 * @m: the mirror; breaks where that fails
 *
 * Context: may sleep; postsuspend: nothing is in flight.
 * Return: whether the mirror has all that the device has.
 */
bool qc_mirror_flush(struct qc_mirror *m);

/**
 * qc_mirror_enter() - take a range
 * @m: the mirror
 * @range: the caller's, until qc_mirror_leave()
 * @start: guest offset in bytes
 * @end: where it ends
 * @granted: called later, from any context, if this returns false
 *
 * Context: any.
 * Return: whether the range is the caller's already.
 */
bool qc_mirror_enter(struct qc_mirror *m, struct qc_mirror_range *range,
		     u64 start, u64 end,
		     void (*granted)(struct qc_mirror_range *range));

/**
 * qc_mirror_leave() - the I/O to both ends has ended
 * @m: the mirror
 * @range: as given to qc_mirror_enter(), and granted
 *
 * Context: any.
 */
void qc_mirror_leave(struct qc_mirror *m, struct qc_mirror_range *range);

/**
 * qc_mirror_zero() - write zeroes to the mirror
 * @m: the mirror
 * @guest: offset in bytes
 * @len: bytes
 *
 * Context: may sleep; the range is the caller's.
 * Return: 0 or a negative error.
 */
int qc_mirror_zero(struct qc_mirror *m, u64 guest, u64 len);

/**
 * struct qc_mirror_copy - what to copy to the mirror
 * @start: guest offset in bytes; when it returns, how far it came
 * @end: guest offset in bytes where to stop at the latest
 * @layers: what the layers 0 to @layers - 1 own
 * @copied: bytes that were copied
 */
struct qc_mirror_copy {
	u64 start;
	u64 end;
	u32 layers;
	u64 copied;
};

/**
 * qc_mirror_copy() - copy what layers own to the mirror
 * @t: a target with a mirror, active
 * @c: what to do
 *
 * Written, not flushed, when it returns.  May run many times beside each other.
 * Where a suspend begins it stops, perhaps before it has come anywhere.
 *
 * Context: may sleep.
 * Return: 0; -EIO where the mirror is broken, -EAGAIN without memory, or another
 * negative error.
 */
int qc_mirror_copy(struct qc_target *t, struct qc_mirror_copy *c);

#endif /* DM_QCOW2_MIRROR_H */
