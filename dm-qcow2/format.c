// SPDX-License-Identifier: GPL-2.0-only
/*
 * On-disk structures of qcow2: decoding and checking.
 */
#include "format.h"

#define FAULT(fault, name, offset, val, text)			\
	(fault_set((fault), (name), (offset), (val), (text)))

#define FIELD(member)	__builtin_offsetof(struct qcow2_disk_header, member)

static int fault_set(struct qcow2_fault *fault, const char *field, __u64 where,
		     __u64 value, const char *why)
{
	fault->field = field;
	fault->where = where;
	fault->value = value;
	fault->why = why;
	return -1;
}

/* Structures in extensions and tables are only byte aligned. */
static __u64 get_be(const void *buf, __u32 offset, __u32 bytes)
{
	const __u8 *p = (const __u8 *)buf + offset;
	__u64 v = 0;

	while (bytes--)
		v = v << 8 | *p++;
	return v;
}

static void put_be(void *buf, __u32 offset, __u32 bytes, __u64 value)
{
	__u8 *p = (__u8 *)buf + offset;

	while (bytes--) {
		p[bytes] = value;
		value >>= 8;
	}
}

/* Does [offset, offset + len) end at or before @end, without wrapping? */
static int inside(__u64 offset, __u64 len, __u64 end)
{
	return offset <= end && len <= end - offset;
}

static int cluster_aligned(const struct qcow2_header *h, __u64 offset)
{
	return !(offset & (h->cluster_size - 1));
}

int qcow2_probe(const void *buf, __u32 len)
{
	return len >= 4 && get_be(buf, 0, 4) == QCOW2_MAGIC;
}

static void decode_v2(const struct qcow2_disk_header *d, struct qcow2_header *h)
{
	h->version = __be32_to_cpu(d->version);
	h->backing_file_offset = __be64_to_cpu(d->backing_file_offset);
	h->backing_file_size = __be32_to_cpu(d->backing_file_size);
	h->cluster_bits = __be32_to_cpu(d->cluster_bits);
	h->size = __be64_to_cpu(d->size);
	h->crypt_method = __be32_to_cpu(d->crypt_method);
	h->l1_size = __be32_to_cpu(d->l1_size);
	h->l1_table_offset = __be64_to_cpu(d->l1_table_offset);
	h->refcount_table_offset = __be64_to_cpu(d->refcount_table_offset);
	h->refcount_table_clusters = __be32_to_cpu(d->refcount_table_clusters);
	h->nb_snapshots = __be32_to_cpu(d->nb_snapshots);
	h->snapshots_offset = __be64_to_cpu(d->snapshots_offset);
}

static void decode_v3(const struct qcow2_disk_header *d, __u32 len,
		      struct qcow2_header *h)
{
	if (h->version == 2) {
		h->incompatible = 0;
		h->compatible = 0;
		h->autoclear = 0;
		h->refcount_order = 4;
		h->header_length = QCOW2_HEADER_V2_BYTES;
		h->compression_type = 0;
		return;
	}
	h->incompatible = __be64_to_cpu(d->incompatible_features);
	h->compatible = __be64_to_cpu(d->compatible_features);
	h->autoclear = __be64_to_cpu(d->autoclear_features);
	h->refcount_order = __be32_to_cpu(d->refcount_order);
	h->header_length = __be32_to_cpu(d->header_length);
	/* Present only if header_length covers it (spec, "Header"). */
	h->compression_type = 0;
	if (h->header_length > FIELD(compression_type) &&
	    len > FIELD(compression_type))
		h->compression_type = d->compression_type;
}

static int check_geometry(struct qcow2_header *h, struct qcow2_fault *fault)
{
	if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
	    h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
		return FAULT(fault, "cluster_bits", FIELD(cluster_bits),
			     h->cluster_bits, "must be 9 to 21");
	if (h->refcount_order > 6)
		return FAULT(fault, "refcount_order", FIELD(refcount_order),
			     h->refcount_order, "must be 0 to 6");
	h->cluster_size = 1U << h->cluster_bits;
	h->l2_entry_bytes = h->incompatible & QCOW2_INCOMPAT_EXTL2 ? 16 : 8;
	h->l2_bits = h->cluster_bits - (h->l2_entry_bytes == 16 ? 4 : 3);
	h->sub_bits = h->cluster_bits;
	if (h->l2_entry_bytes == 16)
		h->sub_bits -= QCOW2_SUBCLUSTER_BITS;
	h->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
	if (h->l2_entry_bytes == 16 && h->cluster_bits < 14)
		return FAULT(fault, "cluster_bits", FIELD(cluster_bits),
			     h->cluster_bits,
			     "extended L2 entries need clusters of 16 KiB or more");
	return 0;
}

