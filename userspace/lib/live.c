// SPDX-License-Identifier: GPL-2.0-only
/*
 * The chain that a job is at work on.
 */
#include "live.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attach.h"
#include "job.h"
#include "jobdev.h"
#include "layerword.h"
#include "leftover.h"
#include "link.h"
#include "look.h"
#include "message.h"
#include "pivot.h"
#include "relink.h"
#include "report.h"
#include "state.h"

static bool word_is_path(const char *word)
{
	return strchr(word, '/');
}

static int open_device(struct live *live)
{
	int r;

	r = device_name_check(live->word);
	if (r < 0)
		return r;
	live->subject = text_copy(live->word);
	r = job_check_none(live->subject);
	if (r < 0)
		return r;
	if (!device_load(live->word, &live->device))
		return device_inactive(live->word);
	if (live->device.snapshot)
		return report_fail(EROFS,
				   "Device %s shows internal snapshot %s of its image.",
				   live->word, live->device.snapshot);
	live->writes = !live->device.dm.read_only;
	r = pivot_check(&live->device);
	return r < 0 ? r : look_layers(&live->device, live->device.count,
				   &live->chain);
}

/* Readers of a layer may stay; a writer of one may not. */
static int check_layers(const struct chain *chain)
{
	struct devices devices;
	struct image_user user;
	unsigned int i;
	int r = 0;

	devices_load(&devices);
	for (i = 0; i < chain->count && !r; i++) {
		r = image_check_usable(&chain->layers[i], false);
		if (!r && devices_use(&devices, &chain->layers[i].id,
				      device_user_writes, &user))
			r = device_refuse(chain->layers[i].path, &user);
	}
	devices_free(&devices);
	return r;
}

static int open_closed(struct live *live, struct unlock *unlock)
{
	struct image_user user;
	int r;

	live->closed = true;
	live->subject = absolute_path(live->word);
	r = job_check_none(live->subject);
	if (!r)
		r = chain_open(live->word, live->formats, &live->chain);
	if (!r && device_uses(&live->chain.layers[0].id, false, &user))
		r = device_refuse(live->word, &user);
	if (!r)
		r = check_layers(&live->chain);
	return r < 0 || !unlock ? r : unlock_chain(unlock, &live->chain);
}

int live_open(const char *word, struct formats *formats, struct unlock *unlock,
	      struct live *live)
{
	int r;

	memset(live, 0, sizeof(*live));
	live->word = word;
	live->formats = formats;
	r = word_is_path(word) ? open_closed(live, unlock) : open_device(live);
	if (!r)
		live->left = leftover_layers(live->subject, &live->chain,
					     &live->again);
	return r;
}

void live_close(struct live *live)
{
	chain_close(&live->chain);
	device_free(&live->device);
	free(live->subject);
	live->subject = NULL;
	json_object_put(live->left);
	live->left = NULL;
}

/* What was read before the images were locked may have changed. */
static int read_again(struct live *live)
{
	struct chain again;
	int r;

	r = chain_open(live->word, live->formats, &again);
	if (!r && !chain_same(&live->chain, &again))
		r = report_fail(EBUSY, "%s changed while it was being opened.",
				live->word);
	if (!r)
		r = check_layers(&again);
	if (r < 0) {
		chain_close(&again);
		return r;
	}
	chain_close(&live->chain);
	live->chain = again;
	return 0;
}

static int create_chain(struct live *live, const struct attachment *attached)
{
	struct device_layer *layers = NULL;
	unsigned int i;
	int r;

	for (i = 0; i < live->chain.count; i++) {
		layers = grow_array(layers, i, sizeof(*layers));
		layers[i].format = live->chain.layers[i].format;
		attach_show(&attached[i], &layers[i]);
	}
	r = jobdev_create("chain", layers, live->chain.count,
			  device_sectors_of(live->chain.layers[0].size), true,
			  ZERO_FROM_NONE, NULL, 0);
	free(layers);
	return r;
}

static int attach_all(struct live *live, struct attachment *attached)
{
	int r = image_check_device(&live->chain.layers[0]);

	if (!r)
		r = attach_read_layers(live->chain.layers, live->chain.count,
				       attached);
	if (!r)
		r = read_again(live);
	return r < 0 ? r : create_chain(live, attached);
}

static int begin_closed(struct live *live)
{
	struct attachment *attached = NULL;
	char name[DM_NAME_MAX];
	unsigned int i;
	int r;

	for (i = 0; i < live->chain.count; i++) {
		attached = grow_array(attached, i, sizeof(*attached));
		attached[i] = attach_empty();
	}
	r = attach_all(live, attached);
	for (i = 0; i < live->chain.count; i++)
		attach_release(&attached[i], !r);
	free(attached);
	if (r < 0)
		return r;
	jobdev_name("chain", name);
	if (!device_load(name, &live->device))
		return device_inactive(name);
	return 0;
}

