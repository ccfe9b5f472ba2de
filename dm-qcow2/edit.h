/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Changes of an image's header on request: its backing link, its size.
 */
#ifndef DM_QCOW2_EDIT_H
#define DM_QCOW2_EDIT_H

#include <linux/types.h>

struct qc_image;

/**
 * qc_edit_relink() - rewrite the backing link of an image
 * @img: the image, being written by the caller's target
 * @format: of the new backing file, or NULL for no backing file
 * @name: its name
 *
 * First all that was mapped before is made durable: it may be what the new
 * backing file lacks.  Then the name, a flush, and the one block of the header
 * that refers to it.
 *
 * Context: may sleep; the target's jobs held.
 * Return: 0; -ENOSPC where the first cluster has no room; -EINVAL where the
 * header is not as it should be; another negative error.
 */
int qc_edit_relink(struct qc_image *img, const char *format, const char *name);

/**
 * qc_edit_grow() - make an image longer in memory
 * @img: the image, being activated for a writer; readers may be active
 * @bytes: new virtual size
 *
 * The L1 table becomes large enough, durably.  The size in the header stays:
 * after a crash the image is as long as it was.
 *
 * Context: may sleep; state_lock.
 * Return: 0 or a negative error.
 */
int qc_edit_grow(struct qc_image *img, u64 bytes);

/**
 * qc_edit_size() - write the size that an image has in memory to its header
 * @img: the image, being written by the caller's target
 *
 * After a commit, durably.
 *
 * Context: may sleep; the target's jobs held.
 * Return: 0 or a negative error.
 */
int qc_edit_size(struct qc_image *img);

/**
 * qc_edit_extend() - make an image longer, to last
 * @img: the image, being activated for a writer; readers may be active
 * @bytes: new virtual size
 * @below: bytes of the layer below, 0 without one
 *
 * The new part reads as zeroes.  All is durable when this returns; a crash leaves
 * the old size or the new one.
 *
 * Context: may sleep; state_lock.
 * Return: 0; -EOPNOTSUPP where zeroing would take more than the end of one
 * cluster: the layer below has something there, or the cluster is shared with a
 * snapshot, or compressed, or the image itself has something behind its end, or a
 * data file that is a raw image by itself lies on a device without WRITE_ZEROES;
 * another negative error.
 */
int qc_edit_extend(struct qc_image *img, u64 bytes, u64 below);

/**
 * struct qc_area - adjacent host clusters
 * @start: the first one
 * @count: how many; 0: none
 */
struct qc_area {
	u64 start;
	u64 count;
};

/**
 * qc_edit_retire_prepare() - make an empty L1 table for an image
 * @img: the image, being written by the caller's target
 * @area: where it is; durable when this returns
 *
 * Context: may sleep; the target's jobs held.
 * Return: 0 or a negative error.
 */
int qc_edit_retire_prepare(struct qc_image *img, struct qc_area *area);

/**
 * qc_edit_retire_undo() - the image stays as it is
 * @img: the image, being written by the caller's target
 * @area: of qc_edit_retire_prepare(), or none; none when this returns
 *
 * Context: may sleep; the target's jobs held, or postsuspend.
 */
void qc_edit_retire_undo(struct qc_image *img, struct qc_area *area);

/**
 * qc_edit_retire() - turn an image into an empty overlay of its backing file
 * @img: the image; its writer has deactivated it, and nothing was written since
 * @area: of qc_edit_retire_prepare()
 *
 * One block of the header, durable when this returns.  What the image had is
 * leaked: it is about to be deleted.
 *
 * Context: may sleep; postsuspend.
 * Return: 0 or a negative error.
 */
int qc_edit_retire(struct qc_image *img, const struct qc_area *area);

#endif /* DM_QCOW2_EDIT_H */
