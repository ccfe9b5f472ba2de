// SPDX-License-Identifier: GPL-2.0-only
/*
 * status NAME: an open device, its images, and the kernel's counters.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "commands.h"
#include "device.h"
#include "dm.h"
#include "kernel_status.h"
#include "partition.h"
#include "recover.h"
#include "report.h"

/* Length and allocation of a file that a layer, or its data, is in */
static bool file_of(const struct image_id *wanted, const char *path,
		    struct stat *st)
{
	struct image_id id;

	if (wanted->block || !image_id_of_path(path, &id) ||
	    !image_id_equal(&id, wanted))
		return false;
	return stat(path, st) == 0 && S_ISREG(st->st_mode);
}

static struct json_object *data_json(const struct device_layer *layer)
{
	struct json_object *object = json_object_new_object();
	char *device = path_of_device(layer->data);
	struct stat st;

	json_set_string(object, "filename", layer->data_path);
	json_set_string(object, "device", device);
	if (file_of(&layer->data_id, layer->data_path, &st)) {
		json_set_number(object, "file-length", st.st_size);
		json_set_number(object, "file-allocated",
				(uint64_t)st.st_blocks * 512);
	}
	free(device);
	return object;
}

static void set_device(struct json_object *object, const char *key,
		       dev_t number)
{
	char *device = path_of_device(number);

	json_set_string(object, key, device);
	free(device);
}

static struct json_object *layer_json(const struct device_layer *layer)
{
	struct json_object *object = json_object_new_object();
	struct stat st;

	json_set_string(object, "image", layer->path);
	json_set_string(object, "format", format_name(layer->format));
	set_device(object, "device", layer->device);
	if (file_of(&layer->id, layer->path, &st)) {
		json_set_number(object, "file-length", st.st_size);
		json_set_number(object, "file-allocated",
				(uint64_t)st.st_blocks * 512);
	}
	if (layer->data_path)
		json_object_object_add(object, "data-file", data_json(layer));
	json_set_bool(object, "encrypted", layer->encrypted);
	if (layer->encrypted)
		set_device(object, "crypt-device", layer->data);
	return object;
}

static struct json_object *kernel_json(const struct kernel_status *status)
{
	struct json_object *object = json_object_new_object();

	json_set_string(object, "mode", status->mode);
	json_set_string(object, "reason",
			strcmp(status->reason, "-") ? status->reason : NULL);
	json_set_number(object, "cluster-size", status->cluster_sectors * 512);
	if (status->has_space) {
		json_set_number(object, "used-clusters", status->used_clusters);
		json_set_number(object, "total-clusters",
				status->total_clusters);
	}
	json_set_number(object, "dirty-blocks", status->dirty);
	json_set_number(object, "metadata-memory", status->memory_kib * 1024);
	json_set_number(object, "metadata-memory-limit",
			status->memory_limit_kib * 1024);
	json_set_number(object, "commits", status->commits);
	json_set_number(object, "clusters-allocated", status->allocated);
	json_set_number(object, "clusters-copied", status->copied);
	return object;
}

static void print_json(const struct device *device,
		       const struct kernel_status *status)
{
	struct json_object *object = json_object_new_object();
	struct json_object *layers = json_object_new_array();
	unsigned int i;

	for (i = 0; i < device->count; i++)
		json_object_array_add(layers, layer_json(&device->layers[i]));
	json_set_string(object, "name", device->name);
	json_set_string(object, "uuid", device->dm.uuid);
	json_set_number(object, "size", device->sectors * 512);
	json_set_bool(object, "read-only", device->dm.read_only);
	json_set_bool(object, "suspended", device->dm.suspended);
	if (!device->dm.read_only)
		json_set_string(object, "no-space", device->no_space_error ?
				"error" : "queue");
	json_set_string(object, "snapshot", device->snapshot);
	json_set_number(object, "open-count", device->dm.open_count);
	json_object_object_add(object, "partitions",
			       partitions_of(&device->dm));
	json_object_object_add(object, "layers", layers);
	json_object_object_add(object, "kernel",
			       status ? kernel_json(status) : NULL);
	report_json(object);
}

