// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who owns what in a range of layers.
 */
#include "map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report.h"

/* What is read of a table at a time; a multiple of any logical block */
#define L1_WINDOW	4096
#define L2_WINDOW	65536

/**
 * struct window - a part of an image in memory
 * @data: aligned for direct I/O
 * @size: bytes, a power of two
 * @offset: where it is from; a multiple of @size, or NO_OFFSET
 */
struct window {
	uint8_t *data;
	uint32_t size;
	uint64_t offset;
};

#define NO_OFFSET	UINT64_MAX

/**
 * struct layer - a layer that is looked into
 * @image: the image
 * @fd: open for direct reads, or -1 for a raw device
 * @bytes: virtual size, in whole sectors
 * @l1: part of the L1 table
 * @l2: part of the L2 tables
 * @last: what was found last
 */
struct layer {
	const struct image *image;
	int fd;
	uint64_t bytes;
	struct window l1;
	struct window l2;
	struct map_extent last;
};

struct map {
	struct layer *layers;
	unsigned int count;
};

static int window_init(struct window *window, uint32_t size)
{
	window->size = size;
	window->offset = NO_OFFSET;
	if (posix_memalign((void **)&window->data, 4096, size)) {
		window->data = NULL;
		return report_memory();
	}
	return 0;
}

