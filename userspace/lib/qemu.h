/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * qemu-img, for making images, and for what changes closed ones. Never while a
 * guest waits.
 */
#ifndef QEMU_H
#define QEMU_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "image.h"

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

/**
 * qemu_check() - have an image checked, without those below it
 * @image: a qcow2 image that is not open elsewhere
 * @repair: repair what is wrong
 * @report: result, an ImageCheck of QEMU's qapi/block-core.json, to be put;
 *	NULL if the check could not be completed
 *
 * What is wrong is printed on standard error as it is found.
 *
 * Return: the exit status of 'qemu-img check', or an error, reported.
 */
int qemu_check(const struct image *image, bool repair,
	       struct json_object **report);

/**
 * qemu_resize() - give an image another size
 * @image: the image, not open elsewhere
 * @below: the image below it, where that is longer, so that it is hidden; or NULL
 * @size: bytes
 *
 * It is durable when this returns.
 *
 * Return: 0 or an error, reported.
 */
int qemu_resize(const struct image *image, const struct image *below,
		uint64_t size);

#endif /* QEMU_H */
