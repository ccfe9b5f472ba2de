/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * All I/O that map() cannot remap at once: lookups that miss, allocating writes
 * and copy-on-write, discard and write-zeroes.
 *
 * Each such bio is a work item on the target's queue and carries its own state,
 * struct qc_io.  Guest clusters that are being allocated or dropped are range
 * locked; a bio that meets a locked range waits in its holder's list, not in a
 * thread.  Plain I/O to clusters that the image owns takes no range lock.
 */
#ifndef DM_QCOW2_WRITE_H
#define DM_QCOW2_WRITE_H

#include <linux/bio.h>
#include <linux/workqueue.h>

#include "chain.h"

struct dm_target;

/**
 * struct qc_target - a dm target
 * @ti: the target
 * @chain: its layers
 * @top: image of layer 0, NULL where that is raw
 * @writable: writes are allowed by the table
 * @active: between preresume and postsuspend
 * @copy_on_read: feature
 * @error_if_no_space: feature
 * @no_discard: feature no_discard_passdown
 * @snapshot: feature, ID of the internal snapshot that is layer 0, or NULL
 * @zero_from: feature, sectors; U64_MAX if not given; the image knows whether
 *	it still counts
 * @wq: work items of struct qc_io
 * @bios: pieces of guest bios
 * @copy_lock: protects @copy_buf
 * @copy_buf: used when no memory is left
 * @space_lock: protects @space_bios and @suspending
 * @space_bios: bios that wait for free clusters
 * @space_work: tries them again
 * @suspending: nothing may wait for space any more
 * @requeue: what waited for space goes back to device-mapper
 */
struct qc_target {
	struct dm_target *ti;
	struct qc_chain chain;
	struct qc_image *top;
	bool writable;
	bool active;
	bool copy_on_read;
	bool error_if_no_space;
	bool no_discard;
	u64 zero_from;
	char *snapshot;
	struct workqueue_struct *wq;
	struct bio_set bios;
	struct mutex copy_lock;		/* copy_buf */
	void *copy_buf;
	spinlock_t space_lock;		/* space_bios, suspending, requeue */
	struct bio_list space_bios;
	struct delayed_work space_work;
	bool suspending;
	bool requeue;
};

/**
 * struct qc_io - per-bio data
 * @t: the target
 * @layer: layer whose image counts the bio itself as in flight, or NULL
 * @epoch: token for it
 * @wait_commit: the bio ends only when a commit has made it durable
 * @waited: waited for space since @space_since
 * @status: first error of a piece
 * @pending: pieces in flight, and one for the work item
 * @work: on @t->wq
 * @pos: guest offset in bytes up to which pieces were made
 * @start: guest offset of the bio in bytes
 * @end: guest offset where the bio ends
 * @space_since: jiffies
 * @range: in img->ranges while the range is locked
 * @range_start: guest offset in bytes of the locked range
 * @range_end: where it ends
 * @range_waiters: bios that wait for the range
 */
struct qc_io {
	struct qc_target *t;
	struct qc_layer *layer;
	unsigned int epoch;
	bool wait_commit;
	bool waited;
	blk_status_t status;
	atomic_t pending;
	struct work_struct work;
	u64 pos;
	u64 start;
	u64 end;
	unsigned long space_since;
	struct list_head range;
	u64 range_start;
	u64 range_end;
	struct bio_list range_waiters;
};

/**
 * qc_io_defer() - hand a bio over to a work item
 * @t: the target
 * @io: per-bio data of the bio
 * @start: guest offset in bytes
 * @len: bytes
 *
 * Context: any; map().
 */
void qc_io_defer(struct qc_target *t, struct qc_io *io, u64 start, u64 len);

/**
 * qc_write_init() - prepare a target's slow path
 * @t: the target
 *
 * Return: 0 or a negative error; qc_write_exit() in any case.
 */
int qc_write_init(struct qc_target *t);

/** qc_write_exit() - undo qc_write_init() */
void qc_write_exit(struct qc_target *t);

/**
 * qc_write_presuspend() - let go of the bios that wait for space
 * @t: the target
 * @requeue: give them back to device-mapper instead of failing them
 *
 * Context: may sleep.
 */
void qc_write_presuspend(struct qc_target *t, bool requeue);

/**
 * qc_write_resume() - bios may wait for space again
 * @t: the target
 */
void qc_write_resume(struct qc_target *t);

#endif /* DM_QCOW2_WRITE_H */
