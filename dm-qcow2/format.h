/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * On-disk structures of qcow2 and the arithmetic on them.
 *
 * The specification is docs/interop/qcow2.rst in the QEMU sources ("spec"
 * below).  This file and format.c are compiled into the module and into
 * userspace, so they use nothing but fixed-width types and byte order
 * helpers: no allocation, no I/O, no locks.  Every function here is pure, may
 * be called in any context and never sleeps.
 *
 * Nothing read from an image is trusted: a function that decodes checks, and
 * says in a struct qcow2_fault which field was wrong, where it stands in the
 * image, and why.  Offsets and lengths are bytes unless the name says
 * otherwise; indices count clusters or entries.
 */
#ifndef DM_QCOW2_FORMAT_H
#define DM_QCOW2_FORMAT_H

#include <linux/types.h>
#include <asm/byteorder.h>

#define QCOW2_MAGIC			0x514649fbU	/* "QFI\xfb" */
#define QCOW2_MIN_CLUSTER_BITS		9
#define QCOW2_MAX_CLUSTER_BITS		21
#define QCOW2_HEADER_V2_BYTES		72
#define QCOW2_HEADER_V3_BYTES		104
/* The header, its extensions and the backing name must fit into this. */
#define QCOW2_MAX_HEADER_BYTES		0x200000U
#define QCOW2_MAX_BACKING_NAME_BYTES	1023
/* QEMU's own limits (block/qcow2.h): what it would not open, we do not. */
#define QCOW2_MAX_L1_BYTES		(32U << 20)
#define QCOW2_MAX_REFTABLE_BYTES	(8U << 20)
#define QCOW2_MAX_SNAPSHOTS		65536
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES	(64U << 20)
#define QCOW2_MAX_BITMAPS		65535
#define QCOW2_MAX_BITMAP_DIR_BYTES	(64U << 20)
/* The same (block/qcow2-bitmap.c) */
#define QCOW2_MAX_BITMAP_TABLE		0x8000000U
#define QCOW2_MAX_BITMAP_BYTES		(512U << 20)
#define QCOW2_MAX_BITMAP_NAME_BYTES	1023
/* Fields of bits 9-55: no image offset is at or above this. */
#define QCOW2_MAX_OFFSET		0x100000000000000ULL

struct qcow2_disk_header {
	__be32 magic;
	__be32 version;
	__be64 backing_file_offset;
	__be32 backing_file_size;
	__be32 cluster_bits;
	__be64 size;
	__be32 crypt_method;
	__be32 l1_size;
	__be64 l1_table_offset;
	__be64 refcount_table_offset;
	__be32 refcount_table_clusters;
	__be32 nb_snapshots;
	__be64 snapshots_offset;
	/* version 3 */
	__be64 incompatible_features;
	__be64 compatible_features;
	__be64 autoclear_features;
	__be32 refcount_order;
	__be32 header_length;
	__u8 compression_type;
	__u8 padding[7];
};

/* Incompatible feature bits */
#define QCOW2_INCOMPAT_DIRTY		0x1ULL
#define QCOW2_INCOMPAT_CORRUPT		0x2ULL
#define QCOW2_INCOMPAT_DATA_FILE	0x4ULL
#define QCOW2_INCOMPAT_COMPRESSION	0x8ULL
#define QCOW2_INCOMPAT_EXTL2		0x10ULL
#define QCOW2_INCOMPAT_KNOWN		0x1fULL
/* Compatible feature bits */
#define QCOW2_COMPAT_LAZY_REFCOUNTS	0x1ULL
/* Autoclear feature bits */
#define QCOW2_AUTOCLEAR_BITMAPS		0x1ULL
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW	0x2ULL
#define QCOW2_AUTOCLEAR_KNOWN		0x3ULL

/* Compression types */
#define QCOW2_COMPRESSION_ZLIB		0
#define QCOW2_COMPRESSION_ZSTD		1

