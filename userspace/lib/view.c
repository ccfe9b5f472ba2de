// SPDX-License-Identifier: GPL-2.0-only
/*
 * An internal snapshot as the top of a chain.
 */
#include "view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"
#include "snaptable.h"

/* Longer ones are none of QEMU's. */
#define ID_MAX	127

/* A word of a table line: device-mapper splits at blanks, unless escaped. */
static bool is_word(const char *id)
{
	const char *p;

	for (p = id; *p; p++) {
		if (*p <= ' ' || *p == '\\' || *p == 127)
			return false;
	}
	return p > id && p - id <= ID_MAX;
}

static int check_l1(const struct image *image, const struct snapshot *snapshot)
{
	const struct qcow2_snapshot *entry = &snapshot->entry;
	uint64_t end = entry->l1_table_offset + (uint64_t)entry->l1_size * 8;

	if (end > round_up(image->length, 512))
		return report_fail(EMEDIUMTYPE,
				   "%s: the L1 table of internal snapshot %s ends beyond the image.",
				   image->path, snapshot->id);
	if (snapshot->size > 1ULL << 62 ||
	    qcow2_l1_entries(&image->header, snapshot->size) > entry->l1_size)
		return report_fail(EMEDIUMTYPE,
				   "%s: the L1 table of internal snapshot %s is too small for its size of %llu bytes.",
				   image->path, snapshot->id,
				   (unsigned long long)snapshot->size);
	return 0;
}

static int check(const struct image *image, const struct snaptable *table,
		 const struct snapshot *snapshot, const char *word)
{
	if (!snapshot)
		return report_fail(ENOENT,
				   "%s has no internal snapshot '%s'; 'qcow2setup internal list' shows those it has.",
				   image->path, word);
	if (!is_word(snapshot->id))
		return report_fail(EMEDIUMTYPE,
				   "%s: the ID of internal snapshot '%s' cannot stand in a table line.",
				   image->path, word);
	if (snaptable_find(table, snapshot->id) != snapshot)
		return report_fail(EMEDIUMTYPE,
				   "%s has several internal snapshots with the ID '%s': only the first can be opened.",
				   image->path, snapshot->id);
	return check_l1(image, snapshot);
}

int view_choose(struct image *image, const char *word, char **id)
{
	const struct snapshot *snapshot;
	struct snaptable table;
	int r;

	*id = NULL;
	if (image->format != FORMAT_QCOW2)
		return report_fail(EINVAL,
				   "%s is raw: it has no internal snapshots.",
				   image->path);
	r = snaptable_read(image, &table);
	if (!r) {
		snapshot = snaptable_find(&table, word);
		r = check(image, &table, snapshot, word);
	}
	if (!r) {
		*id = text_copy(snapshot->id);
		image->size = snapshot->size;
	}
	snaptable_free(&table);
	return r;
}

char *view_feature(const char *id)
{
	return text(" snapshot %s", id);
}
