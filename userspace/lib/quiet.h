/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Have qemu-img write nothing to an image but what it repairs.
 *
 * For a check, QEMU opens an image without reading its snapshot table.  If it writes
 * the header as it does so, it writes that there are no snapshots; then it finds all
 * that they have leaked, and frees it.  It writes the header where there are features
 * to be cleared that it does not know, bitmaps that are not valid any more, or bitmaps
 * to be marked as in use.  Bitmaps it stores anew when all is checked, in clusters
 * that may have been found to be free by mistake; and with the feature, but no
 * bitmaps, it takes repairs for writes to these.  So all that is done before.
 */
#ifndef QUIET_H
#define QUIET_H

#include "image.h"

/**
 * struct quiet - what is different while qemu-img is at work
 * @bitmaps: of the image
 * @before: the bitmap directory as it was; NULL: it is as it was
 * @marked: the same with all bitmaps marked as in use
 */
struct quiet {
	struct qcow2_bitmaps bitmaps;
	uint8_t *before;
	uint8_t *marked;
};

/**
 * quiet_needed() - would QEMU write more than what it repairs?
 * @image: a qcow2 image
 *
 * Return: 1, 0, or an error, reported.
 */
int quiet_needed(const struct image *image);

/**
 * quiet_begin() - change what QEMU would, before it does
 * @image: a qcow2 image that nobody has open
 * @quiet: result, for quiet_end() even after an error
 *
 * If whoever called this is killed, bitmaps stay marked: nobody uses them any more.
 *
 * Return: 0 or an error, reported.
 */
int quiet_begin(const struct image *image, struct quiet *quiet);

/**
 * quiet_end() - take the marks off the bitmaps
 * @image: the same
 * @quiet: of quiet_begin()
 *
 * Their contents are as valid as before: a repair changes no guest data.
 *
 * Return: 0 or an error, reported.
 */
int quiet_end(const struct image *image, struct quiet *quiet);

#endif /* QUIET_H */
