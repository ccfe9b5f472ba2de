// SPDX-License-Identifier: GPL-2.0-only
/*
 * Making an image so that it can be undone.
 */
#include "newimage.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
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

static int make_file(struct json_object *journal, const char *key,
		     const char *path)
{
	struct image_id id;
	struct stat st;
	int fd, r = 0;

	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		return report_errno(errno, "Cannot create %s", path);
	if (fstat(fd, &st) < 0)
		r = report_errno(errno, "Cannot stat %s", path);
	close(fd);
	if (r < 0)
		return r;
	id = image_id_of(&st);
	note(journal, key, path, &id);
	return journal_write(journal);
}

static int make_missing(struct json_object *journal, const char *key,
			const char *path)
{
	const struct image_id none = { 0 };
	int r;

	if (!path || access(path, F_OK) == 0)
		return 0;
	note(journal, key, path, &none);
	r = journal_write(journal);
	return r < 0 ? r : make_file(journal, key, path);
}

int new_image_make(struct json_object *journal, const struct new_image *image)
{
	int r = journal_write(journal);

	if (!r)
		r = make_missing(journal, NEW_IMAGE, image->path);
	if (!r)
		r = make_missing(journal, NEW_DATA, image->data);
	if (!r)
		r = qemu_create(image);
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

/* Return: the path, if the file that was made is still there, and is it; or NULL */
static const char *made_file(struct json_object *journal, const char *key,
			     struct stat *st)
{
	struct json_object *entry;
	const char *path;

	if (!json_object_object_get_ex(journal, key, &entry))
		return NULL;
	path = json_string(entry, "path");
	return path && lstat(path, st) == 0 && S_ISREG(st->st_mode) &&
		is_made(entry, st) ? path : NULL;
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
