// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of format.c: every function, every field's limits, and random
 * input under ASan and UBSan.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "format.h"

#define KIB 1024ULL
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

static void put_be(void *buf, uint32_t offset, uint32_t bytes, uint64_t value)
{
	uint8_t *p = (uint8_t *)buf + offset;

	while (bytes--) {
		p[bytes] = value;
		value >>= 8;
	}
}

/* Where the fields of a header stand (spec, "Header"). */
enum {
	MAGIC = 0, VERSION = 4, BACKING_OFFSET = 8, BACKING_SIZE = 16,
	CLUSTER_BITS = 20, SIZE = 24, CRYPT = 32, L1_SIZE = 36, L1_OFFSET = 40,
	REFTABLE_OFFSET = 48, REFTABLE_CLUSTERS = 56, NB_SNAPSHOTS = 60,
	SNAPSHOTS_OFFSET = 64, INCOMPATIBLE = 72, COMPATIBLE = 80,
	AUTOCLEAR = 88, REFCOUNT_ORDER = 96, HEADER_LENGTH = 100,
	COMPRESSION = 104,
};

#define HEADER_BYTES 112

/* A sound header: 1 GiB, 64 KiB clusters, as qemu-img makes it. */
static void make_header(uint8_t *buf)
{
	memset(buf, 0, HEADER_BYTES);
	put_be(buf, MAGIC, 4, QCOW2_MAGIC);
	put_be(buf, VERSION, 4, 3);
	put_be(buf, CLUSTER_BITS, 4, 16);
	put_be(buf, SIZE, 8, GIB);
	put_be(buf, L1_SIZE, 4, 2);
	put_be(buf, L1_OFFSET, 8, 0x30000);
	put_be(buf, REFTABLE_OFFSET, 8, 0x10000);
	put_be(buf, REFTABLE_CLUSTERS, 4, 1);
	put_be(buf, REFCOUNT_ORDER, 4, 4);
	put_be(buf, HEADER_LENGTH, 4, HEADER_BYTES);
}

static int decode(const uint8_t *buf, struct qcow2_header *h,
		  struct qcow2_fault *fault)
{
	memset(h, 0xa5, sizeof(*h));
	memset(fault, 0, sizeof(*fault));
	return qcow2_header_decode(buf, HEADER_BYTES, h, fault);
}

static void test_header_v3(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(buf);
	put_be(buf, INCOMPATIBLE, 8, QCOW2_INCOMPAT_COMPRESSION);
	put_be(buf, COMPATIBLE, 8, QCOW2_COMPAT_LAZY_REFCOUNTS);
	put_be(buf, AUTOCLEAR, 8, QCOW2_AUTOCLEAR_BITMAPS);
	put_be(buf, COMPRESSION, 1, 1);
	assert_int_equal(decode(buf, &h, &fault), 0);
	assert_int_equal(h.version, 3);
	assert_int_equal(h.backing_file_offset, 0);
	assert_int_equal(h.cluster_bits, 16);
	assert_int_equal(h.cluster_size, 65536);
	assert_int_equal(h.size, GIB);
	assert_int_equal(h.crypt_method, 0);
	assert_int_equal(h.l1_size, 2);
	assert_int_equal(h.l1_table_offset, 0x30000);
	assert_int_equal(h.refcount_table_offset, 0x10000);
	assert_int_equal(h.refcount_table_clusters, 1);
	assert_int_equal(h.nb_snapshots, 0);
	assert_int_equal(h.incompatible, QCOW2_INCOMPAT_COMPRESSION);
	assert_int_equal(h.compatible, QCOW2_COMPAT_LAZY_REFCOUNTS);
	assert_int_equal(h.autoclear, QCOW2_AUTOCLEAR_BITMAPS);
	assert_int_equal(h.refcount_order, 4);
	assert_int_equal(h.header_length, HEADER_BYTES);
	assert_int_equal(h.compression_type, 1);
	assert_int_equal(h.l2_entry_bytes, 8);
	assert_int_equal(h.l2_bits, 13);
	assert_int_equal(h.refblock_bits, 15);
}

/* compression_type exists only where header_length covers it. */
static void test_header_short_v3(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(buf);
	put_be(buf, HEADER_LENGTH, 4, 104);
	put_be(buf, COMPRESSION, 1, 1);
	assert_int_equal(decode(buf, &h, &fault), 0);
	assert_int_equal(h.compression_type, 0);
}

/* What version 2 lacks has the defaults of the specification. */
static void test_header_v2(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(buf);
	put_be(buf, VERSION, 4, 2);
	memset(buf + INCOMPATIBLE, 0xff, HEADER_BYTES - INCOMPATIBLE);
	assert_int_equal(decode(buf, &h, &fault), 0);
	assert_int_equal(h.version, 2);
	assert_int_equal(h.incompatible, 0);
	assert_int_equal(h.compatible, 0);
	assert_int_equal(h.autoclear, 0);
	assert_int_equal(h.refcount_order, 4);
	assert_int_equal(h.header_length, 72);
	assert_int_equal(h.compression_type, 0);
}

