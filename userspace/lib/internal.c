// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changes of the internal snapshots of an image.
 */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach.h"
#include "extend.h"
#include "holders.h"
#include "job.h"
#include "kernel_status.h"
#include "look.h"
#include "pivot.h"
#include "qemu.h"
#include "recover.h"
#include "refroom.h"
#include "report.h"
#include "run.h"
#include "state.h"
#include "swap.h"

/* QEMU keeps no more of a name. */
#define NAME_MAX_BYTES	255

/* A file that was made longer for writing is longer by more than padding. */
#define PADDING_MAX	65536

/*
 * Which snapshot
 */

static const char *option_of(enum internal_action action)
{
	static const char * const options[] = {
		[INTERNAL_CREATE] = "-c",
		[INTERNAL_APPLY] = "-a",
		[INTERNAL_DELETE] = "-d",
	};

	return options[action];
}

/*
 * qemu-img begins in any case, and gives up where a refcount cannot get higher: by
 * then clusters are leaked, and apply has cut the image to the snapshot's size.
 */
static int check_room(const struct image *image, uint64_t l1_offset,
		      uint32_t l1_size)
{
	int r = refroom_check(image, l1_offset, l1_size);

	if (r)
		return r < 0 ? r : 0;
	return report_fail(EOPNOTSUPP,
			   "%s has refcounts of %u bits, and clusters that are referred to as often as these can tell: delete an internal snapshot first, or make a copy with larger refcounts ('qemu-img convert -O qcow2 -o refcount_bits=16').",
			   image->path, 1U << image->header.refcount_order);
}

/* A cluster that all of them have, and the active state, must be counted. */
static int check_refcounts(const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	unsigned int bits = 1U << h->refcount_order;
	uint64_t most = bits < 64 ? (1ULL << bits) - 1 : UINT64_MAX;

	if (h->nb_snapshots + 2 <= most)
		return check_room(image, h->l1_table_offset, h->l1_size);
	return report_fail(EOPNOTSUPP,
			   "%s has refcounts of %u bits: it cannot have more than %llu internal snapshots.",
			   image->path, bits, (unsigned long long)most - 1);
}

static int choose_new(struct internal *in, const struct snaptable *table)
{
	const struct snapshot *other = snaptable_find(table, in->word);

	if (!*in->word || strlen(in->word) > NAME_MAX_BYTES)
		return report_fail(EINVAL,
				   "The name of a snapshot has 1 to %d bytes.",
				   NAME_MAX_BYTES);
	if (other)
		return report_fail(EEXIST,
				   "%s has an internal snapshot with the name or ID '%s' already (ID %s).",
				   in->image.path, in->word, other->id);
	in->argument = text_copy(in->word);
	return check_refcounts(&in->image);
}

/* qemu-img applies by ID, the first one that has it. */
static int choose_to_apply(struct internal *in, const struct snaptable *table,
			   const struct snapshot *snapshot)
{
	if (snaptable_find(table, snapshot->id) != snapshot)
		return report_fail(EMEDIUMTYPE,
				   "%s has several internal snapshots with the ID '%s': only the first can be applied.",
				   in->image.path, snapshot->id);
	/* They would have to say what differs from before. */
	if (in->image.header.autoclear & QCOW2_AUTOCLEAR_BITMAPS)
		return report_fail(EOPNOTSUPP,
				   "%s has persistent bitmaps, with which QEMU applies no snapshot: remove them first (qemu-img bitmap --remove).",
				   in->image.path);
	/* It would be as long: no table can be, and it would stay suspended. */
	if (!snapshot->size && in->device.count)
		return report_fail(EMEDIUMTYPE,
				   "Internal snapshot %s was taken with a virtual size of 0, and no block device can have that: close device %s first.",
				   in->word, in->device.name);
	in->argument = text_copy(snapshot->id);
	if (snapshot->size > in->size)
		in->size = snapshot->size;
	/* It refers to them once more before it drops the present state. */
	return check_room(&in->image, snapshot->entry.l1_table_offset,
			  snapshot->entry.l1_size);
}

/* It deletes by name, the first one that has it. */
static int choose_to_delete(struct internal *in, const struct snaptable *table,
			    const struct snapshot *snapshot)
{
	const struct snapshot *first = snaptable_by_name(table, snapshot->name);

	char *shown = device_shows(&in->image.id, snapshot->id);

	if (shown) {
		report_fail(EBUSY, "Internal snapshot %s is open as device %s.",
			    snapshot->id, shown);
		free(shown);
		return -EBUSY;
	}
	if (first != snapshot)
		return report_fail(EOPNOTSUPP,
				   "The internal snapshots %s and %s are both called '%s': the first has to be deleted before the other.",
				   first->id, snapshot->id, snapshot->name);
	in->argument = text_copy(snapshot->name);
	return 0;
}

