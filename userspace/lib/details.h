/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an image holds besides its present contents, spelled as in QEMU's
 * qapi/block-core.json.
 */
#ifndef DETAILS_H
#define DETAILS_H

#include <json-c/json.h>

#include "image.h"
#include "snaptable.h"

/**
 * details_snapshot() - describe an internal snapshot
 *
 * Return: a SnapshotInfo, to be put.
 */
struct json_object *details_snapshot(const struct snapshot *snapshot);

/**
 * details_snapshots() - list the internal snapshots
 * @image: a qcow2 image
 * @list: result, an array of SnapshotInfo, to be put; NULL if there are none
 *
 * Return: 0 or an error, reported: the table is wrong.
 */
int details_snapshots(const struct image *image, struct json_object **list);

/**
 * details_bitmaps() - list the persistent bitmaps
 * @image: a qcow2 image
 * @list: result, an array of Qcow2BitmapInfo, to be put; NULL if there are none
 *
 * Return: 0 or an error, reported: the directory is wrong.
 */
int details_bitmaps(const struct image *image, struct json_object **list);

#endif /* DETAILS_H */
