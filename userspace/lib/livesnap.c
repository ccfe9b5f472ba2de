// SPDX-License-Identifier: GPL-2.0-only
/*
 * A snapshot of an open device, up to the moment in which tables change.
 */
#include "livesnap.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dm.h"
#include "fate.h"
#include "job.h"
#include "layerword.h"
#include "newimage.h"
#include "overlay.h"
#include "pivot.h"
#include "recover.h"
#include "report.h"
#include "state.h"

static int check_device(const struct device *device)
{
	if (device->dm.read_only)
		return report_fail(EROFS,
				   "Device %s is read-only: it has nothing to go on writing.",
				   device->name);
	return pivot_check(device);
}

static int open_top(struct livesnap *snap)
{
	const struct device_layer *layer = &snap->device.layers[snap->below];
	int r;

	r = image_open(layer->path, layer->format, &snap->top);
	if (!r && !image_id_equal(&snap->top.id, &layer->id))
		r = report_fail(ENOENT,
				"%s is not the image that device %s has.",
				layer->path, snap->device.name);
	return r < 0 ? r : image_check_device(&snap->top);
}

static int make_overlay(struct livesnap *snap)
{
	struct new_image image = {
		.path = snap->overlay_path,
		.backing_format = format_name(snap->top.format),
		.passphrase = snap->passphrase,
	};
	char size[24], *link;
	int r;

	snprintf(size, sizeof(size), "%llu",
		 (unsigned long long)snap->top.size);
	link = backing_link(snap->overlay_path, snap->top.path);
	image.size = size;
	image.backing = link;
	r = new_image_make(snap->entry, &image);
	free(link);
	return r;
}

static int check_overlay(struct livesnap *snap)
{
	int r;

	image_close(&snap->overlay);
	r = image_open(snap->overlay_path, FORMAT_UNKNOWN,
		       &snap->overlay);
	if (!r)
		r = image_check_usable(&snap->overlay, true);
	if (!r)
		r = overlay_check(&snap->overlay, &snap->top.id,
				  snap->top.format, snap->top.size,
				  snap->formats);
	return r;
}

/* Two looks at it: what is locked is not changed any more. */
static int lock_overlay(struct livesnap *snap)
{
	struct image_user user;
	int r;

	r = check_overlay(snap);
	if (!r && device_uses(&snap->overlay.id, false, &user))
		r = device_refuse(snap->overlay_path, &user);
	if (!r)
		r = attach_write_lock(&snap->overlay, false,
				      &snap->writes);
	if (!r)
		r = check_overlay(snap);
	return r < 0 ? r : unlock_made(snap->unlock, &snap->overlay,
				       snap->passphrase);
}

/* State of the device with the overlay on top of what it has now */
static struct json_object *new_state(const struct livesnap *snap)
{
	struct chain chain = { NULL, snap->device.count - snap->below + 1 };
	const struct device_layer *layer;
	struct json_object *layers;
	unsigned int i;

	chain.layers = grow_array(NULL, chain.count, sizeof(*chain.layers));
	memset(chain.layers, 0, chain.count * sizeof(*chain.layers));
	chain.layers[0].path = snap->overlay.path;
	chain.layers[0].format = FORMAT_QCOW2;
	chain.layers[0].id = snap->overlay.id;
	for (i = 1; i < chain.count; i++) {
		layer = &snap->device.layers[snap->below + i - 1];
		chain.layers[i].path = layer->path;
		chain.layers[i].format = layer->format;
		chain.layers[i].id = layer->id;
	}
	layers = layers_json(&chain);
	free(chain.layers);
	return state_json(snap->device.name, snap->device.dm.uuid,
			  layers, snap->overlay.is_device ? NO_LENGTH :
			  snap->writes.length);
}

int livesnap_phase(const struct livesnap *snap, const char *phase)
{
	json_set_string(snap->entry, "phase", phase);
	return journal_write(snap->entry);
}

static int attach_both(struct livesnap *snap)
{
	int r;

	r = lock_overlay(snap);
	if (r < 0)
		return r;
	json_object_object_add(snap->entry, "new_state",
			       new_state(snap));
	r = livesnap_phase(snap, "prepare");
	if (!r)
		r = attach_write(&snap->overlay, !snap->no_grow,
				 &snap->writes);
	/* What is below the old top is only read already. */
	if (!r && !snap->below)
		r = attach_read(&snap->top, true, &snap->reads);
	return r;
}

