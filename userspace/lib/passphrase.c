// SPDX-License-Identifier: GPL-2.0-only
/*
 * Passphrases of encrypted images.
 */
#include "passphrase.h"

#include <errno.h>
#include <libcryptsetup.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "image.h"
#include "report.h"
#include "terminal.h"

/* As cryptsetup has it */
#define LINE_MAX_BYTES	512

static void no_log(int level, const char *message, void *data)
{
	(void)level;
	(void)message;
	(void)data;
}

void passphrases_quiet(void)
{
	crypt_set_log_callback(NULL, no_log, NULL);
}

static int passphrase_set(struct passphrase *passphrase, const char *data,
			  size_t size)
{
	passphrase->data = crypt_safe_alloc(size ? size : 1);
	if (!passphrase->data)
		return report_memory();
	memcpy(passphrase->data, data, size);
	passphrase->size = size;
	return 0;
}

int passphrase_copy(const struct passphrase *from, struct passphrase *copy)
{
	return passphrase_set(copy, from->data, from->size);
}

int passphrases_add(struct passphrases *all, const char *argument)
{
	const char *equal = strrchr(argument, '=');
	struct key_file *file;

	if (access(argument, F_OK) == 0)
		equal = NULL;
	if (!*argument || equal == argument || (equal && !equal[1]))
		return report_fail(EINVAL,
				   "--key-file needs FILE or IMAGE=FILE, not '%s'.",
				   argument);
	all->files = grow_array(all->files, all->file_count,
				sizeof(*all->files));
	file = &all->files[all->file_count++];
	memset(file, 0, sizeof(*file));
	if (equal)
		file->image = text("%.*s", (int)(equal - argument), argument);
	file->file = text_copy(equal ? equal + 1 : argument);
	return 0;
}

void passphrases_free(struct passphrases *all)
{
	while (all->file_count) {
		struct key_file *file = &all->files[--all->file_count];

		free(file->image);
		free(file->file);
		crypt_safe_free(file->passphrase.data);
	}
	while (all->entered_count) {
		struct entered *entered = &all->entered[--all->entered_count];

		free(entered->path);
		crypt_safe_free(entered->passphrase.data);
	}
	free(all->files);
	free(all->entered);
	memset(all, 0, sizeof(*all));
}

void passphrase_lock(const void *data, size_t size)
{
	/* Where there is no right to, libcryptsetup goes on as well. */
	if (data)
		mlock(data, size);
}

void passphrases_lock(const struct passphrases *all)
{
	const struct passphrase *passphrase;
	unsigned int i;

	for (i = 0; i < all->file_count; i++) {
		passphrase = &all->files[i].passphrase;
		passphrase_lock(passphrase->data, passphrase->size);
	}
	for (i = 0; i < all->entered_count; i++) {
		passphrase = &all->entered[i].passphrase;
		passphrase_lock(passphrase->data, passphrase->size);
	}
}

/*
 * Key files
 */

/* All of it counts, newlines as well; of standard input, too. */
static int read_file(struct key_file *file)
{
	const char *path = strcmp(file->file, "-") ? file->file : NULL;
	int r;

	if (file->read)
		return 0;
	if (path && access(path, R_OK) < 0)
		return report_errno(errno, "Cannot read key file %s", path);
	passphrases_quiet();
	r = crypt_keyfile_device_read(NULL, path, &file->passphrase.data,
				      &file->passphrase.size, 0, 0, 0);
	if (r < 0)
		return report_fail(EIO, "Cannot read key file %s.", file->file);
	file->read = true;
	return 0;
}

/* An image that is to be made has no inode yet: its path tells. */
static bool is_for(const struct key_file *file, const char *path)
{
	struct image_id wanted, id;
	char *absolute;
	bool same;

	if (!file->image)
		return false;
	if (image_id_of_path(path, &wanted) &&
	    image_id_of_path(file->image, &id) && image_id_equal(&wanted, &id))
		return true;
	absolute = absolute_path(file->image);
	same = !strcmp(absolute, path);
	free(absolute);
	return same;
}

static struct key_file *own_file(const struct passphrases *all,
				 const char *path)
{
	unsigned int i;

	for (i = 0; i < all->file_count; i++) {
		if (is_for(&all->files[i], path))
			return &all->files[i];
	}
	return NULL;
}

