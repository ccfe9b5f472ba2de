/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A chain of images: walking from the top image along the backing links.
 */
#ifndef CHAIN_H
#define CHAIN_H

#include "image.h"

/**
 * struct format_given - --backing-format IMAGE=FMT
 * @path: IMAGE
 * @format: FMT
 * @used: it named a layer
 */
struct format_given {
	char *path;
	enum image_format format;
	bool used;
};

/**
 * struct formats - the formats given on the command line
 * @given: array
 * @count: of @given
 */
struct formats {
	struct format_given *given;
	unsigned int count;
};

/**
 * struct chain - the layers of a chain
 * @layers: top first
 * @count: of @layers
 */
struct chain {
	struct image *layers;
	unsigned int count;
};

/**
 * formats_add() - parse IMAGE=FMT
 * @formats: where to add it
 * @argument: the text
 *
 * Return: 0, or -EINVAL, reported.
 */
int formats_add(struct formats *formats, const char *argument);

/** formats_free() - free what formats_add() added */
void formats_free(struct formats *formats);

/**
 * chain_open() - open the headers of an image and all below it
 * @path: the top image
 * @formats: formats that the images do not record; may be NULL
 * @chain: result; close it with chain_close(), after errors as well
 *
 * Formats are never guessed: a layer that is raw, by its overlay or by
 * @formats, is not looked into.
 *
 * Return: 0 or an error, reported.
 */
int chain_open(const char *path, struct formats *formats, struct chain *chain);

/** chain_close() - free what chain_open() filled */
void chain_close(struct chain *chain);

/**
 * chain_same() - do two chains have the same layers, of the same sizes?
 * @a: a chain
 * @b: another, or the same at another time
 */
bool chain_same(const struct chain *a, const struct chain *b);

/**
 * backing_of() - where the backing link of an image leads
 * @image: a qcow2 image with a backing link
 * @formats: formats that the images do not record; may be NULL
 * @path: result, absolute; free() it
 * @format: result
 *
 * Return: 0 or an error, reported.
 */
int backing_of(const struct image *image, struct formats *formats, char **path,
	       enum image_format *format);

/**
 * backing_name() - the file name in the backing link of an image
 * @image: a qcow2 image
 *
 * Return: as it stands there, relative or not, without a protocol; NULL if there
 * is none that can be used.  free() it.
 */
char *backing_name(const struct image *image);

/**
 * backing_link() - how to write a link to an image into its overlay
 * @overlay: absolute path of the overlay
 * @backing: absolute path of the image
 *
 * Files side by side are linked by name alone, so that both can be moved.
 *
 * Return: the name; free() it.
 */
char *backing_link(const char *overlay, const char *backing);

#endif /* CHAIN_H */
