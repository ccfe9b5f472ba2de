/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * All I/O that map() cannot remap at once: lookups that miss, allocating writes
 * and copy-on-write, discard and write-zeroes.
 *
 * Each such bio is a work item on the target's queue and carries its own state,
 * struct qc_io.  Guest clusters that are being allocated or dropped are range
 * locked; a bio that meets a locked range waits in its holder's list, not in a
 * thread.  Plain I/O to clusters that the image owns takes no range lock.
 *
 * Small writes that allocate share one work item as long as they need not wait, see
 * light.h.
 */
#ifndef DM_QCOW2_WRITE_H
#define DM_QCOW2_WRITE_H

#include <linux/bio.h>
#include <linux/llist.h>
#include <linux/sizes.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "chain.h"
#include "edit.h"
#include "mirror.h"
#include "unpack.h"

struct dm_target;
struct qc_populate;

/**
 * struct qc_target - a dm target
 * @ti: the target
 * @chain: its layers
 * @top: image of layer 0, NULL where that is raw
 * @writable: writes are allowed by the table, and no other target has taken
 *	the top image over
 * @active: between preresume and postsuspend
 * @copy_on_read: feature
 * @error_if_no_space: feature
 * @no_discard: feature no_discard_passdown
 * @yields: feature yield
 * @explicit_zeroes: feature, or there is a mirror: the top image never drops
 *	an entry because the layers below read as zeroes
 * @grow: feature
 * @extend: feature
 * @mirror: feature, or NULL
 * @retired: empty L1 table for the top image, once its contents are in the
 *	mirror and the device is suspended
 * @jobs: held for reading by messages at work, for writing by presuspend
 * @final_lock: @retired; one "final" at a time
 * @writer: what the top image knows of this target; not of a read-only one
 * @snapshot: feature, ID of the internal snapshot that is layer 0, or NULL
 * @zero_from: feature, sectors; U64_MAX if not given; the image knows whether
 *	it still counts
 * @wq: work items of struct qc_io
 * @light_work: takes @light
 * @written_work: takes @written, not on @wq
 * @light: ios that may be light, see light.h, the last one to come first
 * @written: light ios whose data has been written, or has failed
 * @light_task: in which @light_work runs, or NULL
 * @written_here: such as had been written when that came back from sending them;
 *	of @light_work alone
 * @nr_light: light ios whose entries have not been made yet
 * @light_wait: woken when there is none any more
 * @bios: pieces of guest bios
 * @copy_lock: protects @copy_buf
 * @copy_buf: a page, used when no memory is left
 * @reserve: as well, to decompress
 * @space_lock: protects @space_ios and @suspending
 * @space_ios: ios that wait for free clusters, or for memory to decompress
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
	bool yields;
	bool explicit_zeroes;
	bool grow;
	bool extend;
	u64 zero_from;
	struct qc_mirror *mirror;
	struct rw_semaphore jobs;
	struct mutex final_lock;	/* within jobs: retired */
	struct qc_area retired;
	struct qc_writer writer;
	char *snapshot;
	struct workqueue_struct *wq;
	struct work_struct light_work;
	struct work_struct written_work;
	struct llist_head light;
	struct llist_head written;
	struct task_struct *light_task;
	struct llist_head written_here;
	atomic_t nr_light;
	wait_queue_head_t light_wait;
	struct bio_set bios;
	struct mutex copy_lock;		/* copy_buf */
	void *copy_buf;
	struct qc_reserve reserve;
	spinlock_t space_lock;		/* space_ios, suspending, requeue */
	struct list_head space_ios;
	struct delayed_work space_work;
	bool suspending;
	bool requeue;
};

/** qc_may_write() - does the image take writes, and from this target? */
static inline bool qc_may_write(const struct qc_target *t)
{
	return READ_ONCE(t->writable) &&
		(!t->top || qc_image_writable(t->top));
}

/**
 * qc_entry_first() - must a cluster's entry be durable before there is data?
 *
 * A raw external data file is read by itself as well: after a crash it has to read
 * as the image does.
 */
static inline bool qc_entry_first(const struct qc_target *t)
{
	return t->top && t->top->raw_data;
}

