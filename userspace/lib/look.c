// SPDX-License-Identifier: GPL-2.0-only
/*
 * Images to look at.
 */
#include "look.h"

#include <errno.h>
#include <string.h>

#include "dm.h"
#include "report.h"

int look_layer(const struct device *device, unsigned int layer,
	       struct image *image)
{
	const struct device_layer *wanted = &device->layers[layer];
	int r = image_open(wanted->path, wanted->format, image);

	if (!r && !image_id_equal(&image->id, &wanted->id))
		r = report_fail(ENOENT,
				"%s is not the image that device %s is open with.",
				wanted->path, device->name);
	return r;
}

int look_layers(const struct device *device, unsigned int count,
		struct chain *chain)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < count && !r; i++) {
		chain->layers = grow_array(chain->layers, i,
					   sizeof(*chain->layers));
		chain->count++;
		r = look_layer(device, i, &chain->layers[i]);
	}
	return r;
}

static int look_device(const char *name, bool all, struct chain *chain)
{
	struct device device;
	int r;

	r = device_name_check(name);
	if (!r)
		r = dm_available();
	if (r < 0)
		return r;
	if (!device_load(name, &device))
		return device_inactive(name);
	r = look_layers(&device, all ? device.count : 1, chain);
	device_free(&device);
	return r;
}

/* Formats that are given are checked, which takes the chain. */
static int look_path(const char *path, struct formats *formats, bool all,
		     struct chain *chain)
{
	int r;

	if (all || formats->count) {
		r = chain_open(path, formats, chain);
		while (!r && !all && chain->count > 1)
			image_close(&chain->layers[--chain->count]);
		return r;
	}
	chain->layers = grow_array(NULL, 0, sizeof(*chain->layers));
	chain->count = 1;
	return image_open(path, FORMAT_UNKNOWN, &chain->layers[0]);
}

int look_open(const char *word, struct formats *formats, bool all,
	      struct chain *chain)
{
	if (strchr(word, '/'))
		return look_path(word, formats, all, chain);
	return look_device(word, all, chain);
}
