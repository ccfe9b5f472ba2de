// SPDX-License-Identifier: GPL-2.0-only
/*
 * Collapsing adjacent layers.
 */
#include "merge.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "copy.h"
#include "fate.h"
#include "job.h"
#include "jobdev.h"
#include "pivot.h"
#include "recover.h"
#include "relink.h"
#include "report.h"
#include "state.h"
#include "tally.h"
#include "users.h"

unsigned int merge_dest(const struct merge *merge)
{
	return merge->up ? merge->first : merge->last;
}

static struct image *layer_of(const struct merge *merge, unsigned int index)
{
	return &merge->live->chain.layers[index];
}

static uint64_t size_wanted(const struct merge *merge)
{
	return layer_of(merge, merge->first)->size;
}

/* Return: false if no image's link changes. */
static bool relinked(const struct merge *merge, unsigned int *index)
{
	*index = merge->up ? merge->first : merge->first - 1;
	return merge->up || merge->first;
}

/* The layer that it is linked to; behind the lowest one: none */
static unsigned int link_target(const struct merge *merge)
{
	return merge->up ? merge->last + 1 : merge->last;
}

static char *new_link(const struct merge *merge, unsigned int index)
{
	unsigned int to = link_target(merge);

	return to < merge->live->chain.count ?
		live_link(merge->live, index, to) : NULL;
}

static bool has_snapshots(const struct image *image)
{
	return image->format == FORMAT_QCOW2 && image->header.nb_snapshots;
}

int merge_check_backing(const struct image *image)
{
	if (!has_snapshots(image))
		return 0;
	return report_fail(EOPNOTSUPP,
			   "%s has internal snapshots, whose contents come from its backing file, too: it must keep that.",
			   image->path);
}

int merge_check_lost(const struct image *images, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		if (has_snapshots(&images[i]))
			return report_fail(EOPNOTSUPP,
					   "%s has internal snapshots, which would lose their contents: delete them, or use --force.",
					   images[i].path);
	}
	return 0;
}

static int check_snapshots(const struct merge *merge)
{
	unsigned int count = merge->last - merge->first;
	int r = merge->up ? merge_check_backing(layer_of(merge, merge->first)) :
		0;

	/* Merged up and kept, the others go on reading right. */
	if (r < 0 || merge->force || (merge->up && !merge->remove))
		return r;
	return merge_check_lost(layer_of(merge, merge->first + merge->up),
				count);
}

/* Whose contents change, or who goes? */
static bool is_victim(const struct merge *merge, unsigned int index)
{
	if (merge->up)
		return merge->remove && index > merge->first;
	return index > merge->first || merge->remove;
}

/* Merged up, the destination reads the same before and after. */
static int check_users(const struct merge *merge)
{
	const struct users users = {
		.chain = &merge->live->chain,
		.left = merge->live->left,
		.search = merge->search,
		.nsearch = merge->nsearch,
		.force = merge->force,
	};
	const struct image **victims = NULL;
	unsigned int i, count = 0;
	int r = 0;

	for (i = merge->first; i <= merge->last; i++) {
		if (!is_victim(merge, i))
			continue;
		victims = grow_array(victims, count, sizeof(*victims));
		victims[count++] = layer_of(merge, i);
	}
	if (merge->up)
		r = users_check_written(&merge->live->chain,
					layer_of(merge, merge->first));
	if (!r)
		r = users_check(&users, victims, count);
	free(victims);
	return r;
}

static int open_walk(struct merge *merge)
{
	struct chain *chain = &merge->live->chain;
	struct walk_chains chains = {
		.top = &chain->layers[merge->first],
		.old = &chain->layers[merge->first + 1],
		.old_count = chain->count - merge->first - 1,
		.new = &chain->layers[merge->last + 1],
		.new_count = chain->count - merge->last - 1,
		.common = chain->count - merge->last - 1,
	};

	walk_close(merge->walk);
	if (merge->up)
		return walk_up(&chains, &merge->walk);
	return walk_down(&chain->layers[merge->first],
			 merge->last - merge->first + 1, &merge->walk);
}

static bool is_linked(const struct merge *merge)
{
	unsigned int index;

	return relinked(merge, &index) &&
		live_is_linked(merge->live, index, link_target(merge));
}

static int check_link(const struct merge *merge)
{
	unsigned int index;

	return relinked(merge, &index) ?
		live_check_link_to(merge->live, index, link_target(merge)) : 0;
}

int merge_plan(struct merge *merge)
{
	uint64_t size = merge->up ? 0 : size_wanted(merge);
	int r;

	merge->linked = is_linked(merge);
	if (merge->linked)
		return check_users(merge);
	/* It is read through a device, or written through one. */
	r = image_check_device(layer_of(merge, merge->first));
	if (!r)
		r = check_snapshots(merge);
	if (!r)
		r = dest_check(merge->live, merge_dest(merge), size);
	if (!r)
		r = check_users(merge);
	if (!r)
		r = check_link(merge);
	if (!r)
		r = open_walk(merge);
	return r < 0 ? r : walk_total(merge->walk, &merge->data,
				      &merge->zeroes);
}

