/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Volume keys of encrypted images: from a passphrase to the kernel's keyring, by way
 * of the LUKS header in the image.
 *
 * Nobody is asked while the state lock is held, and no key is derived from a
 * passphrase, which may take as long as the header says: who needs an image unlocked
 * that is not returns -ENOKEY with the image on a list, undoes what it did so far, and
 * is run again after unlock_wanted().
 */
#ifndef UNLOCK_H
#define UNLOCK_H

#include "chain.h"
#include "crypt.h"
#include "passphrase.h"

/**
 * struct unlocked - an image whose passphrase was found
 * @name: of its key, see crypt_key_name()
 * @key: volume key, in memory that libcryptsetup wipes
 * @size: bytes
 * @passphrase: its passphrase
 */
struct unlocked {
	char name[CRYPT_KEY_MAX];
	char *key;
	size_t size;
	struct passphrase passphrase;
};

/**
 * struct wanted - an image that has to be unlocked
 * @path: absolute
 * @new: it is to be made, and needs a passphrase
 * @done: it was unlocked
 */
struct wanted {
	char *path;
	bool new;
	bool done;
};

/**
 * struct unlock - the passphrases of a command, and what they have unlocked
 * @passphrases: those known
 * @images: unlocked
 * @count: of @images
 * @wanted: to be unlocked
 * @wanted_count: of @wanted
 */
struct unlock {
	struct passphrases passphrases;
	struct unlocked *images;
	unsigned int count;
	struct wanted *wanted;
	unsigned int wanted_count;
};

/** unlock_free() - free and wipe */
void unlock_free(struct unlock *unlock);

/**
 * unlock_lock_memory() - lock passphrases and keys in memory again
 *
 * To be called in a process that was forked: memory locks are not inherited.
 */
void unlock_lock_memory(const struct unlock *unlock);

/** unlock_is_wanted() - is there something for unlock_wanted()? */
bool unlock_is_wanted(const struct unlock *unlock);

/**
 * unlock_wanted() - unlock what commands found locked
 * @unlock: passphrases
 *
 * Asks for passphrases, three times for each image that is there.  Call it without
 * the state lock.
 *
 * Return: 0 or an error, reported.
 */
int unlock_wanted(struct unlock *unlock);

/**
 * unlock_image() - is an image unlocked?
 * @unlock: what was unlocked
 * @image: encrypted or not
 *
 * Return: 0; -ENOKEY, unreported, if it has to be; or an error, reported.
 */
int unlock_image(struct unlock *unlock, const struct image *image);

/**
 * unlock_install() - as unlock_image(), and give the kernel the key
 * @unlock: what was unlocked
 * @image: encrypted or not
 *
 * For a device over it, see crypt.h.  A key that no device has is dropped by
 * crypt_prune().
 *
 * Return: as for unlock_image().
 */
int unlock_install(struct unlock *unlock, const struct image *image);

/**
 * unlock_chain() - unlock_install() for all images of a chain
 * @unlock: what was unlocked
 * @chain: the images
 *
 * Whoever opens an image has to know its passphrase, though the kernel may have
 * the key already: it could stand below an image of his own.
 *
 * Return: as for unlock_image().
 */
int unlock_chain(struct unlock *unlock, const struct chain *chain);

/**
 * unlock_new() - the passphrase that an image is to get
 * @unlock: passphrases
 * @path: absolute path of the image that is to be made
 * @result: the passphrase
 *
 * Return: as for unlock_image().
 */
int unlock_new(struct unlock *unlock, const char *path,
	       const struct passphrase **result);

/**
 * unlock_like() - as unlock_new(), for an image that is to have what others have
 * @unlock: passphrases
 * @layers: the others
 * @count: of @layers
 * @path: absolute path of the image that is to be made
 * @result: its passphrase, or NULL: none of the others is encrypted
 *
 * Return: as for unlock_image().
 */
int unlock_like(struct unlock *unlock, const struct image *layers,
		unsigned int count, const char *path,
		const struct passphrase **result);

/**
 * unlock_made() - unlock_install() for an image that was just made
 * @unlock: what was unlocked
 * @image: the image; its header is qemu-img's, and takes no longer than that wants
 * @passphrase: the one it got, or NULL if it is not encrypted
 *
 * Return: 0 or an error, reported.
 */
int unlock_made(struct unlock *unlock, const struct image *image,
		const struct passphrase *passphrase);

/**
 * unlock_passphrase() - the passphrase of an image that is unlocked
 *
 * Return: that; NULL for an image that is not encrypted.
 */
const struct passphrase *unlock_passphrase(const struct unlock *unlock,
					   const struct image *image);

#endif /* UNLOCK_H */