/* zlib has no bit: old programs read it (spec, "Header") */
static int check_compression(const struct qcow2_header *h,
			     struct qcow2_fault *fault)
{
	int bit = !!(h->incompatible & QCOW2_INCOMPAT_COMPRESSION);
	__u8 type = h->compression_type;
	int zlib = type == QCOW2_COMPRESSION_ZLIB;

	if (type > QCOW2_COMPRESSION_ZSTD)
		return FAULT(fault, "compression_type", FIELD(compression_type),
			     type, "must be 0 (zlib) or 1 (zstd)");
	if (bit == zlib)
		return FAULT(fault, "compression_type", FIELD(compression_type),
			     type, "contradicts the incompatible feature bit");
	return 0;
}

static int check_lengths(const struct qcow2_header *h,
			 struct qcow2_fault *fault)
{
	/* header_length alone: 100-byte headers of version 3 do not exist */
	if (h->version == 3 && (h->header_length < 104 || h->header_length % 8))
		return FAULT(fault, "header_length", FIELD(header_length),
			     h->header_length,
			     "must be 104 or more, and a multiple of 8");
	if (h->header_length > h->cluster_size)
		return FAULT(fault, "header_length", FIELD(header_length),
			     h->header_length, "exceeds the first cluster");
	if (!h->backing_file_offset)
		return 0;
	if (h->backing_file_size > QCOW2_MAX_BACKING_NAME_BYTES)
		return FAULT(fault, "backing_file_size",
			     FIELD(backing_file_size), h->backing_file_size,
			     "must be 1023 or less");
	if (h->backing_file_offset < h->header_length ||
	    !inside(h->backing_file_offset, h->backing_file_size,
		    h->cluster_size))
		return FAULT(fault, "backing_file_offset",
			     FIELD(backing_file_offset), h->backing_file_offset,
			     "the name must lie behind the header, in the first cluster");
	return 0;
}

static int check_l1(const struct qcow2_header *h, struct qcow2_fault *fault)
{
	/* Beyond this the arithmetic on guest offsets could wrap. */
	if (h->size > 1ULL << 62)
		return FAULT(fault, "size", FIELD(size), h->size,
			     "larger than any table can map");
	if (h->l1_size > QCOW2_MAX_L1_BYTES / 8)
		return FAULT(fault, "l1_size", FIELD(l1_size), h->l1_size,
			     "larger than 32 MiB of entries");
	if (qcow2_l1_entries(h, h->size) > h->l1_size)
		return FAULT(fault, "l1_size", FIELD(l1_size), h->l1_size,
			     "too small for the virtual size");
	if (!cluster_aligned(h, h->l1_table_offset) ||
	    (h->l1_size && !h->l1_table_offset))
		return FAULT(fault, "l1_table_offset", FIELD(l1_table_offset),
			     h->l1_table_offset,
			     "must be a multiple of the cluster size, not 0");
	return 0;
}

static int check_refcounts(const struct qcow2_header *h,
			   struct qcow2_fault *fault)
{
	__u64 bytes = (__u64)h->refcount_table_clusters << h->cluster_bits;

	if (!h->refcount_table_clusters || bytes > QCOW2_MAX_REFTABLE_BYTES)
		return FAULT(fault, "refcount_table_clusters",
			     FIELD(refcount_table_clusters),
			     h->refcount_table_clusters,
			     "must be 1 or more, and 8 MiB or less");
	if (!h->refcount_table_offset ||
	    !cluster_aligned(h, h->refcount_table_offset))
		return FAULT(fault, "refcount_table_offset",
			     FIELD(refcount_table_offset),
			     h->refcount_table_offset,
			     "must be a multiple of the cluster size, not 0");
	return 0;
}