/* Behind the end of the image there are zeroes. */
static int window_fill(struct layer *layer, struct window *window,
		       uint64_t offset)
{
	uint32_t done = 0;
	ssize_t n = 1;

	window->offset = NO_OFFSET;
	memset(window->data, 0, window->size);
	while (done < window->size && n) {
		n = pread(layer->fd, window->data + done, window->size - done,
			  offset + done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return report_errno(errno, "Cannot read %s",
					    layer->image->path);
		done += n;
		/* Direct I/O goes on at whole blocks only: that was the end. */
		if (n % 512)
			break;
	}
	window->offset = offset;
	return 0;
}

static int window_entry(struct layer *layer, struct window *window,
			uint64_t offset, uint64_t *entry)
{
	uint64_t start = offset & ~(uint64_t)(window->size - 1);
	__be64 raw;
	int r;

	if (window->offset != start) {
		r = window_fill(layer, window, start);
		if (r < 0)
			return r;
	}
	memcpy(&raw, window->data + (offset - start), sizeof(raw));
	*entry = __be64_to_cpu(raw);
	return 0;
}

static int layer_open(const struct image *image, struct layer *layer)
{
	int r;

	memset(layer, 0, sizeof(*layer));
	layer->image = image;
	layer->bytes = round_up(image->size, 512);
	layer->fd = -1;
	/* Of a raw block device there is nothing to be asked. */
	if (image->format == FORMAT_RAW && image->is_device)
		return 0;
	layer->fd = image_reopen(image, O_RDONLY | O_NONBLOCK);
	if (layer->fd < 0)
		return layer->fd;
	if (image->format == FORMAT_RAW)
		return 0;
	r = window_init(&layer->l1, L1_WINDOW);
	return r < 0 ? r : window_init(&layer->l2, L2_WINDOW);
}

static void layer_close(struct layer *layer)
{
	if (layer->fd >= 0)
		close(layer->fd);
	free(layer->l1.data);
	free(layer->l2.data);
}

int map_open(const struct image *layers, unsigned int count, struct map **map)
{
	struct map *new = calloc(1, sizeof(*new));
	int r = 0;

	*map = new;
	if (!new)
		return report_memory();
	while (new->count < count && !r) {
		new->layers = grow_array(new->layers, new->count,
					 sizeof(*new->layers));
		r = layer_open(&layers[new->count], &new->layers[new->count]);
		new->count++;
	}
	return r;
}

void map_close(struct map *map)
{
	if (!map)
		return;
	while (map->count)
		layer_close(&map->layers[--map->count]);
	free(map->layers);
	free(map);
}

static int bad_entry(const struct layer *layer, const char *table,
		     uint64_t offset, uint64_t entry, const char *why)
{
	return report_fail(EUCLEAN,
			   "%s: %s entry at offset %llu (0x%llx): %s.",
			   layer->image->path, table,
			   (unsigned long long)offset,
			   (unsigned long long)entry, why);
}

/* Length of the image as who maps it sees it: in whole sectors */
static uint64_t image_bytes(const struct image *image)
{
	return image->is_device ? image->length : round_up(image->length, 512);
}

/* Return: 0 with the offset of the L2 table, 0 where there is none. */
static int l2_table_of(struct layer *layer, uint64_t guest, uint64_t *table)
{
	const struct qcow2_header *h = &layer->image->header;
	uint64_t offset, entry;
	const char *why;
	int r;

	offset = h->l1_table_offset + qcow2_l1_index(h, guest) * 8;
	r = window_entry(layer, &layer->l1, offset, &entry);
	if (r < 0)
		return r;
	*table = entry & QCOW2_OFFSET_MASK;
	if (!entry)
		return 0;
	why = qcow2_l1_entry_check(h, entry, image_bytes(layer->image));
	return why ? bad_entry(layer, "L1", offset, entry, why) : 0;
}

static int kind_of_entry(struct layer *layer, uint64_t table, uint64_t guest,
			 enum map_kind *kind)
{
	const struct qcow2_header *h = &layer->image->header;
	uint64_t offset, entry;
	const char *why;
	int r;

	offset = table + (uint64_t)qcow2_l2_index(h, guest) * h->l2_entry_bytes;
	r = window_entry(layer, &layer->l2, offset, &entry);
	if (r < 0)
		return r;
	why = qcow2_l2_entry_check(h, entry, image_bytes(layer->image));
	if (why)
		return bad_entry(layer, "L2", offset, entry, why);
	switch (qcow2_l2_kind(entry)) {
	case QCOW2_UNALLOCATED:
		*kind = MAP_NONE;
		break;
	case QCOW2_ZERO_PLAIN:
	case QCOW2_ZERO_ALLOC:
		*kind = MAP_ZERO;
		break;
	default:
		*kind = MAP_DATA;
	}
	return 0;
}

/* What one entry says: an L1 entry without a table, or an L2 entry */
static int qcow2_entry(struct layer *layer, uint64_t guest,
		       struct map_extent *extent)
{
	const struct qcow2_header *h = &layer->image->header;
	unsigned int bits = h->cluster_bits;
	uint64_t table;
	int r;

	r = l2_table_of(layer, guest, &table);
	if (r < 0)
		return r;
	extent->kind = MAP_NONE;
	if (table)
		r = kind_of_entry(layer, table, guest, &extent->kind);
	else
		bits += h->l2_bits;
	extent->start = guest;
	extent->length = ((guest >> bits) + 1) * (1ULL << bits) - guest;
	return r;
}

static int qcow2_at(struct layer *layer, uint64_t start, uint64_t max,
		    struct map_extent *extent)
{
	struct map_extent next;
	int r;

	r = qcow2_entry(layer, start, extent);
	while (!r && extent->length < max) {
		r = qcow2_entry(layer, start + extent->length, &next);
		if (r < 0 || next.kind != extent->kind)
			break;
		extent->length += next.length;
	}
	if (extent->length > max)
		extent->length = max;
	return r;
}

/* Where SEEK_DATA is not supported all is data. */
static int raw_at(struct layer *layer, uint64_t start, uint64_t max,
		  struct map_extent *extent)
{
	off_t data, hole;

	extent->start = start;
	extent->length = max;
	extent->kind = MAP_DATA;
	if (layer->fd < 0)
		return 0;
	data = lseek(layer->fd, start, SEEK_DATA);
	if (data < 0 && errno != ENXIO)
		return 0;
	if (data < 0 || (uint64_t)data / 512 * 512 > start) {
		extent->kind = MAP_ZERO;
		if (data >= 0 && (uint64_t)data / 512 * 512 - start < max)
			extent->length = (uint64_t)data / 512 * 512 - start;
		return 0;
	}
	hole = lseek(layer->fd, start, SEEK_HOLE);
	if (hole >= 0 && round_up(hole, 512) > start &&
	    round_up(hole, 512) - start < max)
		extent->length = round_up(hole, 512) - start;
	return 0;
}

static int layer_at(struct layer *layer, uint64_t start, uint64_t max,
		    struct map_extent *extent)
{
	if (start >= layer->bytes) {
		extent->start = start;
		extent->length = max;
		extent->kind = MAP_ZERO;
		return 0;
	}
	if (max > layer->bytes - start)
		max = layer->bytes - start;
	return layer->image->format == FORMAT_RAW ?
		raw_at(layer, start, max, extent) :
		qcow2_at(layer, start, max, extent);
}

/* An upper layer's long extent is not looked up again for each one below. */
static int layer_find(struct layer *layer, uint64_t start, uint64_t max,
		      struct map_extent *extent)
{
	struct map_extent *last = &layer->last;
	uint64_t left;
	int r;

	if (start < last->start || start - last->start >= last->length) {
		last->length = 0;
		r = layer_at(layer, start, max, last);
		if (r < 0) {
			last->length = 0;
			return r;
		}
	}
	left = last->length - (start - last->start);
	extent->start = start;
	extent->length = left < max ? left : max;
	extent->kind = last->kind;
	return 0;
}

int map_at(struct map *map, uint64_t start, uint64_t max,
	   struct map_extent *extent)
{
	unsigned int i;
	int r;

	extent->start = start;
	extent->length = max;
	extent->kind = MAP_NONE;
	for (i = 0; i < map->count && extent->kind == MAP_NONE; i++) {
		r = layer_find(&map->layers[i], start, extent->length, extent);
		if (r < 0)
			return r;
	}
	return 0;
}

int map_has(struct map *map, uint64_t start, uint64_t length,
	    enum map_kind kind)
{
	struct map_extent extent;
	int r;

	while (length) {
		r = map_at(map, start, length, &extent);
		if (r < 0 || extent.kind == kind)
			return r < 0 ? r : 1;
		start += extent.length;
		length -= extent.length;
	}
	return 0;
}
