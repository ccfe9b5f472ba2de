// SPDX-License-Identifier: GPL-2.0-only
/*
 * open IMAGE NAME: the chain under an image becomes a block device.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "attach.h"
#include "check.h"
#include "commands.h"
#include "device.h"
#include "dm.h"
#include "partition.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "unfinished.h"
#include "view.h"

/**
 * struct opening - an open under way
 * @args: command line
 * @name: of the device
 * @uuid: of the device
 * @chain: the images
 * @attached: one for each
 * @snapshot: ID of the internal snapshot to be shown, or NULL
 */
struct opening {
	struct arguments *args;
	const char *name;
	char uuid[DM_UUID_MAX];
	struct chain chain;
	struct attachment *attached;
	char *snapshot;
};

static int make_uuid(char uuid[DM_UUID_MAX])
{
	unsigned char bytes[16];
	unsigned int i;
	char *end;

	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return report_errno(errno, "Cannot get random numbers");
	end = uuid + snprintf(uuid, DM_UUID_MAX, "%s", DM_UUID_DISK);
	for (i = 0; i < sizeof(bytes); i++)
		end += sprintf(end, "%02x", bytes[i]);
	return 0;
}

/* The images, the top one as an internal snapshot has it if one is to be shown */
static int open_images(struct opening *opening, struct chain *chain)
{
	struct arguments *args = opening->args;
	int r;

	free(opening->snapshot);
	opening->snapshot = NULL;
	r = chain_open(args->words[0], &args->formats, chain);
	if (!r && args->snapshot)
		r = view_choose(&chain->layers[0], args->snapshot,
				&opening->snapshot);
	return r;
}

/*
 * Whoever reads is in the way of who writes, and no other; but who shows an
 * internal snapshot of an image is in nobody's way.
 */
static bool is_used(const struct opening *opening, unsigned int layer,
		    const struct devices *devices, struct image_user *user)
{
	const struct image_id *id = &opening->chain.layers[layer].id;

	if (!layer && opening->snapshot)
		return false;
	return devices_use(devices, id, layer || opening->args->read_only ?
			   device_user_writes : device_user_not_view, user);
}

static int check_layers(const struct opening *opening,
			const struct devices *devices)
{
	bool writable = !opening->args->read_only;
	const struct image *image;
	struct image_user user;
	unsigned int i;
	int r;

	for (i = 0; i < opening->chain.count; i++) {
		image = &opening->chain.layers[i];
		r = i ? 0 : image_check_device(image);
		if (!r)
			r = image_check_usable(image, !i && writable);
		if (r < 0)
			return r;
		if (is_used(opening, i, devices, &user))
			return device_refuse(image->path, &user);
	}
	return 0;
}

/* Before anything is touched: can this chain be opened at all? */
static int check_chain(const struct opening *opening)
{
	struct devices devices;
	int r;

	devices_load(&devices);
	r = check_layers(opening, &devices);
	devices_free(&devices);
	return r;
}

static int check_formats(const struct formats *formats)
{
	unsigned int i;

	for (i = 0; i < formats->count; i++) {
		if (!formats->given[i].used)
			return report_fail(EINVAL,
					   "--backing-format: %s is not in the chain.",
					   formats->given[i].path);
	}
	return 0;
}

/* Locks of ours beside which it may be opened: see check_chain() */
static int lock_top(struct opening *opening)
{
	const struct image *top = &opening->chain.layers[0];
	struct image_user user;

	if (opening->args->read_only)
		return attach_read(top, opening->snapshot,
				   &opening->attached[0]);
	return attach_write_lock(top, device_uses(&top->id, false, &user),
				 &opening->attached[0]);
}

/* Locks first; what was read before may have changed since. */
static int lock_layers(struct opening *opening)
{
	int r = attach_read_layers(&opening->chain.layers[1],
				   opening->chain.count - 1,
				   &opening->attached[1]);

	return r < 0 ? r : lock_top(opening);
}

static int read_again(struct opening *opening)
{
	struct chain again;
	int r;

	r = open_images(opening, &again);
	if (!r && !chain_same(&opening->chain, &again))
		r = report_fail(EBUSY, "%s changed while it was being opened.",
				opening->args->words[0]);
	if (r < 0) {
		chain_close(&again);
		return r;
	}
	chain_close(&opening->chain);
	opening->chain = again;
	return check_chain(opening);
}

static bool is_grown(const struct opening *opening)
{
	return !opening->args->read_only && !opening->chain.layers[0].is_device;
}

static int write_journal(const struct opening *opening)
{
	struct json_object *entry, *state;
	int r;

	state = state_json(opening->name, opening->uuid,
			   layers_json(&opening->chain),
			   is_grown(opening) ? opening->attached[0].length :
			   NO_LENGTH);
	entry = journal_entry("open", opening->name, opening->uuid);
	json_object_object_add(entry, "state", state);
	r = journal_write(entry);
	json_object_put(entry);
	return r;
}

/*
 * What lies behind the length at open reads as zeroes. Of a raw image the
 * target needs not be told; on a block device anything may lie there.
 */
static uint64_t zero_from(const struct opening *opening)
{
	if (!is_grown(opening) ||
	    opening->chain.layers[0].format != FORMAT_QCOW2)
		return ZERO_FROM_NONE;
	return device_sectors_of(opening->attached[0].length);
}

