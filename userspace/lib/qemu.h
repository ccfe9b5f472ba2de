/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * qemu-img, for making images, for what changes closed ones, and for internal
 * snapshots. A guest waits for it only where it edits the image of that guest.
 */
#ifndef QEMU_H
#define QEMU_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "chain.h"
#include "image.h"
#include "unlock.h"

/**
 * struct new_image - an image to be made
 * @path: where; an existing file is overwritten
 * @size: as qemu-img takes it, or NULL: that of the backing image
 * @backing: backing link as it is to stand in the image, or NULL
 * @backing_format: its format
 * @options: as for qemu-img -o, or NULL
 * @data: absolute path of the external data file that @options name, or NULL
 * @passphrase: it is encrypted with LUKS, and has this one; or NULL
 * @unnamed: @path is no name yet by which anybody would use it
 */
struct new_image {
	const char *path;
	const char *size;
	const char *backing;
	const char *backing_format;
	const char *options;
	const char *data;
	const struct passphrase *passphrase;
	bool unnamed;
};

/**
 * qemu_option() - the value of an option as for qemu-img -o
 * @options: all of them, or NULL
 * @key: name of the option
 *
 * Return: its value, which is "on" or "off" where none is given; or NULL; free() it.
 */
char *qemu_option(const char *options, const char *key);

/** qemu_option_has() - is an option among them, with a value or without? */
bool qemu_option_has(const char *options, const char *key);

/**
 * qemu_create() - make a qcow2 image
 * @image: what to make
 * @name: what qemu-img's messages call it
 *
 * qemu-img does not open the backing image here, whose locks are ours to judge.
 * It inherits the state lock: while it runs, even if we were killed, no other
 * command starts.  What it made is durable when this returns.
 *
 * Return: 0 or an error, reported.
 */
int qemu_create(const struct new_image *image, const char *name);

/**
 * qemu_check() - have an image checked, without those below it
 * @image: a qcow2 image that is not open elsewhere
 * @unlock: has its passphrase, if it is encrypted
 * @repair: repair what is wrong
 * @report: result, an ImageCheck of QEMU's qapi/block-core.json, to be put;
 *	NULL if the check could not be completed
 *
 * What is wrong is printed on standard error as it is found.
 *
 * Return: the exit status of 'qemu-img check', or an error, reported.
 */
int qemu_check(const struct image *image, const struct unlock *unlock,
	       bool repair, struct json_object **report);

/**
 * qemu_resize() - give an image another size
 * @chain: the image, not open elsewhere, with those below it
 * @hide: a new part becomes zeroes, whatever the image has behind its end, or those
 *	below
 * @unlock: has the passphrase of the image, and if @hide of all
 * @size: bytes
 *
 * It is durable when this returns.
 *
 * Return: 0 or an error, reported.
 */
int qemu_resize(const struct chain *chain, bool hide,
		const struct unlock *unlock, uint64_t size);

/**
 * struct qemu_snapshot - what "qemu-img snapshot" is to do
 * @option: "-c", "-a" or "-d"
 * @name: what it takes for the snapshot
 * @path: the image: a file, or a block device
 * @is_device: it is a block device
 * @keep: descriptor with the locks of the image, which qemu-img gets, too; or -1
 * @errors: where its messages go; -1 for standard error
 * @passphrase: of the image, if it is encrypted, or NULL
 */
struct qemu_snapshot {
	const char *option;
	const char *name;
	const char *path;
	bool is_device;
	int keep;
	int errors;
	const struct passphrase *passphrase;
};

/**
 * qemu_snapshot() - edit the internal snapshots of an image
 * @edit: what is to be done
 *
 * qemu-img takes no locks itself: that is done. It does not open the backing
 * image. It inherits the state lock.
 *
 * Return: as run_program().
 */
int qemu_snapshot(const struct qemu_snapshot *edit);

/** qemu_missing() - report that there is no qemu-img.  Return: -ENOENT */
int qemu_missing(void);

#endif /* QEMU_H */
