// SPDX-License-Identifier: GPL-2.0-only
/*
 * The journal.  An entry is an object with
 *
 *   operation, name, uuid   what is done to which device; pivot: another table
 *   state      open: the device's state to be;
 *              close: its state so far
 *   clean      close: the kernel wrote out everything, the file may be cut;
 *              snapshot: the same of the old top
 *   phase      snapshot: "prepare", or "swap" just before the resume ioctl
 *   old, new_state          snapshot: state before and after
 *   sectors    pivot: length of the device before
 *   new        snapshot, create, pivot: the file that was made (newimage.c)
 *   new-data   create: its external data file, as well
 *   parts      group: the entries of its snapshots
 *   freeze     group, internal: what was frozen (freeze.c)
 *   path       internal: an image that is not open
 *   apply      internal: ID of the snapshot that qemu-img applies
 *
 * A revert has what a snapshot has.
 */
#include "recover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach.h"
#include "finish.h"
#include "freeze.h"
#include "internal.h"
#include "job.h"
#include "jobdev.h"
#include "jobrecord.h"
#include "newimage.h"
#include "report.h"
#include "state.h"
#include "trim.h"
#include "unfinished.h"

/* How long tail devices and their like may take to go: it is done by a work item. */
#define GONE_TRIES	100
#define GONE_MSEC	20

/* How long a command that only looks waits for one that changes something */
#define LOOK_TRIES	100
#define LOOK_MSEC	50

struct json_object *state_json(const char *name, const char *uuid,
			       struct json_object *layers, uint64_t length)
{
	struct json_object *state = json_object_new_object();

	json_set_string(state, "name", name);
	json_set_string(state, "uuid", uuid);
	if (length != NO_LENGTH)
		json_set_number(state, "length", length);
	json_object_object_add(state, "layers", layers);
	return state;
}

struct json_object *journal_entry(const char *operation, const char *name,
				  const char *uuid)
{
	struct json_object *entry = json_object_new_object();

	json_set_string(entry, "operation", operation);
	json_set_string(entry, "name", name);
	json_set_string(entry, "uuid", uuid);
	return entry;
}

static struct json_object *member(struct json_object *object, const char *key)
{
	struct json_object *value = NULL;

	json_object_object_get_ex(object, key, &value);
	return value;
}

static struct json_object *top_of(struct json_object *state)
{
	struct json_object *layers = member(state, "layers");

	if (!json_object_is_type(layers, json_type_array))
		return NULL;
	return json_object_array_get_idx(layers, 0);
}

bool state_length(struct json_object *state, const struct image_id *top,
		  uint64_t *length)
{
	struct json_object *layer = state ? top_of(state) : NULL;
	struct image_id id;

	if (!layer || !member(state, "length"))
		return false;
	id = layer_json_id(layer);
	*length = json_number(state, "length");
	return image_id_equal(&id, top);
}

void trim_top_of(struct json_object *state)
{
	struct json_object *top = top_of(state);
	const char *path = top ? json_string(top, "path") : NULL;
	struct image_id id;
	struct trim trim;

	if (!path || !member(state, "length") ||
	    format_of_name(json_string(top, "format")) != FORMAT_QCOW2)
		return;
	id = layer_json_id(top);
	trim_prepare(path, &id, json_number(state, "length"), &trim);
	trim_finish(&trim, true);
}

static bool is_clean(struct json_object *entry)
{
	return json_object_get_boolean(member(entry, "clean"));
}

/* The device of the entry, or one of the same name that is another? */
static struct dm_state device_of(struct json_object *entry)
{
	struct dm_state state = dm_query(json_string(entry, "name"));

	if (strcmp(state.uuid, json_string(entry, "uuid")))
		state.exists = false;
	return state;
}

/*
 * It is open, but nobody noted it; or nothing came of it. It was never resumed
 * where it is suspended, and had no user.
 */
static int recover_open(struct json_object *entry)
{
	struct json_object *state = member(entry, "state");
	const char *name = json_string(entry, "name");
	struct dm_state dm = device_of(entry);

	if (dm.exists && dm.live && !dm.suspended)
		return device_state_save(name, state);
	if (dm.exists && dm_remove(name, false) == -EBUSY)
		return report_fail(EBUSY, "Device %s is still in use.", name);
	dm_drop_node(name);
	trim_top_of(state);
	return 0;
}

