// SPDX-License-Identifier: GPL-2.0-only
/*
 * What could not be recovered.
 */
#include "unfinished.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "layerlist.h"
#include "report.h"
#include "state.h"

/**
 * struct wanted - what is looked for in entries of the journal
 * @name: a device, or NULL
 * @id: an image, or NULL
 * @write: also as a lower layer
 * @operation: result, of the entry, or NULL; free() it
 * @device: result, its name; free() it
 */
struct wanted {
	const char *name;
	const struct image_id *id;
	bool write;
	char *operation;
	char *device;
};

static bool overlooked;

void unfinished_overlook(bool overlook)
{
	overlooked = overlook;
}

static struct json_object *member(struct json_object *object, const char *key)
{
	struct json_object *value = NULL;

	json_object_object_get_ex(object, key, &value);
	return value;
}

static bool is_image(struct json_object *layer, const struct wanted *wanted)
{
	struct image_id id;

	if (!layer)
		return false;
	id = layer_json_id(layer);
	return image_id_equal(&id, wanted->id);
}

static bool state_has(struct json_object *state, const struct wanted *wanted)
{
	struct json_object *layers = state ? member(state, "layers") : NULL;
	size_t i, count;

	if (!json_object_is_type(layers, json_type_array))
		return false;
	count = json_object_array_length(layers);
	for (i = 0; i < count && (!i || wanted->write); i++) {
		if (is_image(json_object_array_get_idx(layers, i), wanted))
			return true;
	}
	return false;
}

static bool has_image(struct json_object *entry, const struct wanted *wanted)
{
	static const char * const states[] = { "state", "old", "new_state" };
	static const char * const made[] = { "new", "new-data" };
	unsigned int i;

	for (i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
		if (state_has(member(entry, states[i]), wanted))
			return true;
	}
	for (i = 0; i < sizeof(made) / sizeof(made[0]); i++) {
		if (is_image(member(entry, made[i]), wanted))
			return true;
	}
	return false;
}

static bool is_about(struct json_object *entry, const struct wanted *wanted)
{
	const char *name = json_string(entry, "name");

	if (wanted->id)
		return has_image(entry, wanted);
	return name && !strcmp(name, wanted->name);
}

static void note(struct json_object *entry, struct wanted *wanted)
{
	const char *operation = json_string(entry, "operation");
	const char *name = json_string(entry, "name");

	if (wanted->operation)
		return;
	wanted->operation = text_copy(operation ? operation : "command");
	wanted->device = text_copy(name ? name : "");
}

/* The parts of a group have the names. */
static bool visit(struct json_object *entry, void *data)
{
	struct json_object *parts = member(entry, "parts"), *part;
	struct wanted *wanted = data;
	size_t i, count = 0;

	if (is_about(entry, wanted))
		note(entry, wanted);
	if (json_object_is_type(parts, json_type_array))
		count = json_object_array_length(parts);
	for (i = 0; i < count; i++) {
		part = json_object_array_get_idx(parts, i);
		if (is_about(part, wanted))
			note(part, wanted);
	}
	return false;
}

static int check(const char *what, struct wanted *wanted)
{
	int r = 0;

	if (!overlooked)
		unfinished_each(visit, wanted);
	if (wanted->operation)
		r = report_fail(EBUSY,
				"%s: an interrupted '%s' of device %s could not be undone or finished so far; each command tries it again. 'dmsetup info %s' shows the state of the device.",
				what, wanted->operation, wanted->device,
				wanted->device);
	free(wanted->operation);
	free(wanted->device);
	return r;
}

int unfinished_check_device(const char *name)
{
	struct wanted wanted = { .name = name };

	return check(name, &wanted);
}

int unfinished_check_image(const struct image *image, bool write)
{
	struct wanted wanted = { .id = &image->id, .write = write };

	return check(image->path, &wanted);
}

bool unfinished_has(const struct image_id *id)
{
	struct wanted wanted = { .id = id, .write = true };
	bool has;

	unfinished_each(visit, &wanted);
	has = wanted.operation;
	free(wanted.operation);
	free(wanted.device);
	return has;
}