/* One wrong field at a time: refused, and by that field's name and place. */
static const struct bad_field {
	const char *field;
	uint32_t offset;
	uint32_t bytes;
	uint64_t value;
} bad_fields[] = {
	{ "magic", MAGIC, 4, 0x514649fa },
	{ "magic", MAGIC, 4, 0 },
	{ "version", VERSION, 4, 1 },
	{ "version", VERSION, 4, 4 },
	{ "version", VERSION, 4, 0x03000000 },
	{ "crypt_method", CRYPT, 4, 3 },
	{ "cluster_bits", CLUSTER_BITS, 4, 0 },
	{ "cluster_bits", CLUSTER_BITS, 4, 8 },
	{ "cluster_bits", CLUSTER_BITS, 4, 22 },
	{ "cluster_bits", CLUSTER_BITS, 4, 64 },
	{ "cluster_bits", CLUSTER_BITS, 4, 0xffffffff },
	{ "refcount_order", REFCOUNT_ORDER, 4, 7 },
	{ "refcount_order", REFCOUNT_ORDER, 4, 0xffffffff },
	{ "header_length", HEADER_LENGTH, 4, 0 },
	{ "header_length", HEADER_LENGTH, 4, 72 },
	{ "header_length", HEADER_LENGTH, 4, 100 },
	{ "header_length", HEADER_LENGTH, 4, 105 },
	{ "header_length", HEADER_LENGTH, 4, 65544 },
	{ "header_length", HEADER_LENGTH, 4, 0xfffffff8 },
	{ "size", SIZE, 8, ~0ULL },
	{ "size", SIZE, 8, (1ULL << 62) + 1 },
	{ "l1_size", L1_SIZE, 4, 1 },
	{ "l1_size", L1_SIZE, 4, 0 },
	{ "l1_size", L1_SIZE, 4, 0xffffffff },
	{ "l1_size", L1_SIZE, 4, QCOW2_MAX_L1_BYTES / 8 + 1 },
	{ "l1_size", SIZE, 8, 1ULL << 62 },
	{ "l1_size", SIZE, 8, GIB + 1 },
	{ "l1_table_offset", L1_OFFSET, 8, 0 },
	{ "l1_table_offset", L1_OFFSET, 8, 0x30200 },
	{ "refcount_table_clusters", REFTABLE_CLUSTERS, 4, 0 },
	{ "refcount_table_clusters", REFTABLE_CLUSTERS, 4, 129 },
	{ "refcount_table_clusters", REFTABLE_CLUSTERS, 4, 0xffffffff },
	{ "refcount_table_offset", REFTABLE_OFFSET, 8, 0 },
	{ "refcount_table_offset", REFTABLE_OFFSET, 8, 0x10008 },
	{ "nb_snapshots", NB_SNAPSHOTS, 4, 65537 },
	{ "snapshots_offset", NB_SNAPSHOTS, 4, 1 },
	{ "snapshots_offset", SNAPSHOTS_OFFSET, 8, 0x200 },
};

static void test_header_bad_fields(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;
	size_t i;

	for (i = 0; i < sizeof(bad_fields) / sizeof(bad_fields[0]); i++) {
		const struct bad_field *bad = &bad_fields[i];

		make_header(buf);
		put_be(buf, bad->offset, bad->bytes, bad->value);
		assert_int_equal(decode(buf, &h, &fault), -1);
		assert_string_equal(fault.field, bad->field);
		assert_non_null(fault.why);
		assert_true(fault.where < HEADER_BYTES);
	}
}

static void test_header_where(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(buf);
	put_be(buf, CLUSTER_BITS, 4, 8);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_int_equal(fault.where, CLUSTER_BITS);
	assert_int_equal(fault.value, 8);

	make_header(buf);
	put_be(buf, L1_OFFSET, 8, 0x12345);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_int_equal(fault.where, L1_OFFSET);
	assert_int_equal(fault.value, 0x12345);
}

static void test_header_too_short(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(buf);
	assert_int_equal(qcow2_header_decode(buf, 103, &h, &fault), -1);
	assert_int_equal(qcow2_header_decode(buf, 104, &h, &fault), 0);
}

static void test_header_backing(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(buf);
	put_be(buf, BACKING_OFFSET, 8, 0x200);
	put_be(buf, BACKING_SIZE, 4, 1023);
	assert_int_equal(decode(buf, &h, &fault), 0);
	assert_int_equal(h.backing_file_offset, 0x200);
	assert_int_equal(h.backing_file_size, 1023);

	put_be(buf, BACKING_SIZE, 4, 1024);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_string_equal(fault.field, "backing_file_size");

	/* over the header, out of the first cluster, wrapping */
	put_be(buf, BACKING_SIZE, 4, 16);
	put_be(buf, BACKING_OFFSET, 8, 8);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_string_equal(fault.field, "backing_file_offset");
	put_be(buf, BACKING_OFFSET, 8, 65536 - 15);
	assert_int_equal(decode(buf, &h, &fault), -1);
	put_be(buf, BACKING_OFFSET, 8, 65536 - 16);
	assert_int_equal(decode(buf, &h, &fault), 0);
	put_be(buf, BACKING_OFFSET, 8, ~0ULL - 8);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_string_equal(fault.field, "backing_file_offset");
}

/* All cluster sizes and refcount widths give the geometry of the spec. */
static void test_header_geometry(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;
	uint32_t bits, order;

	for (bits = 9; bits <= 21; bits++) {
		for (order = 0; order <= 6; order++) {
			make_header(buf);
			put_be(buf, CLUSTER_BITS, 4, bits);
			put_be(buf, REFCOUNT_ORDER, 4, order);
			put_be(buf, SIZE, 8, MIB);
			put_be(buf, L1_SIZE, 4, 32);
			put_be(buf, L1_OFFSET, 8, 3 << 21);
			put_be(buf, REFTABLE_OFFSET, 8, 1 << 21);
			assert_int_equal(decode(buf, &h, &fault), 0);
			assert_int_equal(h.cluster_size, 1 << bits);
			assert_int_equal(h.l2_bits, bits - 3);
			assert_int_equal(1ULL << h.refblock_bits,
					 (8ULL << bits) >> order);
		}
	}
}

static void test_header_extended_l2(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(buf);
	put_be(buf, INCOMPATIBLE, 8, QCOW2_INCOMPAT_EXTL2);
	put_be(buf, L1_SIZE, 4, 4);
	assert_int_equal(decode(buf, &h, &fault), 0);
	assert_int_equal(h.l2_entry_bytes, 16);
	assert_int_equal(h.l2_bits, 12);

	put_be(buf, L1_SIZE, 4, 3);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_string_equal(fault.field, "l1_size");

	put_be(buf, CLUSTER_BITS, 4, 13);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_string_equal(fault.field, "cluster_bits");
}