static int recover_close(struct json_object *entry)
{
	const char *name = json_string(entry, "name");
	struct dm_state dm = device_of(entry);

	if (dm.exists)
		return dm.suspended ? dm_resume(name) : 0;
	dm_drop_node(name);
	if (is_clean(entry))
		trim_top_of(member(entry, "state"));
	device_state_remove(name);
	return 0;
}

static int recover_create(struct json_object *entry)
{
	new_image_recover(entry);
	return 0;
}

/* The overlay is not used: it goes, or a given one gets its length again. */
static void drop_overlay(struct json_object *entry)
{
	if (member(entry, "new"))
		new_image_recover(entry);
	else
		trim_top_of(member(entry, "new_state"));
}

/*
 * The old table with the old top, attached anew; without zero_from, since that
 * holds up to the first suspend only.
 */
static int load_old_table(const struct device *device, struct image *top)
{
	struct device_layer *old = device->layers + 1;
	struct attachment attachment;
	struct dm_segment segment = {
		.length = device->sectors,
		.target = "qcow2",
	};
	int r;

	r = attach_write_lock(top, true, &attachment);
	if (!r)
		r = attach_write(top, false, &attachment);
	if (!r) {
		attach_show(&attachment, old);
		segment.params = device_params(old, device->count - 1,
					       ZERO_FROM_NONE, device->features,
					       device->feature_words);
		r = dm_load(device->name, false, &segment);
		free(segment.params);
	}
	if (!r)
		r = dm_resume(device->name);
	attach_release(&attachment, !r);
	return r;
}

static int back_to_old_top(const struct device *device)
{
	struct image top;
	int r;

	if (device->count < 2)
		return report_fail(EUCLEAN, "Device %s has lost its old table.",
				   device->name);
	r = image_open(device->layers[1].path, device->layers[1].format, &top);
	if (!r)
		r = load_old_table(device, &top);
	image_close(&top);
	return r;
}

/* The same table once more, without what holds up to the first suspend only */
static int reload_same(const struct device *device)
{
	struct dm_segment segment = {
		.length = device->sectors,
		.target = "qcow2",
	};
	int r;

	segment.params = device_params(device->layers, device->count,
				       ZERO_FROM_NONE, device->features,
				       device->feature_words);
	r = dm_load(device->name, device->dm.read_only, &segment);
	free(segment.params);
	return r < 0 ? r : dm_resume(device->name);
}

static int stay_on_old(const struct device *device)
{
	int r = 0;

	if (device->dm.loaded)
		r = dm_clear(device->name);
	if (!r && device->dm.suspended)
		r = reload_same(device);
	return r;
}

static int snapshot_done(struct json_object *entry)
{
	int r = device_state_save(json_string(entry, "name"),
				  member(entry, "new_state"));

	attach_prune();
	if (!r && is_clean(entry))
		trim_top_of(member(entry, "old"));
	return r;
}

/* Nobody had the device open: no matter where it goes on. */
static bool is_revert(struct json_object *entry)
{
	return !strcmp(json_string(entry, "operation"), "revert");
}

/* On the old chain or on the new one? The active table tells. */
static int recover_snapshot_of(struct json_object *entry,
			       const struct device *device)
{
	struct json_object *overlay = top_of(member(entry, "new_state"));
	struct image_id id = layer_json_id(overlay);
	int r;

	if (!image_id_equal(&device->layers[0].id, &id)) {
		r = stay_on_old(device);
	} else if (device->dm.suspended && !is_revert(entry) &&
		   image_is_empty_at(json_string(overlay, "path"))) {
		r = back_to_old_top(device);
	} else {
		r = device->dm.suspended ? dm_resume(device->name) : 0;
		return r < 0 ? r : snapshot_done(entry);
	}
	if (!r)
		drop_overlay(entry);
	return r;
}

static int recover_snapshot(struct json_object *entry)
{
	const char *name = json_string(entry, "name");
	const char *phase = json_string(entry, "phase");
	struct dm_state dm = device_of(entry);
	struct device device;
	int r;

	if (!dm.exists || !device_load(name, &device)) {
		/* Gone since: perhaps it had written to the overlay. */
		if (phase && !strcmp(phase, "prepare"))
			drop_overlay(entry);
		return 0;
	}
	r = recover_snapshot_of(entry, &device);
	device_free(&device);
	return r;
}

/* Does the device of a snapshot write to its overlay already? */
static bool is_on_new(struct json_object *part)
{
	struct json_object *overlay = top_of(member(part, "new_state"));
	struct image_id id = layer_json_id(overlay);
	struct device device;
	bool new;

	if (!device_of(part).exists ||
	    !device_load(json_string(part, "name"), &device))
		return false;
	new = image_id_equal(&device.layers[0].id, &id) &&
		!device.dm.suspended;
	device_free(&device);
	return new;
}