/* Key file number @number of those for all images, or NULL */
static struct key_file *common_file(const struct passphrases *all,
				    unsigned int number)
{
	unsigned int i;

	for (i = 0; i < all->file_count; i++) {
		if (!all->files[i].image && !number--)
			return &all->files[i];
	}
	return NULL;
}

static int use_file(struct key_file *file, const struct passphrase **result)
{
	int r = read_file(file);

	*result = &file->passphrase;
	return r < 0 ? r : 1;
}

/*
 * Entered
 */

/* What was entered for the image comes first, the last first; then for others. */
static const struct passphrase *entered(const struct passphrases *all,
					const char *path, bool others,
					unsigned int number)
{
	unsigned int i;

	for (i = all->entered_count; i--;) {
		if (!strcmp(all->entered[i].path, path) != others && !number--)
			return &all->entered[i].passphrase;
	}
	return others ? NULL : entered(all, path, true, number);
}

int passphrase_known(struct passphrases *all, const char *path,
		     unsigned int number, const struct passphrase **result)
{
	struct key_file *file = own_file(all, path);

	if (file)
		return number ? 0 : use_file(file, result);
	file = common_file(all, number);
	if (file)
		return use_file(file, result);
	if (!passphrase_may_ask(all, path))
		return 0;
	*result = entered(all, path, false, number);
	return *result ? 1 : 0;
}

int passphrase_of_new(struct passphrases *all, const char *path,
		      const struct passphrase **result)
{
	unsigned int i;

	if (!passphrase_may_ask(all, path))
		return passphrase_known(all, path, 0, result);
	for (i = all->entered_count; i--;) {
		*result = &all->entered[i].passphrase;
		if (!strcmp(all->entered[i].path, path))
			return 1;
	}
	return 0;
}

bool passphrase_may_ask(const struct passphrases *all, const char *path)
{
	return !own_file(all, path) && !common_file(all, 0);
}

bool passphrase_may_repeat(void)
{
	return isatty(STDIN_FILENO);
}

static int ask_once(const char *path, const char *what,
		    char line[LINE_MAX_BYTES])
{
	char *prompt = text("%s passphrase for %s: ", what, path);
	int r = terminal_ask(prompt, line, LINE_MAX_BYTES);

	free(prompt);
	if (r == -EINTR)
		return report_fail(ENOKEY, "No passphrase was entered.");
	return r;
}

/* Return: length of the line; or an error, reported */
static int ask_twice(const char *path, char line[LINE_MAX_BYTES])
{
	char again[LINE_MAX_BYTES];
	int r = ask_once(path, "Enter", line), second;

	if (!r)
		return report_fail(EINVAL, "The passphrase is empty.");
	if (r < 0)
		return r;
	second = ask_once(path, "Verify", again);
	if (second >= 0 && (second != r || memcmp(line, again, r)))
		second = report_fail(EINVAL, "The passphrases differ.");
	crypt_safe_memzero(again, sizeof(again));
	return second;
}

/* Not through a buffer: what follows is for others. */
static int read_input(const char *path, bool new, char line[LINE_MAX_BYTES])
{
	size_t size = 0;
	ssize_t n;

	while (size < LINE_MAX_BYTES &&
	       (n = read(STDIN_FILENO, line + size, 1)) == 1 &&
	       line[size] != '\n')
		size++;
	if (size && size < LINE_MAX_BYTES)
		return size;
	return report_fail(ENOKEY,
			   "%s is %s: give its passphrase with --key-file FILE.",
			   path, new ? "to be encrypted" : "encrypted");
}

static int add_entered(struct passphrases *all, const char *path,
		       const char *line, size_t size)
{
	struct entered *new;

	all->entered = grow_array(all->entered, all->entered_count,
				  sizeof(*all->entered));
	new = &all->entered[all->entered_count++];
	new->path = text_copy(path);
	new->passphrase.data = NULL;
	return passphrase_set(&new->passphrase, line, size);
}

int passphrase_ask(struct passphrases *all, const char *path, bool new,
		   const struct passphrase **result)
{
	char line[LINE_MAX_BYTES];
	int r;

	if (!isatty(STDIN_FILENO))
		r = read_input(path, new, line);
	else
		r = new ? ask_twice(path, line) : ask_once(path, "Enter", line);
	if (r >= 0)
		r = add_entered(all, path, line, r);
	crypt_safe_memzero(line, sizeof(line));
	if (!r)
		*result = &all->entered[all->entered_count - 1].passphrase;
	return r;
}
