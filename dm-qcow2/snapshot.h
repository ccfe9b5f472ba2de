/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The snapshot table of an image: its internal snapshots.
 *
 * A target can show a snapshot, read-only, while another one writes the image.
 * Such a view has a struct qc_image of its own, keyed by device and ID, with its
 * own L1 table and cache.  It takes no lock of the live image, and is told of no
 * change, because what it reads does not change while the snapshot exists:
 *
 *   - its L1 table, L2 tables and clusters are counted in their refcounts, so the
 *     allocator does not give them to anybody else, and does not punch them out;
 *   - what has a refcount above 1 is not marked as copied in the active tables, so
 *     the live image writes to a copy;
 *   - neither is ever in the cache of the live image only: that is suspended, all
 *     of it written, when a program makes a snapshot.
 *
 * Programs that edit other snapshots of the suspended image may change the copied
 * flags in L2 tables of this one.  A view ignores them: nothing of it is owned.
 * Deleting the snapshot under a view is forbidden; qcow2setup sees to that, and a
 * kernel that is lied to shows other clusters of the same image.
 *
 * Nothing in the table is trusted.  An L1 table must lie inside the device, be no
 * longer than that of an image may be, and suffice for the size of the snapshot,
 * which counts instead of the image's.  Its entries, and those of L2 tables, are
 * checked when L2 tables are read, as those of any image.
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
