// SPDX-License-Identifier: GPL-2.0-only
/*
 * Volume keys of encrypted images.
 */
#include "unlock.h"

#include <errno.h>
#include <libcryptsetup.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dm.h"
#include "keyring.h"
#include "report.h"

/* As cryptsetup has it */
#define TRIES_MAX	3

void unlock_free(struct unlock *unlock)
{
	while (unlock->count) {
		crypt_safe_free(unlock->images[--unlock->count].key);
		crypt_safe_free(unlock->images[unlock->count].passphrase.data);
	}
	while (unlock->wanted_count)
		free(unlock->wanted[--unlock->wanted_count].path);
	free(unlock->images);
	free(unlock->wanted);
	unlock->images = NULL;
	unlock->wanted = NULL;
	passphrases_free(&unlock->passphrases);
}

void unlock_lock_memory(const struct unlock *unlock)
{
	const struct unlocked *image;
	unsigned int i;

	for (i = 0; i < unlock->count; i++) {
		image = &unlock->images[i];
		passphrase_lock(image->key, image->size);
		passphrase_lock(image->passphrase.data, image->passphrase.size);
	}
	passphrases_lock(&unlock->passphrases);
}

/* libcryptsetup takes headers from files: this one has just the header. */
static int header_file(const struct image *image)
{
	size_t length;
	void *area;
	int fd;

	area = luks_area(image, &length);
	if (!area)
		return -EIO;
	fd = memfd_create("qcow2setup-luks", MFD_CLOEXEC);
	if (fd < 0) {
		fd = report_errno(errno, "Cannot create a file in memory");
	} else if (write(fd, area, length) != (ssize_t)length) {
		close(fd);
		fd = report_errno(EIO, "Cannot write a file in memory");
	}
	free(area);
	return fd;
}

/* The error is not about the command line. */
static int refuse(const struct image *image, int error, const char *what)
{
	int r = report_errno(-error, "%s: %s", image->path, what);

	return r == -EINVAL ? -EMEDIUMTYPE : r;
}

static int load_header(const struct image *image, int fd,
		       struct crypt_device **cd)
{
	char *path = text("/proc/self/fd/%d", fd);
	int r;

	passphrases_quiet();
	r = crypt_init(cd, path);
	if (!r)
		r = crypt_load(*cd, CRYPT_LUKS1, NULL);
	free(path);
	return r < 0 ? refuse(image, r, "the LUKS header cannot be used") : 0;
}

/* Return: 0, -EPERM for a wrong passphrase, or another error, reported */
static int get_key(const struct image *image, struct crypt_device *cd,
		   const struct passphrase *passphrase, struct unlocked *result)
{
	int r;

	result->size = crypt_get_volume_key_size(cd);
	result->key = crypt_safe_alloc(result->size);
	if (!result->key)
		return report_memory();
	r = crypt_volume_key_get(cd, CRYPT_ANY_SLOT, result->key, &result->size,
				 passphrase->data, passphrase->size);
	if (r >= 0)
		return 0;
	crypt_safe_free(result->key);
	result->key = NULL;
	if (r == -EPERM || r == -ENOENT)
		return -EPERM;
	return refuse(image, r, "the key slots cannot be read");
}

/*
 * With the header loaded
 */

static int refuse_wrong(const char *path)
{
	return report_fail(ENOKEY, "No key slot of %s takes this passphrase.",
			   path);
}

static int refuse_files(const char *path)
{
	return report_fail(ENOKEY,
			   "No key slot of %s takes what is in the key file: give that of this image with --key-file '%s=FILE'.",
			   path, path);
}

static int try_one(const struct image *image, struct crypt_device *cd,
		   const struct passphrase *passphrase,
		   struct unlocked *result)
{
	int r = get_key(image, cd, passphrase, result);

	return r < 0 ? r : passphrase_copy(passphrase, &result->passphrase);
}

