// SPDX-License-Identifier: GPL-2.0-only
/*
 * Merging the image that a device writes to.
 */
#include "active.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "attach.h"
#include "check.h"
#include "dest.h"
#include "job.h"
#include "jobdev.h"
#include "message.h"
#include "mirror.h"
#include "pivot.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "tally.h"
#include "trim.h"

/* The new top goes on in the file that was made longer for the job. */
static int note_top(struct live *live, struct dest *dest)
{
	uint64_t length = dest->file ? dest->floor : NO_LENGTH;

	free(dest->file);
	dest->file = NULL;
	live_forget(live, 0, 1);
	return live_save(live, length);
}

/*
 * The kernel has emptied it by one sector of its header, so that it is right at
 * any instant: what that leaked is given back. Nobody needs it any more: that it
 * cannot be done, or takes another command, is no more than worth a warning. So
 * it is with encrypted images, whose passphrases a device does not ask for.
 */
static void give_back(const struct image_id *id, const char *path,
		      struct json_object *old)
{
	struct check_result result;
	bool muted = report_muted();
	int r;

	report_mute(true);
	/* Of a block device it is a loop device without a user that has the locks. */
	attach_prune();
	r = attach_wait_gone(id, LOOP_WRITE) ?
		check_image(path, NULL, true, &result) : -EBUSY;
	report_mute(muted);
	if (!r) {
		json_object_put(result.report);
		return;
	}
	trim_top_of(old);
	report_warn("%s is empty, but its clusters are not free: 'qcow2setup check --repair' frees them.",
		    path);
}

/* From here on the device is where it was to get to. */
static int take_over(struct live *live, struct dest *dest,
		     const struct mirror *mirror, bool remove)
{
	struct json_object *old = device_state_load(live->device.name);
	char *path = text_copy(live->chain.layers[0].path);
	struct image_id id = live->chain.layers[0].id;
	int r;

	job_finishing();
	r = live_note_top(live);
	if (!r)
		r = mirror_replace(mirror, live->device.layers + 1,
				   live->device.count - 1);
	if (!r)
		r = note_top(live, dest);
	if (!r)
		r = jobdev_remove("to");
	if (!r && !remove)
		give_back(&id, path, old);
	json_object_put(old);
	free(path);
	return r < 0 ? r : live_refresh(live);
}

static int prepare_commit(struct live *live, struct dest *dest)
{
	uint64_t size = live->chain.layers[0].size;
	int r;

	r = dest_attach(dest, size);
	if (!r)
		r = dest_create(dest, live->device.layers + 2,
				live->device.count - 2, size, " yield");
	/* No mirror reaches there: it is as long as the device. */
	return r < 0 ? r : dest_zero_behind(dest, size);
}

int active_commit(struct live *live, bool remove)
{
	struct mirror mirror = { .live = live, .layers = 1 };
	struct dest dest;
	int r;

	dest_init(&dest, live, 1);
	r = prepare_commit(live, &dest);
	mirror.path = dest.path;
	if (!r)
		r = mirror_run(&mirror);
	if (!r)
		r = take_over(live, &dest, &mirror, remove);
	if (r < 0) {
		jobdev_clean(live->subject);
		dest_trim(&dest);
	}
	dest_free(&dest);
	return r;
}

static int populate(struct live *live, unsigned int last)
{
	char layers[16];
	struct sweep sweep = {
		.name = live->device.name,
		.verb = "populate",
		.tail = layers,
		.end = live->device.sectors,
		.pace = tally_sweep,
	};
	int r, locked;

	snprintf(layers, sizeof(layers), "%u", last + 1);
	state_unlock();
	r = sweep_run(&sweep);
	locked = begin_change(true);
	if (!r && !locked && job_cancelled())
		r = -ECANCELED;
	if (!r && !locked)
		r = live_refresh(live);
	return r < 0 ? r : locked;
}

static int pull(struct live *live, unsigned int last)
{
	int r;

	/* A discard must not uncover what is about to go. */
	r = live_make_explicit(live);
	if (!r)
		r = populate(live, last);
	if (r < 0)
		return r;
	job_finishing();
	return live_link_to(live, 0, last + 1);
}

int active_pull(struct live *live, unsigned int last)
{
	int r = 0;

	/* A job that was killed may have come as far as the link. */
	if (!live_is_linked(live, 0, last + 1))
		r = pull(live, last);
	if (!r)
		r = live_drop(live, 1, last, NO_LAYER);
	if (r < 0)
		jobdev_clean(live->subject);
	return r;
}