int live_begin(struct live *live)
{
	return live->closed ? begin_closed(live) : 0;
}

int live_refresh(struct live *live)
{
	struct device device;
	unsigned int i;

	if (!device_load(live->device.name, &device))
		return device_inactive(live->device.name);
	for (i = 0; i < device.count && i < live->device.count; i++) {
		if (!image_id_equal(&device.layers[i].id,
				    &live->chain.layers[i].id))
			break;
	}
	if (i < live->chain.count || device.count != live->chain.count ||
	    strcmp(device.dm.uuid, live->device.dm.uuid)) {
		device_free(&device);
		return report_fail(EBUSY,
				   "Device %s was changed by another program.",
				   live->device.name);
	}
	device_free(&live->device);
	live->device = device;
	return pivot_check(&live->device);
}

int live_check_length(const struct live *live)
{
	const struct image *top = &live->chain.layers[0];

	if (live->device.sectors >= device_sectors_of(top->size))
		return 0;
	return report_fail(EOPNOTSUPP,
			   "Device %s is shorter than %s, and the rest would not be copied: 'qcow2setup resize %s %llu' makes it as long.",
			   live->device.name, top->path, live->device.name,
			   (unsigned long long)round_up(top->size, 512));
}

int live_make_explicit(struct live *live)
{
	struct pivot pivot = pivot_same(&live->device);
	char *features;
	int r;

	features = text("%s explicit_zeroes", live->device.features);
	pivot.features = features;
	pivot.feature_words++;
	r = pivot_run(&live->device, &pivot);
	free(features);
	return r < 0 ? r : live_refresh(live);
}

int live_reread(struct live *live, unsigned int index)
{
	struct image *old = &live->chain.layers[index], image;
	int r;

	r = image_open(old->path, old->format, &image);
	if (!r && !image_id_equal(&image.id, &old->id))
		r = report_fail(EBUSY, "%s was replaced by another image.",
				old->path);
	if (r < 0) {
		image_close(&image);
		return r;
	}
	image_close(old);
	*old = image;
	return 0;
}

static uint64_t length_before(const struct device *device)
{
	struct json_object *state = device_state_load(device->name);
	struct json_object *length;
	uint64_t result = NO_LENGTH;

	if (state && json_object_object_get_ex(state, "length", &length))
		result = json_object_get_int64(length);
	json_object_put(state);
	return result;
}

int live_save(const struct live *live, uint64_t length)
{
	const struct device *device = &live->device;
	struct json_object *state;
	int r;

	if (length == KEEP_LENGTH)
		length = length_before(device);
	state = state_json(device->name, device->dm.uuid,
			   layers_json(&live->chain), length);
	r = device_state_save(device->name, state);
	json_object_put(state);
	return r;
}

/* What came of it, before anything relies on it */
static int check_link(const struct image *image, const char *link)
{
	if (!strcmp(image->backing ? image->backing : "", link ? link : ""))
		return 0;
	return report_fail(EIO,
			   "%s has the backing link '%s' now, and was to have '%s'.",
			   image->path, image->backing ? image->backing : "",
			   link ? link : "");
}

int live_relink(struct live *live, unsigned int index, const char *link,
		enum image_format format)
{
	int r;

	if (live->writes && !index)
		r = message_backing(live->device.name, link,
				    format_name(format));
	else
		r = relink_image(&live->chain.layers[index], link, format);
	if (!r)
		r = live_reread(live, index);
	return r < 0 ? r : check_link(&live->chain.layers[index], link);
}

static int load_shorter(struct live *live, unsigned int first,
			unsigned int count, unsigned int reads,
			const struct attachment *attachment)
{
	const struct device *device = &live->device;
	struct pivot pivot = pivot_same(device);
	struct device_layer *layers;
	int r;

	layers = grow_array(NULL, device->count, sizeof(*layers));
	memcpy(layers, device->layers, device->count * sizeof(*layers));
	if (reads != NO_LAYER)
		attach_show(attachment, &layers[reads]);
	memmove(layers + first, layers + first + count,
		(device->count - first - count) * sizeof(*layers));
	pivot.layers = layers;
	pivot.count = device->count - count;
	r = pivot_run(device, &pivot);
	free(layers);
	return r;
}