/* One has its new chain: the others follow. */
static void roll_forward(struct json_object *parts)
{
	unsigned int i, count = json_object_array_length(parts);
	struct json_object *part;
	struct dm_state dm;
	bool any = false;

	for (i = 0; i < count; i++)
		any |= is_on_new(json_object_array_get_idx(parts, i));
	for (i = 0; i < count && any; i++) {
		part = json_object_array_get_idx(parts, i);
		dm = device_of(part);
		if (dm.exists && (dm.suspended || dm.loaded))
			dm_resume(json_string(part, "name"));
	}
}

static int recover_group(struct json_object *entry)
{
	struct json_object *parts = member(entry, "parts");
	unsigned int i;
	int r = 0, one;

	if (!json_object_is_type(parts, json_type_array))
		return 0;
	roll_forward(parts);
	for (i = 0; i < json_object_array_length(parts); i++) {
		one = recover_snapshot(json_object_array_get_idx(parts, i));
		r = r ? r : one;
	}
	/* No more than a warning: whoever was frozen may be gone. */
	freeze_undo(member(entry, "freeze"));
	return r;
}

/* Both tables are as good as each other, until the resume. */
static int go_on(const struct device *device)
{
	if (device->dm.suspended && device->dm.loaded &&
	    dm_resume(device->name) == 0)
		return 0;
	return stay_on_old(device);
}

static bool is_top_of(const char *name, struct json_object *made)
{
	struct image_id id = layer_json_id(made);
	struct device device;
	bool is;

	if (!device_load(name, &device))
		return true;
	is = image_id_equal(&device.layers[0].id, &id);
	device_free(&device);
	return is;
}

/*
 * The kernel binds a new table before its target can refuse to be resumed, and
 * the old one is gone then: a device that was to get longer is as long as it
 * was to be, with an image that is not.
 */
static int get_shorter(struct json_object *entry, struct device *device)
{
	uint64_t sectors = json_number(entry, "sectors");

	if (!sectors || sectors >= device->sectors)
		return -EIO;
	device->sectors = sectors;
	return reload_same(device);
}

static int recover_pivot(struct json_object *entry)
{
	const char *name = json_string(entry, "name");
	struct json_object *made = member(entry, "new");
	struct device device;
	int r;

	if (!device_of(entry).exists || !device_load(name, &device))
		return 0;
	r = go_on(&device);
	if (r < 0)
		r = get_shorter(entry, &device);
	device_free(&device);
	if (!r && made && !is_top_of(name, made))
		new_image_undo(entry);
	return r;
}

static int recover_kind(struct json_object *entry)
{
	static const struct {
		const char *operation;
		int (*recover)(struct json_object *entry);
	} kinds[] = {
		{ "open", recover_open },
		{ "close", recover_close },
		{ "create", recover_create },
		{ "snapshot", recover_snapshot },
		{ "revert", recover_snapshot },
		{ "group", recover_group },
		{ "pivot", recover_pivot },
		{ "internal", internal_recover },
	};
	const char *operation = json_string(entry, "operation");
	unsigned int i;

	if (!operation || !json_string(entry, "name") ||
	    !json_string(entry, "uuid"))
		return 0;
	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (!strcmp(operation, kinds[i].operation))
			return kinds[i].recover(entry);
	}
	return 0;
}

/* What it attaches is what it is about. */
static int recover_entry(struct json_object *entry)
{
	int r;

	unfinished_overlook(true);
	r = recover_kind(entry);
	unfinished_overlook(false);
	return r;
}

static bool try_again(struct json_object *entry, void *data)
{
	(void)data;
	return recover_entry(entry) == 0;
}

/* Why it could not be done was said when it was set aside. */
static void recover_unfinished(void)
{
	bool muted = report_muted();

	report_mute(true);
	unfinished_each(try_again, NULL);
	report_mute(muted);
}

/* Of a device that cannot be recovered, others know nothing. */
static int set_aside(struct json_object *entry)
{
	const char *name = json_string(entry, "name");

	report_warn("The interrupted '%s' of %s%s cannot be undone or finished now. Each command tries it again; until then nothing is done to what it is about.",
		    json_string(entry, "operation"),
		    *name ? "device " : "several devices", name);
	return journal_set_aside();
}

