/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Changes of the internal snapshots of an image, by qemu-img, under our locks.
 * The order of the steps, and what a crash leaves, is in
 * Documentation/internal-snapshots.rst.
 */
#ifndef INTERNAL_H
#define INTERNAL_H

#include <json-c/json.h>

#include "device.h"
#include "freeze.h"
#include "snaptable.h"
#include "unlock.h"
#include "users.h"

enum internal_action { INTERNAL_CREATE, INTERNAL_APPLY, INTERNAL_DELETE };

/**
 * struct internal - a change of the internal snapshots of an image
 * @action: what is to be done; set by the caller
 * @word: the snapshot, as the command line has it; set by the caller
 * @freeze: what is frozen meanwhile; set by the caller for internal_device()
 * @users: where to look for overlays, which stop an apply; set by the caller for
 *	internal_closed(), but for the chain
 * @unlock: passphrases; set by the caller
 * @entry: in the journal; set by the caller before internal_run()
 * @device: the device that writes to the image, if it is open
 * @image: the image
 * @argument: what qemu-img takes for the snapshot
 * @size: what the image must have room for when all is done, bytes
 * @passphrase: of the image, or NULL
 * @errors: what qemu-img says meanwhile; a descriptor
 */
struct internal {
	enum internal_action action;
	const char *word;
	const struct freeze *freeze;
	struct users users;
	struct unlock *unlock;
	struct json_object *entry;
	struct device device;
	struct image image;
	char *argument;
	uint64_t size;
	const struct passphrase *passphrase;
	int errors;
};

/**
 * internal_closed() - begin with an image that is not open
 * @in: with the members that the caller sets, others 0; internal_close() it,
 *	after errors as well
 * @path: the image
 *
 * Checks what can be checked. Call it with the state lock held.
 *
 * Return: 0; -ENOKEY, see unlock_image(); or an error, reported.
 */
int internal_closed(struct internal *in, const char *path);

/**
 * internal_device() - begin with the top image of an open device
 * @in: as for internal_closed()
 * @name: the device
 *
 * Return: as for internal_closed().
 */
int internal_device(struct internal *in, const char *name);

/**
 * internal_run() - do it
 * @in: of internal_closed() or internal_device(), with its journal entry
 *
 * A device stands still for as long as qemu-img takes.
 *
 * recover() is to follow, after success as well.
 *
 * Return: 0 or an error, reported.
 */
int internal_run(struct internal *in);

/** internal_close() - free what is left */
void internal_close(struct internal *in);

/**
 * internal_recover() - finish what the journal says
 * @entry: of a change that did not come to its end
 *
 * Return: 0 or an error, reported.
 */
int internal_recover(struct json_object *entry);

#endif /* INTERNAL_H */
