/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Looking for qcow2 images in directories. What is found there may be anything,
 * and in use by anybody: it is read without locks, and without a word about what
 * cannot be read.
 */
#ifndef SCAN_H
#define SCAN_H

#include "image.h"

/**
 * scan_directory() - call @visit for each qcow2 image in a directory
 * @path: the directory
 * @below: in all directories below, too
 * @visit: gets the image, open, until it returns; @image->path begins with @path
 * @data: for it
 *
 * Symbolic links to images are followed, those to directories are not. Our own
 * devices are left out: what is in them is a guest's.
 *
 * Return: 0, or an error, reported, if @path cannot be read.
 */
int scan_directory(const char *path, bool below,
		   void (*visit)(const struct image *image, void *data),
		   void *data);

/**
 * scan_open() - open an image without a word
 * @path: its path
 * @image: result; image_close() it, after errors as well
 *
 * Return: whether it is a qcow2 image that can be read.
 */
bool scan_open(const char *path, struct image *image);

/**
 * scan_backing() - where the backing link of an image leads, whatever is there
 * @image: the image
 *
 * Return: path; free() it. NULL if it has none that is a file.
 */
char *scan_backing(const struct image *image);

#endif /* SCAN_H */
