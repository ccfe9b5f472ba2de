/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Refcounts and free space of an image open for writing.
 *
 * In memory a refcount goes up when a cluster is allocated, so that it is in
 * the next commit with or before the reference to it, and goes down only when
 * the commit that dropped the reference is durable and no I/O to the cluster is
 * in flight: invariants 3 and 5 in image.h.  From then on the cluster may be
 * given out again.
 *
 * The guest data of an image with an external data file is none of this: see
 * image.h.
 */
#ifndef DM_QCOW2_ALLOC_H
#define DM_QCOW2_ALLOC_H

#include <linux/list.h>
#include <linux/types.h>
#include <linux/workqueue.h>

struct qc_image;

/**
 * struct qc_run - host clusters that were allocated
 * @start: first cluster
 * @count: how many
 * @virgin: known to read as zeroes on the image's device
 */
struct qc_run {
	u64 start;
	u32 count;
	bool virgin;
};

/**
 * struct qc_free - host clusters that lost a reference
 * @node: in img->frees, the running commit's list, or img->reapable
 * @start: first cluster
 * @count: how many
 */
struct qc_free {
	struct list_head node;
	u64 start;
	u64 count;
};

/**
 * qc_alloc_open() - prepare an image for allocation
 * @img: the image, header decoded, L1 table in memory
 *
 * Reads the refcount table, learns which clusters hold metadata and where the
 * image ends.
 *
 * Context: may sleep; activation, single-threaded.
 * Return: 0 or a negative error; details in the log.
 */
int qc_alloc_open(struct qc_image *img);

/**
 * qc_alloc() - allocate host clusters
 * @img: the image, writable
 * @want: how many at the most, at least 1
 * @run: what was allocated: adjacent clusters, refcount 1 in memory
 *
 * Context: may sleep; none of the image's locks held but l2_lock and ranges.
 * Return: 0, -ENOSPC, -EIO.
 */
int qc_alloc(struct qc_image *img, u32 want, struct qc_run *run);

/**
 * qc_alloc_next_virgin() - are the next clusters likely to read as zeroes?
 * @img: the image, writable
 *
 * A guess, for whom it spares to ask in vain.
 *
 * Context: any.
 */
bool qc_alloc_next_virgin(const struct qc_image *img);

/**
 * qc_alloc_try() - as qc_alloc(), where that need not wait
 * @img: the image, writable
 * @count: how many, all of them or none
 * @virgin: only such as are known to read as zeroes
 * @run: what was allocated
 *
 * Reads no metadata, takes no memory, and does not wait for who does.
 *
 * Context: as qc_alloc(); sleeps for short locks only.
 * Return: false where nothing was allocated.
 */
bool qc_alloc_try(struct qc_image *img, u32 count, bool virgin,
		  struct qc_run *run);

/**
 * qc_alloc_area() - allocate adjacent clusters, however many
 * @img: the image, writable
 * @count: how many
 * @start: the first one
 *
 * Behind all that is in use, but for a single one.  Their contents are not defined.
 *
 * Context: may sleep; none of the image's locks held but state_lock.
 * Return: 0, -ENOSPC, -EIO; then some may leak.
 */
int qc_alloc_area(struct qc_image *img, u64 count, u64 *start);

/**
 * qc_alloc_reaches() - is the device long enough for a cluster that is allocated?
 * @img: the image, writable
 * @end: byte offset where it is to be written up to
 *
 * A file need not be padded to whole clusters.
 *
 * Context: as qc_alloc().
 * Return: 0, or -ENOSPC: the device has to grow.
 */
int qc_alloc_reaches(struct qc_image *img, u64 end);

/**
 * qc_alloc_undo() - give back clusters that were never referenced
 * @img: the image
 * @run: from qc_alloc(); no I/O to it is in flight
 *
 * Context: as qc_alloc().
 */
void qc_alloc_undo(struct qc_image *img, const struct qc_run *run);

/**
 * qc_alloc_zero_host() - write zeroes to the image's device, for metadata
 * @img: the image
 * @host: byte offset, sector aligned
 * @len: bytes, sector aligned
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_alloc_zero_host(struct qc_image *img, u64 host, u64 len);

/**
 * qc_free_begin() - get a record for clusters that lose a reference
 * @img: the image
 *
 * Context: may sleep until a commit has freed a record; no lock held but
 * l2_lock and ranges.
 */
struct qc_free *qc_free_begin(struct qc_image *img);

/**
 * qc_free_add() - note that adjacent clusters lose a reference
 * @img: the image
 * @rec: record from qc_free_begin()
 * @first: host cluster
 * @count: how many
 *
 * Context: meta_lock, in the same section as the change of the mapping.
 * Return: false where the record holds clusters that are not adjacent: end it
 * and begin another one before the mapping is changed.
 */
bool qc_free_add(struct qc_image *img, struct qc_free *rec, u64 first,
		 u32 count);

/**
 * qc_free_end() - hand a record over to the next commit, or back if empty
 * @img: the image
 * @rec: record from qc_free_begin()
 *
 * Context: meta_lock, in the same section as qc_free_add().
 */
void qc_free_end(struct qc_image *img, struct qc_free *rec);

/**
 * qc_alloc_reap() - free the clusters whose last reference is durably gone
 * @work: reap_work of the image
 *
 * Context: work item on the image's second queue.
 */
void qc_alloc_reap(struct work_struct *work);

#endif /* DM_QCOW2_ALLOC_H */
