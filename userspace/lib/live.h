/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The chain that a job is at work on: that of an open device, or of images that
 * nobody has open, for which the job has a read-only device of its own. So
 * either is attached and locked, and changes by another table.
 */
#ifndef LIVE_H
#define LIVE_H

#include <limits.h>

#include "chain.h"
#include "device.h"
#include "recover.h"
#include "unlock.h"

/**
 * struct live - a chain at work
 * @word: as it was given, NAME or IMAGE
 * @subject: name for the job: that of the device, or the path of the image
 * @closed: it was not open
 * @writes: the device writes to the top image
 * @device: the device; of a closed chain only after live_begin()
 * @chain: its images
 * @formats: formats given, for a closed chain
 * @left: layers that a killed job has taken out of the chain (leftover.h), or NULL
 * @again: that job was this very command
 */
struct live {
	const char *word;
	char *subject;
	bool closed;
	bool writes;
	struct device device;
	struct chain chain;
	struct formats *formats;
	struct json_object *left;
	bool again;
};

/**
 * live_open() - look at a chain
 * @word: name of a device, or path of an image that is in no open device
 * @formats: formats given, for a closed chain
 * @unlock: passphrases, as well; NULL: nothing is going to be attached
 * @live: result; live_close() it, after errors as well
 *
 * Refuses devices that cannot change their table now, and subjects of a job.
 * Nothing is changed. Call it with the state lock held.
 *
 * Return: 0; -ENOKEY, see unlock_image(); or an error, reported.
 */
int live_open(const char *word, struct formats *formats, struct unlock *unlock,
	      struct live *live);

/** live_close() - free what live_open() filled */
void live_close(struct live *live);

/**
 * live_begin() - have a device
 * @live: the chain
 *
 * Within a job. A closed chain is locked and attached now.
 *
 * Return: 0 or an error, reported.
 */
int live_begin(struct live *live);

/**
 * live_refresh() - look at the device again, after another table
 * @live: the chain
 *
 * Return: 0; or an error, reported: somebody else has changed it.
 */
int live_refresh(struct live *live);

/**
 * live_check_length() - does the device show all of its top image?
 * @live: the chain
 *
 * It does not after a commit into a longer image.  What is behind its end stays as it
 * is where the kernel copies what the device has.
 *
 * Return: 0 or an error, reported.
 */
int live_check_length(const struct live *live);

/**
 * live_make_explicit() - have the device write down what reads as zeroes
 * @live: the chain
 *
 * From then on a discard leaves zero clusters in the active image, also where
 * nothing is below: the layers below may be about to change.
 *
 * Return: 0 or an error, reported.
 */
int live_make_explicit(struct live *live);

/**
 * live_reread() - read the header of a layer again
 * @live: the chain
 * @index: the layer
 *
 * Return: 0 or an error, reported.
 */
int live_reread(struct live *live, unsigned int index);

/**
 * live_relink() - link an image to another one
 * @live: the chain
 * @index: the image
 * @link: as it is to stand there; NULL for none
 * @format: of the image it leads to
 *
 * Where the kernel writes the header of the image, it does this, too.
 *
 * Return: 0 or an error, reported; the old link is there then, or the new one.
 */
int live_relink(struct live *live, unsigned int index, const char *link,
		enum image_format format);

/* No layer */
#define NO_LAYER	UINT_MAX

/**
 * live_drop() - go on without some layers
 * @live: the chain
 * @first: first layer to go
 * @count: how many go
 * @reads: layer that was written by the job so far, and is only read from now
 *	on; NO_LAYER if there is none
 *
 * The links on disk lead past those layers already. What is known of the device
 * is brought up to date.
 *
 * Return: 0 or an error, reported.
 */
int live_drop(struct live *live, unsigned int first, unsigned int count,
	      unsigned int reads);

/**
 * live_note_top() - note that the device is about to leave its top image
 * @live: the chain
 *
 * Should the job be killed then, recover() cuts the file, which was made longer.
 *
 * Return: 0 or an error, reported.
 */
int live_note_top(const struct live *live);

/** live_forget() - layers are not part of the chain any more */
void live_forget(struct live *live, unsigned int first, unsigned int count);

/**
 * live_save() - note the images of the device
 * @live: the chain
 * @length: of the top image's file before it was made longer; NO_LENGTH if it
 *	was not; KEEP_LENGTH if the top image is the same
 *
 * Return: 0 or an error, reported.
 */
#define KEEP_LENGTH	(UINT64_MAX - 1)
int live_save(const struct live *live, uint64_t length);

/**
 * live_layer() - find a layer by what a command line says
 * @live: the chain
 * @word: NAME[n], or path of an image
 * @index: result
 *
 * Return: 0, or an error, reported: it is not in the chain.
 */
int live_layer(const struct live *live, const char *word, unsigned int *index);

/**
 * live_is_linked() - does the link on disk lead to another layer already?
 * @live: the chain
 * @overlay: index of the image
 * @backing: index of the layer; past the lowest for none
 *
 * It does where a job died between the link and the table.
 */
bool live_is_linked(const struct live *live, unsigned int overlay,
		    unsigned int backing);

/**
 * live_link_to() - link an image to one further below, if it is not yet
 * @live: the chain
 * @overlay: index of the image
 * @backing: index of the layer; past the lowest for none
 *
 * Return: 0 or an error, reported.
 */
int live_link_to(struct live *live, unsigned int overlay, unsigned int backing);

/** live_check_link_to() - could live_link_to() do that? 0, or the error, reported */
int live_check_link_to(const struct live *live, unsigned int overlay,
		       unsigned int backing);

/**
 * live_link() - how to write into an image the link to one further below
 * @live: the chain
 * @overlay: index of the image
 * @backing: index of the one it is to be linked to
 *
 * Relative if all links on the way are, and lead there.
 *
 * Return: the name; free() it.
 */
char *live_link(const struct live *live, unsigned int overlay,
		unsigned int backing);

#endif /* LIVE_H */
