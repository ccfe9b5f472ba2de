// SPDX-License-Identifier: GPL-2.0-only
/*
 * A small reader of qcow2 images that lie in memory.
 */
#include <endian.h>
#include <string.h>
#include <zlib.h>

#include "image.h"

/* Of an image's compressed data */
#define WINDOW_BITS	12
#define MAX_CLUSTER	(2 << 20)

static int inside(const struct image *image, uint64_t offset, uint64_t bytes)
{
	return offset <= image->length && bytes <= image->length - offset;
}

static uint64_t entry_at(const struct image *image, uint64_t table, uint64_t i)
{
	uint64_t entry;

	memcpy(&entry, image->bytes + table + i * 8, sizeof(entry));
	return be64toh(entry);
}

const char *image_open(struct image *image, const void *bytes, uint64_t length)
{
	struct qcow2_fault fault;

	image->bytes = bytes;
	image->length = length;
	if (qcow2_header_decode(bytes, QCOW2_HEADER_V3_BYTES, &image->h,
				&fault) ||
	    qcow2_header_check_bounds(&image->h, length, &fault))
		return fault.field;
	if (image->h.incompatible & ~(QCOW2_INCOMPAT_EXTL2 |
				      QCOW2_INCOMPAT_DATA_FILE))
		return "an incompatible feature is set";
	if (qcow2_external(&image->h) && image->h.size > length)
		return "the data file is not there";
	return NULL;
}

static const char *check_map(const struct image *image,
			     const struct image_map *map)
{
	if (map->l1_size < qcow2_l1_entries(&image->h, image->h.size))
		return "L1 table too short";
	if (!inside(image, map->l1_offset, map->l1_size * 8ULL))
		return "L1 table outside the image";
	return NULL;
}

const char *image_active(const struct image *image, struct image_map *map)
{
	map->l1_offset = image->h.l1_table_offset;
	map->l1_size = image->h.l1_size;
	return check_map(image, map);
}

const char *image_snapshot(const struct image *image, const char *name,
			   struct image_map *map)
{
	uint64_t where = image->h.snapshots_offset;
	struct qcow2_snapshot snap;
	struct qcow2_fault fault;
	const uint8_t *entry;
	uint32_t i;

	for (i = 0; i < image->h.nb_snapshots; i++) {
		if (!inside(image, where, 0))
			return "snapshot table outside the image";
		entry = image->bytes + where;
		if (qcow2_snapshot_decode(entry, image->length - where, where,
					  &image->h, &snap, &fault))
			return "snapshot table is damaged";
		if (snap.name_len == strlen(name) &&
		    !memcmp(entry + snap.name_offset, name, snap.name_len)) {
			map->l1_offset = snap.l1_table_offset;
			map->l1_size = snap.l1_size;
			return check_map(image, map);
		}
		where += snap.entry_len;
	}
	return "snapshot is missing";
}

/*
 * What an L2 table says of the part of a cluster that @guest is in. @offset is
 * where its data is, or the entry itself where that is compressed.
 */
static const char *entry_kind(const struct image *image, uint64_t table,
			      uint64_t guest, enum qcow2_kind *kind,
			      uint64_t *offset)
{
	uint32_t words = image->h.l2_entry_bytes / 8;
	uint32_t index = qcow2_l2_index(&image->h, guest) * words;
	uint32_t part = guest & (image->h.cluster_size - 1);
	uint64_t entry = entry_at(image, table, index), bitmap;
	const char *why;

	why = qcow2_l2_entry_check(&image->h, entry, guest - part,
				   image->length);
	if (why)
		return why;
	*kind = qcow2_l2_kind(entry);
	*offset = *kind == QCOW2_COMPRESSED ? entry :
		(entry & QCOW2_OFFSET_MASK) + part;
	if (words == 1)
		return NULL;
	bitmap = entry_at(image, table, index + 1);
	*kind = qcow2_sub_kind(entry, bitmap, part >> image->h.sub_bits);
	return qcow2_l2_bitmap_check(entry, bitmap);
}

/* The cluster that @entry leads to, until the next call */
static const char *unpack(const struct image *image, uint64_t entry,
			  const uint8_t **cluster)
{
	uint64_t offset = qcow2_packed_offset(&image->h, entry);
	uint64_t bytes = qcow2_packed_bytes(&image->h, entry);
	static uint8_t buf[MAX_CLUSTER];
	z_stream z = {
		.next_in = (Bytef *)image->bytes + offset,
		.next_out = buf,
		.avail_out = image->h.cluster_size,
	};
	int r;

	if (!inside(image, offset, 1))
		return "compressed data outside the image";
	z.avail_in = bytes < image->length - offset ? bytes :
		image->length - offset;
	if (inflateInit2(&z, -WINDOW_BITS) != Z_OK)
		return "zlib does not start";
	r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	*cluster = buf;
	return (r == Z_STREAM_END || r == Z_BUF_ERROR) && !z.avail_out ?
		NULL : "compressed data is damaged";
}

/* Where @offset of the device that holds the data is in these bytes. */
static uint64_t data_offset(const struct image *image, uint64_t offset)
{
	return qcow2_external(&image->h) ?
		image->length - image->h.size + offset : offset;
}

/* What has no data reads as zeroes: a raw image has to have them. */
static const char *check_raw(const struct image *image, uint64_t guest)
{
	uint64_t offset = data_offset(image, guest), i;

	for (i = 0; qcow2_raw_data(&image->h) && i < 1U << image->h.sub_bits;
	     i++) {
		if (image->bytes[offset + i])
			return "the raw data file reads otherwise";
	}
	return NULL;
}

const char *image_part(const struct image *image, const struct image_map *map,
		       uint64_t part, enum qcow2_kind *kind,
		       const uint8_t **data)
{
	uint64_t guest = part << image->h.sub_bits;
	uint64_t entry, offset;
	const char *why;

	*kind = QCOW2_UNALLOCATED;
	*data = NULL;
	entry = entry_at(image, map->l1_offset, qcow2_l1_index(&image->h, guest));
	why = qcow2_l1_entry_check(&image->h, entry, image->length);
	if (why)
		return why;
	offset = entry & QCOW2_OFFSET_MASK;
	if (!offset)
		return check_raw(image, guest);
	if (!inside(image, offset, image->h.cluster_size))
		return "L2 table outside the image";
	why = entry_kind(image, offset, guest, kind, &offset);
	if (why)
		return why;
	if (*kind == QCOW2_COMPRESSED) {
		why = unpack(image, offset, data);
		*data += guest & (image->h.cluster_size - 1);
		return why;
	}
	if (*kind != QCOW2_NORMAL)
		return check_raw(image, guest);
	offset = data_offset(image, offset);
	if (!inside(image, offset, 1U << image->h.sub_bits))
		return "data outside the image";
	*data = image->bytes + offset;
	return NULL;
}
