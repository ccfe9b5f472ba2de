/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who else uses an image?  Asked before an image is written or loses its
 * meaning: what others have built on it would be damaged, and they would notice
 * much later.
 */
#ifndef USERS_H
#define USERS_H

#include <json-c/json.h>
#include <stdbool.h>

#include "chain.h"

/**
 * struct users - where to look for users, and whom not to mind
 * @chain: the chain that is changed; a device that shows exactly this chain is
 *	no other user
 * @left: images that a job which was killed left behind (leftover.h), or NULL
 * @search: directories to search for overlays, with all below them, besides
 *	those of the images of @chain
 * @nsearch: of @search
 * @force: overlays that were found are named, but do not stop it
 * @halves: images are deleted at the end of a job, and have lost their external data
 *	files perhaps; that they stay is said by the caller
 */
struct users {
	const struct chain *chain;
	struct json_object *left;
	const char *const *search;
	unsigned int nsearch;
	bool force;
	bool halves;
};

/**
 * users_check() - refuse to harm images that others use
 * @users: where to look
 * @victims: images that are written, or do not read right afterwards; so it is with
 *	their external data files
 * @count: of @victims
 *
 * Users are: open devices of ours, programs that hold QEMU's locks, images whose
 * backing link leads to a victim. All are named.
 *
 * Return: 0; -EBUSY, reported, if there are others; or another error, reported.
 */
int users_check(const struct users *users, const struct image *const *victims,
		unsigned int count);

/**
 * users_check_written() - refuse to write an image under somebody else's eyes
 * @chain: the chain that is changed
 * @image: the image, which reads the same before and after
 *
 * Overlays do not mind. Devices and programs that have it open would go on with
 * what they know of its mapping.
 *
 * Return: 0; -EBUSY, reported, if there are any; or another error, reported.
 */
int users_check_written(const struct chain *chain, const struct image *image);

#endif /* USERS_H */
