/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A small reader of qcow2 images that lie in memory, built on the module's
 * format.c. It believes nothing: whatever leads out of the image is an error.
 * An external data file is the end of these bytes, as long as the guest's disk.
 */
#ifndef CRASH_IMAGE_H
#define CRASH_IMAGE_H

#include <stdint.h>

#include "../../dm-qcow2/format.h"

struct image {
	const uint8_t *bytes;
	uint64_t length;
	struct qcow2_header h;
};

/* The table that maps a guest disk: the active one, or a snapshot's. */
struct image_map {
	uint64_t l1_offset;
	uint32_t l1_size;
};

/* Return NULL, or what is wrong. */
const char *image_open(struct image *image, const void *bytes, uint64_t length);
const char *image_active(const struct image *image, struct image_map *map);
const char *image_snapshot(const struct image *image, const char *name,
			   struct image_map *map);

/*
 * Looks up a part of the guest's disk: a subcluster where there are any, else a
 * cluster; @part counts them. Where it has data, *data points to it (where that is
 * compressed, until the next call); it is NULL where it reads as zeroes or belongs
 * to the layer below, see @kind. It is an error if a data file that is to be a raw
 * image by itself reads otherwise there.
 */
const char *image_part(const struct image *image, const struct image_map *map,
		       uint64_t part, enum qcow2_kind *kind,
		       const uint8_t **data);

#endif /* CRASH_IMAGE_H */
