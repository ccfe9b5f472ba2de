/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What must hold of what format.c says: from the specification (docs/interop/
 * qcow2.rst in the QEMU sources), in other words than there.  All of these end the
 * program where it does not.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include "format.h"

/* No sum or product of what an image says overflows it. */
#define wide	unsigned __int128

/**
 * oracle_header() - of a header that was accepted
 * @buf: what was decoded
 * @len: bytes in @buf
 * @h: result
 *
 * It says what is in @buf, and is inside all limits; arithmetic on what it
 * maps does not overflow.
 */
void oracle_header(const __u8 *buf, __u32 len, const struct qcow2_header *h);

/**
 * oracle_fault() - of a header that was not
 * @buf: what was decoded
 * @len: bytes in @buf
 * @fault: names a field, where it is, and what is there
 */
void oracle_fault(const __u8 *buf, __u32 len, const struct qcow2_fault *fault);

/** oracle_bounds() - of a header whose tables lie inside @bytes bytes */
void oracle_bounds(const struct qcow2_header *h, __u64 bytes);

/**
 * oracle_extension() - of a header extension
 * @h: decoded header
 * @len: bytes of the image that were there
 * @offset: where it was looked for
 * @ext: result
 */
void oracle_extension(const struct qcow2_header *h, __u32 len, __u32 offset,
		      const struct qcow2_ext *ext);

/** oracle_bitmaps() - of a bitmaps extension that was accepted */
void oracle_bitmaps(const struct qcow2_header *h,
		    const struct qcow2_bitmaps *bitmaps);

/**
 * oracle_bitmap() - of an entry of the bitmap directory
 * @buf: the directory from this entry on
 * @len: bytes in @buf
 * @bitmap: result
 */
void oracle_bitmap(const __u8 *buf, __u64 len,
		   const struct qcow2_bitmap *bitmap);

/**
 * oracle_snapshot() - of an entry of the snapshot table
 * @buf: the table from this entry on
 * @len: bytes in @buf
 * @h: decoded header
 * @snap: result
 */
void oracle_snapshot(const __u8 *buf, __u64 len, const struct qcow2_header *h,
		     const struct qcow2_snapshot *snap);

/*
 * Table entries: refused by format.c if, and only if, they are wrong.  What they
 * are taken apart to makes the same entry again.  These return what is wrong with
 * the entry, or NULL.
 */

/** oracle_l1_entry() - any 64 bits as an entry of the L1 table */
const char *oracle_l1_entry(const struct qcow2_header *h, __u64 entry,
			    __u64 bytes);

/** oracle_l2_entry() - any 64 bits as @guest's L2 entry, or the first word of it */
const char *oracle_l2_entry(const struct qcow2_header *h, __u64 entry,
			    __u64 guest, __u64 bytes);

/** oracle_l2_bitmap() - any 64 bits as the second word of a sound entry */
const char *oracle_l2_bitmap(const struct qcow2_header *h, __u64 entry,
			     __u64 bitmap);

/** oracle_reftable_entry() - any 64 bits as an entry of the refcount table */
const char *oracle_reftable_entry(const struct qcow2_header *h, __u64 entry,
				  __u64 bytes);

/**
 * oracle_refcounts() - any bytes as a refcount block
 * @block: the block; unchanged afterwards
 * @len: bytes, a multiple of 8
 * @order: log2 of the bits of a refcount
 */
void oracle_refcounts(__u8 *block, __u32 len, __u32 order);

/** oracle_l1_entries() - of entries for any virtual size, none is missing or idle */
void oracle_l1_entries(const struct qcow2_header *h, __u64 size);

/** oracle_indices() - where a guest offset inside the image is mapped */
void oracle_indices(const struct qcow2_header *h, __u64 guest);

#endif /* ORACLE_H */
