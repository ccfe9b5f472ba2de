// SPDX-License-Identifier: GPL-2.0-only
/*
 * Another backing chain for the top image.
 */
#include "rebase.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dest.h"
#include "differ.h"
#include "fate.h"
#include "jobdev.h"
#include "link.h"
#include "message.h"
#include "pivot.h"
#include "recover.h"
#include "relink.h"
#include "report.h"
#include "stack.h"
#include "state.h"
#include "tally.h"
#include "users.h"
#include "walk.h"

/**
 * struct work - a rebase under way
 * @what: what is wanted
 * @fresh: the new backing chain
 * @attached: its images
 * @dest: the top image, where the device does not write
 * @walk: what could differ
 * @differ: what does
 */
struct work {
	const struct rebase *what;
	struct chain fresh;
	struct attachment *attached;
	struct dest dest;
	struct walk *walk;
	struct differ *differ;
};

static int check_words(const struct rebase *rebase)
{
	if (*rebase->link && !rebase->format)
		return report_fail(EINVAL,
				   "The format of the backing file is missing: -F FORMAT.");
	if (rebase->format && format_of_name(rebase->format) == FORMAT_UNKNOWN)
		return report_fail(EINVAL,
				   "Format '%s' is not supported (qcow2 and raw are).",
				   rebase->format);
	return 0;
}

/* The new link as the functions of relink.h take it */
static const char *name_of(const struct rebase *rebase)
{
	return *rebase->link ? rebase->link : NULL;
}

static enum image_format format_of(const struct rebase *rebase)
{
	return *rebase->link ? format_of_name(rebase->format) : FORMAT_UNKNOWN;
}

static int check_place(const struct live *live, const struct image *layer)
{
	if (live->closed ||
	    !stack_has(stack_place(layer->path), live->device.dm.device))
		return 0;
	return report_fail(EINVAL, "%s is on device %s, which cannot stand on it.",
			   layer->path, live->device.name);
}

static int check_fresh(const struct work *work)
{
	const struct live *live = work->what->live;
	const struct image *top = &live->chain.layers[0];
	struct devices devices;
	struct image_user user;
	unsigned int i;
	int r = 0;

	devices_load(&devices);
	for (i = 0; i < work->fresh.count && !r; i++) {
		const struct image *layer = &work->fresh.layers[i];

		r = image_id_equal(&layer->id, &top->id) ?
			report_fail(ELOOP, "%s would be its own backing file.",
				    top->path) :
			image_check_usable(layer, false);
		if (!r)
			r = check_place(live, layer);
		if (!r && devices_use(&devices, &layer->id,
				      device_user_writes, &user))
			r = device_refuse(layer->path, &user);
	}
	devices_free(&devices);
	return r;
}

static bool is_in(const struct chain *chain, const struct image *image)
{
	unsigned int i;

	for (i = 0; i < chain->count; i++) {
		if (image_id_equal(&chain->layers[i].id, &image->id))
			return true;
	}
	return false;
}

/* Who has the old chain open knows the passphrases of that. */
static int unlock_fresh(const struct work *work)
{
	const struct image *layer;
	unsigned int i;
	int r = 0;

	for (i = 0; i < work->fresh.count && !r; i++) {
		layer = &work->fresh.layers[i];
		if (!is_in(&work->what->live->chain, layer))
			r = unlock_install(work->what->unlock, layer);
	}
	return r;
}

static int open_fresh(struct work *work)
{
	const struct rebase *what = work->what;
	char *path, *given;
	int r;

	if (!*what->link)
		return 0;
	path = link_beside(what->live->chain.layers[0].path, what->link);
	given = text("%s=%s", path, what->format);
	r = formats_add(what->formats, given);
	if (!r)
		r = chain_open(path, what->formats, &work->fresh);
	free(given);
	free(path);
	if (!r)
		r = check_fresh(work);
	return r < 0 || what->dry_run ? r : unlock_fresh(work);
}

