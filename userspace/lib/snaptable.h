/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The snapshot table of an image: its internal snapshots. Nothing here writes.
 */
#ifndef SNAPTABLE_H
#define SNAPTABLE_H

#include "image.h"

/**
 * struct snapshot - an internal snapshot
 * @id: its ID
 * @name: its name, may be empty
 * @size: virtual size of the disk, bytes
 * @entry: what else its entry says
 *
 * The offsets of strings in @entry are of no use.
 */
struct snapshot {
	char *id;
	char *name;
	uint64_t size;
	struct qcow2_snapshot entry;
};

/**
 * struct snaptable - the snapshots of an image
 * @list: in the order of the table
 * @count: of @list
 */
struct snaptable {
	struct snapshot *list;
	unsigned int count;
};

/**
 * snaptable_read() - read the snapshot table
 * @image: a qcow2 image
 * @table: result; snaptable_free() it, after errors as well
 *
 * Return: 0 or an error, reported.
 */
int snaptable_read(const struct image *image, struct snaptable *table);

/** snaptable_free() - free what snaptable_read() filled */
void snaptable_free(struct snaptable *table);

/**
 * snaptable_find() - find a snapshot by its ID, or else by its name
 * @table: the table
 * @word: ID or name
 *
 * The first one of several, as QEMU does.
 *
 * Return: the snapshot, or NULL (unreported).
 */
const struct snapshot *snaptable_find(const struct snaptable *table,
				      const char *word);

/**
 * snaptable_by_name() - find a snapshot by its name alone
 *
 * Arguments and result as for snaptable_find().
 */
const struct snapshot *snaptable_by_name(const struct snaptable *table,
					 const char *name);

#endif /* SNAPTABLE_H */
