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
 * @exact: see map_exact()
 * @holes: data may have no place on the disk
 * @l1: part of the L1 table
 * @l2: part of the L2 tables
 * @last: what was found last
 */
struct layer {
	const struct image *image;
	int fd;
	uint64_t bytes;
	bool exact;
	bool holes;
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

int map_exact(struct map *map)
{
	struct layer *layer;
	unsigned int i;
	int r;

	for (i = 0; i < map->count; i++) {
		layer = &map->layers[i];
		layer->exact = true;
		/* A hole in what is encrypted reads as anything but zeroes. */
		if (layer->image->format != FORMAT_QCOW2 ||
		    image_external(layer->image) ||
		    image_encrypted(layer->image))
			continue;
		r = image_is_preallocated(layer->image);
		if (r < 0)
			return r;
		layer->holes = r;
	}
	return 0;
}

bool map_ended(const struct map *map, const struct map_extent *extent)
{
	return extent->start >= map->layers[extent->layer].bytes;
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

static enum map_kind map_kind_of(enum qcow2_kind kind)
{
	switch (kind) {
	case QCOW2_UNALLOCATED:
		return MAP_NONE;
	case QCOW2_ZERO_PLAIN:
	case QCOW2_ZERO_ALLOC:
		return MAP_ZERO;
	default:
		return MAP_DATA;
	}
}

static void set_place(const struct qcow2_header *h, uint64_t entry,
		      struct map_extent *extent)
{
	uint64_t has = qcow2_external(h) ? QCOW2_HOST_MASK : QCOW2_OFFSET_MASK;

	extent->packed = entry & QCOW2_OFLAG_COMPRESSED;
	if ((entry & has) && !extent->packed && !h->crypt_method)
		extent->offset = (entry & QCOW2_OFFSET_MASK) +
			(extent->start & (h->cluster_size - 1));
}

/* Where subclusters differ, up to the first that does. */
static int subclusters(struct layer *layer, uint64_t offset, uint64_t entry,
		       struct map_extent *extent)
{
	const struct qcow2_header *h = &layer->image->header;
	uint64_t in_cluster = extent->start & (h->cluster_size - 1);
	uint32_t sub = in_cluster >> h->sub_bits;
	const char *why;
	uint64_t bitmap;
	int r;

	r = window_entry(layer, &layer->l2, offset + 8, &bitmap);
	if (r < 0)
		return r;
	why = qcow2_l2_bitmap_check(entry, bitmap);
	if (why)
		return bad_entry(layer, "L2", offset, entry, why);
	extent->kind = map_kind_of(qcow2_sub_kind(entry, bitmap, sub));
	if (!(entry & QCOW2_OFLAG_COMPRESSED))
		extent->length = ((sub + (uint64_t)qcow2_sub_run(bitmap, sub)) <<
				  h->sub_bits) - in_cluster;
	return 0;
}

/* @extent has its start, and its length to the end of the cluster. */
static int l2_entry(struct layer *layer, uint64_t table,
		    struct map_extent *extent)
{
	const struct qcow2_header *h = &layer->image->header;
	uint64_t offset, entry;
	const char *why;
	int r;

	offset = table + (uint64_t)qcow2_l2_index(h, extent->start) *
		h->l2_entry_bytes;
	r = window_entry(layer, &layer->l2, offset, &entry);
	if (r < 0)
		return r;
	why = qcow2_l2_entry_check(h, entry,
				   extent->start & ~(h->cluster_size - 1ULL),
				   qcow2_read_limit(entry,
						    image_bytes(layer->image)));
	if (why)
		return bad_entry(layer, "L2", offset, entry, why);
	set_place(h, entry, extent);
	if (h->l2_entry_bytes == 16)
		return subclusters(layer, offset, entry, extent);
	extent->kind = map_kind_of(qcow2_l2_kind(entry));
	return 0;
}

/* Nothing is known of @extent but where it starts. */
static void extent_at(struct map_extent *extent, uint64_t start,
		      uint64_t length)
{
	memset(extent, 0, sizeof(*extent));
	extent->start = start;
	extent->length = length;
	extent->kind = MAP_NONE;
	extent->offset = MAP_NOWHERE;
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
	if (!table)
		bits += h->l2_bits;
	extent_at(extent, guest, ((guest >> bits) + 1) * (1ULL << bits) - guest);
	return table ? l2_entry(layer, table, extent) : 0;
}

static bool goes_on(const struct layer *layer, const struct map_extent *extent,
		    const struct map_extent *next)
{
	uint64_t offset = extent->offset;

	if (next->kind != extent->kind)
		return false;
	if (!layer->exact)
		return true;
	if (offset != MAP_NOWHERE)
		offset += extent->length;
	return next->offset == offset && next->packed == extent->packed;
}

static int qcow2_at(struct layer *layer, uint64_t start, uint64_t max,
		    struct map_extent *extent)
{
	struct map_extent next;
	int r;

	r = qcow2_entry(layer, start, extent);
	while (!r && extent->length < max) {
		r = qcow2_entry(layer, start + extent->length, &next);
		if (r < 0 || !goes_on(layer, extent, &next))
			break;
		extent->length += next.length;
	}
	if (extent->length > max)
		extent->length = max;
	return r;
}

/*
 * Is there a hole at an offset of a file, or data, and how far?  Where SEEK_DATA
 * is not supported all is data.
 */
static bool file_at(int fd, uint64_t offset, uint64_t unit, uint64_t *length)
{
	off_t data = lseek(fd, offset, SEEK_DATA), hole;
	uint64_t end;

	if (data < 0 && errno != ENXIO)
		return false;
	if (data < 0)
		return true;
	end = data / unit * unit;
	if (end > offset) {
		if (end - offset < *length)
			*length = end - offset;
		return true;
	}
	hole = lseek(fd, offset, SEEK_HOLE);
	end = hole < 0 ? 0 : round_up(hole, unit);
	if (end > offset && end - offset < *length)
		*length = end - offset;
	return false;
}

static void raw_at(struct layer *layer, uint64_t start, uint64_t max,
		   struct map_extent *extent)
{
	extent_at(extent, start, max);
	extent->kind = MAP_DATA;
	extent->offset = start;
	if (layer->fd >= 0 && file_at(layer->fd, start, layer->exact ? 1 : 512,
				      &extent->length))
		extent->kind = MAP_ZERO;
}

static int layer_at(struct layer *layer, uint64_t start, uint64_t max,
		    struct map_extent *extent)
{
	int r;

	if (start >= layer->bytes) {
		extent_at(extent, start, max);
		extent->kind = MAP_ZERO;
		return 0;
	}
	if (max > layer->bytes - start)
		max = layer->bytes - start;
	if (layer->image->format == FORMAT_RAW) {
		raw_at(layer, start, max, extent);
		return 0;
	}
	r = qcow2_at(layer, start, max, extent);
	if (!r && layer->holes && extent->kind == MAP_DATA && !extent->packed)
		extent->hole = file_at(layer->fd, extent->offset, 1,
				       &extent->length);
	return r;
}

/* An upper layer's long extent is not looked up again for each one below. */
static int layer_find(struct layer *layer, uint64_t start, uint64_t max,
		      struct map_extent *extent)
{
	struct map_extent *last = &layer->last;
	uint64_t skipped;
	int r;

	if (start < last->start || start - last->start >= last->length) {
		last->length = 0;
		r = layer_at(layer, start, max, last);
		if (r < 0) {
			last->length = 0;
			return r;
		}
	}
	skipped = start - last->start;
	*extent = *last;
	extent->start = start;
	extent->length = last->length - skipped;
	if (extent->length > max)
		extent->length = max;
	if (extent->offset != MAP_NOWHERE)
		extent->offset += skipped;
	return 0;
}

int map_at(struct map *map, uint64_t start, uint64_t max,
	   struct map_extent *extent)
{
	uint64_t above;
	unsigned int i;
	int r;

	extent_at(extent, start, max);
	for (i = 0; i < map->count && extent->kind == MAP_NONE; i++) {
		above = extent->offset;
		r = layer_find(&map->layers[i], start, extent->length, extent);
		if (r < 0)
			return r;
		extent->layer = i;
		/* Who is over nothing may have a place for it. */
		if (map_ended(map, extent))
			extent->offset = above;
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
