// SPDX-License-Identifier: GPL-2.0-only
/*
 * close NAME: the device goes, its images are as QEMU would leave them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "attach.h"
#include "commands.h"
#include "device.h"
#include "dm.h"
#include "holders.h"
#include "job.h"
#include "kernel_status.h"
#include "partition.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "trim.h"

/* Whoever has the device open beside its own partitions */
static int check_unused(const struct dm_state *dm, const char *name)
{
	struct json_object *partitions = partitions_of(dm);
	int count = json_object_array_length(partitions);

	json_object_put(partitions);
	return dm->open_count > count ?
		holders_refuse(dm->device, "Device", name, "still in use") : 0;
}

/**
 * struct closing - a close under way
 * @device: what is closed
 * @state: what is known of it, or NULL
 * @entry: in the journal
 * @clean: the kernel wrote everything
 */
struct closing {
	const struct device *device;
	struct json_object *state;
	struct json_object *entry;
	bool clean;
};

static int write_journal(struct closing *closing)
{
	const struct device *device = closing->device;

	if (!closing->entry) {
		closing->entry = journal_entry("close", device->name,
					       device->dm.uuid);
		json_object_object_add(closing->entry, "state",
				       json_object_get(closing->state));
	}
	json_set_bool(closing->entry, "clean", closing->clean);
	return journal_write(closing->entry);
}

/*
 * Suspending commits what is left. Only if the kernel then has nothing to
 * complain of can the refcounts on disk be trusted to cut the file.
 */
static int write_out(struct closing *closing)
{
	const char *name = closing->device->name;
	struct kernel_status status;
	int r;

	r = write_journal(closing);
	if (!r && !closing->device->dm.suspended)
		r = dm_suspend(name);
	if (r < 0 || closing->device->dm.read_only)
		return r;
	if (!kernel_status_read(name, &status))
		return 0;
	closing->clean = kernel_status_clean(&status);
	if (!closing->clean)
		report_warn("Device %s could not write everything to its image (%s, %s): check the image with 'qcow2setup check'.",
			    name, status.mode, status.reason);
	return write_journal(closing);
}

static int remove_device(const struct closing *closing)
{
	int r = dm_remove(closing->device->name, false);

	if (r != -EBUSY)
		return r;
	return holders_refuse(closing->device->dm.device, "Device",
			      closing->device->name, "still in use");
}

/* The lock of a second descriptor bridges the time from loop to truncation. */
static int remove_and_cut(const struct closing *closing)
{
	const struct device_layer *top = &closing->device->layers[0];
	uint64_t length;
	struct trim trim;
	int r;

	if (!state_length(closing->state, &top->id, &length) ||
	    top->format != FORMAT_QCOW2)
		return remove_device(closing);
	trim_prepare(top->path, &top->id, length, &trim);
	r = remove_device(closing);
	trim_finish(&trim, !r && closing->clean);
	return r;
}

static int close_device(const struct device *device)
{
	struct closing closing = {
		.device = device,
		.state = device_state_load(device->name),
	};
	int r;

	r = check_unused(&device->dm, device->name);
	if (!r)
		r = partitions_unmap(&device->dm);
	if (!r)
		r = write_out(&closing);
	if (!r)
		r = remove_and_cut(&closing);
	if (!r) {
		device_state_remove(device->name);
		journal_clear();
	}
	json_object_put(closing.entry);
	json_object_put(closing.state);
	/* Clears what is stray; resumes the device if it could not be closed. */
	recover();
	wait_helpers_gone();
	return r;
}

/* Nobody may be told that it is closed while loop devices are still there. */
static void wait_loops_gone(const struct device *device)
{
	struct devices others;
	struct image_user user;
	const struct image_id *id;
	struct loops loops;
	unsigned int i;

	devices_load(&others);
	loops_load(&loops, LOOP_IMAGES);
	for (i = 0; i < device->count; i++) {
		id = &device->layers[i].id;
		if (!i && !device->dm.read_only)
			attach_wait_left(&loops, id, LOOP_WRITE);
		else if (!devices_use(&others, id, device_user_reads, &user))
			attach_wait_left(&loops, id, LOOP_READ);
	}
	loops_free(&loops);
	devices_free(&others);
	/* Their marks go with them. */
	attach_prune();
}

int cmd_close(struct arguments *args)
{
	const char *name = args->words[0];
	struct device device;
	int r;

	r = device_name_check(name);
	if (!r)
		r = begin_change(true);
	if (!r)
		r = job_check_none(name);
	if (!r && !device_load(name, &device))
		r = device_inactive(name);
	if (r < 0) {
		state_unlock();
		return r;
	}
	r = close_device(&device);
	if (!r)
		wait_loops_gone(&device);
	device_free(&device);
	state_unlock();
	return r;
}
