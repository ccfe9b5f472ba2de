// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an image holds besides its present contents.
 */
#include "details.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

/* The strings of the tables are not terminated, and any bytes. */
static void set_bytes(struct json_object *object, const char *key,
		      const void *bytes, uint32_t len)
{
	json_object_object_add(object, key,
			       json_object_new_string_len(bytes, len));
}

/*
 * Internal snapshots
 */

/* Entries have 100 bytes as a rule, and ten times that if they must. */
static const size_t entry_sizes[] = { 1024, 256 * 1024 };

static struct json_object *snapshot_json(const uint8_t *entry,
					 const struct qcow2_snapshot *snap)
{
	struct json_object *object = json_object_new_object();

	if (snap->icount != QCOW2_NO_ICOUNT)
		json_set_number(object, "icount", snap->icount);
	json_set_number(object, "vm-clock-nsec",
			snap->vm_clock_nsec % 1000000000);
	set_bytes(object, "name", entry + snap->name_offset, snap->name_len);
	json_set_number(object, "date-sec", snap->date_sec);
	json_set_number(object, "date-nsec", snap->date_nsec);
	json_set_number(object, "vm-clock-sec",
			snap->vm_clock_nsec / 1000000000);
	set_bytes(object, "id", entry + snap->id_offset, snap->id_len);
	json_set_number(object, "vm-state-size", snap->vm_state_size);
	return object;
}

static int read_snapshot(const struct image *image, uint64_t where,
			 struct json_object *list, uint64_t *next)
{
	struct qcow2_snapshot snap;
	struct qcow2_fault fault;
	unsigned int i;
	uint8_t *entry;
	int r = 1;

	for (i = 0; i < 2 && r > 0; i++) {
		entry = image_read(image, entry_sizes[i], where);
		if (!entry)
			return -EIO;
		r = qcow2_snapshot_decode(entry, entry_sizes[i], where,
					  &image->header, &snap, &fault);
		if (!r)
			json_object_array_add(list, snapshot_json(entry, &snap));
		free(entry);
	}
	if (r < 0)
		return image_fault(image, &fault);
	*next = where + snap.entry_len;
	return 0;
}

static int read_snapshots(const struct image *image, struct json_object *list)
{
	const struct qcow2_header *h = &image->header;
	uint64_t where = h->snapshots_offset;
	uint32_t i;
	int r = 0;

	for (i = 0; i < h->nb_snapshots && !r; i++) {
		if (where >= image->length ||
		    where - h->snapshots_offset > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
			return report_fail(EUCLEAN,
					   "%s: the snapshot table has no room for %u snapshots.",
					   image->path, h->nb_snapshots);
		r = read_snapshot(image, where, list, &where);
	}
	return r;
}

int details_snapshots(const struct image *image, struct json_object **list)
{
	*list = NULL;
	if (!image->header.nb_snapshots)
		return 0;
	*list = json_object_new_array();
	return read_snapshots(image, *list);
}

/*
 * Bitmaps
 */

static struct json_object *bitmap_json(const uint8_t *entry,
				       const struct qcow2_bitmap *bitmap)
{
	struct json_object *object = json_object_new_object();
	struct json_object *flags = json_object_new_array();

	if (bitmap->flags & QCOW2_BITMAP_IN_USE)
		json_object_array_add(flags, json_object_new_string("in-use"));
	if (bitmap->flags & QCOW2_BITMAP_AUTO)
		json_object_array_add(flags, json_object_new_string("auto"));
	json_object_object_add(object, "flags", flags);
	set_bytes(object, "name", entry + bitmap->name_offset,
		  bitmap->name_len);
	json_set_number(object, "granularity",
			1ULL << (bitmap->granularity_bits & 63));
	return object;
}

static int read_directory(const struct image *image,
			  const struct qcow2_bitmaps *bitmaps,
			  struct json_object *list)
{
	uint64_t left = bitmaps->directory_size, pos = 0;
	struct qcow2_bitmap bitmap;
	struct qcow2_fault fault;
	uint8_t *directory;
	uint32_t i;
	int r = 0;

	directory = image_read(image, left, bitmaps->directory_offset);
	if (!directory)
		return -EIO;
	for (i = 0; i < bitmaps->nb && !r; i++) {
		r = qcow2_bitmap_decode(directory + pos, left,
					bitmaps->directory_offset + pos,
					&bitmap, &fault);
		if (r < 0) {
			r = image_fault(image, &fault);
			break;
		}
		json_object_array_add(list, bitmap_json(directory + pos,
							&bitmap));
		pos += bitmap.entry_len;
		left -= bitmap.entry_len;
	}
	free(directory);
	return r;
}

int details_bitmaps(const struct image *image, struct json_object **list)
{
	struct qcow2_bitmaps bitmaps;
	struct qcow2_fault fault;
	struct qcow2_ext ext;
	void *data;
	int r;

	*list = NULL;
	/* Without the bit the extension is a relic (spec, bitmaps extension). */
	if (!(image->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	data = image_extension(image, QCOW2_EXT_BITMAPS, &ext);
	if (!data)
		return 0;
	r = qcow2_bitmaps_decode(data, &ext, &image->header, &bitmaps, &fault);
	free(data);
	if (r < 0)
		return image_fault(image, &fault);
	*list = json_object_new_array();
	return read_directory(image, &bitmaps, *list);
}