static char *table_params(const struct opening *opening)
{
	unsigned int i, count = opening->chain.count;
	struct device_layer *layers = NULL;
	char *params, *feature = NULL;

	for (i = 0; i < count; i++) {
		layers = grow_array(layers, i, sizeof(*layers));
		layers[i].format = opening->chain.layers[i].format;
		attach_show(&opening->attached[i], &layers[i]);
	}
	if (opening->snapshot)
		feature = view_feature(opening->snapshot);
	else if (opening->args->no_space_error)
		feature = text_copy(" " FEATURE_NO_SPACE_ERROR);
	params = device_params(layers, count, zero_from(opening), feature,
			       opening->snapshot ? VIEW_WORDS : !!feature);
	free(feature);
	free(layers);
	return params;
}

static int create_device(const struct opening *opening)
{
	struct dm_segment segment = {
		.length = device_sectors_of(opening->chain.layers[0].size),
		.target = "qcow2",
	};
	int r;

	segment.params = table_params(opening);
	r = dm_create(opening->name, opening->uuid, opening->args->read_only,
		      &segment, 1);
	free(segment.params);
	return r;
}

/* From the journal on, recover() undoes what goes wrong. */
static int attach_and_create(struct opening *opening)
{
	int r;

	r = lock_layers(opening);
	if (!r)
		r = read_again(opening);
	if (!r)
		r = write_journal(opening);
	if (!r && !opening->args->read_only)
		r = attach_write(&opening->chain.layers[0],
				 !opening->args->no_grow, &opening->attached[0]);
	return r < 0 ? r : create_device(opening);
}

static int open_chain(struct opening *opening)
{
	unsigned int i, count = opening->chain.count;
	int r;

	for (i = 0; i < count; i++) {
		opening->attached = grow_array(opening->attached, i,
					       sizeof(*opening->attached));
		opening->attached[i] = attach_empty();
	}
	r = attach_and_create(opening);
	for (i = 0; i < count; i++)
		attach_release(&opening->attached[i], !r);
	free(opening->attached);
	/* The journal becomes the state of the device, or is undone. */
	recover();
	wait_helpers_gone();
	return r;
}

static int check_name(const char *name)
{
	int r = device_name_check(name);

	if (!r)
		r = unfinished_check_device(name);
	if (!r && dm_query(name).exists)
		r = report_fail(EEXIST, "Device %s already exists.", name);
	return r;
}

static int check_arguments(const struct arguments *args)
{
	if (args->repair && args->read_only)
		return report_fail(EINVAL,
				   "--repair and --read-only do not go together: what is only read need not be repaired.");
	if (args->no_space_error && (args->read_only || args->snapshot))
		return report_fail(EINVAL,
				   "--no-space=error and %s do not go together: what is only read needs no space.",
				   args->snapshot ? "--snapshot" :
				   "--read-only");
	if (!*args->words[0])
		return report_fail(EINVAL, "The name of the image is empty.");
	if (!is_path(args->words[0]) && access(args->words[0], F_OK) < 0)
		return report_fail(ENOENT, "%s does not exist.",
				   args->words[0]);
	return 0;
}

static int repair_image(const char *path, struct unlock *unlock)
{
	struct check_result result;
	int r = check_image(path, unlock, true, &result);

	json_object_put(result.report);
	if (!r && result.outcome != CHECK_CLEAN)
		r = report_fail(EUCLEAN, "%s could not be repaired.", path);
	return r;
}

/* The images of the chain, the top one repaired if that is asked for */
static int find_chain(struct opening *opening)
{
	int r;

	r = open_images(opening, &opening->chain);
	if (r < 0 || !opening->args->repair ||
	    !check_needs_repair(&opening->chain.layers[0]))
		return r;
	chain_close(&opening->chain);
	r = repair_image(opening->args->words[0], &opening->args->unlock);
	return r < 0 ? r : open_images(opening, &opening->chain);
}

static void print_result(const struct opening *opening)
{
	struct dm_state state = dm_query(opening->name);
	struct json_object *object = json_object_new_object();
	char *path = text("/dev/mapper/%s", opening->name);

	json_set_string(object, "name", opening->name);
	json_set_string(object, "device", path);
	json_set_bool(object, "read-only", state.read_only);
	json_object_object_add(object, "partitions", partitions_of(&state));
	report_json(object);
	free(path);
}

static int finish(const struct opening *opening)
{
	struct arguments args = { .words = { opening->name } };
	int r = 0;

	if (opening->args->partitions)
		r = partitions_map(opening->name);
	if (r < 0) {
		state_unlock();
		cmd_close(&args);
	} else if (opening->args->json) {
		print_result(opening);
	}
	return r;
}

int cmd_open(struct arguments *args)
{
	struct opening opening = { .args = args, .name = args->words[1] };
	int r;

	if (args->snapshot)
		args->read_only = true;
	r = device_name_check(opening.name);
	if (!r)
		r = check_arguments(args);
	if (!r)
		r = begin_change(true);
	if (!r)
		r = check_name(opening.name);
	if (!r)
		r = make_uuid(opening.uuid);
	if (!r)
		r = find_chain(&opening);
	if (!r)
		r = check_formats(&args->formats);
	if (!r)
		r = check_chain(&opening);
	if (!r)
		r = unlock_chain(&args->unlock, &opening.chain);
	if (!r)
		r = open_chain(&opening);
	chain_close(&opening.chain);
	free(opening.snapshot);
	if (!r)
		r = finish(&opening);
	state_unlock();
	return r;
}