static int check_snapshots(const struct qcow2_header *h,
			   struct qcow2_fault *fault)
{
	if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
		return FAULT(fault, "nb_snapshots", FIELD(nb_snapshots),
			     h->nb_snapshots, "must be 65536 or less");
	/* Without snapshots as well: QEMU opens no such image. */
	if (!cluster_aligned(h, h->snapshots_offset) ||
	    (h->nb_snapshots && !h->snapshots_offset))
		return FAULT(fault, "snapshots_offset",
			     FIELD(snapshots_offset), h->snapshots_offset,
			     "must be a multiple of the cluster size, not 0");
	return 0;
}

int qcow2_header_decode(const void *buf, __u32 len, struct qcow2_header *h,
			struct qcow2_fault *fault)
{
	const struct qcow2_disk_header *d = buf;

	if (len < QCOW2_HEADER_V3_BYTES)
		return FAULT(fault, "header", 0, len,
			     "the image is too short for a header");
	if (!qcow2_probe(buf, len))
		return FAULT(fault, "magic", FIELD(magic),
			     __be32_to_cpu(d->magic),
			     "not a qcow2 image (if it is a raw one, give its format as raw)");
	decode_v2(d, h);
	if (h->version != 2 && h->version != 3)
		return FAULT(fault, "version", FIELD(version), h->version,
			     "must be 2 or 3");
	decode_v3(d, len, h);
	if (h->crypt_method > 2)
		return FAULT(fault, "crypt_method", FIELD(crypt_method),
			     h->crypt_method, "must be 0, 1 or 2");
	if (check_geometry(h, fault) || check_lengths(h, fault) ||
	    check_compression(h, fault) || check_l1(h, fault) ||
	    check_refcounts(h, fault))
		return -1;
	return check_snapshots(h, fault);
}

int qcow2_header_check_bounds(const struct qcow2_header *h, __u64 image_bytes,
			      struct qcow2_fault *fault)
{
	__u64 reftable_bytes =
		(__u64)h->refcount_table_clusters << h->cluster_bits;

	if (image_bytes > QCOW2_MAX_OFFSET)
		image_bytes = QCOW2_MAX_OFFSET;
	if (!inside(h->l1_table_offset, (__u64)h->l1_size * 8, image_bytes))
		return FAULT(fault, "l1_table_offset", FIELD(l1_table_offset),
			     h->l1_table_offset,
			     "the L1 table ends beyond the device; use one as long as the image (loop devices show whole sectors of a file: truncate it up to the next)");
	if (!inside(h->refcount_table_offset, reftable_bytes, image_bytes))
		return FAULT(fault, "refcount_table_offset",
			     FIELD(refcount_table_offset),
			     h->refcount_table_offset,
			     "the refcount table ends beyond the device; use a device as long as the image");
	/* 40 bytes: the fixed part of an entry */
	if (h->nb_snapshots &&
	    !inside(h->snapshots_offset, (__u64)h->nb_snapshots * 40,
		    image_bytes))
		return FAULT(fault, "snapshots_offset",
			     FIELD(snapshots_offset), h->snapshots_offset,
			     "the snapshot table ends beyond the device; use a device as long as the image");
	return 0;
}

const char *qcow2_feature_name(unsigned int bit)
{
	switch (bit) {
	case 0:
		return "dirty bit";
	case 1:
		return "corrupt bit";
	case 2:
		return "external data file";
	case 3:
		return "compression type";
	case 4:
		return "extended L2 entries";
	}
	return (void *)0;
}

int qcow2_ext_next(const void *buf, __u32 len, __u32 offset,
		   const struct qcow2_header *h, struct qcow2_ext *ext,
		   struct qcow2_fault *fault)
{
	__u64 end = h->cluster_size;

	/* Extensions stop where the backing name starts. */
	if (h->backing_file_offset && h->backing_file_offset < end)
		end = h->backing_file_offset;
	if (end > len)
		end = len;
	if (!inside(offset, 8, end))
		return 0;
	ext->type = get_be(buf, offset, 4);
	ext->len = get_be(buf, offset + 4, 4);
	ext->data_offset = offset + 8;
	if (ext->type == QCOW2_EXT_END)
		return 0;
	if (!inside(ext->data_offset, ext->len, end))
		return FAULT(fault, "header extension length", offset + 4,
			     ext->len, "exceeds the header area");
	ext->next_offset = ext->data_offset + ((ext->len + 7) & ~7U);
	return 1;
}