static int bounds(const uint8_t *buf, uint64_t bytes, struct qcow2_fault *fault)
{
	struct qcow2_header h;

	assert_int_equal(decode(buf, &h, fault), 0);
	return qcow2_header_check_bounds(&h, bytes, fault);
}

static void test_header_bounds(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_fault fault;

	make_header(buf);
	/* qemu-img ends a new file behind the last L1 entry */
	assert_int_equal(bounds(buf, 0x30010, &fault), 0);
	assert_int_equal(bounds(buf, 0x3000f, &fault), -1);
	assert_string_equal(fault.field, "l1_table_offset");
	assert_int_equal(fault.where, L1_OFFSET);
	assert_int_equal(fault.value, 0x30000);

	put_be(buf, REFTABLE_OFFSET, 8, 0x40000);
	assert_int_equal(bounds(buf, 0x50000, &fault), 0);
	assert_int_equal(bounds(buf, 0x4ffff, &fault), -1);
	assert_string_equal(fault.field, "refcount_table_offset");

	make_header(buf);
	put_be(buf, NB_SNAPSHOTS, 4, 2);
	put_be(buf, SNAPSHOTS_OFFSET, 8, 0x40000);
	assert_int_equal(bounds(buf, 0x40000 + 80, &fault), 0);
	assert_int_equal(bounds(buf, 0x40000 + 79, &fault), -1);
	assert_string_equal(fault.field, "snapshots_offset");

	/* an offset that no table entry could name */
	make_header(buf);
	put_be(buf, L1_OFFSET, 8, 1ULL << 56);
	assert_int_equal(bounds(buf, ~0ULL, &fault), -1);
	make_header(buf);
	put_be(buf, L1_OFFSET, 8, ~0ULL << 16);
	assert_int_equal(bounds(buf, ~0ULL, &fault), -1);
}

static void test_probe(void **state)
{
	static const uint8_t magic[] = { 'Q', 'F', 'I', 0xfb };

	assert_true(qcow2_probe(magic, 4));
	assert_false(qcow2_probe(magic, 3));
	assert_false(qcow2_probe("QFI\xfa", 4));
}

static void test_feature_name(void **state)
{
	assert_string_equal(qcow2_feature_name(0), "dirty bit");
	assert_string_equal(qcow2_feature_name(1), "corrupt bit");
	assert_string_equal(qcow2_feature_name(2), "external data file");
	assert_string_equal(qcow2_feature_name(3), "compression type");
	assert_string_equal(qcow2_feature_name(4), "extended L2 entries");
	assert_null(qcow2_feature_name(5));
	assert_null(qcow2_feature_name(63));
}

static void test_extensions(void **state)
{
	uint8_t buf[1024] = { 0 };
	struct qcow2_header h;
	struct qcow2_fault fault;
	struct qcow2_ext ext;

	make_header(buf);
	put_be(buf, 112, 4, QCOW2_EXT_BACKING_FORMAT);
	put_be(buf, 116, 4, 5);
	memcpy(buf + 120, "qcow2", 5);
	put_be(buf, 128, 4, QCOW2_EXT_FEATURE_TABLE);
	put_be(buf, 132, 4, 0);
	assert_int_equal(decode(buf, &h, &fault), 0);

	assert_int_equal(qcow2_ext_next(buf, sizeof(buf), h.header_length, &h,
					&ext, &fault), 1);
	assert_int_equal(ext.type, QCOW2_EXT_BACKING_FORMAT);
	assert_int_equal(ext.len, 5);
	assert_int_equal(ext.data_offset, 120);
	assert_int_equal(ext.next_offset, 128);
	assert_int_equal(qcow2_ext_next(buf, sizeof(buf), ext.next_offset, &h,
					&ext, &fault), 1);
	assert_int_equal(ext.type, QCOW2_EXT_FEATURE_TABLE);
	assert_int_equal(ext.next_offset, 136);
	assert_int_equal(qcow2_ext_next(buf, sizeof(buf), ext.next_offset, &h,
					&ext, &fault), 0);

	/* a length out of the buffer, and one that would wrap */
	put_be(buf, 132, 4, sizeof(buf) - 135);
	assert_int_equal(qcow2_ext_next(buf, sizeof(buf), 128, &h, &ext,
					&fault), -1);
	assert_int_equal(fault.where, 132);
	put_be(buf, 132, 4, sizeof(buf) - 136);
	assert_int_equal(qcow2_ext_next(buf, sizeof(buf), 128, &h, &ext,
					&fault), 1);
	put_be(buf, 132, 4, 0xffffffff);
	assert_int_equal(qcow2_ext_next(buf, sizeof(buf), 128, &h, &ext,
					&fault), -1);

	/* the backing name is no extension */
	put_be(buf, 132, 4, 8);
	h.backing_file_offset = 140;
	assert_int_equal(qcow2_ext_next(buf, sizeof(buf), 128, &h, &ext,
					&fault), -1);
	h.backing_file_offset = 128;
	assert_int_equal(qcow2_ext_next(buf, sizeof(buf), 128, &h, &ext,
					&fault), 0);

	/* at and behind the buffer's end */
	h.backing_file_offset = 0;
	assert_int_equal(qcow2_ext_next(buf, 8, 8, &h, &ext, &fault), 0);
	assert_int_equal(qcow2_ext_next(buf, 8, 0xfffffff8, &h, &ext, &fault),
			 0);
}

static void make_snapshot(uint8_t *buf, uint32_t extra)
{
	memset(buf, 0, 256);
	put_be(buf, 0, 8, 0x50000);
	put_be(buf, 8, 4, 2);
	put_be(buf, 12, 2, 1);
	put_be(buf, 14, 2, 4);
	put_be(buf, 16, 4, 1700000000);
	put_be(buf, 20, 4, 999);
	put_be(buf, 24, 8, 12345678901);
	put_be(buf, 32, 4, 77);
	put_be(buf, 36, 4, extra);
	put_be(buf, 40, 8, 5 * GIB);
	put_be(buf, 48, 8, GIB);
	put_be(buf, 56, 8, 1234);
	memcpy(buf + 40 + extra, "1name", 5);
}

