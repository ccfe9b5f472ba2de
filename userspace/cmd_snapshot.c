// SPDX-License-Identifier: GPL-2.0-only
/*
 * snapshot NAME|IMAGE OVERLAY: an overlay over an image, or under an open
 * device, which goes on writing in it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attach.h"
#include "commands.h"
#include "device.h"
#include "dm.h"
#include "kernel_status.h"
#include "newimage.h"
#include "overlay.h"
#include "recover.h"
#include "report.h"
#include "state.h"

/**
 * struct snapping - a snapshot of an open device
 * @args: command line
 * @device: as it was before
 * @overlay_path: absolute
 * @top: the old top image
 * @overlay: the new one
 * @entry: in the journal
 * @old_loop: keeps the old top attached for writing while tables change
 * @reads: the old top in its new role
 * @writes: the overlay
 */
struct snapping {
	struct arguments *args;
	struct device device;
	char *overlay_path;
	struct image top;
	struct image overlay;
	struct json_object *entry;
	struct loop old_loop;
	struct attachment reads;
	struct attachment writes;
};

static int check_device(const struct device *device)
{
	struct kernel_status status;

	if (device->dm.read_only)
		return report_fail(EROFS,
				   "Device %s is read-only: it has nothing to go on writing.",
				   device->name);
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

static int open_top(struct snapping *snapping)
{
	const struct device_layer *layer = &snapping->device.layers[0];
	int r;

	r = image_open(layer->path, layer->format, &snapping->top);
	if (!r && !image_id_equal(&snapping->top.id, &layer->id))
		r = report_fail(ENOENT,
				"%s is not the image that device %s is open with.",
				layer->path, snapping->device.name);
	return r;
}

static int make_overlay(struct snapping *snapping)
{
	struct new_image image = {
		.path = snapping->overlay_path,
		.backing_format = format_name(snapping->top.format),
	};
	char size[24], *link;
	int r;

	snprintf(size, sizeof(size), "%llu",
		 (unsigned long long)snapping->top.size);
	link = backing_link(snapping->overlay_path, snapping->top.path);
	image.size = size;
	image.backing = link;
	r = new_image_make(snapping->entry, &image);
	free(link);
	return r;
}

static int check_overlay(struct snapping *snapping)
{
	int r;

	image_close(&snapping->overlay);
	r = image_open(snapping->overlay_path, FORMAT_UNKNOWN,
		       &snapping->overlay);
	if (!r)
		r = image_check_usable(&snapping->overlay, true);
	if (!r)
		r = overlay_check(&snapping->overlay, &snapping->top.id,
				  snapping->top.format, snapping->top.size,
				  &snapping->args->formats);
	return r;
}

/* Two looks at it: what is locked is not changed any more. */
static int lock_overlay(struct snapping *snapping)
{
	struct image_user user;
	int r;

	r = check_overlay(snapping);
	if (!r && device_uses(&snapping->overlay.id, false, &user))
		r = device_refuse(snapping->overlay_path, &user);
	if (!r)
		r = attach_write_lock(&snapping->overlay, false,
				      &snapping->writes);
	return r < 0 ? r : check_overlay(snapping);
}

/* State of the device with the overlay on top of what it has now */
static struct json_object *new_state(const struct snapping *snapping)
{
	struct chain chain = { NULL, snapping->device.count + 1 };
	const struct device_layer *layer;
	struct json_object *layers;
	unsigned int i;

	chain.layers = grow_array(NULL, snapping->device.count,
				  sizeof(*chain.layers));
	memset(chain.layers, 0, chain.count * sizeof(*chain.layers));
	chain.layers[0].path = snapping->overlay.path;
	chain.layers[0].format = FORMAT_QCOW2;
	chain.layers[0].id = snapping->overlay.id;
	for (i = 1; i < chain.count; i++) {
		layer = &snapping->device.layers[i - 1];
		chain.layers[i].path = layer->path;
		chain.layers[i].format = layer->format;
		chain.layers[i].id = layer->id;
	}
	layers = layers_json(&chain);
	free(chain.layers);
	return state_json(snapping->device.name, snapping->device.dm.uuid,
			  layers, snapping->overlay.is_device ? NO_LENGTH :
			  snapping->writes.length);
}

static int journal_phase(const struct snapping *snapping, const char *phase)
{
	json_set_string(snapping->entry, "phase", phase);
	return journal_write(snapping->entry);
}

static int attach_both(struct snapping *snapping)
{
	int r;

	r = lock_overlay(snapping);
	if (r < 0)
		return r;
	json_object_object_add(snapping->entry, "new_state",
			       new_state(snapping));
	r = journal_phase(snapping, "prepare");
	if (!r)
		r = attach_write(&snapping->overlay, !snapping->args->no_grow,
				 &snapping->writes);
	if (!r)
		r = attach_read(&snapping->top, true, &snapping->reads);
	return r;
}

static int load_table(const struct snapping *snapping)
{
	const struct device *device = &snapping->device;
	struct device_layer *layers;
	struct dm_segment segment = {
		.length = device->sectors,
		.target = "qcow2",
	};
	uint64_t zero_from = snapping->overlay.is_device ? ZERO_FROM_NONE :
		device_sectors_of(snapping->writes.length);
	int r;

	layers = grow_array(NULL, device->count, sizeof(*layers));
	memcpy(layers + 1, device->layers, device->count * sizeof(*layers));
	layers[0].format = FORMAT_QCOW2;
	layers[0].device = snapping->writes.device;
	layers[1].device = snapping->reads.device;
	segment.params = device_params(layers, device->count + 1, zero_from,
				       device->features,
				       device->feature_words);
	free(layers);
	r = dm_load(device->name, false, &segment);
	free(segment.params);
	return r;
}

/*
 * The ioctl failed: the device is suspended now, with either table, or was not
 * even touched. Its old top is still attached, so that no file is needed.
 */
static void load_old_table(const struct device *device)
{
	struct dm_segment segment = {
		.length = device->sectors,
		.target = "qcow2",
	};

	if (!dm_query(device->name).suspended)
		return;
	segment.params = device_params(device->layers, device->count,
				       ZERO_FROM_NONE, device->features,
				       device->feature_words);
	if (dm_load(device->name, false, &segment) == 0)
		dm_resume(device->name);
	free(segment.params);
}

/* The only moment in which the device stands still: one ioctl. */
static int swap_at_once(const struct device *device)
{
	int r;

	/* Our own pages could be on the device. */
	mlockall(MCL_CURRENT | MCL_FUTURE);
	r = dm_resume(device->name);
	if (r < 0)
		load_old_table(device);
	munlockall();
	return r;
}

/*
 * A signal that ends the process in the middle of the ioctl can end the ioctl,
 * with the device suspended. So there are two processes: the child, which
 * nobody knows of, finishes if we are killed; we do if the child is. It has the
 * state lock and our attachments, too: no other command starts before it ends.
 */
static int swap_in_child(const struct device *device)
{
	int status, r;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0)
		return report_errno(errno, "Cannot start a process");
	if (!pid) {
		setsid();
		_exit(-swap_at_once(device));
	}
	do {
		r = waitpid(pid, &status, 0);
	} while (r < 0 && errno == EINTR);
	if (r == pid && WIFEXITED(status))
		return -WEXITSTATUS(status);
	load_old_table(device);
	return report_fail(EIO, "The process that was to resume device %s was killed.",
			   device->name);
}