/* Extended L2: a second word behind the entry, two bits for each subcluster */
#define QCOW2_SUBCLUSTER_BITS		5
#define QCOW2_SUBCLUSTERS		32
#define QCOW2_BITMAP_ALLOC		0x00000000ffffffffULL
#define QCOW2_BITMAP_ZERO		0xffffffff00000000ULL
#define QCOW2_BITMAP_ZERO_SHIFT		32

/* Header extension types */
#define QCOW2_EXT_END			0x00000000U
#define QCOW2_EXT_BACKING_FORMAT	0xe2792acaU
#define QCOW2_EXT_FEATURE_TABLE		0x6803f857U
#define QCOW2_EXT_BITMAPS		0x23852875U
#define QCOW2_EXT_CRYPTO		0x0537be77U
#define QCOW2_EXT_DATA_FILE		0x44415441U
/* An entry of the feature name table */
#define QCOW2_FEATURE_BYTES		48
/* Ours: room that nothing uses; unknown to others, who skip it. */
#define QCOW2_EXT_PADDING		0x646d5041U

/* crypt_method of the header */
#define QCOW2_CRYPT_AES			1U
#define QCOW2_CRYPT_LUKS		2U

/* Table entries, in host byte order */
#define QCOW2_OFLAG_COPIED		0x8000000000000000ULL
#define QCOW2_OFLAG_COMPRESSED		0x4000000000000000ULL
#define QCOW2_OFLAG_ZERO		0x1ULL
/* Compressed data is counted in sectors of this size, whatever the device's. */
#define QCOW2_PACKED_SECTOR		512U
#define QCOW2_OFFSET_MASK		0x00fffffffffffe00ULL
/* What names a host cluster: of an external data file that may be the one at 0. */
#define QCOW2_HOST_MASK			(QCOW2_OFFSET_MASK | QCOW2_OFLAG_COPIED)
#define QCOW2_L1_RESERVED_MASK		0x7f000000000001ffULL
#define QCOW2_L2_RESERVED_MASK		0x3f000000000001feULL
#define QCOW2_REFTABLE_OFFSET_MASK	0xfffffffffffffe00ULL
#define QCOW2_REFTABLE_RESERVED_MASK	0x00000000000001ffULL

/**
 * struct qcow2_fault - what is wrong in an image, for a message
 * @field: name of the field, as the specification spells it
 * @where: byte offset of the field in the image
 * @value: what stands there
 * @why: what is wrong with it, and the remedy where there is one
 */
struct qcow2_fault {
	const char *field;
	__u64 where;
	__u64 value;
	const char *why;
};

/**
 * struct qcow2_header - a decoded and checked header
 * @version: 2 or 3
 * @backing_file_offset: of the name in the image, bytes; 0: no backing file
 * @backing_file_size: bytes of the name
 * @cluster_bits: log2 of the cluster size
 * @size: virtual size, bytes
 * @crypt_method: 0, or one of QCOW2_CRYPT_*
 * @l1_size: entries of the L1 table
 * @l1_table_offset: bytes
 * @refcount_table_offset: bytes
 * @refcount_table_clusters: its size
 * @nb_snapshots: internal snapshots
 * @snapshots_offset: of the snapshot table, bytes
 * @incompatible: QCOW2_INCOMPAT_*
 * @compatible: QCOW2_COMPAT_*
 * @autoclear: QCOW2_AUTOCLEAR_*
 * @refcount_order: log2 of the bits of a refcount
 * @header_length: bytes
 * @compression_type: QCOW2_COMPRESSION_*
 * @cluster_size: bytes
 * @l2_entry_bytes: 8, or 16 with extended L2
 * @l2_bits: log2 of the entries of an L2 table
 * @sub_bits: log2 of the bytes that are mapped alike: a subcluster with extended
 *	L2, else a cluster
 * @refblock_bits: log2 of the entries of a refcount block
 *
 * All in host byte order; version 2 images get the defaults that the
 * specification gives for the fields they lack.  The derived members follow
 * the on-disk ones.
 */