static void test_snapshot(void **state)
{
	uint8_t buf[256], header[HEADER_BYTES];
	struct qcow2_snapshot snap;
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);

	make_snapshot(buf, 24);
	assert_int_equal(qcow2_snapshot_decode(buf, 256, 0, &h, &snap, &fault),
			 0);
	assert_int_equal(snap.l1_table_offset, 0x50000);
	assert_int_equal(snap.l1_size, 2);
	assert_int_equal(snap.date_sec, 1700000000);
	assert_int_equal(snap.date_nsec, 999);
	assert_int_equal(snap.vm_clock_nsec, 12345678901);
	assert_int_equal(snap.vm_state_size, 5 * GIB);
	assert_int_equal(snap.disk_size, GIB);
	assert_int_equal(snap.icount, 1234);
	assert_int_equal(snap.id_len, 1);
	assert_memory_equal(buf + snap.id_offset, "1", 1);
	assert_int_equal(snap.name_len, 4);
	assert_memory_equal(buf + snap.name_offset, "name", 4);
	assert_int_equal(snap.entry_len, 72);

	/* it must be whole in what was read */
	assert_int_equal(qcow2_snapshot_decode(buf, 71, 0, &h, &snap, &fault),
			 1);
	assert_int_equal(qcow2_snapshot_decode(buf, 39, 0, &h, &snap, &fault),
			 1);
	assert_int_equal(qcow2_snapshot_decode(buf, 72, 0, &h, &snap, &fault),
			 0);

	make_snapshot(buf, 16);
	assert_int_equal(qcow2_snapshot_decode(buf, 256, 0, &h, &snap, &fault),
			 0);
	assert_int_equal(snap.icount, QCOW2_NO_ICOUNT);

	/* old entries have no extra data */
	make_snapshot(buf, 0);
	assert_int_equal(qcow2_snapshot_decode(buf, 256, 0, &h, &snap, &fault),
			 0);
	assert_int_equal(snap.vm_state_size, 77);
	assert_true(snap.disk_size == QCOW2_NO_DISK_SIZE);
	assert_int_equal(snap.entry_len, 48);
}

static void test_snapshot_bad(void **state)
{
	uint8_t buf[256], header[HEADER_BYTES];
	struct qcow2_snapshot snap;
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);

	make_snapshot(buf, 16);
	put_be(buf, 36, 4, 1025);
	assert_int_equal(qcow2_snapshot_decode(buf, 256, 512, &h, &snap,
					       &fault), -1);
	assert_int_equal(fault.where, 512 + 36);

	make_snapshot(buf, 16);
	put_be(buf, 8, 4, QCOW2_MAX_L1_BYTES / 8 + 1);
	assert_int_equal(qcow2_snapshot_decode(buf, 256, 512, &h, &snap,
					       &fault), -1);
	assert_string_equal(fault.field, "snapshot l1_size");
	assert_int_equal(fault.where, 520);

	make_snapshot(buf, 16);
	put_be(buf, 0, 8, 0x50200);
	assert_int_equal(qcow2_snapshot_decode(buf, 256, 512, &h, &snap,
					       &fault), -1);
	assert_string_equal(fault.field, "snapshot l1_table_offset");
	put_be(buf, 0, 8, 1ULL << 56);
	assert_int_equal(qcow2_snapshot_decode(buf, 256, 512, &h, &snap,
					       &fault), -1);
}

static void test_bitmaps(void **state)
{
	struct qcow2_ext ext = { .len = 24, .data_offset = 200 };
	uint8_t buf[64] = { 0 }, header[HEADER_BYTES];
	struct qcow2_bitmaps bitmaps;
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	put_be(buf, 0, 4, 2);
	put_be(buf, 8, 8, 64);
	put_be(buf, 16, 8, 0x60000);
	assert_int_equal(qcow2_bitmaps_decode(buf, &ext, &h, &bitmaps, &fault),
			 0);
	assert_int_equal(bitmaps.nb, 2);
	assert_int_equal(bitmaps.directory_size, 64);
	assert_int_equal(bitmaps.directory_offset, 0x60000);

	put_be(buf, 4, 4, 1);
	assert_int_equal(qcow2_bitmaps_decode(buf, &ext, &h, &bitmaps, &fault),
			 -1);
	put_be(buf, 4, 4, 0);
	put_be(buf, 8, 8, 47);
	assert_int_equal(qcow2_bitmaps_decode(buf, &ext, &h, &bitmaps, &fault),
			 -1);
	assert_string_equal(fault.field, "bitmap_directory_size");
	put_be(buf, 8, 8, QCOW2_MAX_BITMAP_DIR_BYTES + 1);
	assert_int_equal(qcow2_bitmaps_decode(buf, &ext, &h, &bitmaps, &fault),
			 -1);
	put_be(buf, 8, 8, 64);
	put_be(buf, 16, 8, 0x60001);
	assert_int_equal(qcow2_bitmaps_decode(buf, &ext, &h, &bitmaps, &fault),
			 -1);
	assert_string_equal(fault.field, "bitmap_directory_offset");
	put_be(buf, 16, 8, 0);
	assert_int_equal(qcow2_bitmaps_decode(buf, &ext, &h, &bitmaps, &fault),
			 -1);
	put_be(buf, 0, 4, 0);
	assert_int_equal(qcow2_bitmaps_decode(buf, &ext, &h, &bitmaps, &fault),
			 -1);
	assert_string_equal(fault.field, "nb_bitmaps");
	ext.len = 23;
	assert_int_equal(qcow2_bitmaps_decode(buf, &ext, &h, &bitmaps, &fault),
			 -1);
}

