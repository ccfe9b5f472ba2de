/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Making an open device longer.
 */
#ifndef EXTEND_H
#define EXTEND_H

#include "live.h"

/**
 * extend_device() - make an open device, and its top image, longer
 * @live: of live_open(); its device has another size afterwards
 * @size: bytes, whole sectors, more than the device has
 * @no_grow: the file of the image is not made longer
 *
 * The device stands still for one ioctl.  The image is as long as the device
 * before anybody can see that.  Call it with the state lock held.
 *
 * Return: 0, or an error, reported; nothing has changed then.
 */
int extend_device(struct live *live, uint64_t size, bool no_grow);

/**
 * extend_file() - make the file of an image that a device writes longer, as far as
 * it may need
 * @name: the device
 * @image: the image, with the size that it is to have
 * @kept: internal snapshots may keep all that it has had so far
 *
 * What cannot be had is warned of.  Block devices stay as they are.
 *
 * Return: 0 or an error, reported.
 */
int extend_file(const char *name, const struct image *image, bool kept);

#endif /* EXTEND_H */
