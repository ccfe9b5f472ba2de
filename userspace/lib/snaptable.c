// SPDX-License-Identifier: GPL-2.0-only
/*
 * The snapshot table of an image.
 */
#include "snaptable.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

/* Most entries are shorter than this; none is longer: 40 + 1024 + 2 * 65535 */
#define ENTRY_USUAL	4096
#define ENTRY_MAX	(136 * 1024)

static void add(struct snaptable *table, const struct image *image,
		const char *buf, const struct qcow2_snapshot *entry)
{
	struct snapshot *new = &table->list[table->count++];

	/* As QEMU, up to the first zero byte if there is one */
	new->id = text("%.*s", (int)entry->id_len, buf + entry->id_offset);
	new->name = text("%.*s", (int)entry->name_len,
			 buf + entry->name_offset);
	/* Images that do not record it cannot be resized. */
	new->size = entry->disk_size == QCOW2_NO_DISK_SIZE ? image->size :
		entry->disk_size;
	new->entry = *entry;
}

static int refuse_end(const struct image *image)
{
	return report_fail(EUCLEAN,
			   "%s: the snapshot table has no room for %u snapshots.",
			   image->path, image->header.nb_snapshots);
}

/* Return: 0; 1 if the entry is longer than @size; or an error, reported */
static int read_entry(const struct image *image, size_t size, uint64_t where,
		      struct snaptable *table, uint64_t *next)
{
	uint64_t end = round_up(image->length, 512);
	struct qcow2_snapshot entry;
	struct qcow2_fault fault;
	char *buf;
	int r;

	if (where >= end)
		return refuse_end(image);
	buf = image_read(image, size, where);
	if (!buf)
		return -EIO;
	r = qcow2_snapshot_decode(buf, size, where, &image->header, &entry,
				  &fault);
	if (r < 0)
		r = image_fault(image, &fault);
	else if (!r && entry.entry_len > end - where)
		r = refuse_end(image);
	else if (!r)
		add(table, image, buf, &entry);
	free(buf);
	if (!r)
		*next = where + entry.entry_len;
	return r;
}

int snaptable_read(const struct image *image, struct snaptable *table)
{
	const struct qcow2_header *h = &image->header;
	uint64_t where = h->snapshots_offset;
	int r = 0;

	memset(table, 0, sizeof(*table));
	/* A few MiB at the most: QCOW2_MAX_SNAPSHOTS of them */
	table->list = calloc(h->nb_snapshots + 1, sizeof(*table->list));
	if (!table->list)
		return report_memory();
	while (table->count < h->nb_snapshots && !r) {
		r = read_entry(image, ENTRY_USUAL, where, table, &where);
		if (r > 0)
			r = read_entry(image, ENTRY_MAX, where, table, &where);
		if (!r && where - h->snapshots_offset >
		    QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
			r = refuse_end(image);
	}
	return r;
}

void snaptable_free(struct snaptable *table)
{
	while (table->count) {
		table->count--;
		free(table->list[table->count].id);
		free(table->list[table->count].name);
	}
	free(table->list);
	table->list = NULL;
}

const struct snapshot *snaptable_by_name(const struct snaptable *table,
					 const char *name)
{
	unsigned int i;

	for (i = 0; i < table->count; i++) {
		if (!strcmp(table->list[i].name, name))
			return &table->list[i];
	}
	return NULL;
}

const struct snapshot *snaptable_find(const struct snaptable *table,
				      const char *word)
{
	unsigned int i;

	for (i = 0; i < table->count; i++) {
		if (!strcmp(table->list[i].id, word))
			return &table->list[i];
	}
	return snaptable_by_name(table, word);
}
