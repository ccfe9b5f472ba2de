/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Overlays of images that nobody writes.
 */
#ifndef OVERLAY_H
#define OVERLAY_H

#include <json-c/json.h>

#include "chain.h"
#include "passphrase.h"

/**
 * struct overlay - an overlay to be made
 * @path: where, absolute
 * @link: the backing link that is to stand in it; freed with the overlay
 * @size: as qemu-img takes it; NULL for that of the backing image
 * @options: for qemu-img -o, or NULL
 * @data: absolute path of the external data file that @options name, or NULL
 * @passphrase: it is encrypted, and has this one; or NULL
 * @chain: the backing image and those below it
 * @lock: descriptor that keeps writers away from the backing image, or -1
 */
struct overlay {
	const char *path;
	char *link;
	const char *size;
	const char *options;
	const char *data;
	const struct passphrase *passphrase;
	struct chain chain;
	int lock;
};

/**
 * overlay_backing_open() - check and lock what an overlay is to be based on
 * @overlay: result; end it with overlay_backing_close() if this succeeds
 * @path: the image
 * @format: its format; NULL for a qcow2 image that shows it
 * @formats: formats that the images below do not record
 *
 * Return: 0; -EBUSY, reported, if somebody has it open for writing; other
 * errors, reported.
 */
int overlay_backing_open(struct overlay *overlay, const char *path,
			 const char *format, struct formats *formats);

/** overlay_backing_close() - unlock, free */
void overlay_backing_close(struct overlay *overlay);

/**
 * overlay_make() - make the overlay
 * @journal: entry of the running command, see new_image_make()
 * @overlay: what to make
 *
 * Return: 0 or an error, reported.
 */
int overlay_make(struct json_object *journal, const struct overlay *overlay);

/**
 * overlay_check() - can this image be the overlay of that one?
 * @image: of the overlay to be
 * @top: identity of the image below
 * @top_format: its format
 * @size: virtual size of the image below
 * @formats: formats given
 *
 * It must be empty, large enough, and linked to the image below.
 *
 * Return: 0 or an error, reported.
 */
int overlay_check(const struct image *image, const struct image_id *top,
		  enum image_format top_format, uint64_t size,
		  struct formats *formats);

#endif /* OVERLAY_H */
