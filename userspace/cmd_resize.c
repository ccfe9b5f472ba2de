// SPDX-License-Identifier: GPL-2.0-only
/*
 * resize NAME|IMAGE [+|-]SIZE: another virtual size.
 */
#include <errno.h>
#include <stdio.h>

#include "attach.h"
#include "commands.h"
#include "extend.h"
#include "live.h"
#include "qemu.h"
#include "recover.h"
#include "report.h"
#include "size.h"
#include "state.h"
#include "tail.h"
#include "users.h"

/**
 * struct resizing - a resize under way
 * @args: command line
 * @old: size so far, bytes
 * @size: size to be
 */
struct resizing {
	const struct arguments *args;
	uint64_t old;
	uint64_t size;
};

static int parse_size(struct resizing *resizing, uint64_t old)
{
	resizing->old = old;
	return size_change(resizing->args->words[1], old, &resizing->size);
}

/*
 * Open devices
 */

static int resize_live(struct resizing *resizing, struct live *live)
{
	int r = parse_size(resizing, live->device.sectors * 512);

	if (r < 0 || resizing->size == resizing->old)
		return r;
	if (resizing->size < resizing->old)
		return report_fail(EBUSY,
				   "Device %s is open, and cannot become shorter: close it, and resize the image with --shrink.",
				   live->device.name);
	return extend_device(live, resizing->size, resizing->args->no_grow);
}

static int resize_device(struct resizing *resizing)
{
	struct live live;
	int r;

	r = live_open(resizing->args->words[0], NULL, NULL, &live);
	if (!r)
		r = resize_live(resizing, &live);
	live_close(&live);
	return r;
}

/*
 * Images that are not open
 */

/*
 * Longer is harmless for overlays: those that are shorter hide the new part, and
 * to those that are longer it reads as it did, as zeroes.
 */
static int check_shrink(const struct resizing *resizing,
			const struct chain *chain)
{
	const struct arguments *args = resizing->args;
	const struct image *victim = &chain->layers[0];
	const struct users users = {
		.chain = chain,
		.search = args->search,
		.nsearch = args->nsearch,
		.force = args->force,
	};

	if (!args->shrink)
		return report_fail(EINVAL,
				   "%s has %llu bytes: what is behind %llu bytes would be lost. --shrink does it all the same.",
				   victim->path,
				   (unsigned long long)resizing->old,
				   (unsigned long long)resizing->size);
	return users_check(&users, &victim, 1);
}

/* What is below shows through where it is longer, unless that is hidden. */
static bool is_longer_below(const struct chain *chain)
{
	return chain->count > 1 &&
		chain->layers[1].size > chain->layers[0].size;
}

/* Of the layers below one may have the rest of the cluster that the image ends in. */
static int unlock_below(struct unlock *unlock, const struct chain *chain)
{
	unsigned int i;
	int r = 0;

	for (i = 1; i < chain->count && !r; i++)
		r = unlock_image(unlock, &chain->layers[i]);
	return r;
}

static int resize_to(const struct unlock *unlock, struct chain *chain, bool hide,
		     uint64_t size)
{
	struct image *image = &chain->layers[0];
	int r = qemu_resize(chain, hide, unlock, size);

	if (!r) {
		image->size = size;
		image->header.size = size;
	}
	return r;
}

/* QEMU leaves out what the last sector lacks, which a device has: it stays. */
static int fill_sector(const struct unlock *unlock, struct chain *chain)
{
	struct image *image = &chain->layers[0];
	uint64_t size = round_up(image->size, 512);

	if (image->format != FORMAT_QCOW2 || size == image->size)
		return 0;
	return resize_to(unlock, chain, false, size);
}

/* Version 2 knows no zero clusters. */
static int check_hide(const struct resizing *resizing,
		      const struct image *image)
{
	if (image->header.version > 2 || resizing->size <= tail_end(image))
		return 0;
	return report_fail(EOPNOTSUPP,
			   "%s is of version 2, which cannot hide what an image below, or a machine state, has behind its end: make it version 3 with 'qemu-img amend -f qcow2 -o compat=1.1 %s'.",
			   image->path, image->path);
}

