// SPDX-License-Identifier: GPL-2.0-only
/*
 * What must hold of table entries.
 */
#include "oracle.h"

#include <string.h>

#include "must.h"

#define OWNED		0x8000000000000000ULL
#define COMPRESSED	0x4000000000000000ULL
#define ZERO		1ULL
#define SECTOR		512ULL

/* Bits @from to @to, where they are */
static __u64 bits(__u64 value, unsigned int from, unsigned int to)
{
	return (__u64)((wide)value % ((wide)1 << (to + 1))) >> from << from;
}

static int names_cluster(const struct qcow2_header *h, __u64 offset,
			 __u64 bytes)
{
	return offset % h->cluster_size == 0 &&
		(wide)offset + h->cluster_size <= bytes;
}

/* Refused, if and only if it is wrong */
static const char *verdict(const char *refused, int right)
{
	must(!refused == !!right);
	must(!refused || *refused);
	return refused;
}

const char *oracle_l1_entry(const struct qcow2_header *h, __u64 entry,
			    __u64 bytes)
{
	const char *refused = qcow2_l1_entry_check(h, entry, bytes);
	__u64 offset = bits(entry, 9, 55);
	int right = !bits(entry, 0, 8) && !bits(entry, 56, 62) &&
		(offset ? names_cluster(h, offset, bytes) : !entry);

	if (!refused)
		must(entry == (offset | (entry & OWNED)));
	return verdict(refused, right);
}

const char *oracle_reftable_entry(const struct qcow2_header *h, __u64 entry,
				  __u64 bytes)
{
	const char *refused = qcow2_reftable_entry_check(h, entry, bytes);
	int right = !entry || (!bits(entry, 0, 8) &&
			       names_cluster(h, entry, bytes));

	return verdict(refused, right);
}

/*
 * spec, "Compressed Clusters Descriptor": the offset, in bytes, and above it how
 * many sectors follow the one that it is in.
 */
static int packed_right(const struct qcow2_header *h, __u64 entry, __u64 bytes)
{
	__u32 x = 62 - (h->cluster_bits - 8);
	__u64 offset = bits(entry, 0, x - 1);

	return !(entry & OWNED) && offset >= h->cluster_size && offset < bytes;
}

static void packed_parts(const struct qcow2_header *h, __u64 entry)
{
	__u32 x = 62 - (h->cluster_bits - 8), clusters;
	__u64 offset = bits(entry, 0, x - 1), first;
	__u64 more = bits(entry, x, 61) >> x;
	__u64 end = (offset / SECTOR + more + 1) * SECTOR;

	must(qcow2_packed_offset(h, entry) == offset);
	must(qcow2_packed_bytes(h, entry) == end - offset);
	must(end - offset < 2 * h->cluster_size + SECTOR);
	clusters = qcow2_packed_clusters(h, entry, &first);
	must(first == offset / h->cluster_size);
	must(clusters >= 1 && clusters <= 3);
	must((first + clusters - 1) * h->cluster_size < end);
	must((first + clusters) * h->cluster_size >= end);
	must(entry == (COMPRESSED | more << x | offset));
}

/* spec, "Incompatible features", bit 2 */
static int is_external(const struct qcow2_header *h)
{
	return h->incompatible >> 2 & 1;
}

/* Unallocated, or at its one place; offset 0 is one if the cluster is owned. */
static int external_right(__u64 entry, __u64 guest)
{
	__u64 offset = bits(entry, 9, 55);

	if (!offset && (!(entry & OWNED) || (entry & ZERO)))
		return 1;
	return offset == guest;
}

static int standard_right(const struct qcow2_header *h, __u64 entry,
			  __u64 guest, __u64 bytes)
{
	__u64 offset = bits(entry, 9, 55);

	if (bits(entry, 1, 8) || bits(entry, 56, 61))
		return 0;
	if ((entry & ZERO) && h->version == 2)
		return 0;
	/* What the flag says of ordinary entries it does not of extended ones. */
	if (h->l2_entry_bytes == 16 && (entry & ZERO))
		return standard_right(h, entry - ZERO, guest, bytes);
	if (is_external(h))
		return external_right(entry, guest);
	if (!offset)
		return !(entry & OWNED);
	return offset % h->cluster_size == 0 && offset < bytes;
}

/* Only in an external data file is anything owned that has offset 0. */
static int is_allocated(__u64 entry)
{
	return bits(entry, 9, 55) || (entry & OWNED);
}

static enum qcow2_kind kind_of(__u64 entry)
{
	if (entry & COMPRESSED)
		return QCOW2_COMPRESSED;
	if (is_allocated(entry))
		return entry & ZERO ? QCOW2_ZERO_ALLOC : QCOW2_NORMAL;
	return entry & ZERO ? QCOW2_ZERO_PLAIN : QCOW2_UNALLOCATED;
}

const char *oracle_l2_entry(const struct qcow2_header *h, __u64 entry,
			    __u64 guest, __u64 bytes)
{
	const char *refused = qcow2_l2_entry_check(h, entry, guest, bytes);
	int packed = !!(entry & COMPRESSED);

	verdict(refused, packed ?
		!is_external(h) && packed_right(h, entry, bytes) :
		standard_right(h, entry, guest, bytes));
	if (refused)
		return refused;
	must(qcow2_l2_kind(entry) == kind_of(entry));
	if (packed)
		packed_parts(h, entry);
	else
		must(entry == (bits(entry, 9, 55) | (entry & (OWNED | ZERO))));
	return NULL;
}