struct qcow2_header {
	__u32 version;
	__u64 backing_file_offset;
	__u32 backing_file_size;
	__u32 cluster_bits;
	__u64 size;
	__u32 crypt_method;
	__u32 l1_size;
	__u64 l1_table_offset;
	__u64 refcount_table_offset;
	__u32 refcount_table_clusters;
	__u32 nb_snapshots;
	__u64 snapshots_offset;
	__u64 incompatible;
	__u64 compatible;
	__u64 autoclear;
	__u32 refcount_order;
	__u32 header_length;
	__u8 compression_type;

	__u32 cluster_size;
	__u32 l2_entry_bytes;
	__u32 l2_bits;
	__u32 sub_bits;
	__u32 refblock_bits;
};

/**
 * enum qcow2_kind - what an L2 entry says of its guest cluster
 * @QCOW2_UNALLOCATED: look in the layer below
 * @QCOW2_ZERO_PLAIN: reads as zeroes, no host cluster
 * @QCOW2_ZERO_ALLOC: reads as zeroes, a host cluster is reserved for it
 * @QCOW2_NORMAL: data in a host cluster
 * @QCOW2_COMPRESSED: compressed data
 */
enum qcow2_kind {
	QCOW2_UNALLOCATED,
	QCOW2_ZERO_PLAIN,
	QCOW2_ZERO_ALLOC,
	QCOW2_NORMAL,
	QCOW2_COMPRESSED,
};

/**
 * struct qcow2_ext - one header extension
 * @type: QCOW2_EXT_*
 * @len: bytes of data, without padding
 * @data_offset: where the data starts, in bytes from the start of the image
 * @next_offset: where the next extension starts
 */
struct qcow2_ext {
	__u32 type;
	__u32 len;
	__u32 data_offset;
	__u32 next_offset;
};

/* Of a snapshot that does not record the number of instructions */
#define QCOW2_NO_ICOUNT			(~0ULL)
/* Of one that does not record the size, which the image has still, then */
#define QCOW2_NO_DISK_SIZE		(~0ULL)

/**
 * struct qcow2_snapshot - one entry of the snapshot table
 * @l1_table_offset: bytes
 * @l1_size: entries
 * @disk_size: virtual size when it was taken, bytes, or QCOW2_NO_DISK_SIZE
 * @vm_state_size: bytes
 * @date_sec: seconds since the epoch
 * @date_nsec: nanoseconds
 * @vm_clock_nsec: guest's running time
 * @icount: instructions the guest had executed, or QCOW2_NO_ICOUNT
 * @id_offset: bytes from the entry's start to the ID (not terminated)
 * @id_len: bytes
 * @name_offset: bytes from the entry's start to the name (not terminated)
 * @name_len: bytes
 * @entry_len: bytes of the whole entry with padding
 */
struct qcow2_snapshot {
	__u64 l1_table_offset;
	__u32 l1_size;
	__u64 disk_size;
	__u64 vm_state_size;
	__u32 date_sec;
	__u32 date_nsec;
	__u64 vm_clock_nsec;
	__u64 icount;
	__u32 id_offset;
	__u32 id_len;
	__u32 name_offset;
	__u32 name_len;
	__u32 entry_len;
};

/**
 * struct qcow2_bitmaps - the bitmaps header extension
 * @nb: number of bitmaps
 * @directory_size: bytes
 * @directory_offset: bytes from the start of the image
 */
struct qcow2_bitmaps {
	__u32 nb;
	__u64 directory_size;
	__u64 directory_offset;
};

/* Flags of a bitmap directory entry */
#define QCOW2_BITMAP_IN_USE		0x1U
#define QCOW2_BITMAP_AUTO		0x2U
#define QCOW2_BITMAP_FLAGS_KNOWN	0x3U

