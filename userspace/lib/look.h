/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Images to look at: those of an open device, or any others.  No locks are
 * taken, and nothing is changed.
 */
#ifndef LOOK_H
#define LOOK_H

#include "chain.h"
#include "device.h"

/**
 * look_open() - open images by what a command line says
 * @word: path of an image, or name of an open device
 * @formats: formats that the images do not record, for a path
 * @all: the whole chain; else the top image alone
 * @chain: result, empty before; chain_close() it, after errors as well
 *
 * Return: 0 or an error, reported.
 */
int look_open(const char *word, struct formats *formats, bool all,
	      struct chain *chain);

/**
 * look_layer() - open an image of an open device
 * @device: the device
 * @layer: which one, from the top
 * @image: result; image_close() it, after errors as well
 *
 * Return: 0, or an error, reported: also where the path leads to another image
 * than the one that the device has.
 */
int look_layer(const struct device *device, unsigned int layer,
	       struct image *image);

/**
 * look_layers() - open the images of an open device
 * @device: the device
 * @count: how many of its layers, from the top
 * @chain: result, empty before; chain_close() it, after errors as well
 *
 * Return: 0 or an error, reported, as look_layer().
 */
int look_layers(const struct device *device, unsigned int count,
		struct chain *chain);

#endif /* LOOK_H */
