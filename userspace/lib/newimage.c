// SPDX-License-Identifier: GPL-2.0-only
/*
 * Making an image so that it can be undone.
 */
#include "newimage.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attach.h"
#include "device.h"
#include "durable.h"
#include "image.h"
#include "lock.h"
#include "report.h"
#include "state.h"

static int check_free_device(const char *path)
{
	int fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC);

	if (fd < 0 && errno == EBUSY)
		return report_fail(EBUSY, "%s is in use.", path);
	if (fd < 0)
		return report_errno(errno, "Cannot open %s for writing", path);
	close(fd);
	return 0;
}

static int check_existing(const char *path, const struct stat *st)
{
	struct image_id id = image_id_of(st);
	struct image_user user;

	if (device_uses(&id, false, &user))
		return device_refuse(path, &user);
	if (S_ISBLK(st->st_mode))
		return check_free_device(path);
	if (!S_ISREG(st->st_mode))
		return report_fail(ENOTBLK,
				   "%s is neither a file nor a block device.",
				   path);
	if (st->st_size)
		return report_fail(EEXIST, "%s already exists.", path);
	return 0;
}

int new_image_path(const char *word, char **path)
{
	struct stat st;

	*path = NULL;
	if (!*word)
		return report_fail(EINVAL, "The name of the image is empty.");
	*path = absolute_path(word);
	if (stat(*path, &st) == 0)
		return check_existing(*path, &st);
	if (errno != ENOENT)
		return report_errno(errno, "Cannot create %s", *path);
	if (!strchr(word, '/') && strlen(word) < DM_NAME_MAX &&
	    dm_query(word).exists)
		return report_fail(EEXIST,
				   "%s is the name of a device; for a file say ./%s.",
				   word, word);
	return 0;
}

/* Members of the journal entry: the image, its external data file */
#define NEW_IMAGE	"new"
#define NEW_DATA	"new-data"

static void note(struct json_object *journal, const char *key,
		 const char *path, const struct image_id *id)
{
	struct json_object *entry = json_object_new_object();

	json_set_string(entry, "path", path);
	json_set_number(entry, "dev", id->dev);
	json_set_number(entry, "ino", id->ino);
	json_object_object_add(journal, key, entry);
}

void new_image_note(struct json_object *journal, const char *path,
		    const struct image_id *id)
{
	note(journal, NEW_IMAGE, path, id);
}

int new_image_drop(const char *made)
{
	struct image image;
	int r;

	if (access(made, F_OK) < 0)
		return 0;
	r = image_open(made, FORMAT_RAW, &image);
	if (!r)
		r = attach_check_unused(&image, ROLE_WRITE);
	image_close(&image);
	if (!r && unlink(made) < 0)
		r = report_errno(errno, "Cannot delete %s", made);
	return r;
}

/* @made: where the file of that entry is until it is whole */
static void note_made(struct json_object *journal, const char *key,
		      const char *made)
{
	struct json_object *entry;

	if (json_object_object_get_ex(journal, key, &entry))
		json_set_string(entry, "made", made);
}

