// SPDX-License-Identifier: GPL-2.0-only
/*
 * snapshot NAME|IMAGE OVERLAY: an overlay over an image, or under an open
 * device, which goes on writing in it.
 * snapshot NAME=OVERLAY...: the same for several devices, at one point in time.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "closedsnap.h"
#include "commands.h"
#include "device.h"
#include "dm.h"
#include "fate.h"
#include "freeze.h"
#include "livesnap.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "swap.h"

/**
 * struct group - snapshots at one point in time
 * @args: command line
 * @snaps: one for each device
 * @count: of @snaps
 * @entry: in the journal
 * @swap: the moment in which tables change
 */
struct group {
	struct arguments *args;
	struct livesnap *snaps;
	unsigned int count;
	struct json_object *entry;
	struct swap swap;
};

static struct json_object *result_json(const char *overlay, const char *backing,
				       const char *device)
{
	struct json_object *object = json_object_new_object();

	if (device)
		json_set_string(object, "name", device);
	json_set_string(object, "overlay", overlay);
	json_set_string(object, "backing-file", backing);
	return object;
}

/* All is loaded; from here on nothing that may take long. */
static int swap_tables(struct group *group)
{
	unsigned int i;
	int r = 0;

	json_object_object_add(group->entry, "freeze",
			       freeze_json(group->swap.freeze));
	for (i = 0; i < group->count && !r; i++)
		r = livesnap_phase(&group->snaps[i], "swap");
	if (!r)
		r = swap_run(&group->swap);
	if (group->swap.thawed) {
		json_object_object_del(group->entry, "freeze");
		journal_write(group->entry);
	}
	return r;
}

static int take_steps(struct group *group)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < group->count && !r; i++)
		r = livesnap_prepare(&group->snaps[i]);
	return r < 0 ? r : swap_tables(group);
}

static void write_entry(struct group *group)
{
	struct json_object *parts = json_object_new_array();
	unsigned int i;

	group->entry = journal_entry("group", "", "");
	for (i = 0; i < group->count; i++) {
		livesnap_journal(&group->snaps[i]);
		json_object_array_add(parts,
				      json_object_get(group->snaps[i].entry));
	}
	json_object_object_add(group->entry, "parts", parts);
	journal_whole(group->entry);
}

static int run_group(struct group *group)
{
	unsigned int i;
	int r;

	write_entry(group);
	r = take_steps(group);
	for (i = 0; i < group->count; i++)
		livesnap_release(&group->snaps[i], !r);
	journal_whole(NULL);
	json_object_put(group->entry);
	/* Notes the new states and cuts the old tops; or undoes everything. */
	recover();
	return r;
}

static void print_results(const struct group *group)
{
	struct json_object *all = json_object_new_array();
	const struct livesnap *snap;
	unsigned int i;

	for (i = 0; i < group->count; i++) {
		snap = &group->snaps[i];
		json_object_array_add(all, result_json(snap->overlay_path,
						       snap->top.path,
						       snap->device.name));
	}
	if (group->args->together) {
		report_json(all);
	} else {
		report_json(json_object_get(json_object_array_get_idx(all, 0)));
		json_object_put(all);
	}
}

/* In place of the snapshots: what they would do */
static int print_plans(const struct group *group)
{
	struct json_object *all = json_object_new_array(), *plan;
	unsigned int i;
	int r = 0;

	for (i = 0; i < group->count && !r; i++) {
		r = livesnap_plan(&group->snaps[i], &plan);
		if (!r && group->args->together && group->args->json)
			json_object_array_add(all, plan);
		else if (!r)
			fate_plan(plan, group->args->json);
	}
	if (!r && group->args->together && group->args->json)
		report_json(all);
	else
		json_object_put(all);
	return r;
}

static int add_device(struct group *group, const char *name,
		      const char *overlay)
{
	struct livesnap *snap;
	int r;

	group->snaps = grow_array(group->snaps, group->count,
				  sizeof(*group->snaps));
	snap = &group->snaps[group->count++];
	memset(snap, 0, sizeof(*snap));
	snap->existing = group->args->existing;
	snap->no_grow = group->args->no_grow;
	snap->formats = &group->args->formats;
	snap->unlock = &group->args->unlock;
	snap->plain = group->args->plain;
	r = livesnap_open(snap, name, overlay);
	return r < 0 || group->args->dry_run ? r : livesnap_unlock(snap);
}

