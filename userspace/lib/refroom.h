/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Room in the refcounts of an image for one more internal snapshot. Nothing here
 * writes.
 */
#ifndef REFROOM_H
#define REFROOM_H

#include "image.h"

/**
 * refroom_check() - can all that an L1 table leads to be referred to once more?
 * @image: a qcow2 image
 * @l1_offset: where the table is, bytes
 * @l1_size: entries
 *
 * Of refcounts of 16 bits and more nothing is looked at. What is wrong in the tables
 * is left to who goes on.
 *
 * Return: 1, 0, or an error, reported.
 */
int refroom_check(const struct image *image, uint64_t l1_offset,
		  uint32_t l1_size);

#endif /* REFROOM_H */