/*
 * All of the new part becomes zero clusters where there is something to hide. What
 * is refused is so before the image is written.
 */
static int grow_hiding(const struct resizing *resizing, struct unlock *unlock,
		       struct chain *chain)
{
	int r = check_hide(resizing, &chain->layers[0]);

	if (!r)
		r = unlock_below(unlock, chain);
	if (!r)
		r = tail_zero(&chain->layers[0]);
	return r < 0 ? r : resize_to(unlock, chain, true, resizing->size);
}

/* QEMU writes the rest of the cluster, no more. */
static int grow_past_tail(const struct resizing *resizing,
			  struct unlock *unlock, struct chain *chain)
{
	uint64_t end = tail_end(&chain->layers[0]);
	int r = unlock_below(unlock, chain);

	if (!r)
		r = resize_to(unlock, chain, true,
			      end < resizing->size ? end : resizing->size);
	return r < 0 || end >= resizing->size ? r :
		resize_to(unlock, chain, false, resizing->size);
}

static int grow_qcow2(const struct resizing *resizing, struct unlock *unlock,
		      struct chain *chain)
{
	struct image *image = &chain->layers[0];
	int tail, more;

	more = image_has_more(image);
	if (more < 0)
		return more;
	if (more || is_longer_below(chain))
		return grow_hiding(resizing, unlock, chain);
	tail = tail_zero(image);
	if (tail < 0)
		return tail;
	return tail ? grow_past_tail(resizing, unlock, chain) :
		resize_to(unlock, chain, false, resizing->size);
}

static int resize_sectors(const struct resizing *resizing,
			  struct unlock *unlock, struct chain *chain)
{
	const struct image *image = &chain->layers[0];

	if (resizing->size == image->size)
		return 0;
	if (image->format != FORMAT_QCOW2 || resizing->size < image->size)
		return resize_to(unlock, chain, false, resizing->size);
	return grow_qcow2(resizing, unlock, chain);
}

static int resize_chain(struct resizing *resizing, struct unlock *unlock,
			struct chain *chain)
{
	const struct image *image = &chain->layers[0];
	int r = parse_size(resizing, image->size);

	if (!r)
		r = image_check_usable(image, true);
	if (r < 0 || resizing->size == resizing->old)
		return r;
	r = attach_check_unused(image, ROLE_WRITE);
	if (!r && resizing->size < resizing->old)
		r = check_shrink(resizing, chain);
	if (!r)
		r = unlock_image(unlock, image);
	if (!r)
		r = fill_sector(unlock, chain);
	return r < 0 ? r : resize_sectors(resizing, unlock, chain);
}

static int resize_image(struct resizing *resizing, struct arguments *args)
{
	struct chain chain;
	int r;

	r = chain_open(args->words[0], &args->formats, &chain);
	if (!r)
		r = job_check_none(chain.layers[0].path);
	if (!r)
		r = resize_chain(resizing, &args->unlock, &chain);
	chain_close(&chain);
	return r;
}

static void print_result(const struct resizing *resizing)
{
	struct json_object *object = json_object_new_object();
	const char *word = resizing->args->words[0];

	json_set_string(object, is_path(word) ? "filename" : "name", word);
	json_set_number(object, "old-size", resizing->old);
	json_set_number(object, "virtual-size", resizing->size);
	report_json(object);
}

int cmd_resize(struct arguments *args)
{
	struct resizing resizing = { .args = args };
	bool device = !is_path(args->words[0]);
	int r;

	r = begin_change(device);
	if (!r)
		r = device ? resize_device(&resizing) :
			resize_image(&resizing, args);
	state_unlock();
	if (!r && args->json)
		print_result(&resizing);
	return r;
}
