/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Temporary devices of jobs, and what else a job has in the kernel: a live table
 * with a mirror, or with a lower layer on a loop device that can be written.
 * All of it can be found without any record.
 */
#ifndef JOBDEV_H
#define JOBDEV_H

#include "device.h"

/** jobdev_name() - name of a device of the running job */
void jobdev_name(const char *role, char name[DM_NAME_MAX]);

/** jobdev_path() - path of a device of the running job; free() it */
char *jobdev_path(const char *role);

/**
 * jobdev_create() - make a device for the running job
 * @role: what for, a word
 * @layers: top first
 * @count: of @layers
 * @sectors: size
 * @read_only: it is not written
 * @zero_from: sector, or ZERO_FROM_NONE
 * @features: as for device_params()
 * @words: number of words in it
 *
 * Return: 0 or an error, reported.
 */
int jobdev_create(const char *role, const struct device_layer *layers,
		  unsigned int count, uint64_t sectors, bool read_only,
		  uint64_t zero_from, const char *features,
		  unsigned int words);

/**
 * jobdev_finish() - have a device write out everything
 * @role: the device
 *
 * Suspends it: it is of no use but to be removed then.
 *
 * Return: 0 or an error, reported: it could not.
 */
int jobdev_finish(const char *role);

/**
 * jobdev_remove() - remove a device of the running job, if it is there
 *
 * Return: 0 or an error, reported.
 */
int jobdev_remove(const char *role);

/**
 * jobdev_clean() - remove what jobs have left in the kernel
 * @subject: the running job has failed: its device, and what it made for
 *	itself, is cleaned, too; or NULL
 *
 * Devices of jobs whose process is gone are removed; a table with a mirror or a
 * lower layer that can be written is loaded again without, unless a job runs on
 * that device. Call it with the state lock held.
 *
 * Return: 0 or an error, reported.
 */
int jobdev_clean(const char *subject);

#endif /* JOBDEV_H */
