/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Another table for an open device: the only moment in which it stands still,
 * one ioctl.
 */
#ifndef PIVOT_H
#define PIVOT_H

#include "device.h"

/**
 * struct pivot - the table that a device is to have
 * @layers: top first
 * @count: of @layers
 * @sectors: size of the device
 * @zero_from: sector, or ZERO_FROM_NONE
 * @features: other features, as in struct device; may be NULL
 * @feature_words: number of its words
 * @ready: called when the table is loaded, right before the resume; returns 0 or
 *	an error, reported.  May be NULL.
 * @data: for it
 * @made: path of a file that is of no use unless the device goes on in it, or NULL
 * @made_id: what it is
 */
struct pivot {
	const struct device_layer *layers;
	unsigned int count;
	uint64_t sectors;
	uint64_t zero_from;
	const char *features;
	unsigned int feature_words;
	int (*ready)(void *data);
	void *data;
	const char *made;
	struct image_id made_id;
};

/**
 * pivot_load() - load a table, and no more
 * @device: the device as it is
 * @pivot: its new table, as far as that is @layers to @feature_words
 *
 * Return: 0 or an error, reported.
 */
int pivot_load(const struct device *device, const struct pivot *pivot);

/**
 * pivot_run() - load a table and resume the device with it
 * @device: the device as it is
 * @pivot: its new table
 *
 * If the kernel does not take the table, or the process is killed, the device
 * goes on, with the old table or the new one: at once, or with the next command,
 * by the journal. What both need must be attached. Call it with the state lock held.
 *
 * Return: 0, or an error, reported; the device has its old table then, if that
 * can be.
 */
int pivot_run(const struct device *device, const struct pivot *pivot);

/**
 * pivot_same() - the table that a device has, without what belongs to a job
 * @device: the device
 *
 * To be changed where another one is wanted.
 */
struct pivot pivot_same(const struct device *device);

/**
 * pivot_check() - is the device fit for another table?
 *
 * Return: 0 or an error, reported: it is suspended, or has an inactive table,
 * or has failed.
 */
int pivot_check(const struct device *device);

#endif /* PIVOT_H */
