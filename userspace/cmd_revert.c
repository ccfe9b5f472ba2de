// SPDX-License-Identifier: GPL-2.0-only
/*
 * revert NAME IMAGE OVERLAY: go on from what one of the images shows, in a fresh
 * overlay. What was the top keeps what was written to it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "dm.h"
#include "holders.h"
#include "livesnap.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "swap.h"

/* Whoever has it open would see another disk under his feet. */
static int check_unused(const struct device *device)
{
	char *who;
	int r;

	if (!dm_query(device->name).open_count)
		return 0;
	who = holders_text(device->dm.device);
	r = report_fail(EBUSY, "Device %s is in use%s%s.", device->name,
			*who ? ": " : "", who);
	free(who);
	return r;
}

static int swap_tables(struct livesnap *snap)
{
	const struct freeze nothing = { 0 };
	const struct device *device = &snap->device;
	struct swap swap = { &device, 1, &nothing, false };
	int r = livesnap_phase(snap, "swap");

	/* Somebody may have opened it since. */
	if (!r)
		r = check_unused(device);
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

static void print_result(const struct livesnap *snap)
{
	struct json_object *object = json_object_new_object();

	json_set_string(object, "name", snap->device.name);
	json_set_string(object, "overlay", snap->overlay_path);
	json_set_string(object, "backing-file", snap->top.path);
	json_set_string(object, "kept", snap->device.layers[0].path);
	report_json(object);
}

int cmd_revert(struct arguments *args)
{
	struct livesnap snap = {
		.existing = args->existing,
		.no_grow = args->no_grow,
		.formats = &args->formats,
		.image = args->words[1],
	};
	int r;

	r = begin_change(true);
	if (r < 0)
		return r;
	r = livesnap_open(&snap, args->words[0], args->words[2]);
	if (!r)
		r = check_unused(&snap.device);
	if (!r)
		r = revert(&snap);
	if (!r && args->json)
		print_result(&snap);
	else if (!r)
		printf("Kept: %s\n", snap.device.layers[0].path);
	livesnap_close(&snap);
	end_change();
	state_unlock();
	return r;
}