/**
 * struct qcow2_bitmap - one entry of the bitmap directory
 * @table_offset: bytes from the start of the image
 * @table_size: entries
 * @flags: QCOW2_BITMAP_*
 * @flags_offset: bytes from the entry's start to the flags
 * @type: 1 is a dirty tracking bitmap
 * @granularity_bits: log2 of the bytes a bit stands for
 * @extra_len: bytes of extra data
 * @name_offset: bytes from the entry's start
 * @name_len: bytes
 * @entry_len: bytes of the whole entry with padding
 */
struct qcow2_bitmap {
	__u64 table_offset;
	__u32 table_size;
	__u32 flags;
	__u32 flags_offset;
	__u8 type;
	__u8 granularity_bits;
	__u32 extra_len;
	__u32 name_offset;
	__u32 name_len;
	__u32 entry_len;
};

/**
 * qcow2_probe() - does a buffer start with the qcow2 magic?
 * @buf: start of an image
 * @len: bytes in @buf
 */
int qcow2_probe(const void *buf, __u32 len);

/**
 * qcow2_header_decode() - decode and check a header
 * @buf: the first bytes of an image, QCOW2_HEADER_V3_BYTES at least (zero
 *	padded where the image is shorter)
 * @len: bytes in @buf
 * @h: result
 * @fault: what was wrong
 *
 * Checks all that can be told from the header alone.  Features are not
 * judged: what a caller does not support it finds in @h->incompatible,
 * @h->crypt_method.
 *
 * Return: 0, or -1 with @fault filled.
 */
int qcow2_header_decode(const void *buf, __u32 len, struct qcow2_header *h,
			struct qcow2_fault *fault);

/**
 * qcow2_header_check_bounds() - check that the tables lie inside the image
 * @h: decoded header
 * @image_bytes: length of the file or device
 * @fault: what was wrong
 *
 * The last table of a new image may end in the middle of its cluster, as
 * qemu-img does not pad the file; only the bytes of the entries are asked for.
 *
 * Return: 0, or -1 with @fault filled.
 */
int qcow2_header_check_bounds(const struct qcow2_header *h, __u64 image_bytes,
			      struct qcow2_fault *fault);

/**
 * qcow2_feature_name() - name of an incompatible feature bit, or NULL
 * @bit: 0 to 63
 */
const char *qcow2_feature_name(unsigned int bit);

/**
 * qcow2_ext_next() - decode the header extension at an offset
 * @buf: the first bytes of the image
 * @len: bytes in @buf; extensions end within the first cluster
 * @offset: @h->header_length for the first, @next_offset for others
 * @h: decoded header
 * @ext: result
 * @fault: what was wrong
 *
 * Return: 1 for an extension, 0 at the end, -1 with @fault filled.
 */
int qcow2_ext_next(const void *buf, __u32 len, __u32 offset,
		   const struct qcow2_header *h, struct qcow2_ext *ext,
		   struct qcow2_fault *fault);

/* Longest name of a format: what fits into the extension that all images have. */
#define QCOW2_MAX_FORMAT_BYTES		8

/**
 * struct qcow2_relink - what to write before the header
 * @name_offset: of the part of the name that lies behind the header's unit
 * @name_len: bytes of that part; 0 if there is none
 */
struct qcow2_relink {
	__u32 name_offset;
	__u32 name_len;
};

