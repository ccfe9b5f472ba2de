// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an image holds besides its present contents.
 */
#include "details.h"

#include <errno.h>
#include <stdlib.h>

#include "report.h"

/*
 * Internal snapshots
 */

struct json_object *details_snapshot(const struct snapshot *snapshot)
{
	const struct qcow2_snapshot *entry = &snapshot->entry;
	struct json_object *object = json_object_new_object();

	if (entry->icount != QCOW2_NO_ICOUNT)
		json_set_number(object, "icount", entry->icount);
	json_set_number(object, "vm-clock-nsec",
			entry->vm_clock_nsec % 1000000000);
	json_set_string(object, "name", snapshot->name);
	json_set_number(object, "date-sec", entry->date_sec);
	json_set_number(object, "date-nsec", entry->date_nsec);
	json_set_number(object, "vm-clock-sec",
			entry->vm_clock_nsec / 1000000000);
	json_set_string(object, "id", snapshot->id);
	json_set_number(object, "vm-state-size", entry->vm_state_size);
	return object;
}

int details_snapshots(const struct image *image, struct json_object **list)
{
	struct snaptable table;
	unsigned int i;
	int r;

	*list = NULL;
	if (!image->header.nb_snapshots)
		return 0;
	r = snaptable_read(image, &table);
	*list = json_object_new_array();
	for (i = 0; i < table.count; i++)
		json_object_array_add(*list, details_snapshot(&table.list[i]));
	snaptable_free(&table);
	return r;
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
	/* Not terminated, and any bytes */
	json_object_object_add(object, "name",
			       json_object_new_string_len((const char *)entry +
							  bitmap->name_offset,
							  bitmap->name_len));
	json_set_number(object, "granularity",
			1ULL << (bitmap->granularity_bits & 63));
	return object;
}

static int list_directory(const struct image *image,
			  const struct qcow2_bitmaps *bitmaps,
			  const uint8_t *directory, struct json_object *list)
{
	struct qcow2_bitmap bitmap;
	const uint8_t *entry;
	uint64_t pos = 0;
	uint32_t i;
	int r;

	for (i = 0; i < bitmaps->nb; i++) {
		entry = directory + pos;
		r = image_bitmap_next(image, bitmaps, directory, &pos, &bitmap);
		if (r < 0)
			return r;
		json_object_array_add(list, bitmap_json(entry, &bitmap));
	}
	return 0;
}

int details_bitmaps(const struct image *image, struct json_object **list)
{
	struct qcow2_bitmaps bitmaps;
	uint8_t *directory;
	int r;

	*list = NULL;
	r = image_bitmaps(image, &bitmaps, &directory);
	if (r < 0 || !directory)
		return r;
	*list = json_object_new_array();
	r = list_directory(image, &bitmaps, directory, *list);
	free(directory);
	return r;
}
