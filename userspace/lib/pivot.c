// SPDX-License-Identifier: GPL-2.0-only
/*
 * Another table for an open device.
 */
#include "pivot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_status.h"
#include "newimage.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "swap.h"

int pivot_check(const struct device *device)
{
	struct kernel_status status;

	if (device->dm.suspended)
		return report_fail(EBUSY, "Device %s is suspended.",
				   device->name);
	if (device->dm.loaded)
		return report_fail(EBUSY,
				   "Device %s has an inactive table: another program is changing it.",
				   device->name);
	if (kernel_status_read(device->name, &status) &&
	    !strcmp(status.mode, "failed"))
		return report_fail(EIO,
				   "Device %s could not write to its image any more (%s).",
				   device->name, status.reason);
	return 0;
}

struct pivot pivot_same(const struct device *device)
{
	struct pivot pivot = {
		.layers = device->layers,
		.count = device->count,
		.sectors = device->sectors,
		.zero_from = ZERO_FROM_NONE,
		.features = device->features,
		.feature_words = device->feature_words,
	};

	return pivot;
}

int pivot_load(const struct device *device, const struct pivot *pivot)
{
	struct dm_segment segment = {
		.length = pivot->sectors,
		.target = "qcow2",
	};
	int r;

	segment.params = device_params(pivot->layers, pivot->count,
				       pivot->zero_from, pivot->features,
				       pivot->feature_words);
	r = dm_load(device->name, device->dm.read_only, &segment);
	free(segment.params);
	return r;
}

static int swap_one(const struct device *device)
{
	const struct freeze nothing = { 0 };
	struct swap swap = {
		.devices = &device,
		.count = 1,
		.freeze = &nothing,
	};
	int r = swap_run(&swap);

	if (r < 0)
		swap_restore(device);
	return r;
}

static struct json_object *begin(const struct device *device,
				 const struct pivot *pivot)
{
	struct json_object *entry;

	entry = journal_entry("pivot", device->name, device->dm.uuid);
	json_set_number(entry, "sectors", device->sectors);
	if (pivot->made)
		new_image_note(entry, pivot->made, &pivot->made_id);
	return entry;
}

/* What still stands still is left to the next command. */
static void end(const struct device *device)
{
	struct dm_state dm = dm_query(device->name);

	if (dm.loaded)
		dm_clear(device->name);
	if (!dm.suspended)
		journal_clear();
}

int pivot_run(const struct device *device, const struct pivot *pivot)
{
	struct json_object *entry = begin(device, pivot);
	int *held = device_hold(device);
	int r;

	r = journal_write(entry);
	if (!r)
		r = pivot_load(device, pivot);
	if (!r && pivot->ready)
		r = pivot->ready(pivot->data);
	if (!r)
		r = swap_one(device);
	end(device);
	device_release(device, held);
	json_object_put(entry);
	return r;
}
