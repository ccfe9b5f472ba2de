/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Bringing a second device to the contents of one that is in use: the kernel
 * sends the guest's writes to both, and copies the rest meanwhile.
 */
#ifndef MIRROR_H
#define MIRROR_H

#include "live.h"

/**
 * struct mirror - a mirror
 * @live: the chain, whose device writes
 * @path: the second device
 * @layers: how many layers, from the top, are copied
 * @keep: the top image stays what it is when the mirror takes over
 * @made: as in struct pivot, for mirror_replace()
 * @made_id: the same
 * @name_made: gives that file its name, right before the device goes on in it;
 *	returns 0 or an error, reported.  May be NULL.
 * @data: for it
 */
struct mirror {
	struct live *live;
	const char *path;
	unsigned int layers;
	bool keep;
	const char *made;
	struct image_id made_id;
	int (*name_made)(void *data);
	void *data;
};

/**
 * mirror_run() - make both equal, and keep them so
 * @mirror: the mirror
 *
 * Within a job. The state lock is held, and is again when it returns, but not
 * meanwhile. The device has the mirror then, if this succeeds.
 *
 * Return: 0, or an error, reported; -ECANCELED, unreported.
 */
int mirror_run(const struct mirror *mirror);

/**
 * mirror_replace() - give the device another table, at the instant of which both
 * are equal and durable
 * @mirror: the mirror
 * @layers: layers of the new table, top first
 * @count: of @layers
 *
 * Return: 0 or an error, reported.
 */
int mirror_replace(const struct mirror *mirror,
		   const struct device_layer *layers, unsigned int count);

#endif /* MIRROR_H */