static int swap_tables(struct snapping *snapping)
{
	int r;

	r = load_table(snapping);
	if (!r)
		r = journal_phase(snapping, "swap");
	return r < 0 ? r : swap_in_child(&snapping->device);
}

static int write_journal(struct snapping *snapping)
{
	const struct device *device = &snapping->device;
	struct json_object *old = device_state_load(device->name);

	snapping->entry = journal_entry("snapshot", device->name,
					device->dm.uuid);
	json_object_object_add(snapping->entry, "old", old);
	json_set_bool(snapping->entry, "clean", true);
	return journal_phase(snapping, "prepare");
}

static int take_steps(struct snapping *snapping)
{
	int r;

	r = write_journal(snapping);
	if (!r && !snapping->args->existing)
		r = make_overlay(snapping);
	if (!r)
		r = attach_both(snapping);
	return r < 0 ? r : swap_tables(snapping);
}

static int snapshot_device(struct snapping *snapping)
{
	const struct image_id *top = &snapping->device.layers[0].id;
	int r;

	snapping->reads = attach_empty();
	snapping->writes = attach_empty();
	if (!loop_find(top, LOOP_WRITE, &snapping->old_loop))
		snapping->old_loop.fd = -1;
	r = take_steps(snapping);
	attach_release(&snapping->reads, !r);
	attach_release(&snapping->writes, !r);
	loop_close(&snapping->old_loop);
	json_object_put(snapping->entry);
	/* Notes the new state and cuts the old top; or undoes everything. */
	recover();
	return r;
}