/* Return: 0; -EPERM if none of them fits; or another error, reported */
static int try_known(struct passphrases *passphrases, const struct image *image,
		     struct crypt_device *cd, struct unlocked *result)
{
	const struct passphrase *passphrase;
	unsigned int number = 0;
	int r;

	do {
		r = passphrase_known(passphrases, image->path, number++,
				     &passphrase);
		if (r <= 0)
			return r ? r : -EPERM;
		r = try_one(image, cd, passphrase, result);
	} while (r == -EPERM);
	return r;
}

static int ask_and_try(struct passphrases *passphrases,
		       const struct image *image, struct crypt_device *cd,
		       struct unlocked *result)
{
	unsigned int tries = passphrase_may_repeat() ? TRIES_MAX : 1;
	const struct passphrase *passphrase;
	int r;

	do {
		r = passphrase_ask(passphrases, image->path, false,
				   &passphrase);
		if (!r)
			r = try_one(image, cd, passphrase, result);
		if (r != -EPERM)
			return r;
		r = refuse_wrong(image->path);
	} while (--tries);
	return r;
}

static int find_passphrase(struct passphrases *passphrases,
			   const struct image *image, struct crypt_device *cd,
			   struct unlocked *result)
{
	int r = try_known(passphrases, image, cd, result);

	if (r != -EPERM)
		return r;
	if (!passphrase_may_ask(passphrases, image->path))
		return refuse_files(image->path);
	return ask_and_try(passphrases, image, cd, result);
}

/* Key slots are encrypted with it, too. */
static int check_cipher(const struct image *image)
{
	struct luks_header header;
	char *cipher = NULL;
	int r = luks_read(image, &header);

	if (!r)
		r = luks_cipher(image, &header, &cipher);
	free(cipher);
	return r;
}

/* @given is the only one that is tried, unless it is NULL. */
static int find_key(struct passphrases *passphrases, const struct image *image,
		    const struct passphrase *given, struct unlocked *result)
{
	struct crypt_device *cd = NULL;
	int fd, r;

	r = check_cipher(image);
	if (r < 0)
		return r;
	fd = header_file(image);
	if (fd < 0)
		return fd;
	r = load_header(image, fd, &cd);
	if (!r && given)
		r = try_one(image, cd, given, result);
	else if (!r)
		r = find_passphrase(passphrases, image, cd, result);
	crypt_free(cd);
	close(fd);
	/* It has taken the messages of libdevmapper for itself. */
	dm_init();
	return r == -EPERM ? refuse_wrong(image->path) : r;
}

/*
 * What is unlocked
 */

static int key_name(const struct image *image, char name[CRYPT_KEY_MAX])
{
	struct luks_header header;
	int r = luks_read(image, &header);

	if (!r)
		crypt_key_name(image, &header, name);
	return r;
}

static const struct unlocked *find_unlocked(const struct unlock *unlock,
					    const char *name)
{
	unsigned int i;

	for (i = 0; i < unlock->count; i++) {
		if (!strcmp(unlock->images[i].name, name))
			return &unlock->images[i];
	}
	return NULL;
}

static int add_unlocked(struct unlock *unlock, const struct image *image,
			const struct passphrase *given)
{
	struct unlocked found = { .key = NULL };
	int r;

	r = key_name(image, found.name);
	if (r < 0 || find_unlocked(unlock, found.name))
		return r;
	r = find_key(&unlock->passphrases, image, given, &found);
	if (r < 0) {
		crypt_safe_free(found.key);
		crypt_safe_free(found.passphrase.data);
		return r;
	}
	unlock->images = grow_array(unlock->images, unlock->count,
				    sizeof(*unlock->images));
	unlock->images[unlock->count++] = found;
	return 0;
}