/**
 * struct qc_io - per-bio data, or an io of qc_populate()
 * @t: the target
 * @bio: the guest's, NULL for qc_populate(); set by qc_io_defer()
 * @populate: what qc_populate() wants
 * @layer: layer whose image counts the bio itself as in flight, or NULL
 * @epoch: token for it
 * @wait_commit: the bio ends only when a commit has made it durable
 * @mirrored: @mirror is to be left when the bio ends
 * @waited: waited for space since @space_since
 * @light: to be tried by @t->light_work first
 * @unfinished: qc_light_finish() is due
 * @in_place: of a light one: @host was the cluster's before
 * @status: first error of a piece
 * @pending: pieces in flight, and one for the work item
 * @work: on @t->wq
 * @pos: guest offset in bytes up to which pieces were made
 * @start: guest offset of the bio in bytes
 * @end: guest offset where the bio ends
 * @durable: guest offset up to which the entries are durable, from @pos on; of
 *	qc_entry_first() only
 * @space_since: jiffies
 * @range: in img->ranges while the range is locked
 * @range_start: guest offset in bytes of the locked range
 * @range_end: where it ends
 * @range_waiters: ios that wait for the range
 * @wait: in @range_waiters of another, or in @t->space_ios
 * @batch: in @t->light or @t->written, where it waits for nothing else
 * @host: of a light one: byte offset of the host cluster of @pos
 * @mirror: range held in the target's mirror; only while @mirrored
 * @mirror_due: the mirror has not been sent its part yet
 */
struct qc_io {
	struct qc_target *t;
	struct bio *bio;
	struct qc_populate *populate;
	struct qc_layer *layer;
	unsigned int epoch;
	bool wait_commit;
	bool mirrored;
	bool waited;
	bool light;
	bool unfinished;
	bool in_place;
	blk_status_t status;
	atomic_t pending;
	struct work_struct work;
	u64 pos;
	u64 start;
	u64 end;
	u64 durable;
	unsigned long space_since;
	struct list_head range;
	u64 range_start;
	u64 range_end;
	struct list_head range_waiters;
	union {
		struct list_head wait;
		struct llist_node batch;
	};
	u64 host;
	struct qc_mirror_range mirror;
	bool mirror_due;
};

/**
 * qc_wants_populate() - is what is read at a place to be copied into the top image?
 * @t: the target
 * @place: from a lookup
 *
 * Context: any.
 */
static inline bool qc_wants_populate(const struct qc_target *t,
				     const struct qc_place *place)
{
	return t->copy_on_read && t->writable && place->index &&
		place->ext.map != QC_MAP_ZERO;
}

/**
 * qc_io_defer() - hand a bio over to a work item
 * @t: the target
 * @bio: the guest's, with its per-bio data
 * @start: guest offset in bytes
 *
 * Context: any; map().
 */
void qc_io_defer(struct qc_target *t, struct bio *bio, u64 start);

/**
 * qc_io_mirror() - as qc_io_defer(), for a target with a mirror
 * @t: the target
 * @bio: a write, discard or write-zeroes
 * @start: guest offset in bytes
 *
 * The bio ends when both have it; who ends it calls qc_mirror_leave().
 *
 * Context: any; map().
 */
void qc_io_mirror(struct qc_target *t, struct bio *bio, u64 start);

/* A message stops after this much work: nobody waits for it for long. */
#define QC_JOB_BYTES		(4ULL << 20)
#define QC_JOB_LOOKUPS		4096
/* What it does while the guest's writes to the range wait. */
#define QC_JOB_STEP_BYTES	SZ_1M

/**
 * struct qc_populate - what to bring into the top image
 * @start: guest offset in bytes; when it returns, how far it came
 * @end: guest offset in bytes where to stop at the latest
 * @layers: from the layers 1 to @layers - 1
 * @zeroes: their zeroes become entries, whatever is below; else only where
 *	layers from @layers on have something to hide
 * @copied: bytes that were copied
 * @lookups: steps taken
 * @done: the work has come to its end
 */
struct qc_populate {
	u64 start;
	u64 end;
	u32 layers;
	bool zeroes;
	u64 copied;
	u32 lookups;
	struct completion done;
};

/**
 * qc_populate() - copy what lower layers own into the top image
 * @t: the target, active, writable, with the feature explicit_zeroes: else a
 *	discard could make a hole for what is to be hidden
 * @p: what to do
 *
 * Each cluster is copied under the range lock that guest writes take which
 * find it not allocated.  Nothing is durable when it returns.  Where a suspend begins
 * it stops, perhaps before it has come anywhere.
 *
 * Context: may sleep.
 * Return: 0 or a negative error: -ENOSPC, -EIO.
 */
int qc_populate(struct qc_target *t, struct qc_populate *p);

/**
 * qc_unpack_place() - get the contents of the compressed cluster at a place
 * @t: the target
 * @place: from a lookup, QC_MAP_PACKED; the contents that it means start at
 *	its offset in the cluster
 * @u: result; qc_unpack_put() is due
 *
 * Context: as qc_unpack_get().
 * Return: as qc_unpack_get().
 */
static inline int qc_unpack_place(struct qc_target *t,
				  const struct qc_place *place,
				  struct qc_unpack *u)
{
	return qc_unpack_get(place->layer->img, place->ext.packed, &t->reserve,
			     u);
}

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
 * qc_write_drain() - wait for all that the slow path has begun to write
 * @t: the target, not writable any more
 *
 * What comes later fails.
 *
 * Context: may sleep; not in a work item of the target.
 */
void qc_write_drain(struct qc_target *t);

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