static int load_table(const struct livesnap *snap)
{
	const struct device *device = &snap->device;
	unsigned int count = device->count - snap->below;
	struct device_layer *layers;
	struct dm_segment segment = {
		.length = snap->below ? device_sectors_of(snap->top.size) :
			device->sectors,
		.target = "qcow2",
	};
	uint64_t zero_from = snap->overlay.is_device ? ZERO_FROM_NONE :
		device_sectors_of(snap->writes.length);
	int r;

	layers = grow_array(NULL, count, sizeof(*layers));
	memcpy(layers + 1, device->layers + snap->below,
	       count * sizeof(*layers));
	layers[0].format = FORMAT_QCOW2;
	attach_show(&snap->writes, &layers[0]);
	if (!snap->below)
		attach_show(&snap->reads, &layers[1]);
	segment.params = device_params(layers, count + 1, zero_from,
				       device->features,
				       device->feature_words);
	free(layers);
	r = dm_load(device->name, false, &segment);
	free(segment.params);
	return r;
}

void livesnap_journal(struct livesnap *snap)
{
	const struct device *device = &snap->device;
	struct json_object *old = device_state_load(device->name);

	snap->entry = journal_entry(snap->below ? "revert" : "snapshot",
				    device->name, device->dm.uuid);
	json_object_object_add(snap->entry, "old", old);
	json_set_bool(snap->entry, "clean", true);
}

static int find_layer(struct livesnap *snap, const char *word)
{
	const struct device *device = &snap->device;
	struct image_id *ids = NULL;
	unsigned int i;
	int r;

	for (i = 0; i < device->count; i++) {
		ids = grow_array(ids, i, sizeof(*ids));
		ids[i] = device->layers[i].id;
	}
	r = layer_find(device->name, word, ids, i, &snap->below);
	free(ids);
	return r;
}

/* The overlay's path is good, and new or not as was said. */
int livesnap_path(const char *word, bool existing, char **path)
{
	*path = NULL;
	if (!existing)
		return new_image_path(word, path);
	*path = absolute_path(word);
	return 0;
}

int livesnap_unlock(struct livesnap *snap)
{
	struct image overlay;
	int r;

	if (!snap->existing)
		return snap->plain ? 0 :
			unlock_like(snap->unlock, &snap->top, 1,
				    snap->overlay_path, &snap->passphrase);
	r = image_open(snap->overlay_path, FORMAT_UNKNOWN, &overlay);
	if (!r)
		r = unlock_image(snap->unlock, &overlay);
	image_close(&overlay);
	return r;
}

int livesnap_open(struct livesnap *snap, const char *name, const char *overlay)
{
	int r;

	snap->top.fd = -1;
	snap->overlay.fd = -1;
	snap->reads = attach_empty();
	snap->writes = attach_empty();
	r = device_name_check(name);
	if (r < 0)
		return r;
	if (!device_load(name, &snap->device))
		return device_inactive(name);
	r = job_check_none(name);
	if (!r)
		r = check_device(&snap->device);
	if (!r && snap->image)
		r = find_layer(snap, snap->image);
	if (!r)
		r = livesnap_path(overlay, snap->existing, &snap->overlay_path);
	return r < 0 ? r : open_top(snap);
}

static int check_given(struct livesnap *snap)
{
	int r = check_overlay(snap);

	return r < 0 ? r : attach_check_unused(&snap->overlay, ROLE_WRITE);
}

int livesnap_plan(struct livesnap *snap, struct json_object **plan)
{
	const struct device_layer *layer;
	unsigned int i;
	char *link;
	int r;

	r = snap->existing ? check_given(snap) : 0;
	if (r < 0)
		return r;
	*plan = fate_new(snap->image ? "revert" : "snapshot");
	for (i = 0; i < snap->below; i++) {
		layer = &snap->device.layers[i];
		fate_add(*plan, FATE_UNNEEDED, layer->path);
		if (layer->data_path)
			fate_add(*plan, FATE_UNNEEDED, layer->data_path);
	}
	fate_add(*plan, FATE_WRITTEN, snap->overlay_path);
	if (snap->existing)
		return 0;
	link = backing_link(snap->overlay_path, snap->top.path);
	fate_link(*plan, snap->overlay_path, link);
	free(link);
	return 0;
}

int livesnap_prepare(struct livesnap *snap)
{
	int r;

	snap->held = device_hold(&snap->device);
	r = livesnap_phase(snap, "prepare");
	if (!r && !snap->existing)
		r = make_overlay(snap);
	if (!r)
		r = attach_both(snap);
	return r < 0 ? r : load_table(snap);
}

void livesnap_release(struct livesnap *snap, bool used)
{
	attach_release(&snap->reads, used);
	attach_release(&snap->writes, used);
	device_release(&snap->device, snap->held);
	snap->held = NULL;
}

void livesnap_close(struct livesnap *snap)
{
	json_object_put(snap->entry);
	image_close(&snap->top);
	image_close(&snap->overlay);
	free(snap->overlay_path);
	device_free(&snap->device);
}
