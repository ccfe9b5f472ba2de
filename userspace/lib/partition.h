/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Partitions of an open device: one dm-linear device each.
 */
#ifndef PARTITION_H
#define PARTITION_H

#include <json-c/json.h>

#include "dm.h"

/**
 * partitions_map() - read the partition table and make the devices
 * @name: device; its partitions are NAME1, or NAMEp1 after a digit
 *
 * Return: 0 or an error, reported; none is left then.
 */
int partitions_map(const char *name);

/**
 * partitions_unmap() - remove the devices
 * @disk: state of the device
 *
 * Return: 0; -EBUSY, reported, if one is in use, and none is removed then.
 */
int partitions_unmap(const struct dm_state *disk);

/**
 * partitions_of() - names of the devices
 * @disk: state of the device
 *
 * Return: an array of strings, to be put.
 */
struct json_object *partitions_of(const struct dm_state *disk);

#endif /* PARTITION_H */
