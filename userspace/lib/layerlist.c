// SPDX-License-Identifier: GPL-2.0-only
/*
 * Layers of a chain, noted.
 */
#include "layerlist.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "report.h"

/* When a file was made, ns; 0 where the file system does not know */
static uint64_t born(const char *path)
{
	struct statx info;

	if (statx(AT_FDCWD, path, 0, STATX_BTIME, &info) < 0 ||
	    !(info.stx_mask & STATX_BTIME))
		return 0;
	return info.stx_btime.tv_sec * 1000000000ULL + info.stx_btime.tv_nsec;
}

static struct json_object *layer_json(const struct image *image)
{
	struct json_object *layer = json_object_new_object();
	char *data;

	json_set_string(layer, "path", image->path);
	json_set_string(layer, "format", format_name(image->format));
	json_set_bool(layer, "block", image->id.block);
	json_set_number(layer, "dev", image->id.dev);
	json_set_number(layer, "ino", image->id.ino);
	json_set_number(layer, "born", born(image->path));
	if (image_data_path(image, &data) == 0 && data)
		json_set_string(layer, "data-file", data);
	free(data);
	return layer;
}

struct json_object *layers_json(const struct chain *chain)
{
	struct json_object *layers = json_object_new_array();
	unsigned int i;

	for (i = 0; i < chain->count; i++)
		json_object_array_add(layers, layer_json(&chain->layers[i]));
	return layers;
}

struct json_object *layers_json_take(struct json_object *layers, size_t first,
				     size_t count)
{
	struct json_object *taken = json_object_new_array(), *layer;
	size_t i;

	for (i = first; i < first + count; i++) {
		layer = json_object_array_get_idx(layers, i);
		json_object_array_add(taken, json_object_get(layer));
	}
	json_object_array_del_idx(layers, first, count);
	return taken;
}

struct image_id layer_json_id(struct json_object *layer)
{
	struct json_object *block = NULL;
	struct image_id id = { 0 };

	json_object_object_get_ex(layer, "block", &block);
	id.block = json_object_get_boolean(block);
	id.dev = json_number(layer, "dev");
	id.ino = json_number(layer, "ino");
	return id;
}

bool layer_json_is_at(struct json_object *layer, const char *path)
{
	struct image_id id = layer_json_id(layer), now;

	return image_id_of_path(path, &now) && image_id_equal(&id, &now) &&
		json_number(layer, "born") == born(path);
}