/**
 * qcow2_relink() - compute the first cluster of an image with another backing
 * file
 * @buf: the first @len bytes of the image, changed in place
 * @len: cluster size, or 64 KiB where that is larger
 * @h: decoded header
 * @unit: bytes that are written atomically: a logical block
 * @name: the new name, not terminated
 * @name_len: its length; 0 for no backing file
 * @format: "qcow2" or "raw"; not used without a name
 * @out: what to write first
 * @fault: what was in the way
 *
 * Two writes, with a flush behind each: the part of the name that @out tells,
 * if there is one, then the first @unit bytes.  Until the second the image means
 * what it meant: what is written first is used by nobody, neither by the old
 * name nor by an extension.  Beside these two places nothing changes.
 *
 * The format is noted in its extension.  Where there is none it gets free space
 * in the first unit, or takes the place of the first feature name: these names
 * serve messages of programs too old to know the feature.  All other extensions
 * stay; autoclear features that are not known are cleared, as the specification
 * demands.
 *
 * Return: 0; or -1 with @fault filled if no safe order exists; @buf is spoiled
 * then.
 */
int qcow2_relink(__u8 *buf, __u32 len, const struct qcow2_header *h, __u32 unit,
		 const char *name, __u32 name_len, const char *format,
		 struct qcow2_relink *out, struct qcow2_fault *fault);

/**
 * qcow2_snapshot_decode() - decode one entry of the snapshot table
 * @buf: start of the entry
 * @len: bytes left of the table, or of what was read of it
 * @where: byte offset of the entry in the image, for @fault
 * @h: decoded header
 * @snap: result
 * @fault: what was wrong
 *
 * Return: 0; 1 where the entry does not end within @len (read more);
 * -1 with @fault filled.
 */
int qcow2_snapshot_decode(const void *buf, __u64 len, __u64 where,
			  const struct qcow2_header *h,
			  struct qcow2_snapshot *snap,
			  struct qcow2_fault *fault);

/**
 * qcow2_bitmaps_decode() - decode the data of a bitmaps extension
 * @buf: data of the extension
 * @ext: the extension
 * @h: decoded header
 * @bitmaps: result
 * @fault: what was wrong
 *
 * Return: 0, or -1 with @fault filled.
 */
int qcow2_bitmaps_decode(const void *buf, const struct qcow2_ext *ext,
			 const struct qcow2_header *h,
			 struct qcow2_bitmaps *bitmaps,
			 struct qcow2_fault *fault);

/**
 * qcow2_bitmap_decode() - decode one entry of the bitmap directory
 * @buf: start of the entry
 * @len: bytes left of the directory
 * @where: byte offset of the entry in the image, for @fault
 * @bitmap: result
 * @fault: what was wrong
 *
 * Return: 0, or -1 with @fault filled.
 */
int qcow2_bitmap_decode(const void *buf, __u64 len, __u64 where,
			struct qcow2_bitmap *bitmap, struct qcow2_fault *fault);

/**
 * qcow2_bitmap_check() - may whoever writes to the image mark this bitmap?
 * @h: decoded header
 * @bitmap: decoded entry of the directory
 *
 * Whoever does not know what is said of a bitmap must not use it, and leave it as
 * it is (spec, "Bitmap directory"); then the image must not be written to.  These
 * are the limits of QEMU, which opens no image with an entry that exceeds them.
 *
 * Return: NULL, or what is wrong with it.
 */
const char *qcow2_bitmap_check(const struct qcow2_header *h,
			       const struct qcow2_bitmap *bitmap);

/**
 * qcow2_l1_entries() - entries an L1 table needs for a virtual size
 * @h: decoded header (its geometry is used)
 * @size: bytes
 */
__u64 qcow2_l1_entries(const struct qcow2_header *h, __u64 size);

/**
 * qcow2_l1_entry_check() - is an L1 entry sound?
 * @h: decoded header
 * @entry: host byte order
 * @image_bytes: length of the device
 *
 * Return: NULL, or what is wrong with it.
 */
const char *qcow2_l1_entry_check(const struct qcow2_header *h, __u64 entry,
				 __u64 image_bytes);