static int choose_from(struct internal *in, const struct snaptable *table)
{
	const struct snapshot *snapshot;

	if (in->action == INTERNAL_CREATE)
		return choose_new(in, table);
	snapshot = snaptable_find(table, in->word);
	if (!snapshot)
		return report_fail(ENOENT,
				   "%s has no internal snapshot '%s'; 'qcow2setup internal list' shows those it has.",
				   in->image.path, in->word);
	return in->action == INTERNAL_APPLY ?
		choose_to_apply(in, table, snapshot) :
		choose_to_delete(in, table, snapshot);
}

static int choose(struct internal *in)
{
	struct snaptable table;
	int r;

	free(in->argument);
	in->argument = NULL;
	in->size = in->image.size;
	/* Nothing counts who has the clusters of that file. */
	if (image_external(&in->image))
		return report_fail(EOPNOTSUPP,
				   "%s has an external data file, with which there are no internal snapshots.",
				   in->image.path);
	r = snaptable_read(&in->image, &table);
	if (!r)
		r = choose_from(in, &table);
	snaptable_free(&table);
	return r;
}

/*
 * An image that is not open
 */

static int report_edit(const struct internal *in, int r)
{
	const char *path = in->image.path;

	if (r == -EINTR && in->action == INTERNAL_APPLY)
		return report_fail(EINTR,
				   "qemu-img was killed: %s may show the snapshot in part: apply it again.",
				   path);
	switch (r) {
	case 0:
		return 0;
	case -ENOENT:
		return qemu_missing();
	case -EINTR:
		return report_fail(EINTR,
				   "qemu-img was killed: %s may have leaked clusters, which 'qcow2setup check --repair' frees when it is not open.",
				   path);
	case -EIO:
		return report_fail(EIO, "qemu-img failed on %s.", path);
	default:
		return r;
	}
}

/* Through the descriptor that has the locks: it is the same image, then. */
static int edit_locked(const struct internal *in, int fd)
{
	char *path = text("/proc/self/fd/%d", fd);
	struct qemu_snapshot edit = {
		.option = option_of(in->action),
		.name = in->argument,
		.path = path,
		.is_device = in->image.is_device,
		.keep = fd,
		.errors = -1,
		.passphrase = in->passphrase,
	};
	int r;

	r = qemu_snapshot(&edit);
	free(path);
	if (!r && fsync(fd) < 0)
		return report_errno(errno, "Cannot write %s", in->image.path);
	return report_edit(in, r);
}

/*
 * Only an interrupted apply matters: half of the old state may be there, and
 * half of the new one.
 */
static int write_journal(struct internal *in)
{
	if (in->action != INTERNAL_APPLY)
		return 0;
	json_set_string(in->entry, "path", in->image.path);
	json_set_string(in->entry, "apply", in->argument);
	return journal_write(in->entry);
}

static int check_closed(const struct image *image)
{
	struct image_user user;

	if (device_uses(&image->id, false, &user))
		return device_refuse(image->path, &user);
	return image_check_usable(image, true);
}

static int open_image(struct internal *in, const char *path)
{
	int r;

	r = image_open(path, FORMAT_UNKNOWN, &in->image);
	return r < 0 ? r : check_closed(&in->image);
}

/* What stands on the image would read as something else. */
static int check_overlays(const struct internal *in)
{
	struct image image = in->image;
	const struct image *victim = &image;
	struct chain alone = { .layers = &image, .count = 1 };
	struct users users = in->users;

	users.chain = &alone;
	return users_check(&users, &victim, 1);
}

/* qemu-img opens nothing that it cannot decrypt. */
static int unlock(struct internal *in)
{
	int r = unlock_image(in->unlock, &in->image);

	if (!r)
		in->passphrase = unlock_passphrase(in->unlock, &in->image);
	return r;
}

int internal_closed(struct internal *in, const char *path)
{
	char *subject = absolute_path(path);
	int r;

	in->image.fd = -1;
	in->errors = -1;
	r = job_check_none(subject);
	if (!r)
		r = open_image(in, path);
	if (!r)
		r = choose(in);
	if (!r && in->action == INTERNAL_APPLY)
		r = check_overlays(in);
	free(subject);
	return r < 0 ? r : unlock(in);
}

