/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layer that a job writes to.  The device of the chain reads it through the
 * same loop device as the job's own device writes it: for the kernel that is
 * one image.
 */
#ifndef DEST_H
#define DEST_H

#include "attach.h"
#include "live.h"

/**
 * struct dest - a layer that is written
 * @live: the chain
 * @index: the layer
 * @writes: the layer, attached for writing
 * @floor: length of its file before
 * @attached: the file may have been made longer
 * @file: name of the file that is to be cut back to what is in use, or NULL
 * @id: its identity
 * @path: the block device to write to; set by dest_create()
 */
struct dest {
	struct live *live;
	unsigned int index;
	struct attachment writes;
	uint64_t floor;
	bool attached;
	char *file;
	struct image_id id;
	char *path;
};

/** dest_init() - nothing is done so far; end it with dest_free() */
void dest_init(struct dest *dest, struct live *live, unsigned int index);

/** dest_free() - free what is in it */
void dest_free(struct dest *dest);

/**
 * dest_check() - could this layer be written, and get this size?
 * @live: the chain
 * @index: the layer
 * @size: bytes
 *
 * Return: 0 or an error, reported.
 */
int dest_check(const struct live *live, unsigned int index, uint64_t size);

/**
 * dest_attach() - turn the layer to being written
 * @dest: the layer
 * @size: bytes; a raw file is made as long at least
 *
 * From here on the device of the chain reads it through what it is written by.
 *
 * Return: 0 or an error, reported.
 */
int dest_attach(struct dest *dest, uint64_t size);

/**
 * dest_create() - make the device to write it by
 * @dest: the layer, attached
 * @below: the layers below it, top first
 * @count: of @below
 * @size: bytes; a qcow2 image is made as long at least
 * @features: features of the device besides, each with a blank before it, or ""
 *
 * The new part reads as zeroes, whatever layers below have there. A raw layer is
 * written directly. The state lock is held, and is again when it returns, but not
 * while zeroes are written.
 *
 * Return: 0, or an error, reported; -ECANCELED, unreported, if the job was
 * cancelled.
 */
int dest_create(struct dest *dest, const struct device_layer *below,
		unsigned int count, uint64_t size, const char *features);

/**
 * dest_zero_behind() - hide what the layer has behind a size
 * @dest: the layer, with its device
 * @size: bytes
 *
 * As for the lock, and what it returns, see dest_create().
 */
int dest_zero_behind(struct dest *dest, uint64_t size);

/**
 * dest_finish() - make all durable, and have no device for it any more
 *
 * Return: 0 or an error, reported.
 */
int dest_finish(struct dest *dest);

/** dest_trim() - cut the file back that was made longer; nobody writes it */
void dest_trim(struct dest *dest);

#endif /* DEST_H */
