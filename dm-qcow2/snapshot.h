/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The snapshot table of an image: its internal snapshots.
 */
#ifndef DM_QCOW2_SNAPSHOT_H
#define DM_QCOW2_SNAPSHOT_H

#include <linux/types.h>

struct qc_image;
struct qcow2_header;
struct qcow2_snapshot;

/**
 * typedef qc_snapshot_fn - called for each snapshot
 * @img: the image
 * @snap: decoded entry; its L1 table lies inside the device
 * @entry: the entry as it stands on disk
 * @data: of the caller
 *
 * Return: 0 to go on, else the result of qc_snapshot_each().
 */
typedef int (*qc_snapshot_fn)(struct qc_image *img,
			      const struct qcow2_snapshot *snap,
			      const void *entry, void *data);

/**
 * qc_snapshot_each() - read the snapshot table
 * @img: the image
 * @h: its header
 * @fn: called for each entry
 * @data: handed to @fn
 * @table_bytes: length of the table when all entries were read
 *
 * Context: may sleep.
 * Return: 0, what @fn returned, or a negative error, logged.
 */
int qc_snapshot_each(struct qc_image *img, const struct qcow2_header *h,
		     qc_snapshot_fn fn, void *data, u64 *table_bytes);

/**
 * qc_snapshot_apply() - look at an image as a snapshot has it
 * @img: the image
 * @h: its header; L1 table and virtual size become the snapshot's
 * @id: ID of the snapshot
 *
 * Context: may sleep.
 * Return: 0, -ENOENT or another negative error, logged.
 */
int qc_snapshot_apply(struct qc_image *img, struct qcow2_header *h,
		      const char *id);

#endif /* DM_QCOW2_SNAPSHOT_H */