static void test_bitmap(void **state)
{
	uint8_t buf[64] = { 0 };
	struct qcow2_bitmap bitmap;
	struct qcow2_fault fault;

	put_be(buf, 0, 8, 0x70000);
	put_be(buf, 8, 4, 3);
	put_be(buf, 12, 4, QCOW2_BITMAP_AUTO);
	put_be(buf, 16, 1, 1);
	put_be(buf, 17, 1, 16);
	put_be(buf, 18, 2, 5);
	put_be(buf, 20, 4, 8);
	assert_int_equal(qcow2_bitmap_decode(buf, 64, 0, &bitmap, &fault), 0);
	assert_int_equal(bitmap.table_offset, 0x70000);
	assert_int_equal(bitmap.table_size, 3);
	assert_int_equal(bitmap.flags, QCOW2_BITMAP_AUTO);
	assert_int_equal(bitmap.flags_offset, 12);
	assert_int_equal(bitmap.type, 1);
	assert_int_equal(bitmap.extra_len, 8);
	assert_int_equal(bitmap.granularity_bits, 16);
	assert_int_equal(bitmap.name_offset, 32);
	assert_int_equal(bitmap.name_len, 5);
	assert_int_equal(bitmap.entry_len, 40);

	assert_int_equal(qcow2_bitmap_decode(buf, 40, 0, &bitmap, &fault), 0);
	assert_int_equal(qcow2_bitmap_decode(buf, 39, 0, &bitmap, &fault), -1);
	assert_int_equal(qcow2_bitmap_decode(buf, 23, 0, &bitmap, &fault), -1);
	put_be(buf, 20, 4, 0xffffffff);
	assert_int_equal(qcow2_bitmap_decode(buf, 64, 9, &bitmap, &fault), -1);
	assert_int_equal(fault.where, 9);
}

static void test_bitmap_check(void **state)
{
	struct qcow2_bitmap good = {
		.table_offset = 0x70000, .table_size = 1, .type = 1,
		.granularity_bits = 16, .name_len = 1023,
	}, bad = good;
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	/* What one bitmap table entry of 64 KiB covers */
	h.size = 512 * 1024ULL << 16;
	assert_null(qcow2_bitmap_check(&h, &good));
	h.size++;
	assert_non_null(qcow2_bitmap_check(&h, &good));
	good.flags = QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO;
	assert_null(qcow2_bitmap_check(&h, &good));
	h.size = MIB;

#define REFUSED(member, value)						\
	do {								\
		bad = good;						\
		bad.member = value;					\
		assert_non_null(qcow2_bitmap_check(&h, &bad));		\
	} while (0)

	REFUSED(flags, 4);
	REFUSED(flags, 1U << 31);
	REFUSED(type, 0);
	REFUSED(type, 2);
	REFUSED(extra_len, 1);
	REFUSED(granularity_bits, 8);
	REFUSED(granularity_bits, 32);
	REFUSED(name_len, 1024);
	REFUSED(table_size, 0);
	REFUSED(table_size, 8193);
	REFUSED(table_size, ~0U);
	REFUSED(table_offset, 0);
	REFUSED(table_offset, 0x70200);
#undef REFUSED
}

static void test_l1_entries(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	assert_int_equal(qcow2_l1_entries(&h, 0), 0);
	assert_int_equal(qcow2_l1_entries(&h, 1), 1);
	assert_int_equal(qcow2_l1_entries(&h, 512 * MIB), 1);
	assert_int_equal(qcow2_l1_entries(&h, 512 * MIB + 1), 2);
	assert_true(qcow2_l1_entries(&h, ~0ULL) == 1ULL << 35);

	assert_int_equal(qcow2_l1_index(&h, 0), 0);
	assert_int_equal(qcow2_l1_index(&h, 512 * MIB - 1), 0);
	assert_int_equal(qcow2_l1_index(&h, 512 * MIB), 1);
	assert_int_equal(qcow2_l2_index(&h, 0xffff), 0);
	assert_int_equal(qcow2_l2_index(&h, 0x10000), 1);
	assert_int_equal(qcow2_l2_index(&h, 512 * MIB - 1), 8191);
	assert_int_equal(qcow2_l2_index(&h, 512 * MIB), 0);
}

static void test_l1_entry(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	assert_null(qcow2_l1_entry_check(&h, 0, MIB));
	assert_null(qcow2_l1_entry_check(&h, 0x20000, MIB));
	assert_null(qcow2_l1_entry_check(&h, QCOW2_OFLAG_COPIED | 0x20000, MIB));
	assert_null(qcow2_l1_entry_check(&h, MIB - 65536, MIB));
	assert_non_null(qcow2_l1_entry_check(&h, MIB - 65536, MIB - 1));
	assert_non_null(qcow2_l1_entry_check(&h, MIB, MIB));
	assert_non_null(qcow2_l1_entry_check(&h, 0x20200, MIB));
	assert_non_null(qcow2_l1_entry_check(&h, 0x20001, MIB));
	assert_non_null(qcow2_l1_entry_check(&h, QCOW2_OFLAG_COPIED, MIB));
	assert_non_null(qcow2_l1_entry_check(&h, 1ULL << 56 | 0x20000, MIB));
	assert_non_null(qcow2_l1_entry_check(&h, QCOW2_OFLAG_COMPRESSED |
					     0x20000, MIB));
	assert_non_null(qcow2_l1_entry_check(&h, QCOW2_OFFSET_MASK, ~0ULL));
}

static void test_l2_entry(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	assert_null(qcow2_l2_entry_check(&h, 0, 0, MIB));
	assert_null(qcow2_l2_entry_check(&h, QCOW2_OFLAG_ZERO, 0, MIB));
	assert_null(qcow2_l2_entry_check(&h, 0x20000 | QCOW2_OFLAG_ZERO, 0, MIB));
	assert_null(qcow2_l2_entry_check(&h, 0x20000 | QCOW2_OFLAG_COPIED, 0,
					 MIB));
	/* the last data cluster of a file may be cut short */
	assert_null(qcow2_l2_entry_check(&h, 0x20000, 0, 0x20200));
	assert_non_null(qcow2_l2_entry_check(&h, 0x20000, 0, 0x20000));
	assert_non_null(qcow2_l2_entry_check(&h, 0x20200, 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, 0x20000 | 2, 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, 1ULL << 61 | 0x20000, 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, 1ULL << 56 | 0x20000, 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, QCOW2_OFLAG_COPIED, 0, MIB));

	h.version = 2;
	assert_null(qcow2_l2_entry_check(&h, 0x20000, 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, 0x20000 | QCOW2_OFLAG_ZERO, 0,
					     MIB));
}