/**
 * struct relinking - a relink under way
 * @buf: the first cluster
 * @len: bytes in @buf
 * @unit: bytes of @buf that change at once
 * @h: decoded header, as it was
 * @format: of the new backing file
 * @format_len: its length
 * @noted: there is a format extension, and it is right
 * @table: the feature name table, its @type is 0 where there is none
 * @end: where the extensions end
 * @marked: an end marker stands there; else the old name ended them, or the
 *	end of the cluster
 * @fault: what was in the way
 */
struct relinking {
	__u8 *buf;
	__u32 len;
	__u32 unit;
	const struct qcow2_header *h;
	const char *format;
	__u32 format_len;
	int noted;
	struct qcow2_ext table;
	__u32 end;
	int marked;
	struct qcow2_fault *fault;
};

static __u32 text_length(const char *text)
{
	__u32 len = 0;

	while (text[len])
		len++;
	return len;
}

static void copy_text(__u8 *to, const char *from, __u32 len)
{
	while (len--)
		to[len] = from[len];
}

/* A format extension of 16 bytes */
static void put_format(const struct relinking *r, __u32 offset)
{
	put_be(r->buf, offset, 4, QCOW2_EXT_BACKING_FORMAT);
	put_be(r->buf, offset + 4, 4, r->format_len);
	put_be(r->buf, offset + 8, 8, 0);
	copy_text(r->buf + offset + 8, r->format, r->format_len);
}

/* An extension that says nothing; what was in its data may stay there. */
static void put_padding(const struct relinking *r, __u32 offset, __u32 bytes)
{
	if (!bytes)
		return;
	put_be(r->buf, offset, 4, QCOW2_EXT_PADDING);
	put_be(r->buf, offset + 4, 4, bytes - 8);
}

static int format_is(const struct relinking *r, const struct qcow2_ext *ext)
{
	__u32 i;

	if (ext->len != r->format_len)
		return 0;
	for (i = 0; i < ext->len; i++) {
		if (r->buf[ext->data_offset + i] != (__u8)r->format[i])
			return 0;
	}
	return 1;
}

static int change_format(struct relinking *r, const struct qcow2_ext *ext)
{
	__u32 offset = ext->data_offset - 8;
	__u32 bytes = ext->next_offset - offset;

	r->noted = 1;
	if (format_is(r, ext))
		return 0;
	if (bytes < 16 || ext->next_offset > r->unit)
		return FAULT(r->fault, "backing format extension", offset,
			     ext->len, "cannot be changed in one write");
	put_format(r, offset);
	put_padding(r, offset + 16, bytes - 16);
	return 0;
}

static int find_extensions(struct relinking *r)
{
	struct qcow2_ext ext;
	int more;

	r->end = r->h->header_length;
	while ((more = qcow2_ext_next(r->buf, r->len, r->end, r->h, &ext,
				      r->fault)) > 0) {
		if (ext.type == QCOW2_EXT_FEATURE_TABLE)
			r->table = ext;
		if (ext.type == QCOW2_EXT_BACKING_FORMAT && r->format &&
		    change_format(r, &ext))
			return -1;
		r->end = ext.next_offset;
	}
	if (more < 0)
		return -1;
	if (!inside(r->end, 8, r->len) && r->len < r->h->cluster_size)
		return FAULT(r->fault, "header extensions", r->end, r->len,
			     "longer than 64 KiB");
	r->marked = inside(r->end, 8, r->len) &&
		!get_be(r->buf, r->end, 8) &&
		(!r->h->backing_file_offset ||
		 inside(r->end, 8, r->h->backing_file_offset));
	return 0;
}

/* The first 16 bytes of the table; the rest of an entry becomes padding. */
static int take_from_table(struct relinking *r)
{
	__u32 offset = r->table.data_offset - 8;
	__u32 bytes = r->table.next_offset - offset;

	if (r->table.type != QCOW2_EXT_FEATURE_TABLE || bytes < 16)
		return 0;
	if (r->table.len >= 2 * QCOW2_FEATURE_BYTES &&
	    offset + QCOW2_FEATURE_BYTES + 8 <= r->unit) {
		put_format(r, offset);
		put_padding(r, offset + 16, QCOW2_FEATURE_BYTES - 16);
		offset += QCOW2_FEATURE_BYTES;
		put_be(r->buf, offset, 4, QCOW2_EXT_FEATURE_TABLE);
		put_be(r->buf, offset + 4, 4,
		       r->table.len - QCOW2_FEATURE_BYTES);
		return 1;
	}
	/* A table of one entry, or one whose second is out of reach */
	if (offset + (bytes > 16 ? 24 : 16) > r->unit)
		return 0;
	put_format(r, offset);
	put_padding(r, offset + 16, bytes - 16);
	return 1;
}

