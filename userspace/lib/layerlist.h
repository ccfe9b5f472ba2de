/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Layers of a chain as the journal, the state of a device and the record of a
 * job have them: an array of objects with path, format and identity.
 */
#ifndef LAYERLIST_H
#define LAYERLIST_H

#include <json-c/json.h>

#include "chain.h"

/** layers_json() - note the layers of @chain */
struct json_object *layers_json(const struct chain *chain);

/** layers_json_take() - move some layers to an array of their own, which is returned */
struct json_object *layers_json_take(struct json_object *layers, size_t first,
				     size_t count);

/** layer_json_id() - the identity of an element of such an array */
struct image_id layer_json_id(struct json_object *layer);

/**
 * layer_json_is_at() - is the image that was noted still there?
 * @layer: an element of such an array
 * @path: where
 *
 * A file made later is another one, also where it has its name and got its inode.
 */
bool layer_json_is_at(struct json_object *layer, const char *path);

#endif /* LAYERLIST_H */