static void test_external_entries(void **state)
{
	uint64_t owned = QCOW2_OFLAG_COPIED;
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	put_be(header, INCOMPATIBLE, 8, QCOW2_INCOMPAT_DATA_FILE);
	assert_int_equal(decode(header, &h, &fault), 0);
	assert_true(qcow2_external(&h));
	assert_false(qcow2_raw_data(&h));
	h.autoclear = QCOW2_AUTOCLEAR_DATA_FILE_RAW;
	assert_true(qcow2_raw_data(&h));
	/* One place, whatever the length of the image */
	assert_null(qcow2_l2_entry_check(&h, owned | GIB, GIB, MIB));
	assert_null(qcow2_l2_entry_check(&h, GIB, GIB, MIB));
	assert_null(qcow2_l2_entry_check(&h, owned, 0, MIB));
	assert_null(qcow2_l2_entry_check(&h, owned | GIB | 1, GIB, MIB));
	assert_null(qcow2_l2_entry_check(&h, owned | 1, GIB, MIB));
	assert_null(qcow2_l2_entry_check(&h, 0, GIB, MIB));
	assert_null(qcow2_l2_entry_check(&h, 1, GIB, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, owned, GIB, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, owned | 0x20000, 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, owned | 0x20000, GIB, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, 0x20000 | 1, GIB, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, QCOW2_OFLAG_COMPRESSED |
					     0x20000, 0x20000, MIB));
	assert_int_equal(qcow2_l2_kind(owned), QCOW2_NORMAL);
	assert_null(qcow2_l2_bitmap_check(owned, 1));
}

static void test_l2_kind(void **state)
{
	assert_int_equal(qcow2_l2_kind(0), QCOW2_UNALLOCATED);
	assert_int_equal(qcow2_l2_kind(1), QCOW2_ZERO_PLAIN);
	assert_int_equal(qcow2_l2_kind(0x10001), QCOW2_ZERO_ALLOC);
	assert_int_equal(qcow2_l2_kind(0x10000), QCOW2_NORMAL);
	assert_int_equal(qcow2_l2_kind(QCOW2_OFLAG_COPIED | 0x10000),
			 QCOW2_NORMAL);
	assert_int_equal(qcow2_l2_kind(QCOW2_OFLAG_COMPRESSED | 0x10001),
			 QCOW2_COMPRESSED);
}

/* An entry of compressed data; @more: sectors behind the first one */
#define PACKED(shift, more, offset) \
	(QCOW2_OFLAG_COMPRESSED | (uint64_t)(more) << (shift) | (offset))

static void test_packed_entry(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;
	__u64 first;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	/* 64 KiB clusters: 8 bits for the sectors, from bit 54 on */
	assert_int_equal(qcow2_packed_offset(&h, PACKED(54, 3, 0x21234)),
			 0x21234);
	assert_int_equal(qcow2_packed_bytes(&h, PACKED(54, 3, 0x21234)),
			 4 * 512 - 0x34);
	assert_int_equal(qcow2_packed_bytes(&h, PACKED(54, 255, 0x20000)),
			 2 * 65536);
	assert_int_equal(qcow2_packed_clusters(&h, PACKED(54, 0, 0x2ffff),
					       &first), 1);
	assert_int_equal(first, 2);
	assert_int_equal(qcow2_packed_clusters(&h, PACKED(54, 1, 0x2ffff),
					       &first), 2);
	assert_int_equal(qcow2_packed_clusters(&h, PACKED(54, 127, 0x30000),
					       &first), 1);
	assert_int_equal(qcow2_packed_clusters(&h, PACKED(54, 255, 0x3fe00),
					       &first), 3);
	assert_int_equal(first, 3);
	assert_null(qcow2_l2_entry_check(&h, PACKED(54, 255, 0xfffff), 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, PACKED(54, 0, 0xffff), 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, PACKED(54, 0, MIB), 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, PACKED(54, 0, 0x20000) |
					     QCOW2_OFLAG_COPIED, 0, MIB));
}

/* The smallest and the largest clusters. */
static void test_packed_entry_ends(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;
	__u64 first;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	h.cluster_bits = 9;
	h.cluster_size = 512;
	assert_int_equal(qcow2_packed_bytes(&h, PACKED(61, 1, 0x401)), 1023);
	assert_int_equal(qcow2_packed_clusters(&h, PACKED(61, 1, 0x401),
					       &first), 2);
	assert_int_equal(first, 2);
	h.cluster_bits = 21;
	h.cluster_size = 1 << 21;
	assert_int_equal(qcow2_packed_bytes(&h, PACKED(49, 8191, 0x400000)),
			 4 << 20);
	assert_int_equal(qcow2_packed_offset(&h, PACKED(49, 8191, 0x412345)),
			 0x412345);
}

