// SPDX-License-Identifier: GPL-2.0-only
/*
 * What must hold of headers, extensions and snapshots.
 */
#include "oracle.h"

#include <string.h>

#include "bytes.h"
#include "must.h"

#define MIB	0x100000ULL

/**
 * struct field - a field of the header (spec, "Header")
 * @name: as a fault has it
 * @offset: where it is
 * @bytes: its size
 */
struct field {
	const char *name;
	__u32 offset;
	__u32 bytes;
};

static const struct field fields[] = {
	{ "magic", 0, 4 }, { "version", 4, 4 },
	{ "backing_file_offset", 8, 8 }, { "backing_file_size", 16, 4 },
	{ "cluster_bits", 20, 4 }, { "size", 24, 8 },
	{ "crypt_method", 32, 4 }, { "l1_size", 36, 4 },
	{ "l1_table_offset", 40, 8 }, { "refcount_table_offset", 48, 8 },
	{ "refcount_table_clusters", 56, 4 }, { "nb_snapshots", 60, 4 },
	{ "snapshots_offset", 64, 8 }, { "incompatible_features", 72, 8 },
	{ "compatible_features", 80, 8 }, { "autoclear_features", 88, 8 },
	{ "refcount_order", 96, 4 }, { "header_length", 100, 4 },
	{ "compression_type", 104, 1 },
};

#define FIELD_COUNT	(sizeof(fields) / sizeof(fields[0]))

/* What a decoded header says for each of them */
static __u64 decoded(const struct qcow2_header *h, unsigned int field)
{
	const __u64 values[FIELD_COUNT] = {
		QCOW2_MAGIC, h->version, h->backing_file_offset,
		h->backing_file_size, h->cluster_bits, h->size,
		h->crypt_method, h->l1_size, h->l1_table_offset,
		h->refcount_table_offset, h->refcount_table_clusters,
		h->nb_snapshots, h->snapshots_offset, h->incompatible,
		h->compatible, h->autoclear, h->refcount_order,
		h->header_length, h->compression_type,
	};

	return values[field];
}

/* What version 2, and a short header of version 3, do not have */
static __u64 default_of(const struct field *field)
{
	if (!strcmp(field->name, "refcount_order"))
		return 4;
	return strcmp(field->name, "header_length") ? 0 : 72;
}

static void same_fields(const __u8 *buf, __u32 len,
			const struct qcow2_header *h)
{
	const struct field *field;
	__u32 there = h->version == 2 ? 72 : h->header_length;
	unsigned int i;

	if (there > len)
		there = len;
	for (i = 0; i < FIELD_COUNT; i++) {
		field = &fields[i];
		must(decoded(h, i) == (field->offset + field->bytes <= there ?
				       get(buf + field->offset, field->bytes) :
				       default_of(field)));
	}
}

/* A table of whole clusters: entries of so many bits fill it. */
static void fills(const struct qcow2_header *h, __u32 log_entries, __u32 bits)
{
	must(((wide)bits << log_entries) == (wide)h->cluster_size * 8);
}

static void geometry(const struct qcow2_header *h)
{
	int extended = h->version == 3 && (h->incompatible & 16);

	must(h->cluster_bits >= 9 && h->cluster_bits <= 21);
	must(h->cluster_size == 1U << h->cluster_bits);
	must(h->l2_entry_bytes == (extended ? 16 : 8));
	must(h->refcount_order <= 6);
	fills(h, h->l2_bits, h->l2_entry_bytes * 8);
	fills(h, h->refblock_bits, 1U << h->refcount_order);
	must((1U << h->sub_bits) * (extended ? 32 : 1) == h->cluster_size);
	/* Compressed data is counted in sectors, subclusters have one or more. */
	must(h->sub_bits >= 9);
}

static void aligned(const struct qcow2_header *h, __u64 offset)
{
	must(offset % h->cluster_size == 0);
}

static void tables(const struct qcow2_header *h)
{
	wide mapped = (wide)h->l1_size << (h->l2_bits + h->cluster_bits);

	must(h->l1_size * 8ULL <= 32 * MIB);
	must(mapped >= h->size && mapped < (wide)1 << 64);
	aligned(h, h->l1_table_offset);
	must(h->l1_table_offset || !h->l1_size);
	must(h->refcount_table_clusters);
	must((wide)h->refcount_table_clusters * h->cluster_size <= 8 * MIB);
	aligned(h, h->refcount_table_offset);
	must(h->refcount_table_offset);
	must(h->nb_snapshots <= 65536);
	aligned(h, h->snapshots_offset);
	must(h->snapshots_offset || !h->nb_snapshots);
}

static void backing(const struct qcow2_header *h)
{
	if (!h->backing_file_offset)
		return;
	must(h->backing_file_size <= 1023);
	must(h->backing_file_offset >= h->header_length);
	must((wide)h->backing_file_offset + h->backing_file_size <=
	     h->cluster_size);
}

void oracle_header(const __u8 *buf, __u32 len, const struct qcow2_header *h)
{
	must(len >= 104);
	must(!memcmp(buf, "QFI\xfb", 4));
	must(h->version == 2 || h->version == 3);
	same_fields(buf, len, h);
	must(h->crypt_method <= 2);
	must(h->header_length <= h->cluster_size);
	must(h->version == 2 || (h->header_length >= 104 &&
				 h->header_length % 8 == 0));
	/* Types other than zlib need the bit, and it them. */
	must(h->compression_type <= 1);
	must(!!h->compression_type == !!(h->incompatible & 8));
	geometry(h);
	tables(h);
	backing(h);
}

