// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is left to do of jobs that died.
 */
#include "finish.h"

#include <stdlib.h>
#include <string.h>

#include "fate.h"
#include "job.h"
#include "layerlist.h"
#include "leftover.h"
#include "live.h"
#include "look.h"
#include "report.h"
#include "state.h"
#include "users.h"

static struct json_object *member(struct json_object *object, const char *key)
{
	struct json_object *value = NULL;

	json_object_object_get_ex(object, key, &value);
	return value;
}

struct json_object *finish_notes(struct json_object *chain,
				 struct json_object *gone,
				 struct json_object *left,
				 struct json_object *plan)
{
	struct json_object *notes = json_object_new_object();

	json_object_object_add(notes, "chain", chain);
	json_object_object_add(notes, "gone", gone);
	if (left)
		json_object_object_add(notes, "left", json_object_get(left));
	json_object_object_add(notes, "plan", json_object_get(plan));
	return notes;
}

/* Is the chain what the job was to make of it? */
static bool is_result(struct json_object *notes, const struct chain *chain)
{
	struct json_object *layers = member(notes, "chain");
	struct image_id id;
	unsigned int i;

	if (!json_object_is_type(layers, json_type_array) ||
	    chain->count != json_object_array_length(layers))
		return false;
	for (i = 0; i < chain->count; i++) {
		id = layer_json_id(json_object_array_get_idx(layers, i));
		if (!image_id_equal(&id, &chain->layers[i].id))
			return false;
	}
	return leftover_has_left(notes, chain);
}

/* The plan names files as the layers do. */
static bool is_to_go(struct json_object *notes, const char *path)
{
	return path && fate_is(member(notes, "plan"), FATE_DELETED, path);
}

/* Merged up, it reads as before. */
static enum fate fate_of_kept(struct json_object *plan)
{
	struct json_object *relinked = member(plan, "relinked");
	const char *up = relinked ? json_string(relinked, "image") : NULL;

	return up && fate_is(plan, FATE_WRITTEN, up) ? FATE_UNNEEDED :
		FATE_INVALID;
}

static void delete_unused(struct json_object *notes, const struct users *users,
			  struct json_object *layer)
{
	const char *path = json_string(layer, "path");
	const char *data = json_string(layer, "data-file");
	struct json_object *plan = member(notes, "plan");
	const struct image *victim;
	struct image image;
	int r;

	if (!path || !layer_json_is_at(layer, path))
		return;
	r = image_open(path, format_of_name(json_string(layer, "format")),
		       &image);
	victim = &image;
	if (!r)
		r = users_check(users, &victim, 1);
	image_close(&image);
	if (r < 0) {
		report_warn("%s, which was to be deleted, is kept.", path);
		fate_change(plan, FATE_DELETED, fate_of_kept(plan), path,
			    is_to_go(notes, data) ? data : NULL);
		return;
	}
	/* As fate_add_pair() has it: the image is how the next one finds both. */
	if (is_to_go(notes, data))
		fate_delete_file(data);
	fate_delete_file(path);
}

/* The highest one first, since it stands on the next. */
static void delete_all(struct json_object *notes, struct json_object *layers,
		       const struct users *users)
{
	struct json_object *layer;
	size_t i;

	for (i = 0; layers && i < json_object_array_length(layers); i++) {
		layer = json_object_array_get_idx(layers, i);
		if (is_to_go(notes, json_string(layer, "path")))
			delete_unused(notes, users, layer);
	}
}

void finish_delete(struct json_object *notes, const struct users *users)
{
	struct users halves = *users;

	halves.halves = true;
	delete_all(notes, member(notes, "gone"), &halves);
	delete_all(notes, member(notes, "left"), &halves);
}

static bool visit_dead(const struct job_record *record, void *data)
{
	struct json_object *notes = leftover_notes(record);
	struct chain chain = { 0 };
	const struct users users = { .chain = &chain };
	bool muted = report_muted();
	int r;

	(void)data;
	if (!notes || member(notes, "finished"))
		return false;
	/* Closed since, or moved: then it is none of our business. */
	report_mute(true);
	r = look_open(record->subject, NULL, true, &chain);
	report_mute(muted);
	if (!r && is_result(notes, &chain)) {
		finish_delete(notes, &users);
		json_set_bool(notes, "finished", true);
		job_state_save(record->name, record->json);
		/* The inodes of what was deleted may be those of others soon. */
		job_lasting_remove(record->name);
	}
	chain_close(&chain);
	return false;
}

void finish_dead(void)
{
	job_each(visit_dead, NULL);
}

bool finish_again(const struct live *live, bool json)
{
	struct json_object *notes;
	struct job_record record;
	char *command;
	bool again;

	if (!job_load(live->subject, &record))
		return false;
	command = job_command_line();
	notes = leftover_notes(&record);
	again = notes && !strcmp(record.command, command) &&
		is_result(notes, &live->chain);
	free(command);
	if (again) {
		fate_tell(json_object_get(member(notes, "plan")), json);
		job_forget(&record);
	}
	job_free(&record);
	return again;
}
