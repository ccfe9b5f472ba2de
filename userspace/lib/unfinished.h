/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a command that did not come to its end left, and recover() could not
 * finish or undo: it is tried again each time. Until then the devices and images
 * that it is about stay as they are; others are not concerned.
 */
#ifndef UNFINISHED_H
#define UNFINISHED_H

#include "image.h"

/**
 * unfinished_overlook() - it is being tried: what is left is in nobody's way
 * @overlook: from now on, or no longer
 */
void unfinished_overlook(bool overlook);

/**
 * unfinished_check_device() - refuse a command on a device with something left
 * @name: of the device
 *
 * Return: 0, or -EBUSY, reported.
 */
int unfinished_check_device(const char *name);

/**
 * unfinished_check_image() - refuse what would change an image under it
 * @image: the image
 * @write: it is to be written; others may read what was a lower layer
 *
 * Return: 0, or -EBUSY, reported.
 */
int unfinished_check_image(const struct image *image, bool write);

/** unfinished_has() - is it about this image? */
bool unfinished_has(const struct image_id *id);

#endif /* UNFINISHED_H */