static int add_format(struct relinking *r)
{
	/* Behind the others, with a new end marker */
	if (inside(r->end, 16 + 8, r->unit)) {
		put_format(r, r->end);
		r->end += 16;
		r->marked = 0;
		return 0;
	}
	if (take_from_table(r))
		return 0;
	return FAULT(r->fault, "backing format extension", r->end, r->unit,
		     "there is none, and no room for it in the header's block");
}

/* Where the name ended the extensions, something else has to. */
static int mark_end(struct relinking *r, __u32 name_len)
{
	if (r->marked || (!name_len && r->end == r->len))
		return 0;
	if (!inside(r->end, 8, r->unit))
		return FAULT(r->fault, "header extensions", r->end, r->unit,
			     "end without a mark, outside of the header's block");
	put_be(r->buf, r->end, 8, 0);
	return 0;
}

/*
 * Can the name stand here?  In the first unit anything can, as that changes at
 * once; behind it the old name has to stay until then.
 */
static int name_fits(const struct relinking *r, __u32 start, __u32 name_len)
{
	__u64 old = r->h->backing_file_offset;
	__u64 old_end = old ? old + r->h->backing_file_size : 0;
	__u32 end = start + name_len;

	if (!inside(start, name_len, r->len))
		return 0;
	if (old < r->unit)
		old = r->unit;
	if (start < r->unit)
		start = r->unit;
	return start >= old_end || old >= end;
}

static int place_name(const struct relinking *r, const char *name,
		      __u32 name_len, struct qcow2_relink *out)
{
	__u64 old_end = r->h->backing_file_offset + r->h->backing_file_size;
	__u32 start = r->end + 8, end;

	if (!name_fits(r, start, name_len) && old_end <= r->len &&
	    start < old_end)
		start = old_end;
	if (!name_fits(r, start, name_len))
		return FAULT(r->fault, "backing file name", start, name_len,
			     "no room for it in the first cluster beside the old one");
	copy_text(r->buf + start, name, name_len);
	put_be(r->buf, FIELD(backing_file_offset), 8, start);
	put_be(r->buf, FIELD(backing_file_size), 4, name_len);
	end = start + name_len;
	if (end <= r->unit)
		return 0;
	out->name_offset = start > r->unit ? start : r->unit;
	out->name_len = end - out->name_offset;
	return 0;
}

static int check_relink(const struct relinking *r, __u32 name_len)
{
	if (name_len > QCOW2_MAX_BACKING_NAME_BYTES)
		return FAULT(r->fault, "backing_file_size",
			     FIELD(backing_file_size), name_len,
			     "must be 1023 or less");
	if (name_len && (!r->format_len ||
			 r->format_len > QCOW2_MAX_FORMAT_BYTES))
		return FAULT(r->fault, "backing format", 0, r->format_len,
			     "must have 1 to 8 characters");
	return 0;
}

int qcow2_relink(__u8 *buf, __u32 len, const struct qcow2_header *h, __u32 unit,
		 const char *name, __u32 name_len, const char *format,
		 struct qcow2_relink *out, struct qcow2_fault *fault)
{
	struct relinking r = {
		.buf = buf,
		.len = len,
		.unit = unit < len ? unit : len,
		.h = h,
		.format = name_len ? format : (void *)0,
		.format_len = name_len && format ? text_length(format) : 0,
		.fault = fault,
	};

	out->name_offset = 0;
	out->name_len = 0;
	if (h->version == 3)
		put_be(buf, FIELD(autoclear_features), 8,
		       h->autoclear & QCOW2_AUTOCLEAR_KNOWN);
	if (check_relink(&r, name_len) || find_extensions(&r))
		return -1;
	if (name_len && !r.noted && add_format(&r))
		return -1;
	if (mark_end(&r, name_len))
		return -1;
	if (name_len)
		return place_name(&r, name, name_len, out);
	put_be(buf, FIELD(backing_file_offset), 8, 0);
	put_be(buf, FIELD(backing_file_size), 4, 0);
	return 0;
}

