/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a command line names a layer of a chain: by its path, or as NAME[n].
 */
#ifndef LAYERWORD_H
#define LAYERWORD_H

#include <stdbool.h>

#include "identity.h"

/**
 * layer_by_number() - is a word NAME[n]?
 * @name: what the chain is called
 * @word: from the command line
 * @index: result; the chain may have less layers
 */
bool layer_by_number(const char *name, const char *word, unsigned int *index);

/**
 * layer_find() - find the layer that a word means
 * @name: what the chain is called
 * @word: from the command line, NAME[n] or the path of an image
 * @layers: the images of the chain, top first
 * @count: of @layers
 * @index: result
 *
 * Return: 0 or -ENOENT, reported: it is not in the chain.
 */
int layer_find(const char *name, const char *word,
	       const struct image_id *layers, unsigned int count,
	       unsigned int *index);

#endif /* LAYERWORD_H */