/* The overlay's path is good, and new or not as was said. */
static int overlay_path(struct arguments *args, char **path)
{
	*path = NULL;
	if (!args->existing)
		return new_image_path(args->words[1], path);
	*path = absolute_path(args->words[1]);
	return 0;
}

static void print_result(const char *overlay, const char *backing,
			 const char *device)
{
	struct json_object *object = json_object_new_object();

	if (device)
		json_set_string(object, "name", device);
	json_set_string(object, "overlay", overlay);
	json_set_string(object, "backing-file", backing);
	report_json(object);
}

static int snapshot_open(struct arguments *args)
{
	struct snapping snapping = { .args = args };
	const char *name = args->words[0];
	int r;

	if (!device_load(name, &snapping.device))
		return device_inactive(name);
	snapping.top.fd = -1;
	snapping.overlay.fd = -1;
	r = check_device(&snapping.device);
	if (!r)
		r = overlay_path(args, &snapping.overlay_path);
	if (!r)
		r = open_top(&snapping);
	if (!r)
		r = snapshot_device(&snapping);
	if (!r && args->json)
		print_result(snapping.overlay_path, snapping.top.path, name);
	image_close(&snapping.top);
	image_close(&snapping.overlay);
	free(snapping.overlay_path);
	device_free(&snapping.device);
	return r;
}

/* Nobody writes the image: an overlay is all there is to do. */
static int make_closed(struct arguments *args, struct overlay *overlay)
{
	struct json_object *entry = journal_entry("create", "", "");
	int r;

	overlay->link = backing_link(overlay->path,
				     overlay->chain.layers[0].path);
	r = overlay_make(entry, overlay);
	if (!r)
		journal_clear();
	json_object_put(entry);
	if (!r && args->json)
		print_result(overlay->path, overlay->chain.layers[0].path, NULL);
	return r;
}

static int check_closed(struct arguments *args, const struct overlay *overlay)
{
	const struct image *top = &overlay->chain.layers[0];
	struct image_user user;
	struct image image;
	int r;

	r = image_open(overlay->path, FORMAT_UNKNOWN, &image);
	if (!r && device_uses(&image.id, false, &user))
		r = device_refuse(overlay->path, &user);
	if (!r)
		r = image_check_usable(&image, true);
	if (!r)
		r = overlay_check(&image, &top->id, top->format, top->size,
				  &args->formats);
	if (!r && args->json)
		print_result(overlay->path, top->path, NULL);
	image_close(&image);
	return r;
}

static int snapshot_closed(struct arguments *args)
{
	struct overlay overlay;
	char *path;
	int r;

	r = overlay_path(args, &path);
	if (!r)
		r = overlay_backing_open(&overlay, args->words[0], NULL,
					 &args->formats);
	if (!r) {
		overlay.path = path;
		r = args->existing ? check_closed(args, &overlay) :
			make_closed(args, &overlay);
		overlay_backing_close(&overlay);
	}
	recover();
	free(path);
	return r;
}

int cmd_snapshot(struct arguments *args)
{
	bool closed = is_path(args->words[0]);
	int r;

	r = closed ? 0 : device_name_check(args->words[0]);
	if (!r)
		r = begin_change(!closed);
	if (!r)
		r = closed ? snapshot_closed(args) : snapshot_open(args);
	state_unlock();
	return r;
}