void live_forget(struct live *live, unsigned int first, unsigned int count)
{
	struct chain *chain = &live->chain;
	unsigned int i;

	for (i = first; i < first + count; i++)
		image_close(&chain->layers[i]);
	memmove(chain->layers + first, chain->layers + first + count,
		(chain->count - first - count) * sizeof(*chain->layers));
	chain->count -= count;
}

static int drop_open(struct live *live, unsigned int first,
		     unsigned int count, unsigned int reads)
{
	struct attachment attachment = attach_empty();
	int r = 0;

	if (reads != NO_LAYER)
		r = attach_read(&live->chain.layers[reads], true, &attachment);
	if (!r)
		r = load_shorter(live, first, count, reads, &attachment);
	attach_release(&attachment, !r);
	if (r < 0)
		return r;
	live_forget(live, first, count);
	r = live_save(live, first ? KEEP_LENGTH : NO_LENGTH);
	return r < 0 ? r : live_refresh(live);
}

int live_drop(struct live *live, unsigned int first, unsigned int count,
	      unsigned int reads)
{
	int r;

	if (!live->closed)
		return drop_open(live, first, count, reads);
	r = jobdev_remove("chain");
	if (!r)
		live_forget(live, first, count);
	return r;
}

int live_layer(const struct live *live, const char *word, unsigned int *index)
{
	struct image_id *ids = NULL;
	unsigned int i;
	int r;

	for (i = 0; i < live->chain.count; i++) {
		ids = grow_array(ids, i, sizeof(*ids));
		ids[i] = live->chain.layers[i].id;
	}
	r = layer_find(live->word, word, ids, i, index);
	free(ids);
	return r;
}

int live_note_top(const struct live *live)
{
	struct json_object *note = json_object_new_object();

	json_object_object_add(note, "old",
			       device_state_load(live->device.name));
	return job_note(note);
}

/* One link after the other; NULL as soon as one is not relative. */
static char *relative_link(const struct live *live, unsigned int overlay,
			   unsigned int backing)
{
	char *way = text_copy(""), *name, *longer;

	for (; way && overlay < backing; overlay++) {
		name = backing_name(&live->chain.layers[overlay]);
		longer = !name || name[0] == '/' ? NULL :
			text("%.*s%s", (int)(strrchr(way, '/') ?
					     strrchr(way, '/') - way + 1 : 0),
			     way, name);
		free(name);
		free(way);
		way = longer;
	}
	return way;
}

static bool leads_to(const struct image *overlay, const char *link,
		     const struct image_id *wanted)
{
	struct image_id id;
	bool same;
	char *path;

	path = link_beside(overlay->path, link);
	same = image_id_of_path(path, &id) && image_id_equal(&id, wanted);
	free(path);
	return same;
}

bool live_is_linked(const struct live *live, unsigned int overlay,
		    unsigned int backing)
{
	const struct image *from = &live->chain.layers[overlay];
	bool linked;
	char *name;

	if (!from->backing || backing >= live->chain.count)
		return !from->backing && backing >= live->chain.count;
	name = backing_name(from);
	linked = name && leads_to(from, name, &live->chain.layers[backing].id);
	free(name);
	return linked;
}

char *live_link(const struct live *live, unsigned int overlay,
		unsigned int backing)
{
	const struct image *to = &live->chain.layers[backing];
	char *link, *way;

	if (live_is_linked(live, overlay, backing))
		return text_copy(live->chain.layers[overlay].backing);
	way = relative_link(live, overlay, backing);
	link = way && leads_to(&live->chain.layers[overlay], way, &to->id) ?
		link_of_file(way) : text_copy(to->path);
	free(way);
	return link;
}

/* Return: the name as it is to stand in the image, or NULL; free() it */
static char *link_to(const struct live *live, unsigned int overlay,
		     unsigned int backing, enum image_format *format)
{
	*format = FORMAT_UNKNOWN;
	if (backing >= live->chain.count)
		return NULL;
	*format = live->chain.layers[backing].format;
	return live_link(live, overlay, backing);
}

int live_link_to(struct live *live, unsigned int overlay, unsigned int backing)
{
	enum image_format format;
	char *link;
	int r;

	if (live_is_linked(live, overlay, backing))
		return 0;
	link = link_to(live, overlay, backing, &format);
	r = live_relink(live, overlay, link, format);
	free(link);
	return r;
}

int live_check_link_to(const struct live *live, unsigned int overlay,
		       unsigned int backing)
{
	enum image_format format;
	char *link;
	int r;

	if (live_is_linked(live, overlay, backing))
		return 0;
	link = link_to(live, overlay, backing, &format);
	r = relink_check(&live->chain.layers[overlay], link, format);
	free(link);
	return r;
}