void merge_free(struct merge *merge)
{
	walk_close(merge->walk);
	merge->walk = NULL;
}

/*
 * Merged down, a layer in the middle reads what was written into the lowest one
 * by layers above it. The highest one still owns all that it ever had.
 */
struct json_object *merge_describe(const struct merge *merge)
{
	struct json_object *plan = fate_new(merge->operation);
	const struct image *dest = layer_of(merge, merge_dest(merge));
	unsigned int i;
	char *link;

	for (i = merge->first; i <= merge->last; i++) {
		if (i == merge_dest(merge))
			continue;
		fate_add(plan, FATE_READ, layer_of(merge, i)->path);
		if (merge->remove)
			fate_add_image(plan, FATE_DELETED, layer_of(merge, i));
		else
			fate_add_image(plan, !merge->up && i > merge->first ?
				       FATE_INVALID : FATE_UNNEEDED,
				       layer_of(merge, i));
	}
	fate_add(plan, FATE_WRITTEN, dest->path);
	if (!merge->up && dest->size < size_wanted(merge))
		json_set_number(plan, "grown-to", size_wanted(merge));
	if (relinked(merge, &i)) {
		link = new_link(merge, i);
		fate_link(plan, layer_of(merge, i)->path, link);
		free(link);
	}
	json_set_number(plan, "data-bytes", merge->data);
	json_set_number(plan, "zero-bytes", merge->zeroes);
	return plan;
}

static int create_source(const struct merge *merge)
{
	const struct device *device = &merge->live->device;

	return jobdev_create("from", device->layers + merge->first,
			     merge->last - merge->first,
			     device_sectors_of(size_wanted(merge)), true,
			     ZERO_FROM_NONE, NULL, 0);
}

static int create_down(struct merge *merge, struct dest *dest)
{
	const struct device *device = &merge->live->device;
	int r = create_source(merge);

	return r < 0 ? r :
		dest_create(dest, device->layers + merge->last + 1,
			    device->count - merge->last - 1,
			    size_wanted(merge), "");
}

/*
 * The destination stands over the old chain, and is the source as well. So a
 * cluster that is written in parts is right in between: the rest of it is filled
 * with what the chain reads there.
 */
static int create_up(struct merge *merge, struct dest *dest)
{
	const struct device *device = &merge->live->device;

	return dest_create(dest, device->layers + merge->first + 1,
			   device->count - merge->first - 1, 0,
			   " explicit_zeroes");
}

static int prepare(struct merge *merge, struct dest *dest)
{
	struct live *live = merge->live;
	int r;

	r = dest_attach(dest, merge->up ? 0 : size_wanted(merge));
	if (!r)
		r = merge->up ? create_up(merge, dest) :
			create_down(merge, dest);
	if (!r)
		r = live_reread(live, dest->index);
	return r < 0 ? r : open_walk(merge);
}

/* This takes long; other commands may go on meanwhile. */
static int copy(struct merge *merge, const struct dest *dest)
{
	char *from = merge->up ? text_copy(dest->path) : jobdev_path("from");
	struct copy copy = {
		.from = from,
		.to = dest->path,
		.next = walk_next,
		.pace = tally_copy,
		.walk = merge->walk,
	};
	int r, locked;

	state_unlock();
	r = copy_run(&copy);
	free(from);
	locked = begin_change(true);
	if (!r && !locked && job_cancelled())
		r = -ECANCELED;
	return r < 0 ? r : locked;
}

static int relink_layer(struct merge *merge)
{
	unsigned int index;

	if (!relinked(merge, &index))
		return 0;
	return live_link_to(merge->live, index, link_target(merge));
}

/* The job's devices have served. */
static int write_out(struct merge *merge, struct dest *dest)
{
	int r;

	r = live_refresh(merge->live);
	if (!r)
		r = jobdev_remove("from");
	return r < 0 ? r : dest_finish(dest);
}

/* One after the other, so that the chain is valid wherever this ends. */
static int finish(struct merge *merge, struct dest *dest)
{
	unsigned int above = merge->up ? merge->first + 1 : merge->first;
	struct live *live = merge->live;
	int r;

	r = relink_layer(merge);
	if (!r)
		r = live_drop(live, above, merge->last - merge->first,
			      dest->index);
	if (!r)
		dest_trim(dest);
	return r;
}

static int copy_and_finish(struct merge *merge, struct dest *dest)
{
	int r;

	r = prepare(merge, dest);
	if (!r)
		r = copy(merge, dest);
	if (r < 0)
		return r;
	job_finishing();
	r = write_out(merge, dest);
	if (!r)
		r = live_reread(merge->live, dest->index);
	return r < 0 ? r : finish(merge, dest);
}

int merge_run(struct merge *merge)
{
	struct dest dest;
	int r;

	dest_init(&dest, merge->live, merge_dest(merge));
	r = merge->linked ? finish(merge, &dest) :
		copy_and_finish(merge, &dest);
	if (r < 0) {
		jobdev_clean(merge->live->subject);
		dest_trim(&dest);
	}
	dest_free(&dest);
	return r;
}
