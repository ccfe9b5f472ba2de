/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which image is it?  Images are told apart by inode or device number, never
 * by the spelling of a path.
 */
#ifndef IDENTITY_H
#define IDENTITY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/**
 * struct image_id - identity of an image
 * @block: it is a block device
 * @dev: the block device; or the file system of the file, as stat() has it
 * @ino: inode of the file, 0 for a block device
 *
 * A loop device over a whole file is that file.
 */
struct image_id {
	bool block;
	dev_t dev;
	ino_t ino;
};

static inline bool image_id_equal(const struct image_id *a,
				  const struct image_id *b)
{
	return a->block == b->block && a->dev == b->dev && a->ino == b->ino;
}

/**
 * kernel_name_of_device() - what the kernel calls a block device, as "loop0"
 * @device: device number
 *
 * Return: the name; free() it; or NULL if there is no such device.
 */
char *kernel_name_of_device(dev_t device);

/** image_id_of() - identity of what stat() was asked about */
struct image_id image_id_of(const struct stat *st);

/** image_id_of_device() - identity of a block device */
struct image_id image_id_of_device(dev_t device);

/** image_id_of_path() - the same by path; false (unreported) if it has none */
bool image_id_of_path(const char *path, struct image_id *id);

#endif /* IDENTITY_H */
