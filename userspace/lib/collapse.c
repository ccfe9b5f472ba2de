// SPDX-License-Identifier: GPL-2.0-only
/*
 * Collapsing layers.
 */
#include "collapse.h"

#include <errno.h>
#include <stdlib.h>

#include "active.h"
#include "fate.h"
#include "finish.h"
#include "jobdev.h"
#include "merge.h"
#include "report.h"
#include "tally.h"
#include "users.h"

static struct image *layer_of(const struct collapse *collapse,
			      unsigned int index)
{
	return &collapse->live->chain.layers[index];
}

/* Does the device write to the highest layer of the range? */
static bool is_active(const struct collapse *collapse)
{
	return collapse->live->writes && !collapse->first;
}

static struct merge merge_of(const struct collapse *collapse)
{
	struct merge merge = {
		.live = collapse->live,
		.operation = collapse->operation,
		.first = collapse->first,
		.last = collapse->last,
		.up = collapse->up,
		.force = collapse->force,
		.remove = collapse->remove,
		.search = collapse->search,
		.nsearch = collapse->nsearch,
	};

	return merge;
}

/*
 * The layers below the active one first, which then goes into what they have
 * become. All of them read wrong afterwards.
 */
static struct merge lower_merge(const struct collapse *collapse)
{
	struct merge merge = merge_of(collapse);

	merge.first = 1;
	return merge;
}

static int check_active(const struct collapse *collapse)
{
	int r = merge_check_backing(layer_of(collapse, 0));

	if (r < 0 || !collapse->up || !collapse->remove || collapse->force)
		return r;
	return merge_check_lost(layer_of(collapse, 1), collapse->last);
}

static struct users users_of(const struct collapse *collapse)
{
	struct users users = {
		.chain = &collapse->live->chain,
		.left = collapse->live->left,
		.search = collapse->search,
		.nsearch = collapse->nsearch,
		.force = collapse->force,
	};

	return users;
}

/* Committed, all images of the range change or go; pulled, those that go. */
static int check_users(const struct collapse *collapse)
{
	const struct users users = users_of(collapse);
	const struct image **victims = NULL;
	unsigned int i, count = 0;
	int r = 0;

	for (i = collapse->up; i <= collapse->last; i++) {
		if (collapse->up && !collapse->remove)
			continue;
		victims = grow_array(victims, count, sizeof(*victims));
		victims[count++] = layer_of(collapse, i);
	}
	if (count)
		r = users_check(&users, victims, count);
	free(victims);
	return r;
}

static int plan_active(const struct collapse *collapse, struct merge *lower)
{
	int r;

	r = check_active(collapse);
	if (!r && collapse->up)
		r = live_check_length(collapse->live);
	if (!r)
		r = check_users(collapse);
	if (!r && !collapse->up)
		r = dest_check(collapse->live, collapse->last,
			       layer_of(collapse, 0)->size);
	if (!r && collapse->up)
		r = live_check_link_to(collapse->live, 0, collapse->last + 1);
	if (!r && !collapse->up && collapse->last > 1)
		r = merge_plan(lower);
	return r;
}

/* Committed, the old top is an empty overlay of the new one: it reads the same. */
static struct json_object *describe_active(const struct collapse *collapse)
{
	struct json_object *plan = fate_new(collapse->operation);
	unsigned int dest = collapse->up ? 0 : collapse->last, i;
	struct live *live = collapse->live;
	char *link = NULL;

	for (i = 0; i <= collapse->last; i++) {
		if (i == dest)
			continue;
		fate_add(plan, FATE_READ, layer_of(collapse, i)->path);
		if (collapse->remove)
			fate_add_image(plan, FATE_DELETED,
				       layer_of(collapse, i));
		else
			fate_add_image(plan, collapse->up || !i ?
				       FATE_UNNEEDED : FATE_INVALID,
				       layer_of(collapse, i));
	}
	fate_add(plan, FATE_WRITTEN, layer_of(collapse, dest)->path);
	if (!collapse->up &&
	    layer_of(collapse, dest)->size < layer_of(collapse, 0)->size)
		json_set_number(plan, "grown-to", layer_of(collapse, 0)->size);
	if (collapse->up) {
		if (collapse->last + 1 < live->chain.count)
			link = live_link(live, 0, collapse->last + 1);
		fate_link(plan, layer_of(collapse, 0)->path, link);
		free(link);
	}
	return plan;
}