static int check(const struct work *work)
{
	const struct live *live = work->what->live;
	const struct image *top = &live->chain.layers[0];

	if (top->header.nb_snapshots)
		return report_fail(EOPNOTSUPP,
				   "%s has internal snapshots, whose contents come from its backing file, too: it must keep that.",
				   top->path);
	if (top->format != FORMAT_QCOW2)
		return report_fail(EINVAL, "%s is raw: it has no backing file.",
				   top->path);
	if (!live->writes && !live->closed)
		return report_fail(EROFS, "Device %s is read-only.",
				   live->word);
	return live->writes ? live_check_length(live) : dest_check(live, 0, 0);
}

/* How many of the lowest layers are in both chains? */
static unsigned int common_layers(const struct chain *old,
				  const struct chain *fresh)
{
	unsigned int count = 0;

	while (count + 1 < old->count && count < fresh->count &&
	       image_id_equal(&old->layers[old->count - 1 - count].id,
			      &fresh->layers[fresh->count - 1 - count].id))
		count++;
	return count;
}

static int open_walk(struct work *work)
{
	const struct chain *old = &work->what->live->chain;
	struct walk_chains chains = {
		.top = &old->layers[0],
		.live = work->what->live->writes,
		.old = &old->layers[1],
		.old_count = old->count - 1,
		.new = work->fresh.layers,
		.new_count = work->fresh.count,
		.common = common_layers(old, &work->fresh),
	};

	walk_close(work->walk);
	return walk_up(&chains, &work->walk);
}

/* Is there anything to compare with?  No image, or one of no bytes, is zeroes. */
static bool reads_fresh(const struct work *work)
{
	return work->fresh.count && work->fresh.layers[0].size;
}

/* The device of the new chain, to compare with */
static int create_fresh(struct work *work)
{
	struct device_layer *layers = NULL;
	unsigned int i;
	int r;

	for (i = 0; i < work->fresh.count; i++) {
		work->attached = grow_array(work->attached, i,
					    sizeof(*work->attached));
		work->attached[i] = attach_empty();
	}
	r = attach_read_layers(work->fresh.layers, work->fresh.count,
			       work->attached);
	for (i = 0; i < work->fresh.count && !r; i++) {
		layers = grow_array(layers, i, sizeof(*layers));
		layers[i].format = work->fresh.layers[i].format;
		attach_show(&work->attached[i], &layers[i]);
	}
	if (!r && reads_fresh(work))
		r = jobdev_create("new", layers, i,
				  device_sectors_of(work->fresh.layers[0].size),
				  true, ZERO_FROM_NONE, NULL, 0);
	free(layers);
	return r;
}

static int open_differ(struct work *work, const char *old, const char *fresh)
{
	const struct image *top = &work->what->live->chain.layers[0];
	uint64_t data, zeroes;
	int r;

	r = open_walk(work);
	if (!r)
		r = walk_total(work->walk, &data, &zeroes);
	if (r < 0)
		return r;
	tally_expect(data);
	return differ_open(work->walk, old, reads_fresh(work) ? fresh : NULL,
			   1ULL << top->header.sub_bits, &work->differ);
}

/* Nobody writes to the image but the job. */
static int copy_still(struct work *work)
{
	struct copy copy = {
		.from = work->dest.path,
		.to = work->dest.path,
		.next = differ_next,
		.pace = tally_copy,
		.walk = work->differ,
	};

	return copy_run(&copy);
}

static int populate(struct work *work, const struct copy_piece *piece)
{
	char layers[32];
	struct sweep sweep = {
		.name = work->what->live->device.name,
		.verb = "populate",
		.tail = layers,
		.start = piece->start / 512,
		.end = (piece->start + piece->length) / 512,
		.pace = tally_sweep,
	};

	snprintf(layers, sizeof(layers), "%u zeroes",
		 work->what->live->chain.count);
	return sweep_run(&sweep);
}

/* The guest writes, too: the kernel copies what it is told. */
static int copy_live(struct work *work)
{
	struct copy_piece piece;
	int r;

	do {
		r = differ_next(work->differ, &piece);
		if (!r && piece.length)
			r = populate(work, &piece);
	} while (!r && piece.length);
	return r;
}

static int copy(struct work *work)
{
	int r, locked;

	state_unlock();
	r = work->what->live->writes ? copy_live(work) : copy_still(work);
	locked = begin_change(true);
	if (!r && !locked && job_cancelled())
		r = -ECANCELED;
	if (!r && !locked)
		r = live_refresh(work->what->live);
	return r < 0 ? r : locked;
}