int qcow2_snapshot_decode(const void *buf, __u64 len, __u64 where,
			  const struct qcow2_header *h,
			  struct qcow2_snapshot *snap,
			  struct qcow2_fault *fault)
{
	__u32 extra;
	__u64 total;

	if (len < 40)
		return 1;
	snap->l1_table_offset = get_be(buf, 0, 8);
	snap->l1_size = get_be(buf, 8, 4);
	snap->id_len = get_be(buf, 12, 2);
	snap->name_len = get_be(buf, 14, 2);
	snap->date_sec = get_be(buf, 16, 4);
	snap->date_nsec = get_be(buf, 20, 4);
	snap->vm_clock_nsec = get_be(buf, 24, 8);
	snap->vm_state_size = get_be(buf, 32, 4);
	extra = get_be(buf, 36, 4);
	/* QEMU refuses more than 1024 bytes of extra data */
	if (extra > 1024)
		return FAULT(fault, "snapshot extra data size", where + 36,
			     extra, "must be 1024 or less");
	total = 40ULL + extra + snap->id_len + snap->name_len;
	if (((total + 7) & ~7ULL) > len)
		return 1;
	snap->disk_size = QCOW2_NO_DISK_SIZE;
	if (extra >= 8)
		snap->vm_state_size = get_be(buf, 40, 8);
	if (extra >= 16)
		snap->disk_size = get_be(buf, 48, 8);
	snap->icount = extra >= 24 ? get_be(buf, 56, 8) : QCOW2_NO_ICOUNT;
	snap->id_offset = 40 + extra;
	snap->name_offset = snap->id_offset + snap->id_len;
	snap->entry_len = (total + 7) & ~7U;
	if (snap->l1_size > QCOW2_MAX_L1_BYTES / 8)
		return FAULT(fault, "snapshot l1_size", where + 8,
			     snap->l1_size, "larger than 32 MiB of entries");
	if (!cluster_aligned(h, snap->l1_table_offset) ||
	    snap->l1_table_offset >= QCOW2_MAX_OFFSET)
		return FAULT(fault, "snapshot l1_table_offset", where,
			     snap->l1_table_offset,
			     "must be a multiple of the cluster size");
	return 0;
}

int qcow2_bitmaps_decode(const void *buf, const struct qcow2_ext *ext,
			 const struct qcow2_header *h,
			 struct qcow2_bitmaps *bitmaps,
			 struct qcow2_fault *fault)
{
	if (ext->len != 24)
		return FAULT(fault, "bitmaps extension length",
			     ext->data_offset - 4, ext->len, "must be 24");
	if (get_be(buf, 4, 4))
		return FAULT(fault, "bitmaps extension reserved field",
			     ext->data_offset + 4, get_be(buf, 4, 4),
			     "must be 0");
	bitmaps->nb = get_be(buf, 0, 4);
	bitmaps->directory_size = get_be(buf, 8, 8);
	bitmaps->directory_offset = get_be(buf, 16, 8);
	if (!bitmaps->nb || bitmaps->nb > QCOW2_MAX_BITMAPS)
		return FAULT(fault, "nb_bitmaps", ext->data_offset,
			     bitmaps->nb, "must be 1 to 65535");
	if (bitmaps->directory_size > QCOW2_MAX_BITMAP_DIR_BYTES ||
	    bitmaps->directory_size < 24ULL * bitmaps->nb)
		return FAULT(fault, "bitmap_directory_size",
			     ext->data_offset + 8, bitmaps->directory_size,
			     "out of range for the number of bitmaps");
	if (!bitmaps->directory_offset ||
	    bitmaps->directory_offset >= QCOW2_MAX_OFFSET ||
	    !cluster_aligned(h, bitmaps->directory_offset))
		return FAULT(fault, "bitmap_directory_offset",
			     ext->data_offset + 16, bitmaps->directory_offset,
			     "must be a multiple of the cluster size, not 0");
	return 0;
}