static void test_subclusters(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;
	uint64_t owned = QCOW2_OFLAG_COPIED | 0x20000;

	make_header(header);
	put_be(header, INCOMPATIBLE, 8, QCOW2_INCOMPAT_EXTL2);
	/* Half as many entries in a table, so twice as many tables */
	put_be(header, L1_SIZE, 4, 4);
	assert_int_equal(decode(header, &h, &fault), 0);
	assert_int_equal(h.l2_entry_bytes, 16);
	assert_int_equal(h.l2_bits, 12);
	assert_int_equal(h.sub_bits, 11);
	assert_null(qcow2_l2_entry_check(&h, 0x20001, 0, MIB));
	assert_null(qcow2_l2_entry_check(&h, 1, 0, MIB));
	assert_non_null(qcow2_l2_entry_check(&h, QCOW2_OFLAG_COPIED | 1, 0, MIB));
	assert_null(qcow2_l2_entry_check(&h, owned, 0, MIB));
	assert_null(qcow2_l2_bitmap_check(owned, 0xffff0000ULL << 32 | 0xffff));
	assert_non_null(qcow2_l2_bitmap_check(owned, 1ULL << 32 | 1));
	assert_null(qcow2_l2_bitmap_check(0, 0xffffffffULL << 32));
	assert_non_null(qcow2_l2_bitmap_check(0, 1));
	assert_null(qcow2_l2_bitmap_check(PACKED(54, 0, 0x20000), 0));
	assert_null(qcow2_l2_bitmap_check(PACKED(54, 0, 0x20000), ~0ULL));
	assert_int_equal(qcow2_sub_kind(owned, 2, 1), QCOW2_NORMAL);
	assert_int_equal(qcow2_sub_kind(owned, 2, 2), QCOW2_UNALLOCATED);
	assert_int_equal(qcow2_sub_kind(0, 1ULL << 63, 31), QCOW2_ZERO_PLAIN);
	assert_int_equal(qcow2_sub_mask(&h, 0, 65536), 0xffffffff);
	assert_int_equal(qcow2_sub_mask(&h, 2048, 4096), 2);
	assert_int_equal(qcow2_sub_mask(&h, 2048, 4097), 6);
	assert_int_equal(qcow2_sub_mask(&h, 63488, 65536), 1ULL << 31);
}