/* What was read before it was locked may have changed. */
static int look_again(struct internal *in)
{
	char *path = text_copy(in->image.path);
	struct image_id id = in->image.id;
	int r;

	image_close(&in->image);
	r = open_image(in, path);
	if (!r && !image_id_equal(&in->image.id, &id))
		r = report_fail(EBUSY,
				"%s was replaced while it was being opened.",
				path);
	if (!r)
		r = choose(in);
	free(path);
	return r;
}

static int run_closed(struct internal *in)
{
	struct attachment attachment;
	int r;

	r = attach_write_lock(&in->image, false, &attachment);
	if (!r)
		r = look_again(in);
	if (!r)
		r = write_journal(in);
	if (!r) {
		r = edit_locked(in, attachment.file);
		journal_clear();
	}
	attach_release(&attachment, false);
	return r;
}

/*
 * An open device
 */

static int check_space(const struct device *device)
{
	struct kernel_status status;

	if (!kernel_status_read(device->name, &status) ||
	    strcmp(status.mode, "no_space"))
		return 0;
	return report_fail(ENOSPC,
			   "Device %s waits for space: what it still has to write would be lost.",
			   device->name);
}

static int check_device(const struct internal *in)
{
	const struct device *device = &in->device;
	int r;

	if (device->snapshot)
		return report_fail(EROFS,
				   "Device %s shows internal snapshot %s; take the device that writes to the image.",
				   device->name, device->snapshot);
	if (device->dm.read_only)
		return report_fail(EROFS, "Device %s is read-only.",
				   device->name);
	if (device->layers[0].format != FORMAT_QCOW2)
		return report_fail(EMEDIUMTYPE,
				   "Device %s writes to a raw image, which has no internal snapshots.",
				   device->name);
	r = pivot_check(device);
	if (!r)
		r = check_space(device);
	return r;
}

int internal_device(struct internal *in, const char *name)
{
	int r;

	in->image.fd = -1;
	in->errors = -1;
	r = device_name_check(name);
	if (r < 0)
		return r;
	if (!device_load(name, &in->device))
		return device_inactive(name);
	r = job_check_none(name);
	if (!r)
		r = check_device(in);
	if (!r)
		r = look_layer(&in->device, 0, &in->image);
	if (!r)
		r = choose(in);
	if (!r && in->action == INTERNAL_APPLY)
		r = holders_check(name);
	if (!r)
		r = freeze_check(in->freeze);
	return r < 0 ? r : unlock(in);
}

/*
 * All clusters may be needed once more. Only a file that open made longer gets
 * longer; a snapshot that is deleted needs nothing.
 */
static int make_room(const struct internal *in)
{
	struct json_object *state = device_state_load(in->device.name);
	struct image image = in->image;
	uint64_t length;
	bool grown;

	grown = state_length(state, &image.id, &length) &&
		image.length > length + PADDING_MAX;
	json_object_put(state);
	if (!grown || in->action == INTERNAL_DELETE)
		return 0;
	image.size = in->size;
	return extend_file(in->device.name, &image, true);
}

/*
 * While the device stands still, in a process of its own. No messages here.
 */

static int edit_live(enum internal_action action, const char *argument,
		     const struct device *device,
		     const struct passphrase *passphrase, int errors)
{
	char *path = path_of_device(device->layers[0].device);
	struct qemu_snapshot edit = {
		.option = option_of(action),
		.name = argument,
		.path = path,
		.is_device = true,
		.keep = -1,
		.errors = errors,
		.passphrase = passphrase,
	};
	int r = qemu_snapshot(&edit);

	free(path);
	return r;
}

/*
 * Could the kernel write all that it had? And for apply: whoever opens the device
 * from here on reads nothing before the resume.
 */
static int begin_edit(struct internal *in)
{
	const char *name = in->device.name;
	struct kernel_status status;

	if (!kernel_status_read(name, &status) || strcmp(status.mode, "rw"))
		return -EROFS;
	if (in->action != INTERNAL_APPLY)
		return 0;
	if (dm_query(name).open_count)
		return -EBUSY;
	json_set_string(in->entry, "apply", in->argument);
	return journal_write(in->entry) < 0 ? -ECANCELED : 0;
}

/* As long as the header says */
static int fit_table(const struct device *device)
{
	struct pivot pivot = pivot_same(device);
	struct image image;
	int r;

	r = look_layer(device, 0, &image);
	if (!r)
		pivot.sectors = device_sectors_of(image.size);
	image_close(&image);
	if (r < 0 || (pivot.sectors == device->sectors && !device->dm.loaded))
		return r;
	return pivot_load(device, &pivot);
}

