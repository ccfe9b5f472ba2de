/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The life of a bio in the slow path, struct qc_io: its parts on their way to
 * devices, the range that it locks, its end.
 *
 * A range lock is taken by whoever allocates or drops guest clusters, from before
 * the last look at their entries to after the change.  Who finds it taken does not
 * sleep: it is queued again by whoever unlocks.
 */
#ifndef DM_QCOW2_IO_H
#define DM_QCOW2_IO_H

#include "write.h"

/**
 * struct qc_part - a part of a guest bio on its way to a device
 * @io: of the bio
 * @place: where it goes, left when it ends
 * @bio: from @io->t->bios
 */
struct qc_part {
	struct qc_io *io;
	struct qc_place place;
	struct bio bio;
};

/**
 * qc_io_fail() - note an error; the first one counts
 * @io: the io
 * @status: the error
 *
 * Context: any.
 */
void qc_io_fail(struct qc_io *io, blk_status_t status);

/**
 * qc_io_put() - one part less is in flight; the last one ends the bio
 * @io: the io; not the caller's any more
 *
 * Context: any.
 */
void qc_io_put(struct qc_io *io);

/**
 * qc_io_batch() - hand an io over to a work item that takes many
 * @io: the io
 * @list: @light or @written of its target
 * @wq: the queue of the work item
 * @work: @light_work or @written_work of its target
 *
 * Context: any.
 */
void qc_io_batch(struct qc_io *io, struct llist_head *list,
		 struct workqueue_struct *wq, struct work_struct *work);

/**
 * qc_io_queue() - have an io done, from @io->pos on
 * @io: the io
 *
 * Context: any.
 */
void qc_io_queue(struct qc_io *io);

/**
 * qc_io_queue_all() - try again what has waited
 * @list: of ios, by their @wait; empty then
 *
 * Context: any.
 */
void qc_io_queue_all(struct list_head *list);

/**
 * qc_io_lock() - lock the clusters that @len bytes at @io->pos lie in
 * @img: the image, writable
 * @io: the io; it has no other range
 * @len: bytes
 *
 * Context: process, work items.
 * Return: false where somebody else has a part of them: the io is no more the
 * caller's then.
 */
bool qc_io_lock(struct qc_image *img, struct qc_io *io, u64 len);

/**
 * qc_io_unlock() - undo qc_io_lock(), and queue who waits
 * @img: the image
 * @io: the io
 *
 * Context: as qc_io_lock().
 */
void qc_io_unlock(struct qc_image *img, struct qc_io *io);

/**
 * qc_part_new() - make a part of the bio, with its data
 * @io: the io
 * @pos: guest offset in bytes where it starts
 * @len: bytes
 *
 * Context: may sleep until another part of the target ends.
 * Return: the part, without a device; bio_put() is due.
 */
struct qc_part *qc_part_new(struct qc_io *io, u64 pos, u64 len);

/**
 * qc_part_submit() - send a part, from @io->pos on, to where a lookup found it
 * @io: the io, which it keeps alive; it ends by itself
 * @place: from the lookup; left when the part ends
 *
 * Context: as qc_part_new().
 */
void qc_part_submit(struct qc_io *io, const struct qc_place *place);

/**
 * qc_part_zero() - the guest reads zeroes
 * @io: the io, of a read
 * @len: bytes from @io->pos on
 *
 * Context: as qc_part_new().
 */
void qc_part_zero(struct qc_io *io, u64 len);

/**
 * qc_part_write() - write a part of the bio to a new place, and wait for it
 * @io: the io, of a write
 * @pos: guest offset in bytes
 * @len: bytes
 * @host: byte offset on the data device of the top image
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_part_write(struct qc_io *io, u64 pos, u64 len, u64 host);

#endif /* DM_QCOW2_IO_H */
