/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An overlay over an image that is not open: all there is to a snapshot, since
 * nobody writes.
 */
#ifndef CLOSEDSNAP_H
#define CLOSEDSNAP_H

#include <json-c/json.h>

#include "overlay.h"
#include "unlock.h"

/**
 * struct closedsnap - such an overlay
 * @image: path of the image; set by the caller
 * @format: its format; NULL for a qcow2 image that shows it; set by the caller
 * @word: the overlay, as the command line has it; set by the caller
 * @existing: it was made before; set by the caller
 * @formats: formats given; set by the caller
 * @unlock: passphrases; set by the caller
 * @plain: the overlay is not encrypted, whatever is below; set by the caller
 * @path: of the overlay, absolute
 * @overlay: the overlay, and what it stands on
 */
struct closedsnap {
	const char *image;
	const char *format;
	const char *word;
	bool existing;
	struct formats *formats;
	struct unlock *unlock;
	bool plain;
	char *path;
	struct overlay overlay;
};

/**
 * closedsnap_open() - check everything
 * @snap: with the members that the caller sets, others 0; closedsnap_close() it,
 *	after errors as well
 *
 * Call it with the state lock held.
 *
 * Return: 0 or an error, reported.
 */
int closedsnap_open(struct closedsnap *snap);

/**
 * closedsnap_plan() - what is going to be done, see fate.h
 * @snap: of closedsnap_open()
 * @operation: name of the command
 */
struct json_object *closedsnap_plan(const struct closedsnap *snap,
				    const char *operation);

/**
 * closedsnap_make() - make the overlay, if it is not there
 * @snap: of closedsnap_open()
 *
 * Return: 0; -ENOKEY, see unlock_image(); or an error, reported; recover() then.
 */
int closedsnap_make(struct closedsnap *snap);

/** closedsnap_backing() - path of the image that the overlay stands on */
const char *closedsnap_backing(const struct closedsnap *snap);

/** closedsnap_close() - free what is left, unlock the image */
void closedsnap_close(struct closedsnap *snap);

#endif /* CLOSEDSNAP_H */
