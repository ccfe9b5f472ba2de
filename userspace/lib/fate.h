/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an operation on a chain is going to do, or has done, to each image: the
 * plan that --dry-run prints, and the result.
 */
#ifndef FATE_H
#define FATE_H

#include <json-c/json.h>
#include <stdbool.h>

#include "image.h"

/**
 * enum fate - what becomes of an image
 * @FATE_READ: it is read
 * @FATE_WRITTEN: it is written
 * @FATE_INVALID: it does not read right any more
 * @FATE_UNNEEDED: it is not part of the chain any more, and still reads right
 * @FATE_DELETED: its file goes
 */
enum fate {
	FATE_READ,
	FATE_WRITTEN,
	FATE_INVALID,
	FATE_UNNEEDED,
	FATE_DELETED,
};

/** fate_new() - nothing so far */
struct json_object *fate_new(const char *operation);

/** fate_add() - an image */
void fate_add(struct json_object *plan, enum fate fate, const char *path);

/**
 * fate_add_pair() - an image with its external data file
 * @plan: where to
 * @fate: of both
 * @path: the image
 * @data: the data file, or NULL
 *
 * To be deleted, the data file comes first: where that ends in between, the image is
 * left, which names it, and which others know.
 */
void fate_add_pair(struct json_object *plan, enum fate fate, const char *path,
		   const char *data);

/** fate_add_image() - the same of an image that is open */
void fate_add_image(struct json_object *plan, enum fate fate,
		    const struct image *image);

/** fate_link() - a backing link that is changed; @link is NULL for none */
void fate_link(struct json_object *plan, const char *path, const char *link);

/** fate_plan() - print all of it, before; puts it */
void fate_plan(struct json_object *plan, bool json);

/** fate_is() - does the plan say that of an image? */
bool fate_is(struct json_object *plan, enum fate fate, const char *path);

/**
 * fate_delete_file() - delete an image
 * @path: which
 *
 * It is durable when this returns. What stands in the way is warned of.
 */
void fate_delete_file(const char *path);

/** fate_change() - an image, and perhaps its data file, has another fate after all */
void fate_change(struct json_object *plan, enum fate from, enum fate to,
		 const char *path, const char *data);

/** fate_tell() - print what became of the images; puts it */
void fate_tell(struct json_object *plan, bool json);

#endif /* FATE_H */