int qcow2_bitmap_decode(const void *buf, __u64 len, __u64 where,
			struct qcow2_bitmap *bitmap, struct qcow2_fault *fault)
{
	__u32 extra;
	__u64 total;

	if (len < 24)
		return FAULT(fault, "bitmap directory entry", where, len,
			     "ends beyond the directory");
	bitmap->table_offset = get_be(buf, 0, 8);
	bitmap->table_size = get_be(buf, 8, 4);
	bitmap->flags = get_be(buf, 12, 4);
	bitmap->flags_offset = 12;
	bitmap->type = get_be(buf, 16, 1);
	bitmap->granularity_bits = get_be(buf, 17, 1);
	bitmap->name_len = get_be(buf, 18, 2);
	extra = get_be(buf, 20, 4);
	total = 24ULL + extra + bitmap->name_len;
	if (((total + 7) & ~7ULL) > len)
		return FAULT(fault, "bitmap directory entry", where, total,
			     "ends beyond the directory");
	bitmap->extra_len = extra;
	bitmap->name_offset = 24 + extra;
	bitmap->entry_len = (total + 7) & ~7ULL;
	return 0;
}

static const char *bitmap_table_check(const struct qcow2_header *h,
				      const struct qcow2_bitmap *bitmap)
{
	__u64 bytes = (__u64)bitmap->table_size << h->cluster_bits;

	if (!bitmap->table_offset || !cluster_aligned(h, bitmap->table_offset))
		return "has a table offset of 0, or not a multiple of the cluster size";
	if (!bitmap->table_size || bitmap->table_size > QCOW2_MAX_BITMAP_TABLE ||
	    bytes > QCOW2_MAX_BITMAP_BYTES)
		return "has a table that is empty or too large";
	/* One in use need not fit: the image may have been resized. */
	if (!(bitmap->flags & QCOW2_BITMAP_IN_USE) &&
	    h->size > (bytes * 8) << bitmap->granularity_bits)
		return "has a table too small for the virtual size";
	return (void *)0;
}

const char *qcow2_bitmap_check(const struct qcow2_header *h,
			       const struct qcow2_bitmap *bitmap)
{
	if (bitmap->type != 1)
		return "is of an unknown type";
	if (bitmap->flags & ~QCOW2_BITMAP_FLAGS_KNOWN)
		return "has unknown flags";
	if (bitmap->extra_len)
		return "has unknown extra data";
	if (bitmap->granularity_bits < 9 || bitmap->granularity_bits > 31)
		return "has a granularity out of range";
	if (bitmap->name_len > QCOW2_MAX_BITMAP_NAME_BYTES)
		return "has too long a name";
	return bitmap_table_check(h, bitmap);
}

__u64 qcow2_l1_entries(const struct qcow2_header *h, __u64 size)
{
	__u32 shift = h->l2_bits + h->cluster_bits;

	return (size >> shift) + !!(size & ((1ULL << shift) - 1));
}

/* An offset of a whole cluster that a table entry names. */
static const char *cluster_check(const struct qcow2_header *h, __u64 offset,
				 __u64 image_bytes)
{
	if (!cluster_aligned(h, offset))
		return "not aligned to a cluster";
	if (!inside(offset, h->cluster_size, image_bytes))
		return "points beyond the device";
	return (void *)0;
}

const char *qcow2_l1_entry_check(const struct qcow2_header *h, __u64 entry,
				 __u64 image_bytes)
{
	if (entry & QCOW2_L1_RESERVED_MASK)
		return "has reserved bits set";
	if (!(entry & QCOW2_OFFSET_MASK))
		return entry ? "is flagged but names no L2 table" : (void *)0;
	return cluster_check(h, entry & QCOW2_OFFSET_MASK, image_bytes);
}

static const char *packed_check(const struct qcow2_header *h, __u64 entry,
				__u64 image_bytes)
{
	__u64 offset = qcow2_packed_offset(h, entry);

	if (entry & QCOW2_OFLAG_COPIED)
		return "is flagged as owned but compressed";
	if (offset < h->cluster_size)
		return "points to the header";
	return offset < image_bytes ? (void *)0 : "points beyond the device";
}

static const char *external_check(__u64 entry, __u64 guest)
{
	if (!(entry & QCOW2_HOST_MASK) || entry == (QCOW2_OFLAG_COPIED |
						    QCOW2_OFLAG_ZERO))
		return (void *)0;
	return (entry & QCOW2_OFFSET_MASK) == guest ? (void *)0 :
		"is not the guest cluster's place in the external data file";
}

