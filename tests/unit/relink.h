/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One relink of a first cluster, and what an image means before, between and
 * after the writes, as a reader sees it that shares no code with it.
 *
 * Who includes this defines must(): the test fails where the condition does not
 * hold.
 */
#ifndef RELINK_H
#define RELINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bytes.h"
#include "format.h"

#define AREA_MAX	65536U

/**
 * struct meaning - what the first cluster of an image says
 * @sound: it can be read
 * @name: of the backing file
 * @format: last one noted
 * @exts: types and data of the other extensions, one after another
 * @exts_len: bytes in @exts
 */
struct meaning {
	bool sound;
	char name[1024];
	char format[64];
	uint8_t exts[AREA_MAX];
	size_t exts_len;
};

static void add_ext(struct meaning *m, const uint8_t *ext, uint32_t len)
{
	uint32_t type = get(ext, 4);

	if (type == QCOW2_EXT_FEATURE_TABLE || type == QCOW2_EXT_PADDING)
		return;
	if (type == QCOW2_EXT_BACKING_FORMAT) {
		memset(m->format, 0, sizeof(m->format));
		memcpy(m->format, ext + 8, len < 63 ? len : 63);
		return;
	}
	memcpy(m->exts + m->exts_len, ext, 8 + len);
	m->exts_len += 8 + len;
}

/* As qcow2_read_extensions() and qcow2_open() of QEMU do it */
static void read_meaning(const uint8_t *buf, uint32_t cluster,
			 struct meaning *m)
{
	uint32_t offset = get(buf + 4, 4) == 2 ? 72 : get(buf + 100, 4);
	uint64_t name = get(buf + 8, 8), end = name ? name : cluster;
	uint32_t name_len = get(buf + 16, 4), len;

	memset(m, 0, sizeof(*m));
	if (name && (name > cluster || name_len > 1023 ||
		     name_len > cluster - name))
		return;
	while (offset < end) {
		const uint8_t *ext = buf + offset;

		offset += 8;
		if (offset > end)
			return;
		len = get(ext + 4, 4);
		if (len > end - offset)
			return;
		if (!get(ext, 4))
			break;
		add_ext(m, ext, len);
		offset += (len + 7) & ~7U;
	}
	if (name)
		memcpy(m->name, buf + name, name_len);
	m->sound = true;
}

static void same_exts(const struct meaning *a, const struct meaning *b)
{
	must(a->exts_len == b->exts_len);
	must(!memcmp(a->exts, b->exts, a->exts_len));
}

/**
 * struct trial - one relink of a first cluster
 * @old: before
 * @new: after
 * @len: of both
 * @unit: atomic
 * @name: to be
 * @format: to be
 * @out: what comes first
 * @fault: why not
 */
struct trial {
	uint8_t old[AREA_MAX];
	uint8_t new[AREA_MAX];
	uint32_t len;
	uint32_t unit;
	const char *name;
	const char *format;
	struct qcow2_relink out;
	struct qcow2_fault fault;
};

static struct trial t;
static struct meaning before, between, after;

/* Only the two places that may be written differ. */
static void check_places(uint32_t unit)
{
	uint32_t i;

	for (i = unit; i < t.len; i++) {
		if (i >= t.out.name_offset &&
		    i < t.out.name_offset + t.out.name_len)
			continue;
		must(t.old[i] == t.new[i]);
	}
	if (t.out.name_len) {
		must(t.out.name_offset >= unit);
		must(t.out.name_offset + t.out.name_len <= t.len);
	}
}

/* The name is written, the header's unit is not yet. */
static void check_between(uint32_t cluster)
{
	static uint8_t half[AREA_MAX];

	memcpy(half, t.old, t.len);
	memcpy(half + t.out.name_offset, t.new + t.out.name_offset,
	       t.out.name_len);
	read_meaning(half, cluster, &between);
	must(between.sound);
	must(!strcmp(between.name, before.name));
	must(!strcmp(between.format, before.format));
	same_exts(&before, &between);
}

static void check_after(uint32_t cluster)
{
	struct qcow2_header h;

	must(!qcow2_header_decode(t.new, t.len, &h, &t.fault));
	read_meaning(t.new, cluster, &after);
	must(after.sound);
	must(!strcmp(after.name, t.name));
	if (t.name[0])
		must(!strcmp(after.format, t.format));
	same_exts(&before, &after);
}

/* Of t.old, by what else is in t.  Return: whether it could be done */
static bool relink(void)
{
	uint32_t cluster, unit;
	struct qcow2_header h;

	must(!qcow2_header_decode(t.old, t.len, &h, &t.fault));
	cluster = h.cluster_size < AREA_MAX ? h.cluster_size : AREA_MAX;
	unit = t.unit < t.len ? t.unit : t.len;
	read_meaning(t.old, cluster, &before);
	memcpy(t.new, t.old, t.len);
	memset(&t.fault, 0, sizeof(t.fault));
	if (qcow2_relink(t.new, t.len, &h, t.unit, t.name, strlen(t.name),
			 t.format, &t.out, &t.fault) < 0) {
		must(t.fault.field);
		must(t.fault.why);
		return false;
	}
	check_places(unit);
	if (before.sound) {
		check_between(cluster);
		check_after(cluster);
	}
	return true;
}

#endif /* RELINK_H */