static int edit_device(void *data)
{
	struct internal *in = data;
	bool apply = in->action == INTERNAL_APPLY;
	int r = begin_edit(in);

	if (r < 0)
		return r;
	r = edit_live(in->action, in->argument, &in->device, in->passphrase,
		      in->errors);
	/* It may have been carried out in part. */
	if (r == -EINTR && apply)
		r = edit_live(in->action, in->argument, &in->device,
			      in->passphrase, in->errors);
	if (!r && apply && fit_table(&in->device) < 0)
		r = -ERANGE;
	return r;
}

/*
 * Before and after
 */

static int report_live(const struct internal *in, int r)
{
	const char *name = in->device.name;

	switch (r) {
	case -EROFS:
		return report_fail(EIO,
				   "Device %s could not write everything to its image: nothing was changed; the kernel's log says why.",
				   name);
	case -EBUSY:
		return report_fail(EBUSY,
				   "Device %s was opened in the meantime: nothing was changed.",
				   name);
	case -ECANCELED:
		return report_fail(EIO,
				   "Cannot write the journal: nothing was changed.");
	case -ERANGE:
		return report_fail(EAGAIN,
				   "Device %s could not take the size of the snapshot at once.",
				   name);
	case -ENOENT:
	case -EINTR:
	case -EIO:
		return report_edit(in, r);
	default:
		return report_errno(-r, "Cannot start qemu-img");
	}
}

static int swap_device(struct internal *in, struct swap *swap)
{
	int r;

	json_object_object_add(in->entry, "freeze", freeze_json(in->freeze));
	r = journal_write(in->entry);
	if (!r)
		r = swap_run(swap);
	if (swap->thawed)
		json_object_object_del(in->entry, "freeze");
	if (swap->thawed)
		journal_write(in->entry);
	run_print_errors(in->errors, NULL, NULL);
	return swap->edit_error ? report_live(in, swap->edit_error) : r;
}

static int run_device(struct internal *in)
{
	const struct device *device = &in->device;
	struct swap swap = {
		.devices = &device,
		.count = 1,
		.freeze = in->freeze,
		.edit = edit_device,
		.data = in,
	};
	int r;

	r = swap_check(&swap);
	if (!r)
		r = make_room(in);
	if (r < 0)
		return r;
	in->errors = run_errors();
	if (in->errors < 0)
		return in->errors;
	r = swap_device(in, &swap);
	close(in->errors);
	return r;
}

int internal_run(struct internal *in)
{
	return in->device.count ? run_device(in) : run_closed(in);
}

void internal_close(struct internal *in)
{
	device_free(&in->device);
	image_close(&in->image);
	free(in->argument);
	json_object_put(in->entry);
}

/*
 * What the journal says
 */

/*
 * Nobody has written since, so that it can be applied again, where that takes no
 * passphrase. What the device had loaded may have the wrong length, and the old
 * table, too. Messages may be for a file on the device: they come when it goes on.
 */
static int resume_device(const struct device *device, const char *id)
{
	struct pivot same = pivot_same(device);
	int errors, edit = 0, r;

	report_mute(true);
	errors = run_errors();
	if (id)
		edit = edit_live(INTERNAL_APPLY, id, device, NULL, errors);
	r = fit_table(device);
	if (r < 0)
		r = pivot_load(device, &same);
	report_mute(false);
	if (!r)
		r = dm_resume(device->name);
	if (errors >= 0) {
		run_print_errors(errors, NULL, NULL);
		close(errors);
	}
	if (edit < 0)
		report_warn("%s may show internal snapshot %s in part: apply it again.",
			    device->layers[0].path, id);
	return r;
}

static int recover_device(struct json_object *entry, const char *name)
{
	struct device device;
	int r = 0;

	if (!device_load(name, &device))
		return 0;
	if (!strcmp(device.dm.uuid, json_string(entry, "uuid"))) {
		if (device.dm.suspended)
			r = resume_device(&device, json_string(entry, "apply"));
		else if (device.dm.loaded)
			r = dm_clear(name);
	}
	device_free(&device);
	return r;
}

int internal_recover(struct json_object *entry)
{
	const char *name = json_string(entry, "name");
	const char *path = json_string(entry, "path");
	const char *id = json_string(entry, "apply");
	struct json_object *freeze = NULL;
	int r = 0;

	if (*name)
		r = recover_device(entry, name);
	/* Somebody may have written to it since: it is not applied again. */
	else if (path && id)
		report_warn("The command that applied internal snapshot %s to %s was killed. If qemu-img was killed, too, the image may show the snapshot in part: apply it again.",
			    id, path);
	json_object_object_get_ex(entry, "freeze", &freeze);
	/* No more than a warning: whoever was frozen may be gone. */
	freeze_undo(freeze);
	return r;
}