/**
 * qcow2_l2_entry_check() - is an L2 entry sound?
 * @h: decoded header
 * @entry: host byte order
 * @guest: byte offset of the guest cluster
 * @image_bytes: length of the device
 *
 * A data cluster, and compressed data, must start inside the image but may end
 * beyond it: a file need not be padded to whole clusters or sectors, and what it
 * lacks reads as zeroes.  Who does I/O clips it to the device.
 *
 * In an external data file a guest cluster has but one place, @guest (spec,
 * "Incompatible features", bit 2); whether that is inside of the file is not
 * asked.  Compressed data cannot be there.
 *
 * Return: NULL, or what is wrong with it.
 */
const char *qcow2_l2_entry_check(const struct qcow2_header *h, __u64 entry,
				 __u64 guest, __u64 image_bytes);

/**
 * qcow2_l2_bitmap_check() - is the bitmap of an extended L2 entry sound?
 * @entry: the entry, found sound, host byte order
 * @bitmap: host byte order
 *
 * Return: NULL, or what is wrong with it.
 */
const char *qcow2_l2_bitmap_check(__u64 entry, __u64 bitmap);

/**
 * qcow2_sub_mask() - the subclusters that a part of a cluster touches
 * @h: decoded header, with extended L2
 * @from: offset in the cluster in bytes
 * @to: where the part ends
 *
 * Return: their bits of a bitmap's lower half.
 */
__u64 qcow2_sub_mask(const struct qcow2_header *h, __u32 from, __u32 to);

/**
 * qcow2_sub_run() - how many subclusters are alike
 * @bitmap: of an extended L2 entry that is not compressed, host byte order
 * @sub: the first one
 *
 * Return: 1 or more.
 */
__u32 qcow2_sub_run(__u64 bitmap, __u32 sub);

/**
 * qcow2_reftable_entry_check() - is a refcount table entry sound?
 * @h: decoded header
 * @entry: host byte order
 * @image_bytes: length of the device
 *
 * Return: NULL, or what is wrong with it.
 */
const char *qcow2_reftable_entry_check(const struct qcow2_header *h,
				       __u64 entry, __u64 image_bytes);

/**
 * qcow2_refcount_get() - read one refcount
 * @block: refcount block, or an aligned part of it
 * @index: entry within @block
 * @order: refcount_order, 0 to 6
 */
__u64 qcow2_refcount_get(const void *block, __u32 index, __u32 order);

/**
 * qcow2_refcount_set() - write one refcount
 * @block: refcount block, or an aligned part of it
 * @index: entry within @block
 * @order: refcount_order, 0 to 6
 * @value: must fit, see qcow2_refcount_max()
 */
void qcow2_refcount_set(void *block, __u32 index, __u32 order, __u64 value);

/** qcow2_refcount_max() - largest refcount of a width */
static inline __u64 qcow2_refcount_max(__u32 order)
{
	return order == 6 ? ~0ULL : (1ULL << (1U << order)) - 1;
}

/** qcow2_external() - is the guest data in an external data file? */
static inline int qcow2_external(const struct qcow2_header *h)
{
	return !!(h->incompatible & QCOW2_INCOMPAT_DATA_FILE);
}

/**
 * qcow2_raw_data() - is the external data file to be readable as a raw image?
 * @h: decoded header
 */
static inline int qcow2_raw_data(const struct qcow2_header *h)
{
	return qcow2_external(h) &&
		(h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW);
}

/**
 * qcow2_l2_kind() - classify a standard L2 entry
 * @entry: found sound, host byte order
 *
 * The flag COPIED alone names the first cluster of an external data file.
 */
static inline enum qcow2_kind qcow2_l2_kind(__u64 entry)
{
	if (entry & QCOW2_OFLAG_COMPRESSED)
		return QCOW2_COMPRESSED;
	if (entry & QCOW2_OFLAG_ZERO)
		return entry & QCOW2_HOST_MASK ?
			QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
	return entry & QCOW2_HOST_MASK ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
}

