// SPDX-License-Identifier: GPL-2.0-only
/*
 * A second device with the contents of one that is in use.
 */
#include "mirror.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "copy.h"
#include "job.h"
#include "kernel_status.h"
#include "message.h"
#include "pivot.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "tally.h"

static int start(const struct mirror *mirror)
{
	const struct device *device = &mirror->live->device;
	struct pivot pivot = pivot_same(device);
	struct stat st;
	char *features;
	int r;

	if (stat(mirror->path, &st) < 0)
		return report_errno(errno, "Cannot stat %s", mirror->path);
	features = text("%s mirror %u:%u", device->features,
			major(st.st_rdev), minor(st.st_rdev));
	pivot.features = features;
	pivot.feature_words += 2;
	r = pivot_run(device, &pivot);
	free(features);
	return r < 0 ? r : live_refresh(mirror->live);
}

static int check(const struct mirror *mirror)
{
	struct kernel_status status;

	if (kernel_status_read(mirror->live->device.name, &status) &&
	    !strcmp(status.mirror, "mirror"))
		return 0;
	return report_fail(EIO,
			   "%s could not be written: it does not have what device %s has.",
			   mirror->path, mirror->live->device.name);
}

static int copy(const struct mirror *mirror)
{
	char layers[16];
	struct sweep sweep = {
		.name = mirror->live->device.name,
		.verb = "copy",
		.tail = layers,
		.end = mirror->live->device.sectors,
		.pace = tally_sweep,
	};

	snprintf(layers, sizeof(layers), "%u", mirror->layers);
	return sweep_run(&sweep);
}

int mirror_run(const struct mirror *mirror)
{
	int r, locked;

	r = start(mirror);
	if (r < 0)
		return r;
	state_unlock();
	r = copy(mirror);
	locked = begin_change(true);
	if (!r && !locked && job_cancelled())
		r = -ECANCELED;
	if (!r && !locked)
		r = live_refresh(mirror->live);
	if (!r && !locked)
		r = check(mirror);
	return r < 0 ? r : locked;
}

/* What is flushed now need not be while the device stands still. */
static int ready(void *data)
{
	const struct mirror *mirror = data;
	int r = copy_flush(mirror->path);

	if (!r && mirror->name_made)
		r = mirror->name_made(mirror->data);
	return r < 0 ? r : message_final(mirror->live->device.name,
					 mirror->keep);
}

int mirror_replace(const struct mirror *mirror,
		   const struct device_layer *layers, unsigned int count)
{
	const struct device *device = &mirror->live->device;
	struct pivot pivot = pivot_same(device);

	pivot.layers = layers;
	pivot.count = count;
	pivot.ready = ready;
	pivot.data = (void *)mirror;
	pivot.made = mirror->made;
	pivot.made_id = mirror->made_id;
	return pivot_run(device, &pivot);
}
