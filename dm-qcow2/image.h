/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One open qcow2 image: its geometry, its metadata in memory, its state.
 *
 * An image has one object, found by its device: all targets that use the
 * image share the object, and with it the metadata cache, the allocator and
 * the I/O epochs.  Life of an object:
 *
 *	qc_image_get()		ctr; the first caller makes it
 *	qc_image_activate()	preresume; the first one reads header and tables
 *	qc_image_deactivate()	postsuspend; the writer's commits everything
 *	qc_image_put()		dtr; the last one frees it
 *
 * Locks, outermost first:
 *
 *	state_lock	mutex of an image; its transitions: read the header,
 *			activate, deactivate; held across I/O and commits, with
 *			allocations that do no I/O (the device may be suspended)
 *	qc_images_lock	mutex; the list of images and @users; short
 *	move_lock	mutex; @moving, see qc_l2_move_begin(); within a range
 *	l2_lock		mutex; makes new L2 tables one at a time (l2.c)
 *	alloc_lock	mutex; serialises allocation, @cursor, @hwm, growth of the
 *			refcount table (alloc.c); held across metadata I/O
 *	load_lock[]	mutex, by hash; one reader of a metadata block at a time
 *	meta_lock	mutex; every change of a metadata block in memory, the
 *			dirty and commit lists, @frees; never held across I/O or
 *			a sleeping allocation
 *	header_lock	mutex; read, change and write back the header's sector
 *	drain_lock	mutex; one qc_epoch_drain() at a time
 *	event_lock	mutex; the writer cannot go away while an event is raised
 *	range_lock, wait_lock	spinlocks, leaves; in-flight guest ranges;
 *			requests that wait for a commit
 *
 * Lookups take no lock: metadata blocks hang in xarrays and, the few that a chain
 * of many layers is searched for again and again, in @front, which takes no walk.
 * They are freed an RCU grace period after they left both, and their entries change
 * by single 64-bit stores (extended L2 entries by two, see words.h).
 *
 * Invariants.  A crash may come at any instant, and of what was not flushed any
 * subset of the sectors may be on the device:
 *
 *	1	qemu-img check finds leaks, never corruption, in each image.
 *	2	What a flush or a FUA write acknowledged is there.
 *	3	No refcount on disk is below the number of references on disk.
 *	4	No entry on disk (L1, L2, refcount table) refers to a cluster whose
 *		content is not durable.
 *	5	A host cluster is given out again, or punched out, only when what
 *		dropped it is durable and no I/O mapped to it is in flight, in any
 *		chain over the image.
 *	6	A sector outside of the guest's write keeps its content: copy-on-write
 *		fills the rest of a new cluster before anything refers to it.
 *	7	A lower layer is unchanged to the bit, but where it is the destination
 *		of a merge, or gets another backing link.
 *	8	After a failed metadata write the image is read, but not written:
 *		status, log and a dm event say so.
 *
 * Guest data need not be on the image's device: @data_bdev is where it goes, all
 * else goes to @bdev.  They differ in two cases.
 *
 *	LUKS	@data_bdev is a dm-crypt device over @bdev: a host offset means
 *		the same on both, so clusters are allocated, counted, reused and
 *		given back as ever.  What reads as zeroes on @bdev does not on
 *		@data_bdev.  dm-crypt ends a write when the device below has
 *		taken it: a flush of @bdev makes data durable, too.  Compressed
 *		data is not encrypted: as QEMU does, it is read from @bdev.
 *	external	@data_bdev is an external data file (spec, "Incompatible
 *		features", bit 2), through dm-crypt if that is encrypted as well.
 *		A guest cluster has its own place there, at the guest's offset:
 *		nothing is allocated, counted or freed for data.
 *
 * The same with an external data file, on two devices of which any subset of what
 * is not flushed may survive a crash:
 *
 *	3, 5	An entry refers to no cluster of the image.  A place in the data
 *		file is never another guest cluster's, so it may be written again
 *		while a dropped entry is not durable yet, and with I/O to it in
 *		flight, as that of a subcluster (see l2.h).
 *	4, 6	A cluster is filled before its entry changes in memory.  A commit
 *		flushes both devices before it writes entries: before its phase 2
 *		all that they refer to is durable.
 *	2	Who waits for a commit waits for these flushes.  Where all entries
 *		are durable a flush need only go to the data file.
 *
 * An image with @raw_data promises that the data file reads the same without the
 * image ("raw external data", autoclear bit 1), after a crash as well: zeroes are
 * written to the data file and no entry is dropped; an entry is made durable with
 * what the guest reads there already, before the guest's data follows.
 */
#ifndef DM_QCOW2_IMAGE_H
#define DM_QCOW2_IMAGE_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/list.h>
#include <linux/mempool.h>
#include <linux/mutex.h>
#include <linux/percpu-refcount.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "block.h"
#include "compat.h"
#include "format.h"
#include "metaset.h"

/* 64-bit entries are read without locks: that takes 64-bit loads and stores. */
#if BITS_PER_LONG != 64
#error "dm-qcow2 needs a 64-bit kernel"
#endif

#define DM_MSG_PREFIX	"qcow2"
#define QC_LOAD_LOCKS	16

/**
 * enum qc_mode - what may be done with an image
 * @QC_RO: read only, as asked
 * @QC_RW: read and write
 * @QC_NO_SPACE: read and overwrite; allocating writes wait or fail
 * @QC_FAILED: was writable, a metadata write failed or metadata contradicted
 *	itself: reads only, until the device is suspended and resumed
 */
enum qc_mode {
	QC_RO,
	QC_RW,
	QC_NO_SPACE,
	QC_FAILED,
};

/**
 * struct qc_epoch - I/O in flight that began in one epoch
 * @ref: counts it, per CPU
 * @drained: the count fell to zero after the epoch ended
 */
struct qc_epoch {
	struct percpu_ref ref;
	struct completion drained;
};

/**
 * struct qc_writer - a target that writes to an image
 * @ti: the target
 * @zero_from: bytes; what was never allocated at or above it reads as zeroes
 *	on the device; U64_MAX: nothing is known
 * @grow_to: make the image this many bytes long in memory, see edit.h; 0: not
 * @extend: ...and in its header, too
 * @below: for that, bytes of the layer below; 0: there is none
 * @no_discard: do not punch freed clusters out of the device
 * @yields: another writer may take over
 * @revoke: that has happened: write no more.  Called with state_lock held.
 */
struct qc_writer {
	struct dm_target *ti;
	u64 zero_from;
	u64 grow_to;
	bool extend;
	u64 below;
	bool no_discard;
	bool yields;
	void (*revoke)(struct qc_writer *writer);
};

struct qc_image {
	/* identity; fixed */
	struct list_head node;		/* qc_images_lock */
	dev_t dev;
	struct block_device *bdev;	/* kept open by the targets */
	struct block_device *data_bdev;	/* as well: guest data; or bdev */
	const char *snapshot;		/* ID: the image as that has it, or NULL */
	unsigned int users;		/* qc_images_lock */
	struct mutex state_lock;	/* see the lock table above */
	unsigned int active;		/* state_lock: resumed targets */

	/* geometry; changes only while no target is active */
	struct qcow2_header h;
	u64 dev_bytes;			/* grows under alloc_lock */
	u64 data_bytes;			/* as well; of the external data file */
	bool external;			/* guest data is in a data file */
	bool raw_data;			/* which reads the same by itself */
	u32 block_bytes;		/* of a cached part of a table */
	u8 block_entry_bits;		/* log2 of its 64-bit entries */
	u8 block_ref_bits;		/* log2 of its refcounts */
	u8 slice_bits;			/* log2 of the entries of an L2 slice */
	u8 slice_shift;			/* log2 of guest bytes an L2 slice maps */
	u8 table_shift;			/* log2 of guest bytes an L2 table maps */

	/* state */
	enum qc_mode mode;		/* meta_lock; read without */
	const char *reason;		/* one word for status, or NULL */
	struct mutex event_lock;	/* see the lock table above */
	struct qc_writer *writer;	/* state_lock and event_lock */
	u64 disk_size;			/* state_lock: h.size is ahead of it; or 0 */
	bool zero_from_spent;		/* state_lock: counts only once */
	bool packed;			/* a slice had a compressed cluster; no lock */
	u64 moving;			/* move_lock; guest cluster, or U64_MAX */

	/* metadata; see the lock table above */
	struct mutex meta_lock;
	struct xarray tables[QC_NR_TABLES];	/* struct qc_block */
	/* The last one that came for each value of the key's low bits */
	struct qc_block __rcu *front[QC_NR_TABLES][QC_FRONT];
	struct list_head dirty[QC_NR_TABLES];
	struct list_head lru;
	unsigned int nr_lru;
	unsigned int nr_dirty;
	atomic_t nr_unsafe;		/* L1 and L2 blocks not durable yet */
	bool header_dirty;		/* refcount table moved */
	struct mutex header_lock;	/* see the lock table above */
	struct mutex load_lock[QC_LOAD_LOCKS];	/* see the lock table above */
	struct mutex l2_lock;		/* see the lock table above */
	struct mutex move_lock;		/* see the lock table above */
	mempool_t *wb_pool;		/* writeback copies of blocks */
	mempool_t *free_pool;		/* struct qc_free */
	mempool_t *bio_pool;		/* metadata writes, see commit.c */

	/* allocator */
	struct mutex alloc_lock;	/* see the lock table above */
	u64 cursor;			/* no free cluster below */
	u64 hwm;			/* no cluster in use at or above */
	u64 zero_from;			/* bytes; never allocated above: zeroes */
	u32 reftable_blocks;		/* refcount table entries */
	struct qc_metaset metaset;	/* meta_lock: clusters with metadata */
	struct qc_metaset new_metaset;	/* being made by qc_alloc_open() */
	u64 nr_allocated;		/* counters for status */
	atomic64_t nr_cow;
	bool low_water_told;
	bool no_discard;

	/* clusters dropped from the mapping: open, then waiting for reap */
	struct list_head frees;		/* meta_lock */
	struct list_head reapable;	/* meta_lock */
	unsigned int nr_frees;		/* meta_lock; both lists and in reap */

	/* commit */
	struct workqueue_struct *wq;
	struct workqueue_struct *reap_wq; /* a reap may wait for a commit */
	struct delayed_work commit_work;
	struct work_struct reap_work;
	u64 nr_commits;
	u64 commit_seq;			/* meta_lock: commits begun */
	u64 commit_done;		/* meta_lock: commits ended */
	wait_queue_head_t commit_wait;
	spinlock_t wait_lock;		/* leaf: wait_bios */
	struct bio_list wait_bios;	/* wait_lock: end with the next commit */

	/* in-flight I/O to host clusters, see qc_epoch_enter() */
	struct qc_epoch epochs[2];
	unsigned int epoch_now;
	struct mutex drain_lock;	/* one qc_epoch_drain() at a time */

	/* guest clusters being allocated or dropped (write.c) */
	spinlock_t range_lock;		/* leaf: ranges */
	struct list_head ranges;
};

/**
 * qc_block_find() - find a block
 * @img: the image
 * @table: which table
 * @key: see enum qc_table
 *
 * Context: meta_lock, or an RCU read section (then entries may change under
 * the reader, one at a time).
 * Return: block or NULL.
 */
static inline struct qc_block *qc_block_find(struct qc_image *img,
					     enum qc_table table,
					     unsigned long key)
{
	struct qc_block *b =
		rcu_dereference_check(img->front[table][key % QC_FRONT],
				      lockdep_is_held(&img->meta_lock));

	if (!b || b->key != key)
		b = xa_load(&img->tables[table], key);
	/* Written only when it changes: the line stays shared between CPUs. */
	if (b && !READ_ONCE(b->referenced))
		WRITE_ONCE(b->referenced, true);
	return b;
}

extern struct mutex qc_images_lock;
extern struct list_head qc_images;

/**
 * qc_image_get() - find or make the object of an image, read its header
 * @bdev: device that the caller keeps open until qc_image_put()
 * @data: device of the guest data, kept open as well, where the image does not
 *	have that itself (LUKS, external data file); NULL where it does
 * @snapshot: ID of an internal snapshot to look at, read-only, or NULL.  Such a
 *	view is an object of its own: what a snapshot refers to does not change
 *	while it exists.
 * @error: set to a message for ti->error where it fails
 *
 * The header is read and checked unless a target is active on the image (it
 * may be changing it; what it read then counts).  Details of a failure are in
 * the log: among others -EBUSY where the image is in use with another device of
 * the guest data, -EINVAL where its header asks for one and there is none, or the
 * other way round.
 *
 * Context: may sleep; ctr.
 * Return: the object or ERR_PTR.
 */
struct qc_image *qc_image_get(struct block_device *bdev,
			      struct block_device *data, const char *snapshot,
			      char **error);

/**
 * qc_image_put() - drop a reference from qc_image_get()
 * @img: the image
 *
 * Context: may sleep; dtr.
 */
void qc_image_put(struct qc_image *img);

/**
 * qc_image_activate() - make an image ready for I/O
 * @img: the image
 * @writer: who writes to it, or NULL for a lower layer; the caller's until
 *	qc_image_deactivate()
 *
 * Reads header and tables anew unless another target is active on the image.
 * Autoclear bits are durably cleared and bitmaps marked in use when it returns.
 *
 * A writer that yields has been revoked then, and all that it wrote is durable:
 * it deactivates the image as a reader does.
 *
 * Context: may sleep; preresume.
 * Return: 0; -EBUSY (a second writer, an image edited meanwhile, or a failed one that
 * others still use), -EROFS (not fit for writing), -EOPNOTSUPP, -ENOSPC, -EFBIG (it
 * cannot get as long as @writer says), -EINVAL, -EIO, -ENOMEM; details in the log.
 */
int qc_image_activate(struct qc_image *img, struct qc_writer *writer);

/**
 * qc_image_bytes() - virtual size of an image, for one of its targets
 * @img: the image, active
 * @writer: as given to qc_image_activate()
 *
 * While an image grows it has its new size for the writer alone: what is there was
 * not made to read as zeroes yet.
 *
 * Context: may sleep; takes state_lock.
 */
u64 qc_image_bytes(struct qc_image *img, const struct qc_writer *writer);

/**
 * qc_image_deactivate() - end of I/O through one target
 * @img: the image
 * @writer: as given to qc_image_activate()
 *
 * For the writer, unless it was taken over from, all metadata is durable when it
 * returns (unless the mode is QC_FAILED), refcounts are exact, and the cache is
 * dropped: tools may edit the image.  There is no I/O in flight from this target.
 *
 * Context: may sleep; postsuspend.
 */
void qc_image_deactivate(struct qc_image *img, struct qc_writer *writer);

/**
 * qc_image_fail() - stop writing to an image
 * @img: the image
 * @reason: one word for status
 * @fmt: what happened, for the log
 *
 * The one place that enters QC_FAILED.  Requests that wait for a commit fail.
 *
 * Context: may sleep; meta_lock not held.
 */
__printf(3, 4)
void qc_image_fail(struct qc_image *img, const char *reason,
		   const char *fmt, ...);

/**
 * qc_image_corrupt() - metadata of an image contradicts itself
 * @img: the image
 * @fmt: what was found, for the log
 *
 * Logs it; where the image is being written, stops that and sets the corrupt
 * bit in the header (version 3).
 *
 * Context: may sleep; meta_lock not held.
 */
__printf(2, 3)
void qc_image_corrupt(struct qc_image *img, const char *fmt, ...);

/**
 * qc_image_log_fault() - say what is wrong in an image
 * @img: the image
 * @fault: of a check in format.h
 *
 * Context: any.
 */
void qc_image_log_fault(struct qc_image *img, const struct qcow2_fault *fault);

/**
 * qc_image_set_mode() - enter or leave QC_NO_SPACE
 * @img: the image
 * @mode: QC_RW or QC_NO_SPACE; ignored once failed
 *
 * Context: may sleep; meta_lock not held.
 */
void qc_image_set_mode(struct qc_image *img, enum qc_mode mode);

/**
 * qc_image_event() - raise a dm event on the device that writes the image
 * @img: the image
 *
 * Context: may sleep.
 */
void qc_image_event(struct qc_image *img);

/**
 * qc_image_flush_all() - make durable what the devices of an image have taken
 * @img: the image
 *
 * Guest data and metadata.
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_image_flush_all(struct qc_image *img);

/**
 * qc_image_refresh_size() - notice that the device has grown
 * @img: the image
 *
 * Context: alloc_lock held.
 * Return: true if it is larger than it was.
 */
bool qc_image_refresh_size(struct qc_image *img);

/**
 * qc_image_rw() - synchronous I/O of metadata
 * @img: the image
 * @op: REQ_OP_READ or REQ_OP_WRITE, with flags
 * @host: byte offset on the device, sector aligned
 * @buf: kmalloc() or page memory, not vmalloc()
 * @len: bytes, sector aligned, at most a page unless physically contiguous
 *
 * Context: may sleep, GFP_NOIO inside.
 * Return: 0 or a negative error.
 */
int qc_image_rw(struct qc_image *img, blk_opf_t op, u64 host, void *buf,
		u32 len);

/**
 * qc_image_read_bytes() - synchronous read of any length and alignment
 * @img: the image
 * @host: byte offset on the device
 * @buf: any memory
 * @len: bytes; what lies beyond the device reads as zeroes
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_image_read_bytes(struct qc_image *img, u64 host, void *buf, u32 len);

/**
 * qc_image_write_bytes() - synchronous write within one logical block
 * @img: the image, open for writing
 * @host: byte offset on the device
 * @buf: any memory
 * @len: bytes; the range does not cross a logical block
 *
 * Written, not flushed.
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_image_write_bytes(struct qc_image *img, u64 host, const void *buf,
			 u32 len);

/**
 * qc_image_write_header() - rewrite the fields of the header that we own
 * @img: the image
 * @h: what to write: place and size of the refcount table, autoclear bits
 *
 * One sector: atomic for a crash.  Written, not flushed.
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_image_write_header(struct qc_image *img, const struct qcow2_header *h);

/**
 * qc_image_edit_header() - change fields of the header
 * @img: the image
 * @edit: changes the header's first block
 * @data: for @edit
 *
 * One block: atomic for a crash.  Written, not flushed.
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_image_edit_header(struct qc_image *img,
			 void (*edit)(struct qcow2_disk_header *d,
				      const void *data),
			 const void *data);

/** qc_image_writable() - may guest writes reach the image? */
static inline bool qc_image_writable(const struct qc_image *img)
{
	enum qc_mode mode = READ_ONCE(img->mode);

	return mode == QC_RW || mode == QC_NO_SPACE;
}

/** qc_image_clusters() - whole clusters on the device */
static inline u64 qc_image_clusters(const struct qc_image *img)
{
	return READ_ONCE(img->dev_bytes) >> img->h.cluster_bits;
}

/**
 * qc_epoch_enter() - count an I/O to a host cluster as in flight
 * @img: image that the cluster belongs to
 *
 * Called inside the RCU read section of the lookup that found the cluster, so
 * that qc_epoch_drain(), which begins with a grace period, waits for it.
 *
 * Context: any, in an RCU read section; does not sleep.
 * Return: token for qc_epoch_leave().
 */
static inline unsigned int qc_epoch_enter(struct qc_image *img)
{
	for (;;) {
		unsigned int e = READ_ONCE(img->epoch_now);

		/* Fails only between the flip and the kill of the old epoch. */
		if (likely(percpu_ref_tryget_live(&img->epochs[e].ref)))
			return e;
		cpu_relax();
	}
}

/**
 * qc_epoch_leave() - an I/O counted by qc_epoch_enter() has ended
 * @img: the image
 * @epoch: token
 *
 * Context: any, hard interrupt included.
 */
static inline void qc_epoch_leave(struct qc_image *img, unsigned int epoch)
{
	percpu_ref_put(&img->epochs[epoch].ref);
}

/**
 * qc_epoch_drain() - wait for all I/O that may use a mapping dropped before
 * @img: the image
 *
 * Context: may sleep; reap work, or a range locked.
 */
void qc_epoch_drain(struct qc_image *img);

#endif /* DM_QCOW2_IMAGE_H */