const char *qcow2_l2_entry_check(const struct qcow2_header *h, __u64 entry,
				 __u64 guest, __u64 image_bytes)
{
	__u64 offset = entry & QCOW2_OFFSET_MASK;

	if (entry & QCOW2_OFLAG_COMPRESSED)
		return qcow2_external(h) ?
			"is compressed, in an image with an external data file" :
			packed_check(h, entry, image_bytes);
	if (entry & QCOW2_L2_RESERVED_MASK)
		return "has reserved bits set";
	if (h->version == 2 && (entry & QCOW2_OFLAG_ZERO))
		return "has the zero flag set in a version 2 image";
	/* Subclusters have flags of their own: QEMU takes no notice of this. */
	if (h->l2_entry_bytes == 16)
		entry &= ~QCOW2_OFLAG_ZERO;
	if (qcow2_external(h))
		return external_check(entry, guest);
	if (!offset)
		return entry & QCOW2_OFLAG_COPIED ?
			"is flagged as owned but names no cluster" : (void *)0;
	if (!cluster_aligned(h, offset))
		return "not aligned to a cluster";
	return offset < image_bytes ? (void *)0 : "points beyond the device";
}

const char *qcow2_l2_bitmap_check(__u64 entry, __u64 bitmap)
{
	/* Reserved then; QEMU takes no notice of what is there. */
	if (entry & QCOW2_OFLAG_COMPRESSED)
		return (void *)0;
	if (bitmap & (bitmap >> QCOW2_BITMAP_ZERO_SHIFT))
		return "has subclusters that are both allocated and zero";
	if ((bitmap & QCOW2_BITMAP_ALLOC) && !(entry & QCOW2_HOST_MASK))
		return "has allocated subclusters but names no cluster";
	return (void *)0;
}

__u64 qcow2_sub_mask(const struct qcow2_header *h, __u32 from, __u32 to)
{
	__u32 first = from >> h->sub_bits;
	__u32 end = ((to - 1) >> h->sub_bits) + 1;

	return (1ULL << end) - (1ULL << first);
}

__u32 qcow2_sub_run(__u64 bitmap, __u32 sub)
{
	__u64 alloc = bitmap & QCOW2_BITMAP_ALLOC;
	__u64 zero = bitmap >> QCOW2_BITMAP_ZERO_SHIFT;
	__u64 differ;

	/* Bits that are as those of @sub become 0 */
	if (alloc >> sub & 1)
		alloc = ~alloc;
	if (zero >> sub & 1)
		zero = ~zero;
	differ = ((alloc | zero) & QCOW2_BITMAP_ALLOC) |
		1ULL << QCOW2_SUBCLUSTERS;
	return __builtin_ctzll(differ >> sub);
}

const char *qcow2_reftable_entry_check(const struct qcow2_header *h,
				       __u64 entry, __u64 image_bytes)
{
	if (entry & QCOW2_REFTABLE_RESERVED_MASK)
		return "has reserved bits set";
	if (!entry)
		return (void *)0;
	return cluster_check(h, entry, image_bytes);
}

__u64 qcow2_refcount_get(const void *block, __u32 index, __u32 order)
{
	const __u8 *p = block;
	__u32 bits = 1U << order;

	if (order < 3) {
		/* Counted from the least significant bit (spec, "Refcounts") */
		__u32 shift = (index << order) & 7;

		return (p[(index << order) >> 3] >> shift) & ((1U << bits) - 1);
	}
	return get_be(block, index << (order - 3), bits >> 3);
}

void qcow2_refcount_set(void *block, __u32 index, __u32 order, __u64 value)
{
	__u8 *p = block;
	__u32 bits = 1U << order;
	__u32 bytes;

	if (order < 3) {
		__u32 shift = (index << order) & 7;
		__u8 mask = ((1U << bits) - 1) << shift;

		p += (index << order) >> 3;
		*p = (*p & ~mask) | ((value << shift) & mask);
		return;
	}
	bytes = bits >> 3;
	p += (__u64)index << (order - 3);
	while (bytes--) {
		p[bytes] = value;
		value >>= 8;
	}
}
