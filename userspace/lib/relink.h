/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rewriting the backing link of an image in its file.  The top image of an open
 * device has its header written by the kernel: see message_backing().
 */
#ifndef RELINK_H
#define RELINK_H

#include "image.h"

/**
 * relink_image() - link an image to another one, durably
 * @image: a qcow2 image; it may be a lower layer of open devices
 * @name: the link as it is to stand in the image, NULL for none
 * @format: of the image it leads to
 *
 * A crash leaves the old link or the new one.  @image is not changed: what it
 * says of its link is out of date afterwards.
 *
 * Return: 0; -EBUSY, reported, if somebody else has the image open or a device
 * writes to it; or another error, reported.
 */
int relink_image(const struct image *image, const char *name,
		 enum image_format format);

/**
 * relink_check() - could relink_image() do that?
 *
 * To be asked before much work is done: there may be no room for the name.
 *
 * Return: 0 or an error, reported.
 */
int relink_check(const struct image *image, const char *name,
		 enum image_format format);

#endif /* RELINK_H */