static int make_file(struct json_object *journal, const char *key,
		     const char *path, const char *made)
{
	struct image_id id;
	struct stat st;
	int fd, r = 0;

	fd = open(made, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		return report_errno(errno, "Cannot create %s", made);
	if (fstat(fd, &st) < 0)
		r = report_errno(errno, "Cannot stat %s", made);
	close(fd);
	if (r < 0)
		return r;
	id = image_id_of(&st);
	note(journal, key, path, &id);
	note_made(journal, key, made);
	return journal_write(journal);
}

static int make_missing(struct json_object *journal, const char *key,
			const char *path, const char *made)
{
	const struct image_id none = { 0 };
	int r;

	if (!path || access(path, F_OK) == 0)
		return 0;
	note(journal, key, path, &none);
	note_made(journal, key, made);
	r = journal_write(journal);
	return r < 0 ? r : make_file(journal, key, path, made);
}

/* It is whole: it gets its name, unless somebody else has that by now. */
static int give_name(const char *made, const char *path)
{
	int r = renameat2(AT_FDCWD, made, AT_FDCWD, path, RENAME_NOREPLACE);

	/* Not every file system can tell that at once. */
	if (r < 0 && errno == EINVAL && access(path, F_OK) < 0)
		r = rename(made, path);
	return r < 0 ? report_errno(errno, "Cannot rename %s to %s", made, path) :
		durable_name(path);
}

/* A file that is there already stays what it is, with its owner. */
static bool is_direct(const struct new_image *image)
{
	size_t length = strlen(strrchr(image->path, '/') + 1);

	return image->unnamed || access(image->path, F_OK) == 0 ||
		length + strlen(NEW_PARTIAL) > NAME_MAX;
}

/* A power cut leaves no journal: what has the name of an image is one. */
static int make_image(struct json_object *journal, const struct new_image *image)
{
	bool direct = is_direct(image);
	struct new_image made = *image;
	char *partial = text("%s" NEW_PARTIAL, image->path);
	int r;

	if (!direct)
		made.path = partial;
	r = direct ? 0 : new_image_drop(partial);
	if (!r)
		r = make_missing(journal, NEW_IMAGE, image->path, made.path);
	if (!r)
		r = make_missing(journal, NEW_DATA, image->data, image->data);
	if (!r)
		r = qemu_create(&made, image->path);
	if (!r && !direct)
		r = give_name(partial, image->path);
	free(partial);
	return r;
}

int new_image_make(struct json_object *journal, const struct new_image *image)
{
	int r = journal_write(journal);

	if (!r)
		r = make_image(journal, image);
	/* Here it is known that nobody else has it, whatever is in it. */
	if (r < 0)
		new_image_undo(journal);
	return r;
}

/* Killed before the inode was written down: the file is still empty. */
static int is_made(struct json_object *entry, const struct stat *st)
{
	if (!json_number(entry, "ino"))
		return st->st_size == 0;
	return st->st_ino == json_number(entry, "ino") &&
		st->st_dev == json_number(entry, "dev");
}

static bool is_made_at(struct json_object *entry, const char *path,
		       struct stat *st)
{
	return path && lstat(path, st) == 0 && S_ISREG(st->st_mode) &&
		is_made(entry, st);
}

/* Return: where the file that was made is, if it is still there; or NULL */
static const char *made_file(struct json_object *journal, const char *key,
			     struct stat *st)
{
	const char *path, *made;
	struct json_object *entry;

	if (!json_object_object_get_ex(journal, key, &entry))
		return NULL;
	path = json_string(entry, "path");
	made = json_string(entry, "made");
	if (is_made_at(entry, made, st))
		return made;
	/* Of no inode it has not got its name yet: what is there is another's. */
	if (made && path && strcmp(made, path) && !json_number(entry, "ino"))
		return NULL;
	return is_made_at(entry, path, st) ? path : NULL;
}

static void undo(struct json_object *journal, const char *key)
{
	struct stat st;
	const char *path = made_file(journal, key, &st);

	if (path)
		unlink(path);
}

void new_image_undo(struct json_object *journal)
{
	undo(journal, NEW_IMAGE);
	undo(journal, NEW_DATA);
}

static bool has_nothing(const struct image *image)
{
	int fd = image_reopen(image, O_RDWR);
	bool nothing;

	if (fd < 0)
		return false;
	nothing = lock_acquire(fd, ROLE_WRITE, NULL) == 0 &&
		image_is_empty(image) > 0;
	close(fd);
	return nothing;
}

/* As it was made: no guest has written to it, and nobody has it open. */
static bool is_fresh(const char *path, const struct stat *st)
{
	bool muted = report_muted(), fresh;
	struct image image;

	if (!st->st_size)
		return true;
	report_mute(true);
	fresh = image_open(path, FORMAT_QCOW2, &image) == 0 && has_nothing(&image);
	report_mute(muted);
	image_close(&image);
	return fresh;
}

static void keep(const char *path)
{
	report_warn("%s is from a command that was killed while it made it, and is in use, or is not empty: it is kept.",
		    path);
}

void new_image_recover(struct json_object *journal)
{
	struct stat st;
	const char *path = made_file(journal, NEW_IMAGE, &st);
	bool fresh = path && is_fresh(path, &st);

	if (fresh)
		unlink(path);
	else if (path)
		keep(path);
	/* An image without data has none there. */
	path = made_file(journal, NEW_DATA, &st);
	if (path && (fresh || !st.st_size))
		unlink(path);
	else if (path)
		keep(path);
}
