/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Passphrases of encrypted images: out of key files, or from whoever is there.
 */
#ifndef PASSPHRASE_H
#define PASSPHRASE_H

#include <stdbool.h>
#include <stddef.h>

#include "identity.h"

/**
 * struct passphrase - a passphrase
 * @data: in memory that libcryptsetup wipes; not terminated
 * @size: bytes
 */
struct passphrase {
	char *data;
	size_t size;
};

/**
 * struct key_file - --key-file FILE, or IMAGE=FILE
 * @image: path, or NULL: for all images that have none of their own
 * @file: path, "-" for standard input
 * @read: @passphrase is what is in it
 * @passphrase: that
 */
struct key_file {
	char *image;
	char *file;
	bool read;
	struct passphrase passphrase;
};

/**
 * struct entered - a passphrase that somebody has entered
 * @path: absolute path of the image it was asked for
 * @passphrase: the passphrase
 */
struct entered {
	char *path;
	struct passphrase passphrase;
};

/**
 * struct passphrases - all that are known
 * @files: key files
 * @file_count: of @files
 * @entered: those that were asked for
 * @entered_count: of @entered
 */
struct passphrases {
	struct key_file *files;
	unsigned int file_count;
	struct entered *entered;
	unsigned int entered_count;
};

/**
 * passphrases_add() - parse the value of --key-file
 *
 * "FILE", or "IMAGE=FILE" where there is no file of that name.
 *
 * Return: 0 or -EINVAL, reported.
 */
int passphrases_add(struct passphrases *all, const char *argument);

/** passphrases_free() - free and wipe */
void passphrases_free(struct passphrases *all);

/**
 * passphrase_lock() - keep memory out of swap space
 * @data: of crypt_safe_alloc(), or NULL
 * @size: bytes
 *
 * As that did, for a process that was forked since: locks are not inherited.
 */
void passphrase_lock(const void *data, size_t size);

/** passphrases_lock() - that for all of them */
void passphrases_lock(const struct passphrases *all);

/** passphrases_quiet() - libcryptsetup says nothing: our messages do */
void passphrases_quiet(void);

/** passphrase_copy() - a copy, to be freed with crypt_safe_free(); 0 or an error */
int passphrase_copy(const struct passphrase *from, struct passphrase *copy);

/**
 * passphrase_known() - a passphrase that may be that of an image
 * @all: those that are known
 * @path: absolute path of the image
 * @number: 0 for the first one, 1 for the next one if that was wrong, and so on
 * @result: the passphrase
 *
 * What is in the key file of the image alone, if it has one; else in all other key
 * files; if there are none, what was entered, for the image and for others.
 *
 * Return: 1; 0 where there are no more; or an error, reported.
 */
int passphrase_known(struct passphrases *all, const char *path,
		     unsigned int number, const struct passphrase **result);

/**
 * passphrase_of_new() - the passphrase that an image is to get
 *
 * Arguments and result as for passphrase_known(): the first one, which is for the
 * image, not for others.
 */
int passphrase_of_new(struct passphrases *all, const char *path,
		      const struct passphrase **result);

/** passphrase_may_ask() - are there no key files that stand for entering it? */
bool passphrase_may_ask(const struct passphrases *all, const char *path);

/** passphrase_may_repeat() - can it be asked for again? */
bool passphrase_may_repeat(void);

/**
 * passphrase_ask() - ask for the passphrase of an image
 * @all: where it is added
 * @path: absolute path of the image
 * @new: it is to be made: it is asked for twice
 * @result: the passphrase
 *
 * At a terminal; where standard input is none, it is a line of that.  Call it without
 * the state lock.
 *
 * Return: 0; or an error, reported: there is nobody to ask.
 */
int passphrase_ask(struct passphrases *all, const char *path, bool new,
		   const struct passphrase **result);

#endif /* PASSPHRASE_H */
