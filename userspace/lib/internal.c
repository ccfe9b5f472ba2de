// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changes of the internal snapshots of an image.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach.h"
#include "device.h"
#include "job.h"
#include "qemu.h"
#include "report.h"
#include "state.h"

/* QEMU keeps no more of a name. */
#define NAME_MAX_BYTES	255

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

/* A cluster that all of them have, and the active state, must be counted. */
static int check_refcounts(const struct image *image)
{
	unsigned int bits = 1U << image->header.refcount_order;
	uint64_t most = bits < 64 ? (1ULL << bits) - 1 : UINT64_MAX;

	if (image->header.nb_snapshots + 2 <= most)
		return 0;
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
	in->argument = text_copy(snapshot->id);
	return 0;
}

/* It deletes by name, the first one that has it. */
static int choose_to_delete(struct internal *in, const struct snaptable *table,
			    const struct snapshot *snapshot)
{
	const struct snapshot *first = snaptable_by_name(table, snapshot->name);

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
	r = snaptable_read(&in->image, &table);
	if (!r)
		r = choose_from(in, &table);
	snaptable_free(&table);
	return r;
}

/*
 * The change
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
	default:
		return report_fail(EIO, "qemu-img failed on %s.", path);
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
	/* Nothing counts who has the clusters of that file. */
	if (image->header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
		return report_fail(EOPNOTSUPP,
				   "%s has an external data file, with which there are no internal snapshots.",
				   image->path);
	return image_check_usable(image, true);
}

static int open_image(struct internal *in, const char *path)
{
	int r;

	r = image_open(path, FORMAT_UNKNOWN, &in->image);
	return r < 0 ? r : check_closed(&in->image);
}

int internal_closed(struct internal *in, const char *path)
{
	char *subject = absolute_path(path);
	int r;

	in->image.fd = -1;
	r = job_check_none(subject);
	if (!r)
		r = open_image(in, path);
	if (!r)
		r = choose(in);
	free(subject);
	return r;
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

int internal_run(struct internal *in)
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

void internal_close(struct internal *in)
{
	image_close(&in->image);
	free(in->argument);
	json_object_put(in->entry);
}

/*
 * What the journal says
 */

int internal_recover(struct json_object *entry)
{
	const char *path = json_string(entry, "path");
	const char *id = json_string(entry, "apply");

	/* Somebody may have written to it since: it is not applied again. */
	if (path && id)
		report_warn("The command that applied internal snapshot %s to %s was killed. If qemu-img was killed, too, the image may show the snapshot in part: apply it again.",
			    id, path);
	return 0;
}