static int allocated(__u64 bitmap, unsigned int sub)
{
	return bitmap >> sub & 1;
}

static int zero(__u64 bitmap, unsigned int sub)
{
	return bitmap >> (32 + sub) & 1;
}

static int bitmap_right(__u64 entry, __u64 bitmap)
{
	unsigned int sub;

	if (entry & COMPRESSED)
		return 1;
	for (sub = 0; sub < 32; sub++) {
		if (allocated(bitmap, sub) &&
		    (zero(bitmap, sub) || !is_allocated(entry)))
			return 0;
	}
	return 1;
}

static void sub_kind(__u64 entry, __u64 bitmap, unsigned int sub)
{
	enum qcow2_kind kind = QCOW2_UNALLOCATED;

	if (entry & COMPRESSED)
		kind = QCOW2_COMPRESSED;
	else if (allocated(bitmap, sub))
		kind = QCOW2_NORMAL;
	else if (zero(bitmap, sub))
		kind = QCOW2_ZERO_PLAIN;
	must(qcow2_sub_kind(entry, bitmap, sub) == kind);
}

static void sub_run(__u64 bitmap, unsigned int sub)
{
	unsigned int end = sub + 1;

	while (end < 32 && allocated(bitmap, end) == allocated(bitmap, sub) &&
	       zero(bitmap, end) == zero(bitmap, sub))
		end++;
	must(qcow2_sub_run(bitmap, sub) == end - sub);
}

/* The subclusters that a part of the cluster has a byte in */
static void sub_mask(const struct qcow2_header *h, __u32 from, __u32 to)
{
	__u64 mask = qcow2_sub_mask(h, from, to);
	__u32 size = h->cluster_size / 32, sub;

	must(mask >> 32 == 0);
	for (sub = 0; sub < 32; sub++)
		must(allocated(mask, sub) ==
		     (from < (sub + 1) * size && to > sub * size));
}

const char *oracle_l2_bitmap(const struct qcow2_header *h, __u64 entry,
			     __u64 bitmap)
{
	const char *refused = qcow2_l2_bitmap_check(entry, bitmap);
	__u32 from = bitmap % h->cluster_size;
	unsigned int sub;

	verdict(refused, bitmap_right(entry, bitmap));
	sub_mask(h, from, h->cluster_size);
	sub_mask(h, from, from + 1);
	sub_mask(h, from / 2, from / 2 + 1 + from / 4);
	if (refused)
		return refused;
	for (sub = 0; sub < 32; sub++) {
		sub_kind(entry, bitmap, sub);
		if (!(entry & COMPRESSED))
			sub_run(bitmap, sub);
	}
	return NULL;
}

/* spec, "Refcounts": big endian, or less than a byte, the lowest bits first */
static __u64 refcount(const __u8 *block, __u32 index, __u32 order)
{
	__u32 width = 1U << order, bytes = width / 8, i;
	__u64 value = 0;

	if (width < 8)
		return block[index * width / 8] >> index * width % 8 &
			((1U << width) - 1);
	for (i = 0; i < bytes; i++)
		value = value * 256 + block[index * bytes + i];
	return value;
}

/* Another value there changes nothing beside it. */
static void change(__u8 *block, __u32 len, __u32 index, __u32 order,
		   __u64 value)
{
	__u64 old = qcow2_refcount_get(block, index, order);
	__u32 count = len * 8 >> order, next = (index + 1) % count;
	__u64 beside = refcount(block, next, order);
	__u8 *copy = malloc(len);

	must(copy);
	memcpy(copy, block, len);
	qcow2_refcount_set(block, index, order, value);
	must(refcount(block, index, order) == value);
	must(qcow2_refcount_get(block, index, order) == value);
	must(refcount(block, next, order) == beside);
	qcow2_refcount_set(block, index, order, old);
	must(!memcmp(copy, block, len));
	free(copy);
}

void oracle_refcounts(__u8 *block, __u32 len, __u32 order)
{
	__u64 max = qcow2_refcount_max(order);
	__u32 count = len * 8 >> order, i;

	must(order == 6 ? max == ~0ULL : max == (1ULL << (1U << order)) - 1);
	for (i = 0; i < count; i++) {
		must(refcount(block, i, order) <= max);
		must(qcow2_refcount_get(block, i, order) ==
		     refcount(block, i, order));
	}
	change(block, len, 0, order, max);
	change(block, len, count - 1, order, 1);
	change(block, len, count / 2, order, block[0] & max);
}

void oracle_l1_entries(const struct qcow2_header *h, __u64 size)
{
	wide span = (wide)h->cluster_size / h->l2_entry_bytes * h->cluster_size;
	wide entries = qcow2_l1_entries(h, size);

	must(entries * span >= size);
	must(!size ? !entries : (entries - 1) * span < size);
}

void oracle_indices(const struct qcow2_header *h, __u64 guest)
{
	__u64 l1 = qcow2_l1_index(h, guest);
	__u32 l2 = qcow2_l2_index(h, guest);

	if (guest >= h->size)
		return;
	must(l1 < h->l1_size);
	must(l1 < qcow2_l1_entries(h, h->size));
	must(l2 < h->cluster_size / h->l2_entry_bytes);
	must(((wide)l1 * (h->cluster_size / h->l2_entry_bytes) + l2) *
	     h->cluster_size + guest % h->cluster_size == guest);
}
