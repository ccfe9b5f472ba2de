// SPDX-License-Identifier: GPL-2.0-only
/*
 * list: the open devices.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "device.h"
#include "dm.h"
#include "recover.h"
#include "report.h"

static struct json_object *describe(const struct device *device)
{
	struct json_object *object = json_object_new_object();

	json_set_string(object, "name", device->name);
	json_set_string(object, "image", device->layers[0].path);
	json_set_number(object, "size", device->sectors * 512);
	json_set_bool(object, "read-only", device->dm.read_only);
	json_set_bool(object, "suspended", device->dm.suspended);
	json_set_string(object, "snapshot", device->snapshot);
	json_set_number(object, "layers", device->count);
	return object;
}

static void print_line(const struct device *device)
{
	char *path = text_printable(device->layers[0].path);
	char size[SIZE_TEXT];

	printf("%-20s %-4s %10s %6u  %s%s%s%s\n", device->name,
	       device->dm.read_only ? "ro" : "rw",
	       size_text(device->sectors * 512, size), device->count,
	       path, device->snapshot ? ", snapshot " : "",
	       device->snapshot ? device->snapshot : "",
	       device->dm.suspended ? " (suspended)" : "");
	free(path);
}

static bool visit(const char *name, void *data)
{
	struct json_object *all = data;
	struct device device;

	if (!device_load(name, &device))
		return false;
	if (dm_uuid_is(&device.dm, DM_UUID_JOB)) {
		device_free(&device);
		return false;
	}
	if (all)
		json_object_array_add(all, describe(&device));
	else
		print_line(&device);
	device_free(&device);
	return false;
}

int cmd_list(struct arguments *args)
{
	struct json_object *all = NULL;
	int r = begin_look();

	if (r < 0)
		return r;
	if (args->json)
		all = json_object_new_array();
	else
		printf("%-20s %-4s %10s %6s  %s\n", "NAME", "MODE", "SIZE",
		       "LAYERS", "IMAGE");
	dm_each(visit, all);
	if (all)
		report_json(all);
	return 0;
}
