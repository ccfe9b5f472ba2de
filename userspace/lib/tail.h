/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is behind the end of an image, in the cluster that it ends in: whatever
 * was there when the image was made shorter, as only whole clusters are freed
 * then.  It would become contents of the disk.
 */
#ifndef TAIL_H
#define TAIL_H

#include "image.h"

/** tail_end() - where the cluster ends that an image ends in, guest bytes */
static inline uint64_t tail_end(const struct image *image)
{
	return round_up(image->size, image->header.cluster_size);
}

/**
 * tail_zero() - make zeroes of it, before the image is made longer
 * @image: a qcow2 image that nobody has open
 *
 * What the image has no data for is left alone.  The zeroes are durable when this
 * returns.
 *
 * Return: 0; 1 if there may be data that cannot be written where it is: it is
 * compressed, encrypted, or shared with an internal snapshot; or an error, reported.
 */
int tail_zero(const struct image *image);

#endif /* TAIL_H */