static int commit_active(const struct collapse *collapse, struct merge *lower)
{
	int r = 0;

	tally_expect(lower->data);
	tally_expect(collapse->live->device.sectors * 512);
	if (collapse->last > 1)
		r = merge_run(lower);
	if (!r)
		job_stage();
	return r < 0 ? r : active_commit(collapse->live, collapse->remove);
}

static int pull_active(const struct collapse *collapse)
{
	tally_expect(collapse->live->device.sectors * 512);
	return active_pull(collapse->live, collapse->last);
}

static int run_merge(struct merge *merge)
{
	int r;

	tally_expect(merge->data);
	r = live_begin(merge->live);
	if (!r)
		r = merge_run(merge);
	else
		jobdev_clean(merge->live->subject);
	return r;
}

static int run(const struct collapse *collapse, struct merge *merge)
{
	if (!is_active(collapse))
		return run_merge(merge);
	return collapse->up ? pull_active(collapse) :
		commit_active(collapse, merge);
}

static struct json_object *notes_of(const struct collapse *collapse,
				    struct json_object *plan)
{
	struct json_object *result = layers_json(&collapse->live->chain);
	struct json_object *gone, *notes;

	gone = layers_json_take(result, collapse->first + collapse->up,
				collapse->last - collapse->first);
	notes = finish_notes(result, gone, collapse->live->left, plan);
	json_set_bool(notes, "emptied", !collapse->first && !collapse->up);
	return notes;
}

/* What this command had merged already when it was killed goes the same way. */
static void add_left(const struct collapse *collapse, struct json_object *plan)
{
	struct json_object *left = collapse->live->left, *layer;
	enum fate fate = collapse->remove ? FATE_DELETED :
		collapse->up ? FATE_UNNEEDED : FATE_INVALID;
	size_t i;

	if (!left || !collapse->live->again)
		return;
	for (i = 0; i < json_object_array_length(left); i++) {
		layer = json_object_array_get_idx(left, i);
		fate_add_pair(plan, fate, json_string(layer, "path"),
			      json_string(layer, "data-file"));
	}
}

/* Layers are merged already, and do not read right any more, by this job or before. */
static void keep_started(const struct collapse *collapse, unsigned int count)
{
	if (collapse->live->chain.count == count && !collapse->live->left)
		return;
	job_keep();
	report_warn("Some layers are merged, and not part of the chain any more: run the command again to finish.");
}

/* The result is told before the job is over: who waits for it reads that. */
static int run_job(const struct collapse *collapse, struct merge *merge,
		   struct json_object *plan)
{
	const struct users users = users_of(collapse);
	unsigned int count = collapse->live->chain.count;
	struct json_object *notes;
	int r;

	r = job_begin(collapse->live->subject, collapse->operation,
		      &collapse->job);
	if (r < 0) {
		json_object_put(plan);
		return r;
	}
	notes = notes_of(collapse, plan);
	r = job_note_lasting(json_object_get(notes));
	if (!r)
		r = run(collapse, merge);
	if (!r) {
		finish_delete(notes, &users);
		fate_tell(plan, collapse->json);
	} else {
		keep_started(collapse, count);
		json_object_put(plan);
	}
	json_object_put(notes);
	return job_end(r);
}

int collapse_run(const struct collapse *collapse)
{
	struct merge merge = is_active(collapse) ? lower_merge(collapse) :
		merge_of(collapse);
	struct json_object *plan;
	int r;

	r = is_active(collapse) ? plan_active(collapse, &merge) :
		merge_plan(&merge);
	if (!r) {
		plan = is_active(collapse) ? describe_active(collapse) :
			merge_describe(&merge);
		add_left(collapse, plan);
		if (collapse->dry_run)
			fate_plan(plan, collapse->json);
		else
			r = run_job(collapse, &merge, plan);
	}
	merge_free(&merge);
	return r;
}