static int recover_journal(void)
{
	struct json_object *entry;
	int r = journal_read(&entry);

	if (r < 0)
		return r;
	if (entry && recover_entry(entry) < 0)
		r = set_aside(entry);
	else
		journal_clear();
	json_object_put(entry);
	return r;
}

static bool same_device(const char *name, const char *uuid)
{
	struct dm_state state = dm_query(name);

	return state.exists && !strcmp(state.uuid, uuid);
}

static struct json_object *device_layers_json(const struct device *device)
{
	struct chain chain = { NULL, device->count };
	struct json_object *layers;
	unsigned int i;

	chain.layers = grow_array(NULL, chain.count, sizeof(*chain.layers));
	memset(chain.layers, 0, chain.count * sizeof(*chain.layers));
	for (i = 0; i < chain.count; i++) {
		chain.layers[i].path = device->layers[i].path;
		chain.layers[i].format = device->layers[i].format;
		chain.layers[i].id = device->layers[i].id;
	}
	layers = layers_json(&chain);
	free(chain.layers);
	return layers;
}

/* Killed between the pivot and the note of it: what is known is of the old top. */
static void note_new_top(const char *name, struct json_object *grown)
{
	struct json_object *state = device_state_load(name);
	struct image_id id = layer_json_id(top_of(grown));
	struct device device;
	uint64_t length;

	if (!state_length(state, &id, &length) && device_load(name, &device)) {
		json_object_put(state);
		state = state_json(name, device.dm.uuid,
				   device_layers_json(&device),
				   json_number(grown, "length"));
		if (image_id_equal(&device.layers[0].id, &id))
			device_state_save(name, state);
		device_free(&device);
	}
	json_object_put(state);
}

/*
 * A layer that a job made longer, and was killed, has its writable loop device no
 * more; or a device goes on in it, whose end will cut it.
 */
static void cut_noted(struct json_object *notes, const char *key)
{
	struct json_object *state = member(notes, key);
	struct image_user user;
	struct image_id id;

	if (!state || !top_of(state))
		return;
	id = layer_json_id(top_of(state));
	if (device_uses(&id, true, &user))
		note_new_top(user.name, state);
	else
		trim_top_of(state);
	json_object_object_del(notes, key);
}

static bool cut_grown(const struct job_record *record, void *data)
{
	struct json_object *notes = job_notes(record);

	(void)data;
	if (!job_dead(record) || (!member(notes, "grown") &&
				  !member(notes, "old")))
		return false;
	cut_noted(notes, "grown");
	cut_noted(notes, "old");
	job_state_save(record->name, record->json);
	return false;
}

int recover(void)
{
	int r;

	recover_unfinished();
	r = recover_journal();
	if (r < 0)
		return r;
	job_lasting_adopt();
	/* What it cannot clean stands in nobody's way but that device's. */
	r = jobdev_clean(NULL);
	attach_prune();
	crypt_refit();
	if (!r)
		job_each(cut_grown, NULL);
	device_state_prune(same_device);
	finish_dead();
	return 0;
}

int begin_change(bool needs_dm)
{
	int r = needs_dm ? dm_available() : 0;

	if (!r)
		r = state_lock(true);
	if (!r)
		r = recover();
	/* A job that began before that was left does not go on. */
	if (!r && job_subject())
		r = unfinished_check_device(job_subject());
	return r;
}

/*
 * A journal with the lock held is that of a command at work, which is let
 * finish if it is quick, or of one that was killed, whose qemu-img still runs.
 */
static bool lock_to_look(void)
{
	struct json_object *entry;
	int tries;

	for (tries = 0; tries < LOOK_TRIES; tries++) {
		if (state_lock(false) == 0)
			return true;
		if (journal_read(&entry) < 0 || !entry)
			return false;
		json_object_put(entry);
		usleep(LOOK_MSEC * 1000);
	}
	return false;
}

int begin_look(void)
{
	int r = dm_available();

	if (r < 0)
		return r;
	if (geteuid() == 0 && lock_to_look()) {
		recover();
		state_unlock();
	}
	return 0;
}

void end_change(void)
{
	recover();
	wait_helpers_gone();
	attach_settle();
}

static bool visit_helper(const char *name, void *data)
{
	struct dm_state state = dm_query(name);

	(void)data;
	return state.exists && dm_is_helper(&state) && !state.open_count;
}

void wait_helpers_gone(void)
{
	int tries;

	for (tries = 0; tries < GONE_TRIES && dm_each(visit_helper, NULL); tries++)
		usleep(GONE_MSEC * 1000);
}
