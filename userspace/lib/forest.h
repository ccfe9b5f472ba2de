/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which image stands on which: a forest, as an image has one backing file, and
 * any number of overlays.
 */
#ifndef FOREST_H
#define FOREST_H

#include "device.h"
#include "image.h"

/* No other image: of a base, or at the end of a list */
#define FOREST_NONE	UINT32_MAX

/**
 * struct forest_use - an open device that has an image
 * @name: the device
 * @layer: its number there
 * @writes: the device writes to it
 */
struct forest_use {
	char name[DM_NAME_MAX];
	unsigned int layer;
	bool writes;
};

/**
 * struct forest_image - an image
 * @id: identity; not set where it is missing
 * @path: absolute
 * @format: FORMAT_UNKNOWN where no overlay tells, and it is no qcow2 image
 * @missing: an overlay is linked to it, but there is no such file
 * @size: virtual size, bytes
 * @allocated: disk space, bytes
 * @backing: the image below, or FOREST_NONE
 * @below: how many images are below it
 * @overlays: how many stand on it directly
 * @uses: open devices that have it
 * @use_count: of @uses
 */
struct forest_image {
	struct image_id id;
	char *path;
	enum image_format format;
	bool missing;
	uint64_t size;
	uint64_t allocated;
	uint32_t backing;
	unsigned int below;
	unsigned int overlays;
	struct forest_use *uses;
	unsigned int use_count;
};

/**
 * struct forest - images
 * @images: in no order
 * @count: of @images
 * @depth: how many links away from the image that was to be added we are
 */
struct forest {
	struct forest_image *images;
	uint32_t count;
	unsigned int depth;
};

/**
 * forest_add_directory() - add the qcow2 images in a directory, and all they
 * stand on
 * @forest: where to add them
 * @path: the directory
 * @below: with all directories below it
 *
 * Return: 0 or an error, reported.
 */
int forest_add_directory(struct forest *forest, const char *path, bool below);

/**
 * forest_add() - add one image, and all that it stands on
 * @forest: where to add it
 * @path: absolute path
 * @format: FORMAT_UNKNOWN: if it is no qcow2 image, that is how it stays
 *
 * Return: its index.
 */
uint32_t forest_add(struct forest *forest, const char *path,
		    enum image_format format);

/** forest_add_uses() - find out which open devices have the images */
void forest_add_uses(struct forest *forest);

/** forest_root() - the image at the bottom of all; any one of a loop */
uint32_t forest_root(const struct forest *forest, uint32_t index);

/** forest_shared() - do several overlays, or chains of devices, use it? */
bool forest_shared(const struct forest_image *image);

/** forest_free() - free it all */
void forest_free(struct forest *forest);

#endif /* FOREST_H */
