// SPDX-License-Identifier: GPL-2.0-only
/*
 * Temporary devices of jobs.
 */
#include "jobdev.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attach.h"
#include "job.h"
#include "kernel_status.h"
#include "loop.h"
#include "pivot.h"
#include "report.h"

void jobdev_name(const char *role, char name[DM_NAME_MAX])
{
	char uuid[JOB_UUID_MAX];

	job_uuid(role, uuid);
	snprintf(name, DM_NAME_MAX, DM_NAME_JOB "%s",
		 uuid + strlen(DM_UUID_JOB));
}

char *jobdev_path(const char *role)
{
	char name[DM_NAME_MAX];

	jobdev_name(role, name);
	return text("/dev/mapper/%s", name);
}

int jobdev_create(const char *role, const struct device_layer *layers,
		  unsigned int count, uint64_t sectors, bool read_only,
		  uint64_t zero_from, const char *features, unsigned int words)
{
	struct dm_segment segment = {
		.length = sectors,
		.target = "qcow2",
	};
	char name[DM_NAME_MAX], uuid[JOB_UUID_MAX];
	int r;

	jobdev_name(role, name);
	job_uuid(role, uuid);
	segment.params = device_params(layers, count, zero_from, features,
				       words);
	r = dm_create(name, uuid, read_only, &segment, 1);
	free(segment.params);
	return r;
}

int jobdev_finish(const char *role)
{
	struct kernel_status status;
	char name[DM_NAME_MAX];
	int r;

	jobdev_name(role, name);
	r = dm_suspend(name);
	if (r < 0)
		return r;
	if (kernel_status_read(name, &status) && kernel_status_clean(&status))
		return 0;
	return report_fail(EIO, "Not everything could be written (%s, %s).",
			   status.mode, status.reason);
}

static int remove_device(const char *name)
{
	int r = dm_remove(name, false);

	if (r == -EBUSY)
		r = report_fail(EBUSY, "Device %s is in use.", name);
	dm_drop_node(name);
	return r;
}

int jobdev_remove(const char *role)
{
	char name[DM_NAME_MAX];

	jobdev_name(role, name);
	return dm_query(name).exists ? remove_device(name) : 0;
}

/**
 * struct cleaning - a look at all devices
 * @subject: as for jobdev_clean()
 * @restore: what is done to a device that is not a job's own
 * @error: the last one
 */
struct cleaning {
	const char *subject;
	int (*restore)(const struct device *device);
	int error;
};

/* Is a layer's block device a loop device that holds the locks of a writer? */
static bool on_writable_loop(const struct device_layer *layer)
{
	struct loop loop;
	bool writable;

	if (!loop_open_device(layer->device, &loop))
		return false;
	writable = loop.kind == LOOP_WRITE;
	loop_close(&loop);
	return writable;
}

static bool has_job(const char *name)
{
	struct job_record record;
	bool running;

	if (!job_load(name, &record))
		return false;
	running = job_running(&record);
	job_free(&record);
	return running;
}

static int attach_layer(struct device_layer *layer,
			struct attachment *attachment)
{
	struct image image;
	int r;

	r = image_open(layer->path, layer->format, &image);
	if (!r)
		r = attach_read(&image, true, attachment);
	if (!r)
		attach_show(attachment, layer);
	image_close(&image);
	return r;
}

/* The same layers, or some of them on other devices, without job features */
static int load_without(const struct device *device,
			const struct device_layer *layers)
{
	struct pivot pivot = pivot_same(device);

	pivot.layers = layers;
	return pivot_run(device, &pivot);
}

static int turn_to_reading(const struct device *device)
{
	struct attachment *attached = NULL;
	struct device_layer *layers = NULL;
	unsigned int i;
	int r = 0;

	for (i = 0; i < device->count; i++) {
		layers = grow_array(layers, i, sizeof(*layers));
		attached = grow_array(attached, i, sizeof(*attached));
		layers[i] = device->layers[i];
		attached[i] = attach_empty();
		if (!r && i && on_writable_loop(&layers[i]))
			r = attach_layer(&layers[i], &attached[i]);
	}
	if (!r)
		r = load_without(device, layers);
	for (i = 0; i < device->count; i++)
		attach_release(&attached[i], !r);
	free(attached);
	free(layers);
	return r;
}

/* What nothing of the job's writes any more is read through its own device. */
static int restore_layers(const struct device *device)
{
	unsigned int i;

	for (i = 1; i < device->count; i++) {
		if (on_writable_loop(&device->layers[i]))
			return turn_to_reading(device);
	}
	return 0;
}

static int restore_features(const struct device *device)
{
	struct job_record record;
	int r = 0;

	/* Killed between the load and the resume, not by a reboot */
	if (device->dm.loaded && job_load(device->name, &record)) {
		r = record.start ? dm_clear(device->name) : 0;
		job_free(&record);
	}
	if (r < 0 || !device->job_features)
		return r;
	return load_without(device, device->layers);
}

static bool visit_live(const char *name, void *data)
{
	struct cleaning *cleaning = data;
	struct device device;
	bool own = cleaning->subject && !strcmp(cleaning->subject, name);
	int r = 0;

	if (!device_load(name, &device))
		return false;
	if (!dm_uuid_is(&device.dm, DM_UUID_JOB) && (own || !has_job(name)))
		r = cleaning->restore(&device);
	device_free(&device);
	if (r < 0)
		cleaning->error = r;
	return false;
}

/* All devices of one job have the process in common. */
static bool is_own(const char *uuid)
{
	char own[JOB_UUID_MAX];

	job_uuid("", own);
	return !strncmp(uuid, own, strlen(own));
}

static bool visit_temporary(const char *name, void *data)
{
	struct cleaning *cleaning = data;
	struct dm_state state = dm_query(name);
	int r;

	if (!state.exists || !dm_uuid_is(&state, DM_UUID_JOB))
		return false;
	if (job_uuid_alive(state.uuid) &&
	    !(cleaning->subject && is_own(state.uuid)))
		return false;
	r = remove_device(name);
	if (r < 0)
		cleaning->error = r;
	return false;
}

/*
 * A table with a mirror holds the mirror. And as long as a layer has a writer
 * the chain must read it through that: for the kernel it is one image.
 */
int jobdev_clean(const char *subject)
{
	struct cleaning cleaning = { .subject = subject };

	cleaning.restore = restore_features;
	dm_each(visit_live, &cleaning);
	dm_each(visit_temporary, &cleaning);
	cleaning.restore = restore_layers;
	if (!cleaning.error)
		dm_each(visit_live, &cleaning);
	return cleaning.error;
}
