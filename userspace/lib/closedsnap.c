// SPDX-License-Identifier: GPL-2.0-only
/*
 * An overlay over an image that is not open.
 */
#include "closedsnap.h"

#include <stdlib.h>

#include "device.h"
#include "fate.h"
#include "livesnap.h"
#include "newimage.h"
#include "recover.h"
#include "state.h"

static int check_existing(const struct closedsnap *snap)
{
	const struct image *below = &snap->overlay.chain.layers[0];
	struct image_user user;
	struct image image;
	int r;

	r = image_open(snap->path, FORMAT_UNKNOWN, &image);
	if (!r && device_uses(&image.id, false, &user))
		r = device_refuse(snap->path, &user);
	if (!r)
		r = image_check_usable(&image, true);
	if (!r)
		r = overlay_check(&image, &below->id, below->format,
				  below->size, snap->formats);
	image_close(&image);
	return r;
}

int closedsnap_open(struct closedsnap *snap)
{
	int r;

	snap->overlay.lock = -1;
	r = livesnap_path(snap->word, snap->existing, &snap->path);
	if (!r)
		r = overlay_backing_open(&snap->overlay, snap->image,
					 snap->format, snap->formats);
	if (r < 0)
		return r;
	snap->overlay.path = snap->path;
	snap->overlay.link = backing_link(snap->path, closedsnap_backing(snap));
	return snap->existing ? check_existing(snap) : 0;
}

struct json_object *closedsnap_plan(const struct closedsnap *snap,
				    const char *operation)
{
	struct json_object *plan = fate_new(operation);

	if (snap->existing)
		return plan;
	fate_add(plan, FATE_WRITTEN, snap->path);
	fate_link(plan, snap->path, snap->overlay.link);
	return plan;
}

int closedsnap_make(struct closedsnap *snap)
{
	struct overlay *overlay = &snap->overlay;
	struct json_object *entry;
	int r;

	if (snap->existing)
		return 0;
	r = snap->plain ? 0 : unlock_like(snap->unlock, overlay->chain.layers,
					  1, snap->path, &overlay->passphrase);
	if (r < 0)
		return r;
	entry = journal_entry("create", "", "");
	r = overlay_make(entry, overlay);
	if (!r)
		journal_clear();
	json_object_put(entry);
	return r;
}

const char *closedsnap_backing(const struct closedsnap *snap)
{
	return snap->overlay.chain.layers[0].path;
}

void closedsnap_close(struct closedsnap *snap)
{
	overlay_backing_close(&snap->overlay);
	free(snap->path);
	snap->path = NULL;
}
