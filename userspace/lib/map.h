/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who owns what in a range of layers: data, zeroes, or nobody, so that the
 * layers below the range show through.
 *
 * The tables are read from the images themselves, past the page cache. That is
 * for images that do not change: lower layers, closed ones. Of an image that
 * grows while it is read, what was mapped before is right, too.
 *
 * Memory is bounded: two windows of the tables a layer.
 */
#ifndef MAP_H
#define MAP_H

#include "image.h"

/**
 * enum map_kind - what the layers have at an offset
 * @MAP_NONE: nothing
 * @MAP_ZERO: zeroes; also behind the end of a layer
 * @MAP_DATA: data
 */
enum map_kind { MAP_NONE, MAP_ZERO, MAP_DATA };

/* No place in a file */
#define MAP_NOWHERE	UINT64_MAX

/**
 * struct map_extent - a range that one owner has
 * @start: guest offset, bytes
 * @length: bytes, at least 1
 * @kind: what is there
 * @layer: index of the layer that has it; of the last one if none has
 * @offset: where it is in the image, or in its external data file, bytes, also of
 *	zeroes that have a place, and of what a layer has a place for, but nothing
 *	there; else MAP_NOWHERE, and so in an encrypted image, where it cannot be
 *	read
 * @packed: it is compressed data, which has no place of its own
 * @hole: it is data, but the file has a hole there
 *
 * The last three are for map_exact() only.
 */
struct map_extent {
	uint64_t start;
	uint64_t length;
	enum map_kind kind;
	unsigned int layer;
	uint64_t offset;
	bool packed;
	bool hole;
};

struct map;

/**
 * map_open() - prepare to look into layers
 * @layers: top first, of which a raw one is the last; must stay
 * @count: of @layers; with none everything is MAP_NONE
 * @map: result; map_close() it
 *
 * Return: 0 or an error, reported.
 */
int map_open(const struct image *layers, unsigned int count, struct map **map);

/**
 * map_exact() - tell where things are, too
 * @map: the layers, nothing of which was looked at so far
 *
 * From here on extents end where @offset does not go on in a straight line, or
 * @packed or @hole change, and they end at any byte, not at whole sectors.
 *
 * Holes are looked for in images only that were preallocated by all
 * appearances, see image_is_preallocated(): elsewhere there are none to
 * speak of.
 *
 * Return: 0 or an error, reported.
 */
int map_exact(struct map *map);

/**
 * map_ended() - does a layer end before an extent, so that it owns zeroes?
 * @map: the layers
 * @extent: of map_at()
 */
bool map_ended(const struct map *map, const struct map_extent *extent);

/** map_close() - free what map_open() made; NULL is fine */
void map_close(struct map *map);

/**
 * map_at() - what is at an offset, and as far from there as it is the same
 * @map: the layers
 * @start: guest offset, bytes
 * @max: bytes that the caller wants to know of, at least 1
 * @extent: result; begins at @start, as long as @max at most
 *
 * The next extent may be of the same kind. It is cheapest to go forward.
 *
 * Return: 0 or an error, reported: the tables cannot be read, or are wrong.
 */
int map_at(struct map *map, uint64_t start, uint64_t max,
	   struct map_extent *extent);

/**
 * map_has() - is there anything of a kind in a range?
 * @map: the layers
 * @start: guest offset, bytes
 * @length: bytes
 * @kind: what to look for
 *
 * Return: 1, 0, or an error, reported.
 */
int map_has(struct map *map, uint64_t start, uint64_t length,
	    enum map_kind kind);

#endif /* MAP_H */