static void print_file(const struct image_id *id, const char *path)
{
	char length[SIZE_TEXT], allocated[SIZE_TEXT];
	struct stat st;

	if (!file_of(id, path, &st))
		return;
	printf("            file length %llu (%s), allocated %s\n",
	       (unsigned long long)st.st_size, size_text(st.st_size, length),
	       size_text((uint64_t)st.st_blocks * 512, allocated));
}

static void print_data(const struct device_layer *layer)
{
	char *device = path_of_device(layer->data);
	char *path = text_printable(layer->data_path);

	printf("            data in %s, %s\n", path, device);
	free(path);
	print_file(&layer->data_id, layer->data_path);
	free(device);
}

static void print_crypt(const struct device_layer *layer)
{
	char *device = path_of_device(layer->data);

	printf("            encrypted (LUKS), through %s\n", device);
	free(device);
}

static void print_layer(const struct device_layer *layer, unsigned int number)
{
	char *device = path_of_device(layer->device);
	char *path = text_printable(layer->path);

	printf("  layer %u:  %s, %s, %s\n", number, path,
	       format_name(layer->format), device);
	free(path);
	print_file(&layer->id, layer->path);
	if (layer->data_path)
		print_data(layer);
	if (layer->encrypted)
		print_crypt(layer);
	free(device);
}

static void print_kernel(const struct kernel_status *status)
{
	bool why = strcmp(status->reason, "-");
	char memory[SIZE_TEXT], limit[SIZE_TEXT];

	printf("  kernel:   %s%s%s%s\n", status->mode, why ? " (" : "",
	       why ? status->reason : "", why ? ")" : "");
	if (status->has_space)
		printf("  clusters: in use up to %llu of %llu\n",
		       (unsigned long long)status->used_clusters,
		       (unsigned long long)status->total_clusters);
	printf("            %llu allocated, %llu copied or filled since resumed\n",
	       (unsigned long long)status->allocated,
	       (unsigned long long)status->copied);
	printf("  commits:  %llu, %llu metadata blocks not yet durable\n",
	       (unsigned long long)status->commits,
	       (unsigned long long)status->dirty);
	printf("  memory:   %s of %s metadata of all images\n",
	       size_text(status->memory_kib * 1024, memory),
	       size_text(status->memory_limit_kib * 1024, limit));
}

static void print_partitions(const struct device *device)
{
	struct json_object *names = partitions_of(&device->dm);
	unsigned int i, count = json_object_array_length(names);

	for (i = 0; i < count; i++)
		printf("%s%s%s", i ? " " : "  partitions: ",
		       json_object_get_string(json_object_array_get_idx(names, i)),
		       i + 1 < count ? "" : "\n");
	json_object_put(names);
}

static void print_text(const struct device *device,
		       const struct kernel_status *status)
{
	char size[SIZE_TEXT];
	unsigned int i;

	printf("/dev/mapper/%s is active%s.\n", device->name,
	       device->dm.open_count ? " and is in use" : "");
	printf("  type:     qcow2\n");
	printf("  mode:     %s%s\n",
	       device->dm.read_only ? "read-only" : "read/write",
	       device->dm.suspended ? ", suspended" : "");
	if (!device->dm.read_only)
		printf("  no space: writes %s\n",
		       device->no_space_error ? "fail" : "wait");
	printf("  size:     %llu sectors (%s)\n",
	       (unsigned long long)device->sectors,
	       size_text(device->sectors * 512, size));
	print_partitions(device);
	if (device->snapshot)
		printf("  snapshot: %s of layer 0\n", device->snapshot);
	for (i = 0; i < device->count; i++)
		print_layer(&device->layers[i], i);
	if (status)
		print_kernel(status);
}

int cmd_status(struct arguments *args)
{
	const char *name = args->words[0];
	struct kernel_status status;
	struct device device;
	bool known;
	int r;

	r = device_name_check(name);
	if (!r)
		r = begin_look();
	if (r < 0)
		return r;
	if (!device_load(name, &device))
		return device_inactive(name);
	known = kernel_status_read(name, &status);
	if (args->json)
		print_json(&device, known ? &status : NULL);
	else
		print_text(&device, known ? &status : NULL);
	device_free(&device);
	return 0;
}
