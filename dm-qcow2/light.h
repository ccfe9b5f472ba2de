/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Small writes that allocate and need not wait, all in one work item.
 *
 * A thread for each of them, which sleeps while the data is written, costs more than
 * all the rest.  So one work item of the target takes them one after the other, as long
 * as metadata is in memory and there is nothing to copy: it allocates, sends the data
 * and goes on with the next one.  When the data has arrived, a second work item makes
 * the entries.  Whatever turns out to be more is left to a work item of its own, before
 * anything was begun, or to finish it.
 *
 * The range is locked from the allocation to the change of the entries, so that what
 * holds for other allocating writes holds here as well: an entry is in memory, and
 * with that in a commit, only when the data's write has ended; a host cluster given
 * back has no I/O in flight.
 *
 * Who waits for whom, with a memory that is used up by pages that are to be written:
 *
 *	light_work	on the target's queue.  Takes no memory but parts, and may wait
 *			for those under way, as for the device that it sends them to.
 *	written_work	on a queue that all targets share, with one rescuer.  Takes
 *			meta_lock, which nobody holds while he waits for a device, nor
 *			for memory, but for the set of metadata clusters when that
 *			doubles.  So it gets on whatever the other work items wait for,
 *			those of devices that stand on each other too.
 */
#ifndef DM_QCOW2_LIGHT_H
#define DM_QCOW2_LIGHT_H

#include "write.h"

/**
 * qc_light_maybe() - is it worth trying?
 * @t: the target
 * @bio: the guest's, or NULL
 * @start: guest offset in bytes
 *
 * Context: any; map().
 */
bool qc_light_maybe(const struct qc_target *t, const struct bio *bio, u64 start);

/**
 * qc_light_work() - begin what is in @light of a target
 * @work: @light_work of the target
 *
 * Context: work item.
 */
void qc_light_work(struct work_struct *work);

/**
 * qc_light_written() - end what is in @written of a target
 * @work: @written_work of the target
 *
 * Context: work item.
 */
void qc_light_written(struct work_struct *work);

/**
 * qc_light_finish() - end what qc_light_written() could not
 * @io: an io that is @unfinished; then it is to be gone on with at its @pos
 *
 * Its data could not be written, or to make the entries takes reading the table.
 *
 * Context: may sleep; work item of the io.
 */
void qc_light_finish(struct qc_io *io);

/**
 * qc_light_init() - make the queue that all targets share
 *
 * Return: 0 or -ENOMEM.
 */
int qc_light_init(void);

/** qc_light_exit() - undo qc_light_init() */
void qc_light_exit(void);

#endif /* DM_QCOW2_LIGHT_H */
