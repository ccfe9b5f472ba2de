/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Persistent dirty bitmaps: we do not maintain them, so they are marked in use
 * before the first write.  QEMU then takes them for inconsistent, and
 * qemu-img check still counts their clusters.
 */
#ifndef DM_QCOW2_BITMAPS_H
#define DM_QCOW2_BITMAPS_H

struct qc_image;

/**
 * qc_bitmaps_mark_in_use() - mark all bitmaps of an image as in use
 * @img: the image
 *
 * Written, not flushed.
 *
 * Context: may sleep; activation.
 * Return: 0 or a negative error; details in the log.
 */
int qc_bitmaps_mark_in_use(struct qc_image *img);

#endif /* DM_QCOW2_BITMAPS_H */