static int relink_top(struct work *work)
{
	const struct rebase *what = work->what;

	return live_relink(what->live, 0, name_of(what), format_of(what));
}

static int prepare_closed(struct work *work)
{
	const struct device *device = &work->what->live->device;
	int r;

	r = dest_attach(&work->dest, 0);
	if (!r)
		r = dest_create(&work->dest, device->layers + 1,
				device->count - 1, 0, " explicit_zeroes");
	return r < 0 ? r : live_reread(work->what->live, 0);
}

/* What reads otherwise on @fresh than on @old comes into the overlay. */
static int copy_difference(struct work *work, const char *old,
			   const char *fresh)
{
	int r = open_differ(work, old, fresh);

	if (!r)
		r = copy(work);
	if (r < 0)
		return r;
	differ_close(work->differ);
	work->differ = NULL;
	job_finishing();
	return 0;
}

static int rebase_closed(struct work *work)
{
	char *fresh = jobdev_path("new");
	int r;

	r = prepare_closed(work);
	if (!r)
		r = copy_difference(work, work->dest.path, fresh);
	free(fresh);
	if (!r)
		r = dest_finish(&work->dest);
	if (!r)
		r = live_reread(work->what->live, 0);
	if (!r)
		r = relink_top(work);
	if (!r)
		r = jobdev_remove("new");
	if (!r)
		r = jobdev_remove("chain");
	if (!r)
		dest_trim(&work->dest);
	return r;
}

/* The new table: the top image, and the new chain below it */
static int load_fresh(struct work *work)
{
	const struct device *device = &work->what->live->device;
	struct pivot pivot = pivot_same(device);
	struct device_layer *layers;
	unsigned int i;
	int r;

	layers = grow_array(NULL, work->fresh.count, sizeof(*layers));
	layers[0] = device->layers[0];
	for (i = 0; i < work->fresh.count; i++) {
		layers[i + 1].format = work->fresh.layers[i].format;
		attach_show(&work->attached[i], &layers[i + 1]);
	}
	pivot.layers = layers;
	pivot.count = work->fresh.count + 1;
	r = pivot_run(device, &pivot);
	free(layers);
	return r;
}

/* Its images become those of the chain. */
static int note_fresh(struct work *work)
{
	struct live *live = work->what->live;
	struct chain *chain = &live->chain;

	live_forget(live, 1, chain->count - 1);
	while (chain->count <= work->fresh.count) {
		chain->layers = grow_array(chain->layers, chain->count,
					   sizeof(*chain->layers));
		chain->layers[chain->count] =
			work->fresh.layers[chain->count - 1];
		chain->count++;
	}
	work->fresh.count = 0;
	return live_save(live, KEEP_LENGTH);
}

static int rebase_live(struct work *work)
{
	struct live *live = work->what->live;
	char *old = path_of_device(live->device.dm.device);
	char *fresh = jobdev_path("new");
	int r;

	/* A discard must not uncover what is about to come. */
	r = live_make_explicit(live);
	if (!r)
		r = copy_difference(work, old, fresh);
	free(old);
	free(fresh);
	if (!r)
		r = relink_top(work);
	if (!r)
		r = load_fresh(work);
	if (!r)
		r = note_fresh(work);
	return r < 0 ? r : jobdev_remove("new");
}

static void release_fresh(struct work *work, unsigned int count, bool used)
{
	while (count)
		attach_release(&work->attached[--count], used);
	free(work->attached);
	work->attached = NULL;
}

static int run(struct work *work)
{
	struct live *live = work->what->live;
	unsigned int count = work->fresh.count;
	int r;

	dest_init(&work->dest, live, 0);
	r = live_begin(live);
	if (!r)
		r = create_fresh(work);
	if (!r)
		r = live->writes ? rebase_live(work) : rebase_closed(work);
	differ_close(work->differ);
	work->differ = NULL;
	if (r < 0) {
		jobdev_clean(live->subject);
		dest_trim(&work->dest);
	}
	if (work->attached)
		release_fresh(work, count, !r);
	dest_free(&work->dest);
	return r;
}

