// SPDX-License-Identifier: GPL-2.0-only
/*
 * What jobs that were killed have left.
 */
#include "leftover.h"

#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "job.h"
#include "layerlist.h"
#include "report.h"

static struct json_object *member(struct json_object *object, const char *key)
{
	struct json_object *value = NULL;

	json_object_object_get_ex(object, key, &value);
	return value;
}

struct json_object *leftover_notes(const struct job_record *record)
{
	struct json_object *notes = job_notes(record);

	return !job_running(record) && member(notes, "plan") ? notes : NULL;
}

static bool in_chain(const struct chain *chain, struct json_object *layer)
{
	struct image_id id = layer_json_id(layer);
	unsigned int i;

	for (i = 0; i < chain->count; i++) {
		if (image_id_equal(&chain->layers[i].id, &id))
			return true;
	}
	return false;
}

static size_t count_in_chain(const struct chain *chain,
			     struct json_object *layers)
{
	size_t count = 0, i;

	for (i = 0; layers && i < json_object_array_length(layers); i++)
		count += in_chain(chain, json_object_array_get_idx(layers, i));
	return count;
}

static bool is_empty(const char *path)
{
	bool muted = report_muted(), empty;

	report_mute(true);
	empty = image_is_empty_at(path);
	report_mute(muted);
	return empty;
}

bool leftover_has_left(struct json_object *notes, const struct chain *chain)
{
	struct json_object *gone = member(notes, "gone"), *top;
	const char *path;

	if (!json_object_get_boolean(member(notes, "emptied")) ||
	    !json_object_is_type(gone, json_type_array))
		return true;
	top = json_object_array_get_idx(gone, 0);
	path = top ? json_string(top, "path") : NULL;
	return !path || in_chain(chain, top) || !layer_json_is_at(top, path) ||
		is_empty(path);
}

/* The chain to be, and perhaps some of the layers that are to go, but no others */
static bool is_on_the_way(struct json_object *notes, const struct chain *chain)
{
	struct json_object *result = member(notes, "chain");
	size_t kept = count_in_chain(chain, result);

	return result && kept == json_object_array_length(result) &&
		kept + count_in_chain(chain, member(notes, "gone")) ==
		chain->count && leftover_has_left(notes, chain);
}

static void add_gone(struct json_object **left, const struct chain *chain,
		     struct json_object *layers)
{
	struct json_object *layer;
	size_t i;

	for (i = 0; layers && i < json_object_array_length(layers); i++) {
		layer = json_object_array_get_idx(layers, i);
		if (in_chain(chain, layer))
			continue;
		if (!*left)
			*left = json_object_new_array();
		json_object_array_add(*left, json_object_get(layer));
	}
}

struct json_object *leftover_layers(const char *subject,
				    const struct chain *chain, bool *again)
{
	struct json_object *left = NULL, *notes;
	struct job_record record;
	char *command;

	*again = false;
	if (!job_load(subject, &record))
		return NULL;
	notes = leftover_notes(&record);
	if (notes && job_subject_same(record.subject, subject) &&
	    is_on_the_way(notes, chain)) {
		add_gone(&left, chain, member(notes, "gone"));
		add_gone(&left, chain, member(notes, "left"));
		command = job_command_line();
		*again = !strcmp(record.command, command);
		free(command);
	}
	job_free(&record);
	return left;
}