/**
 * qcow2_sub_kind() - classify a subcluster, host byte order
 * @entry: extended L2 entry
 * @bitmap: its bitmap
 * @sub: number of the subcluster
 *
 * QCOW2_ZERO_ALLOC is not told from QCOW2_ZERO_PLAIN.
 */
static inline enum qcow2_kind qcow2_sub_kind(__u64 entry, __u64 bitmap,
					     __u32 sub)
{
	if (entry & QCOW2_OFLAG_COMPRESSED)
		return QCOW2_COMPRESSED;
	if (bitmap >> sub & 1)
		return QCOW2_NORMAL;
	return bitmap >> (QCOW2_BITMAP_ZERO_SHIFT + sub) & 1 ?
		QCOW2_ZERO_PLAIN : QCOW2_UNALLOCATED;
}

/** qcow2_packed_shift() - bits of the offset in the entry of compressed data */
static inline __u32 qcow2_packed_shift(const struct qcow2_header *h)
{
	return 62 - (h->cluster_bits - 8);
}

/**
 * qcow2_packed_offset() - where compressed data starts
 * @h: decoded header
 * @entry: an L2 entry of kind QCOW2_COMPRESSED
 *
 * Return: byte offset in the image, of any alignment.
 */
static inline __u64 qcow2_packed_offset(const struct qcow2_header *h,
					__u64 entry)
{
	return entry & ((1ULL << qcow2_packed_shift(h)) - 1);
}

/**
 * qcow2_packed_bytes() - how long compressed data is at the most
 * @h: decoded header
 * @entry: an L2 entry of kind QCOW2_COMPRESSED
 *
 * Return: bytes to the end of its last sector, less than two clusters and a
 * sector.  What uses them ends somewhere in that sector.
 */
static inline __u32 qcow2_packed_bytes(const struct qcow2_header *h,
				       __u64 entry)
{
	__u32 more = entry >> qcow2_packed_shift(h) &
		((1U << (h->cluster_bits - 8)) - 1);

	return (more + 1) * QCOW2_PACKED_SECTOR -
		(entry & (QCOW2_PACKED_SECTOR - 1));
}

/**
 * qcow2_packed_clusters() - host clusters that compressed data lies in
 * @h: decoded header
 * @entry: an L2 entry of kind QCOW2_COMPRESSED
 * @first: the first of them
 *
 * Each of them is counted once in its refcount for this entry.
 *
 * Return: how many, 1 to 3.
 */
static inline __u32 qcow2_packed_clusters(const struct qcow2_header *h,
					  __u64 entry, __u64 *first)
{
	__u64 offset = qcow2_packed_offset(h, entry);
	__u64 last = offset + qcow2_packed_bytes(h, entry) - 1;

	*first = offset >> h->cluster_bits;
	return (last >> h->cluster_bits) - *first + 1;
}

/**
 * qcow2_read_limit() - where an L2 entry may point in an image that is only read
 * @entry: host byte order
 * @image_bytes: length of the device
 *
 * Of a file that was truncated QEMU reads as zeroes what was cut off; of compressed
 * data no zeroes can be decompressed.
 *
 * Return: the length of the device to check the entry with; what is behind the
 * real one must not be read.
 */
static inline __u64 qcow2_read_limit(__u64 entry, __u64 image_bytes)
{
	return entry & QCOW2_OFLAG_COMPRESSED ? image_bytes : QCOW2_MAX_OFFSET;
}

/** qcow2_l1_index() - L1 entry that covers a guest offset in bytes */
static inline __u64 qcow2_l1_index(const struct qcow2_header *h, __u64 guest)
{
	return guest >> (h->l2_bits + h->cluster_bits);
}

/** qcow2_l2_index() - entry of the L2 table that covers a guest offset */
static inline __u32 qcow2_l2_index(const struct qcow2_header *h, __u64 guest)
{
	return (guest >> h->cluster_bits) & ((1U << h->l2_bits) - 1);
}

#endif /* DM_QCOW2_FORMAT_H */
