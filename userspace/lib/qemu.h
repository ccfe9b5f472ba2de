/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * qemu-img, for making images. Never while a guest waits.
 */
#ifndef QEMU_H
#define QEMU_H

#include <stdint.h>

/**
 * struct new_image - an image to be made
 * @path: where; an existing file is overwritten
 * @size: as qemu-img takes it, or NULL: that of the backing image
 * @backing: backing link as it is to stand in the image, or NULL
 * @backing_format: its format
 * @options: as for qemu-img -o, or NULL
 */
struct new_image {
	const char *path;
	const char *size;
	const char *backing;
	const char *backing_format;
	const char *options;
};

/**
 * qemu_create() - make a qcow2 image
 * @image: what to make
 *
 * qemu-img does not open the backing image here, whose locks are ours to judge.
 * It inherits the state lock: while it runs, even if we were killed, no other
 * command starts.  What it made is durable when this returns.
 *
 * Return: 0 or an error, reported.
 */
int qemu_create(const struct new_image *image);

#endif /* QEMU_H */