/* Return: -ENOKEY, or an error, reported, for what was unlocked and is not */
static int want(struct unlock *unlock, const char *path, bool new)
{
	struct wanted *wanted;
	unsigned int i;

	for (i = 0; i < unlock->wanted_count; i++) {
		if (!strcmp(unlock->wanted[i].path, path))
			return report_fail(EBUSY,
					   "%s changed while it was being opened.",
					   path);
	}
	unlock->wanted = grow_array(unlock->wanted, unlock->wanted_count,
				    sizeof(*unlock->wanted));
	wanted = &unlock->wanted[unlock->wanted_count++];
	wanted->path = text_copy(path);
	wanted->new = new;
	wanted->done = false;
	return -ENOKEY;
}

bool unlock_is_wanted(const struct unlock *unlock)
{
	unsigned int i;

	for (i = 0; i < unlock->wanted_count; i++) {
		if (!unlock->wanted[i].done)
			return true;
	}
	return false;
}

static int unlock_one(struct unlock *unlock, const struct wanted *wanted)
{
	const struct passphrase *passphrase;
	struct image image;
	int r;

	if (wanted->new)
		return passphrase_ask(&unlock->passphrases, wanted->path, true,
				      &passphrase);
	r = image_open(wanted->path, FORMAT_QCOW2, &image);
	if (!r && image_encrypted(&image))
		r = add_unlocked(unlock, &image, NULL);
	image_close(&image);
	return r;
}

int unlock_wanted(struct unlock *unlock)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < unlock->wanted_count && !r; i++) {
		if (unlock->wanted[i].done)
			continue;
		r = unlock_one(unlock, &unlock->wanted[i]);
		unlock->wanted[i].done = true;
	}
	return r;
}

int unlock_image(struct unlock *unlock, const struct image *image)
{
	char name[CRYPT_KEY_MAX];
	int r;

	if (!image_encrypted(image))
		return 0;
	r = key_name(image, name);
	if (r < 0 || find_unlocked(unlock, name))
		return r;
	return want(unlock, image->path, false);
}

int unlock_install(struct unlock *unlock, const struct image *image)
{
	const struct unlocked *unlocked;
	char name[CRYPT_KEY_MAX];
	int r = unlock_image(unlock, image);

	if (r < 0 || !image_encrypted(image))
		return r;
	r = key_name(image, name);
	if (r < 0)
		return r;
	unlocked = find_unlocked(unlock, name);
	return unlocked ? keyring_add(name, unlocked->key, unlocked->size) :
		want(unlock, image->path, false);
}

int unlock_chain(struct unlock *unlock, const struct chain *chain)
{
	unsigned int i;
	int r = 0, one;

	/* All of them first: the kernel gets no key while others are missing. */
	for (i = 0; i < chain->count && (!r || r == -ENOKEY); i++) {
		one = unlock_image(unlock, &chain->layers[i]);
		r = one ? one : r;
	}
	for (i = 0; i < chain->count && !r; i++)
		r = unlock_install(unlock, &chain->layers[i]);
	return r;
}

int unlock_new(struct unlock *unlock, const char *path,
	       const struct passphrase **result)
{
	int r = passphrase_of_new(&unlock->passphrases, path, result);

	if (r > 0)
		return 0;
	return r < 0 ? r : want(unlock, path, true);
}

int unlock_like(struct unlock *unlock, const struct image *layers,
		unsigned int count, const char *path,
		const struct passphrase **result)
{
	*result = NULL;
	while (count--) {
		if (image_encrypted(&layers[count]))
			return unlock_new(unlock, path, result);
	}
	return 0;
}

int unlock_made(struct unlock *unlock, const struct image *image,
		const struct passphrase *passphrase)
{
	int r = passphrase ? add_unlocked(unlock, image, passphrase) : 0;

	return r < 0 ? r : unlock_install(unlock, image);
}

const struct passphrase *unlock_passphrase(const struct unlock *unlock,
					   const struct image *image)
{
	const struct unlocked *unlocked;
	char name[CRYPT_KEY_MAX];

	if (!image_encrypted(image) || key_name(image, name) < 0)
		return NULL;
	unlocked = find_unlocked(unlock, name);
	return unlocked ? &unlocked->passphrase : NULL;
}
