// SPDX-License-Identifier: GPL-2.0-only
/*
 * revert NAME|IMAGE LAYER OVERLAY: go on from what one of the images shows, in a
 * fresh overlay. What was the top keeps what was written to it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "closedsnap.h"
#include "commands.h"
#include "fate.h"
#include "holders.h"
#include "live.h"
#include "livesnap.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "swap.h"

static int swap_tables(struct livesnap *snap)
{
	const struct freeze nothing = { 0 };
	const struct device *device = &snap->device;
	struct swap swap = {
		.devices = &device,
		.count = 1,
		.freeze = &nothing,
	};
	int r = livesnap_phase(snap, "swap");

	/* Somebody may have opened it since. */
	if (!r)
		r = holders_check(device->name);
	return r < 0 ? r : swap_run(&swap);
}

static int revert(struct livesnap *snap)
{
	int r;

	livesnap_journal(snap);
	r = livesnap_prepare(snap);
	if (!r)
		r = swap_tables(snap);
	livesnap_release(snap, !r);
	/* Notes the new state and cuts the old top; or undoes everything. */
	recover();
	return r;
}

static void print_result(const char *name, const char *overlay,
			 const char *backing, const char *kept, bool json)
{
	struct json_object *object;
	char *path;

	if (!json) {
		path = text_printable(kept);
		printf("Kept: %s\n", path);
		free(path);
		return;
	}
	object = json_object_new_object();
	if (name)
		json_set_string(object, "name", name);
	json_set_string(object, "overlay", overlay);
	json_set_string(object, "backing-file", backing);
	json_set_string(object, "kept", kept);
	report_json(object);
}

static int print_plan(struct livesnap *snap, bool json)
{
	struct json_object *plan;
	int r = livesnap_plan(snap, &plan);

	if (!r)
		fate_plan(plan, json);
	return r;
}

static int revert_open(struct arguments *args)
{
	struct livesnap snap = {
		.existing = args->existing,
		.no_grow = args->no_grow,
		.formats = &args->formats,
		.unlock = &args->unlock,
		.plain = args->plain,
		.image = args->words[1],
	};
	int r;

	r = livesnap_open(&snap, args->words[0], args->words[2]);
	/* Whoever has it open would see another disk under his feet. */
	if (!r)
		r = holders_check(snap.device.name);
	if (!r && !args->dry_run)
		r = livesnap_unlock(&snap);
	if (!r)
		r = args->dry_run ? print_plan(&snap, args->json) :
			revert(&snap);
	if (!r && !args->dry_run)
		print_result(snap.device.name, snap.overlay_path, snap.top.path,
			     snap.device.layers[0].path, args->json);
	livesnap_close(&snap);
	return r;
}

static void print_closed_plan(const struct closedsnap *snap,
			      const struct chain *chain, unsigned int below,
			      bool json)
{
	struct json_object *plan = closedsnap_plan(snap, "revert");
	unsigned int i;

	for (i = 0; i < below; i++)
		fate_add_image(plan, FATE_UNNEEDED, &chain->layers[i]);
	fate_plan(plan, json);
}

/* The layers above stay what they are; there is nothing to go on. */
static int revert_layer(struct arguments *args, const struct chain *chain,
			unsigned int below)
{
	struct closedsnap snap = {
		.image = chain->layers[below].path,
		.format = format_name(chain->layers[below].format),
		.word = args->words[2],
		.existing = args->existing,
		.formats = &args->formats,
		.unlock = &args->unlock,
		.plain = args->plain,
	};
	int r;

	r = closedsnap_open(&snap);
	if (!r && args->dry_run)
		print_closed_plan(&snap, chain, below, args->json);
	else if (!r)
		r = closedsnap_make(&snap);
	if (!r && !args->dry_run)
		print_result(NULL, snap.path, closedsnap_backing(&snap),
			     chain->layers[0].path, args->json);
	closedsnap_close(&snap);
	return r;
}

static int revert_closed(struct arguments *args)
{
	struct live live = { 0 };
	unsigned int below;
	int r;

	r = live_open(args->words[0], &args->formats, NULL, &live);
	if (!r)
		r = live_layer(&live, args->words[1], &below);
	if (!r)
		r = revert_layer(args, &live.chain, below);
	live_close(&live);
	return r;
}

int cmd_revert(struct arguments *args)
{
	int r;

	r = check_overlay_options(args);
	if (!r)
		r = begin_change(true);
	if (r < 0)
		return r;
	r = is_path(args->words[0]) ? revert_closed(args) : revert_open(args);
	end_change();
	state_unlock();
	return r;
}