/* A name may have an equals sign in it, too: the first part that is a device */
static int add_word(struct group *group, const char *word)
{
	const char *equal = word;
	char *name;
	int r;

	while ((equal = strchr(equal + 1, '='))) {
		name = text("%.*s", (int)(equal - word), word);
		r = strlen(name) < DM_NAME_MAX && dm_query(name).exists ?
			add_device(group, name, equal + 1) : 1;
		free(name);
		if (r <= 0)
			return r;
	}
	return report_fail(EINVAL, "'%s' is not NAME=OVERLAY of an open device.",
			   word);
}

/* Overlays that are to be made do not exist yet: their paths tell. */
static int check_overlays(const struct group *group)
{
	unsigned int i, j;

	for (i = 0; i < group->count; i++) {
		for (j = 0; j < i; j++) {
			if (!strcmp(group->snaps[i].overlay_path,
				    group->snaps[j].overlay_path))
				return report_fail(EINVAL,
						   "%s is named twice.",
						   group->snaps[i].overlay_path);
		}
	}
	return 0;
}

static int check_group(struct group *group)
{
	unsigned int i;
	int r;

	for (i = 0; i < group->count; i++) {
		group->swap.devices = grow_array(group->swap.devices, i,
						 sizeof(*group->swap.devices));
		group->swap.devices[i] = &group->snaps[i].device;
	}
	group->swap.count = group->count;
	r = check_overlays(group);
	if (!r)
		r = freeze_check(group->swap.freeze);
	for (i = 0; i < group->count && !r; i++)
		r = swap_check_new(&group->swap, &group->snaps[i].device,
				   group->snaps[i].overlay_path);
	return r < 0 ? r : swap_check(&group->swap);
}

static int snapshot_open(struct arguments *args)
{
	struct group group = {
		.args = args,
		.swap.freeze = &args->freeze,
	};
	unsigned int i;
	int r = 0;

	if (args->together) {
		for (i = 0; i < args->word_count && !r; i++)
			r = add_word(&group, args->all_words[i]);
	} else {
		r = add_device(&group, args->words[0], args->words[1]);
	}
	if (!r)
		r = check_group(&group);
	if (!r)
		r = args->dry_run ? print_plans(&group) : run_group(&group);
	if (!r && args->json && !args->dry_run)
		print_results(&group);
	for (i = 0; i < group.count; i++)
		livesnap_close(&group.snaps[i]);
	free(group.snaps);
	free(group.swap.devices);
	return r;
}

static int snapshot_closed(struct arguments *args)
{
	struct closedsnap snap = {
		.image = args->words[0],
		.word = args->words[1],
		.existing = args->existing,
		.formats = &args->formats,
		.unlock = &args->unlock,
		.plain = args->plain,
	};
	int r;

	r = closedsnap_open(&snap);
	if (!r && args->dry_run)
		fate_plan(closedsnap_plan(&snap, "snapshot"), args->json);
	else if (!r)
		r = closedsnap_make(&snap);
	if (!r && args->json && !args->dry_run)
		report_json(result_json(snap.path, closedsnap_backing(&snap),
					NULL));
	closedsnap_close(&snap);
	recover();
	return r;
}

/* "NAME OVERLAY", or "NAME=OVERLAY..."? */
static bool is_together(const struct arguments *args)
{
	const char *word = args->words[0];

	if (args->word_count != 2)
		return true;
	if (!strchr(word, '=') || access(word, F_OK) == 0)
		return false;
	return strlen(word) >= DM_NAME_MAX || !dm_query(word).exists;
}

int check_overlay_options(const struct arguments *args)
{
	if (args->existing && args->plain)
		return report_fail(EINVAL,
				   "--plain is for an overlay that is to be made: --existing names one that is there.");
	return 0;
}

int cmd_snapshot(struct arguments *args)
{
	bool closed;
	int r;

	args->together = is_together(args);
	closed = !args->together && is_path(args->words[0]);
	if (closed && freeze_any(&args->freeze))
		return report_fail(EINVAL,
				   "%s is not open: there is nothing to freeze.",
				   args->words[0]);
	r = check_overlay_options(args);
	if (!r)
		r = begin_change(!closed);
	if (!r)
		r = closed ? snapshot_closed(args) : snapshot_open(args);
	state_unlock();
	return r;
}