/* What is done to the image at @path in any case */
static struct json_object *describe(const struct rebase *rebase,
				    const char *path)
{
	struct json_object *plan = fate_new("rebase");

	fate_add(plan, FATE_WRITTEN, path);
	fate_link(plan, path, name_of(rebase));
	return plan;
}

static int run_job(struct work *work, struct json_object *plan)
{
	int r;

	r = job_begin(work->what->live->subject, "rebase", &work->what->job);
	if (!r) {
		r = run(work);
		if (!r && work->what->json)
			fate_tell(json_object_get(plan), true);
		r = job_end(r);
	}
	json_object_put(plan);
	return r;
}

/* Whatever could differ is compared: so much may have to be copied. */
static int describe_bytes(struct work *work, struct json_object *plan)
{
	uint64_t data, zeroes;
	int r;

	r = open_walk(work);
	if (!r)
		r = walk_total(work->walk, &data, &zeroes);
	if (r < 0)
		return r;
	json_set_number(plan, "data-bytes", data);
	json_set_number(plan, "zero-bytes", zeroes);
	return 0;
}

/* The layers that only one of the chains has are read. */
static void describe_chains(const struct work *work, struct json_object *plan)
{
	const struct chain *old = &work->what->live->chain;
	const struct chain *fresh = &work->fresh;
	unsigned int common = common_layers(old, fresh), i;

	for (i = 1; i < old->count - common; i++)
		fate_add(plan, FATE_READ, old->layers[i].path);
	for (i = 0; i < fresh->count - common; i++)
		fate_add(plan, FATE_READ, fresh->layers[i].path);
}

static int run_or_tell(struct work *work)
{
	const struct rebase *what = work->what;
	struct json_object *plan;
	int r;

	plan = describe(what, what->live->chain.layers[0].path);
	describe_chains(work, plan);
	if (!what->dry_run)
		return run_job(work, plan);
	r = describe_bytes(work, plan);
	if (!r)
		fate_plan(plan, what->json);
	else
		json_object_put(plan);
	return r;
}

int rebase_run(const struct rebase *rebase)
{
	struct work work = { .what = rebase };
	int r;

	r = check_words(rebase);
	if (!r)
		r = check(&work);
	if (!r)
		r = open_fresh(&work);
	if (!r)
		r = relink_check(&rebase->live->chain.layers[0],
				 name_of(rebase), format_of(rebase));
	if (!r)
		r = run_or_tell(&work);
	walk_close(work.walk);
	chain_close(&work.fresh);
	return r;
}

static int check_other(const struct rebase *rebase, const struct image *image)
{
	char *path = link_beside(image->path, rebase->link);
	struct image_id id;
	bool same;

	same = *rebase->link && image_id_of_path(path, &id) &&
		image_id_equal(&id, &image->id);
	free(path);
	return same ? report_fail(ELOOP, "%s would be its own backing file.",
				  image->path) : 0;
}

static int check_link(const struct rebase *rebase, struct image *image,
		      const char *path)
{
	struct image_user user;
	int r;

	r = check_words(rebase);
	if (!r)
		r = image_open(path, FORMAT_QCOW2, image);
	if (!r && device_uses(&image->id, false, &user))
		r = device_refuse(path, &user);
	return r < 0 ? r : check_other(rebase, image);
}

static int link_image(const struct rebase *rebase, const struct image *image)
{
	struct json_object *plan = describe(rebase, image->path);
	int r;

	if (rebase->dry_run) {
		fate_plan(plan, rebase->json);
		return 0;
	}
	r = relink_image(image, name_of(rebase), format_of(rebase));
	if (!r)
		fate_tell(plan, rebase->json);
	else
		json_object_put(plan);
	return r;
}

int rebase_link(const struct rebase *rebase, const char *path)
{
	struct image image = { .fd = -1 };
	const struct image *const victim = &image;
	const struct chain chain = { &image, 1 };
	const struct users users = {
		.chain = &chain,
		.search = rebase->search,
		.nsearch = rebase->nsearch,
		.force = rebase->force,
	};
	int r;

	r = check_link(rebase, &image, path);
	if (!r)
		r = users_check(&users, &victim, 1);
	if (!r)
		r = relink_check(&image, name_of(rebase), format_of(rebase));
	if (!r)
		r = link_image(rebase, &image);
	image_close(&image);
	return r;
}