/* What a short header does not have is 0. */
static __u64 value_there(const __u8 *buf, __u32 len, const struct field *field)
{
	__u32 end = field->offset + field->bytes;

	if (field->offset >= 104 && (end > len || end > get(buf + 100, 4)))
		return 0;
	return get(buf + field->offset, field->bytes);
}

void oracle_fault(const __u8 *buf, __u32 len, const struct qcow2_fault *fault)
{
	unsigned int i;

	must(fault->field && *fault->field);
	must(fault->why && *fault->why);
	if (!strcmp(fault->field, "header")) {
		must(len < 104 && fault->value == len);
		return;
	}
	for (i = 0; i < FIELD_COUNT; i++) {
		if (strcmp(fault->field, fields[i].name))
			continue;
		must(fault->where == fields[i].offset);
		must(fault->value == value_there(buf, len, &fields[i]));
		return;
	}
	must(!"a field of the header");
}

static void ends_inside(__u64 offset, wide len, __u64 bytes)
{
	must(offset + len <= bytes);
	must(offset + len <= (wide)1 << 56);
}

void oracle_bounds(const struct qcow2_header *h, __u64 bytes)
{
	ends_inside(h->l1_table_offset, (wide)h->l1_size * 8, bytes);
	ends_inside(h->refcount_table_offset,
		    (wide)h->refcount_table_clusters * h->cluster_size, bytes);
	if (h->nb_snapshots)
		ends_inside(h->snapshots_offset, (wide)h->nb_snapshots * 40,
			    bytes);
}

void oracle_extension(const struct qcow2_header *h, __u32 len, __u32 offset,
		      const struct qcow2_ext *ext)
{
	wide end = (wide)ext->data_offset + ext->len;

	must(ext->type);
	must(ext->data_offset == offset + 8);
	must(end <= len && end <= h->cluster_size);
	if (h->backing_file_offset)
		must(end <= h->backing_file_offset);
	must(ext->next_offset >= end && ext->next_offset < end + 8);
	must((ext->next_offset - ext->data_offset) % 8 == 0);
}

void oracle_bitmaps(const struct qcow2_header *h,
		    const struct qcow2_bitmaps *bitmaps)
{
	must(bitmaps->nb >= 1 && bitmaps->nb <= 65535);
	must(bitmaps->directory_size <= 64 * MIB);
	must(bitmaps->directory_size >= bitmaps->nb * 24ULL);
	aligned(h, bitmaps->directory_offset);
	must(bitmaps->directory_offset);
	must((wide)bitmaps->directory_offset + bitmaps->directory_size <
	     (wide)1 << 57);
}

void oracle_bitmap(const __u8 *buf, __u64 len,
		   const struct qcow2_bitmap *bitmap)
{
	wide extra = get(buf + 20, 4);
	struct qcow2_bitmap less;
	struct qcow2_fault fault;

	must(bitmap->table_offset == get(buf, 8));
	must(bitmap->table_size == get(buf + 8, 4));
	must(bitmap->flags == get(buf + bitmap->flags_offset, 4));
	must(bitmap->granularity_bits == buf[17]);
	must(bitmap->name_offset == 24 + extra);
	must(bitmap->name_len == get(buf + 18, 2));
	must(bitmap->entry_len <= len && bitmap->entry_len % 8 == 0);
	must((wide)bitmap->name_offset + bitmap->name_len <=
	     bitmap->entry_len);
	must((wide)bitmap->name_offset + bitmap->name_len + 8 >
	     bitmap->entry_len);
	must(!qcow2_bitmap_decode(buf, bitmap->entry_len, 0, &less, &fault));
	must(qcow2_bitmap_decode(buf, bitmap->entry_len - 1, 0, &less,
				 &fault) == -1);
}

/* What is recorded behind the fixed part, as far as there is something */
static void extra_data(const __u8 *buf, __u32 extra,
		       const struct qcow2_snapshot *snap)
{
	must(extra <= 1024);
	must(snap->vm_state_size == (extra >= 8 ? get(buf + 40, 8) :
				     get(buf + 32, 4)));
	must(snap->disk_size == (extra >= 16 ? get(buf + 48, 8) :
				 QCOW2_NO_DISK_SIZE));
	must(snap->icount == (extra >= 24 ? get(buf + 56, 8) :
			      QCOW2_NO_ICOUNT));
}

void oracle_snapshot(const __u8 *buf, __u64 len, const struct qcow2_header *h,
		     const struct qcow2_snapshot *snap)
{
	__u32 extra = get(buf + 36, 4), end;
	struct qcow2_snapshot less;
	struct qcow2_fault fault;

	must(snap->l1_table_offset == get(buf, 8));
	must(snap->l1_size == get(buf + 8, 4));
	must(snap->date_sec == get(buf + 16, 4));
	must(snap->date_nsec == get(buf + 20, 4));
	must(snap->vm_clock_nsec == get(buf + 24, 8));
	extra_data(buf, extra, snap);
	must(snap->id_offset == 40 + extra);
	must(snap->id_len == get(buf + 12, 2));
	must(snap->name_offset == snap->id_offset + snap->id_len);
	must(snap->name_len == get(buf + 14, 2));
	end = snap->name_offset + snap->name_len;
	must(snap->entry_len >= end && snap->entry_len < end + 8);
	must(snap->entry_len % 8 == 0 && snap->entry_len <= len);
	must(snap->l1_size * 8ULL <= 32 * MIB);
	aligned(h, snap->l1_table_offset);
	must(snap->l1_table_offset < 1ULL << 56);
	must(!qcow2_snapshot_decode(buf, snap->entry_len, 0, h, &less, &fault));
	must(qcow2_snapshot_decode(buf, snap->entry_len - 1, 0, h, &less,
				   &fault) == 1);
}
