/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The moment in which loaded tables become active: one ioctl for one device;
 * for a group, all stand still until the last one does. Or in which images are
 * edited, while their devices stand still.
 */
#ifndef SWAP_H
#define SWAP_H

#include "device.h"
#include "freeze.h"

/**
 * struct swap - devices with another table loaded, or with images to be edited
 * @devices: as they were before
 * @count: of @devices
 * @freeze: what is frozen meanwhile
 * @edit: called when all stand still, may be NULL. Changes the images, which are
 *	read anew afterwards, and may load tables. It prints nothing, writes
 *	nothing that may end on a device, and starts no program that outlives it
 *	unless it is killed. Returns 0 or a negative errno.
 * @data: for @edit
 * @edit_error: result: what @edit returned, unreported
 * @thawed: result: that is over, so that recover() need not see to it
 */
struct swap {
	const struct device **devices;
	unsigned int count;
	const struct freeze *freeze;
	int (*edit)(void *data);
	void *data;
	int edit_error;
	bool thawed;
};

/**
 * swap_check() - can the devices stand still together, and the rest be frozen?
 * @swap: what is to be done
 *
 * Not if a device, or a file system that is frozen, holds images of another: what
 * that still has to write would wait for ever. And nothing is edited while a
 * device stands still that the programs of this host lie on.
 *
 * Return: 0 or an error, reported.
 */
int swap_check(const struct swap *swap);

/**
 * swap_check_new() - can a device go on in an image?
 * @swap: what is to be done
 * @user: the device
 * @path: the image, which may have to be made yet
 *
 * Not if it lies on a device that stands still, @user itself among them, or on a
 * file system that is frozen: the new table reads it before anything is resumed.
 *
 * Return: 0 or an error, reported.
 */
int swap_check_new(const struct swap *swap, const struct device *user,
		   const char *path);

/**
 * swap_run() - make the loaded tables active
 * @swap: what is to be done
 *
 * What both tables of each device need must be attached. Until the first device
 * is resumed on its new table, an error leaves all on their old ones; after that,
 * all that can get theirs.
 *
 * If this process is killed another one finishes; if that one is, recover() is to
 * finish, which has to follow in any case. Nothing that was started runs any more
 * then.
 *
 * Return: 0 or an error, reported unless it is that of @edit.
 */
int swap_run(struct swap *swap);

/**
 * swap_restore() - the old table again for a device that stands still
 * @device: as it was before swap_run(), which failed
 *
 * What that table needs must still be attached. Does nothing to a device that is
 * not suspended.
 */
void swap_restore(const struct device *device);

#endif /* SWAP_H */
