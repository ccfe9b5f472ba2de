/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The metadata commit: brings all changes of an image's metadata to the device
 * in an order that a crash cannot hurt.
 *
 *	freeze	at one instant: the dirty blocks, the clusters dropped from
 *		the mapping, the requests that wait for a commit
 *	1a	refcount blocks; the refcount table if it moved	-> flush
 *		(The data and the new L2 tables that the entries frozen here
 *		point to were written before: the same flush makes them durable.
 *		An external data file is another device: it is flushed here, too.)
 *	1b	refcount table, or the header if the table moved	-> flush
 *	2	L2 tables, the L1 table				-> flush
 *	then	waiting requests end; dropped clusters go to qc_alloc_reap()
 *
 * A phase that has nothing to write is left out with its flush, except for the
 * flush of 1a before a phase 2 and on behalf of waiting requests.
 *
 * One commit of an image runs at a time, as a work item on the image's queue.
 * It needs no memory but what the image's pools have, and allocates no cluster:
 * all that it writes has its place already.
 */
#ifndef DM_QCOW2_COMMIT_H
#define DM_QCOW2_COMMIT_H

#include <linux/bio.h>
#include <linux/mempool.h>

struct qc_image;
struct work_struct;

/* The flushes that a crash must not find missing; for tests. */
enum qc_flush {
	QC_FLUSH_1A = 1,
	QC_FLUSH_1B = 2,
	QC_FLUSH_2 = 4,
	QC_FLUSH_MIRROR = 8,
	QC_FLUSH_DATA = 16,
};

#ifdef DM_QCOW2_FAULTS
/** qc_flush_left_out() - is this flush to be left out? */
bool qc_flush_left_out(enum qc_flush phase);
#else
static inline bool qc_flush_left_out(enum qc_flush phase)
{
	return false;
}
#endif

/**
 * qc_commit_schedule() - metadata has changed: commit within the interval
 * @img: the image
 *
 * Context: meta_lock.
 */
void qc_commit_schedule(struct qc_image *img);

/**
 * qc_commit_kick() - commit now
 * @img: the image; nothing happens where it is read only
 *
 * Context: any.
 */
void qc_commit_kick(struct qc_image *img);

/**
 * qc_commit_wait_bio() - end a request when all before it is durable
 * @img: the image, writable
 * @bio: a flush, or a write that has completed and is to be durable
 *
 * What the device acknowledged before this call, and the mappings made before,
 * are durable when the bio ends without error.
 *
 * Context: any.
 */
void qc_commit_wait_bio(struct qc_image *img, struct bio *bio);

/**
 * qc_commit_sync() - commit until nothing is left to commit or to free
 * @img: the image; no target makes new changes
 *
 * Context: may sleep, no lock of the image held but state_lock.
 */
void qc_commit_sync(struct qc_image *img);

/**
 * qc_commit_barrier() - make durable what was done before
 * @img: the image, writable; others may go on changing it
 *
 * Data acknowledged and mappings made before this call are durable when it
 * returns.
 *
 * Context: may sleep, no lock of the image held but state_lock.
 * Return: 0 or -EIO.
 */
int qc_commit_barrier(struct qc_image *img);

/**
 * qc_commit_throttle() - hold back a writer while too much is dirty
 * @img: the image
 *
 * Context: may sleep, no lock held.
 */
void qc_commit_throttle(struct qc_image *img);

/**
 * qc_commit_must_wait() - would qc_commit_throttle() wait?
 * @img: the image
 *
 * Context: any.
 */
bool qc_commit_must_wait(const struct qc_image *img);

/**
 * qc_commit_work() - run one commit
 * @work: commit_work of the image
 *
 * Context: work item on the image's queue.
 */
void qc_commit_work(struct work_struct *work);

/**
 * qc_commit_bio_pool() - make the reserve of bios that a commit writes with
 *
 * Context: may sleep.
 * Return: the pool, or NULL.
 */
mempool_t *qc_commit_bio_pool(void);

#endif /* DM_QCOW2_COMMIT_H */