static void test_compression_type(void **state)
{
	uint8_t buf[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(buf);
	put_be(buf, COMPRESSION, 1, 1);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_string_equal(fault.field, "compression_type");
	put_be(buf, INCOMPATIBLE, 8, QCOW2_INCOMPAT_COMPRESSION);
	assert_int_equal(decode(buf, &h, &fault), 0);
	put_be(buf, COMPRESSION, 1, 0);
	assert_int_equal(decode(buf, &h, &fault), -1);
	put_be(buf, COMPRESSION, 1, 2);
	assert_int_equal(decode(buf, &h, &fault), -1);
	assert_int_equal(fault.where, COMPRESSION);
}

static void test_reftable_entry(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	assert_null(qcow2_reftable_entry_check(&h, 0, MIB));
	assert_null(qcow2_reftable_entry_check(&h, 0x20000, MIB));
	assert_non_null(qcow2_reftable_entry_check(&h, 0x20001, MIB));
	assert_non_null(qcow2_reftable_entry_check(&h, 0x20200, MIB));
	assert_non_null(qcow2_reftable_entry_check(&h, MIB, MIB));
	assert_non_null(qcow2_reftable_entry_check(&h, 1ULL << 63 | 0x20000,
						   MIB));
}

/* Widths, neighbours untouched, and the byte order of the specification. */
static void test_refcounts(void **state)
{
	uint32_t order, i;

	for (order = 0; order <= 6; order++) {
		uint32_t n = (512 * 8) >> order;
		uint64_t max = qcow2_refcount_max(order);
		uint8_t block[512];

		memset(block, 0, sizeof(block));
		for (i = 0; i < n; i++)
			qcow2_refcount_set(block, i, order,
					   (i * 0x9e3779b97f4a7c15ULL) & max);
		for (i = 0; i < n; i++)
			assert_true(qcow2_refcount_get(block, i, order) ==
				    ((i * 0x9e3779b97f4a7c15ULL) & max));
		for (i = 0; i < n; i += 3)
			qcow2_refcount_set(block, i, order, max);
		for (i = 0; i < n; i++) {
			uint64_t want = i % 3 ?
				(i * 0x9e3779b97f4a7c15ULL) & max : max;

			assert_true(qcow2_refcount_get(block, i, order) ==
				    want);
		}
	}
}

static void test_refcount_layout(void **state)
{
	uint8_t block[16] = { 0 };

	qcow2_refcount_set(block, 0, 0, 1);
	qcow2_refcount_set(block, 9, 0, 1);
	assert_int_equal(block[0], 1);
	assert_int_equal(block[1], 2);
	qcow2_refcount_set(block, 1, 2, 0xa);
	assert_int_equal(block[0], 0xa1);
	qcow2_refcount_set(block, 1, 4, 0x1234);
	assert_int_equal(block[2], 0x12);
	assert_int_equal(block[3], 0x34);
	qcow2_refcount_set(block, 1, 6, 0x0102030405060708);
	assert_int_equal(block[8], 1);
	assert_int_equal(block[15], 8);

	assert_true(qcow2_refcount_max(0) == 1);
	assert_true(qcow2_refcount_max(4) == 0xffff);
	assert_true(qcow2_refcount_max(5) == 0xffffffff);
	assert_true(qcow2_refcount_max(6) == ~0ULL);
}

static uint64_t random_state;

static uint64_t random64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* Exact allocations, so that ASan sees one byte too far. */
static uint8_t *random_buffer(size_t len)
{
	uint8_t *buf = malloc(len);
	size_t i;

	assert_non_null(buf);
	for (i = 0; i < len; i++)
		buf[i] = random64();
	return buf;
}

static void walk_extensions(const uint8_t *buf, uint32_t len,
			    const struct qcow2_header *h)
{
	uint32_t offset = h->header_length;
	struct qcow2_fault fault;
	struct qcow2_ext ext;
	struct qcow2_bitmaps bitmaps;

	while (qcow2_ext_next(buf, len, offset, h, &ext, &fault) == 1) {
		assert_true(ext.data_offset + (uint64_t)ext.len <= len);
		assert_true(ext.next_offset > offset);
		if (ext.len == 24)
			qcow2_bitmaps_decode(buf + ext.data_offset, &ext, h,
					     &bitmaps, &fault);
		offset = ext.next_offset;
	}
}

/* Headers with a few random bytes: what passes is inside all limits. */
static void test_random_headers(void **state)
{
	int run, i;

	random_state = 42;
	for (run = 0; run < 100000; run++) {
		uint32_t len = QCOW2_HEADER_V3_BYTES + random64() % 72;
		uint8_t *buf = random_buffer(len);
		uint8_t header[HEADER_BYTES];
		struct qcow2_header h;
		struct qcow2_fault fault = { 0 };

		make_header(header);
		memcpy(buf, header, len < HEADER_BYTES ? len : HEADER_BYTES);
		for (i = random64() % 4; i >= 0; i--) {
			uint32_t at = 4 + random64() %
				(QCOW2_HEADER_V3_BYTES - 4);

			buf[at] = random64() % 4 ? 1U << random64() % 8 :
				random64();
		}
		if (qcow2_header_decode(buf, len, &h, &fault)) {
			assert_non_null(fault.field);
			assert_non_null(fault.why);
		} else {
			uint64_t bytes = random64() >> random64() % 64;

			assert_in_range(h.cluster_bits, 9, 21);
			assert_true(h.l1_size <= QCOW2_MAX_L1_BYTES / 8);
			assert_true(qcow2_l1_entries(&h, h.size) <= h.l1_size);
			if (!qcow2_header_check_bounds(&h, bytes, &fault))
				assert_true(h.l1_table_offset + h.l1_size * 8 <=
					    bytes);
			walk_extensions(buf, len, &h);
		}
		free(buf);
	}
}

static void test_subcluster_runs(void **state)
{
	uint32_t sub, n;
	int run;

	assert_int_equal(qcow2_sub_run(0, 0), 32);
	assert_int_equal(qcow2_sub_run(QCOW2_BITMAP_ALLOC, 5), 27);
	assert_int_equal(qcow2_sub_run(QCOW2_BITMAP_ZERO, 31), 1);
	random_state = 3;
	for (run = 0; run < 100000; run++) {
		uint64_t bitmap = random64() & random64() & random64();

		sub = random64() % 32;
		for (n = 1; sub + n < 32; n++)
			if (qcow2_sub_kind(0, bitmap, sub + n) !=
			    qcow2_sub_kind(0, bitmap, sub) ||
			    ((bitmap >> (32 + sub + n)) & 1) !=
			    ((bitmap >> (32 + sub)) & 1))
				break;
		assert_int_equal(qcow2_sub_run(bitmap, sub), n);
	}
}

static void test_random_entries(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;
	int run;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	random_state = 7;
	for (run = 0; run < 1000000; run++) {
		uint64_t entry = random64() >> random64() % 64;
		uint64_t bytes = random64() >> random64() % 64;
		uint64_t offset = entry & QCOW2_OFFSET_MASK;

		if (!qcow2_l1_entry_check(&h, entry, bytes) && offset)
			assert_true(offset + h.cluster_size <= bytes);
		if (!qcow2_reftable_entry_check(&h, entry, bytes) && entry)
			assert_true(entry + h.cluster_size <= bytes);
		if (qcow2_l2_entry_check(&h, entry, 0, bytes))
			continue;
		if (entry & QCOW2_OFLAG_COMPRESSED)
			assert_true(qcow2_packed_offset(&h, entry) < bytes);
		else if (offset)
			assert_true(offset < bytes);
	}
}

static void test_random_tables(void **state)
{
	uint8_t header[HEADER_BYTES];
	struct qcow2_header h;
	struct qcow2_fault fault;
	int run;

	make_header(header);
	assert_int_equal(decode(header, &h, &fault), 0);
	random_state = 11;
	for (run = 0; run < 100000; run++) {
		uint32_t len = random64() % 128;
		uint8_t *buf = random_buffer(len ? len : 1);
		struct qcow2_snapshot snap;
		struct qcow2_bitmap bitmap;

		if (len >= 40) {
			put_be(buf, 0, 8, (random64() % 9) << 15);
			put_be(buf, 12, 4, (random64() % 64) << 16 |
			       random64() % 64);
			put_be(buf, 36, 4, random64() % 64);
		}
		if (!qcow2_snapshot_decode(buf, len, 0, &h, &snap, &fault)) {
			assert_true(snap.entry_len <= len);
			assert_true(snap.id_offset + snap.id_len +
				    snap.name_len <= snap.entry_len);
			assert_true(snap.name_offset ==
				    snap.id_offset + snap.id_len);
		}
		if (!qcow2_bitmap_decode(buf, len, 0, &bitmap, &fault)) {
			assert_true(bitmap.entry_len <= len);
			assert_true(bitmap.name_offset + bitmap.name_len <=
				    bitmap.entry_len);
		}
		free(buf);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_header_v3),
		cmocka_unit_test(test_header_short_v3),
		cmocka_unit_test(test_header_v2),
		cmocka_unit_test(test_header_bad_fields),
		cmocka_unit_test(test_header_where),
		cmocka_unit_test(test_header_too_short),
		cmocka_unit_test(test_header_backing),
		cmocka_unit_test(test_header_geometry),
		cmocka_unit_test(test_header_extended_l2),
		cmocka_unit_test(test_header_bounds),
		cmocka_unit_test(test_probe),
		cmocka_unit_test(test_feature_name),
		cmocka_unit_test(test_extensions),
		cmocka_unit_test(test_snapshot),
		cmocka_unit_test(test_snapshot_bad),
		cmocka_unit_test(test_bitmaps),
		cmocka_unit_test(test_bitmap),
		cmocka_unit_test(test_bitmap_check),
		cmocka_unit_test(test_l1_entries),
		cmocka_unit_test(test_l1_entry),
		cmocka_unit_test(test_l2_entry),
		cmocka_unit_test(test_external_entries),
		cmocka_unit_test(test_l2_kind),
		cmocka_unit_test(test_packed_entry),
		cmocka_unit_test(test_packed_entry_ends),
		cmocka_unit_test(test_subclusters),
		cmocka_unit_test(test_subcluster_runs),
		cmocka_unit_test(test_compression_type),
		cmocka_unit_test(test_reftable_entry),
		cmocka_unit_test(test_refcounts),
		cmocka_unit_test(test_refcount_layout),
		cmocka_unit_test(test_random_headers),
		cmocka_unit_test(test_random_entries),
		cmocka_unit_test(test_random_tables),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
