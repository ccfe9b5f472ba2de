/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Making an image so that it can be undone, by us or by the next command.
 */
#ifndef NEWIMAGE_H
#define NEWIMAGE_H

#include <json-c/json.h>

#include "identity.h"

#include "qemu.h"

/* Behind the name of what is not whole yet */
#define NEW_PARTIAL	".qcow2setup.partial"

/**
 * new_image_path() - where a new image is to be
 * @word: from the command line
 * @path: result, absolute; free() it, after errors as well
 *
 * There may be nothing yet, an empty file, or a block device that nobody uses.
 *
 * Return: 0 or an error, reported.
 */
int new_image_path(const char *word, char **path);

/**
 * new_image_make() - make an image
 * @journal: the entry of the running command; gets a member "new", and "new-data"
 * @image: what to make; its path is absolute
 *
 * The journal says what is made before there is a file. The path is a block
 * device, an empty file, or nothing; so is that of an external data file. Where there
 * was nothing, the image gets its name when it is whole, and durable: no power cut
 * leaves part of one there.
 *
 * Return: 0; or an error, reported, and nothing is left of what was made.
 */
int new_image_make(struct json_object *journal, const struct new_image *image);

/**
 * new_image_drop() - delete what a killed command had made so far
 * @made: its path, with NEW_PARTIAL behind it
 *
 * It is refused where somebody has it open: the command runs.
 *
 * Return: 0, also if there is nothing; or an error, reported.
 */
int new_image_drop(const char *made);

/**
 * new_image_note() - have new_image_undo() remove a file
 * @journal: the entry of the running command
 * @path: the file, perhaps only from the next step on
 * @id: what it is; of no inode as long as it is not there
 */
void new_image_note(struct json_object *journal, const char *path,
		    const struct image_id *id);

/**
 * new_image_undo() - remove the files that new_image_make() made
 * @journal: the entry it wrote into
 *
 * A block device, or a file that was there before, is left alone; so is one
 * that somebody else has put into its place.
 */
void new_image_undo(struct json_object *journal);

/**
 * new_image_recover() - the same for a command that was killed, perhaps long ago
 * @journal: the entry it wrote into
 *
 * The image may have been complete, and be in use since: what is not as it was made is
 * kept, with a warning.
 */
void new_image_recover(struct json_object *journal);

#endif /* NEWIMAGE_H */
