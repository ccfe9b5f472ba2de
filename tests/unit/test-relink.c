// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of qcow2_relink(): with headers made by hand, random ones, and on
 * images that qemu-img makes and judges.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define must(condition)	assert_true(condition)

#include "relink.h"

#define RANDOM_HEADERS	20000

/* A header without extensions, no end marker; the area is @fill elsewhere. */
static void start_header(uint32_t version, uint32_t bits, uint8_t fill)
{
	uint8_t *p = t.old;

	t.len = bits < 16 ? 1U << bits : AREA_MAX;
	t.unit = 512;
	memset(p, fill, t.len);
	memset(p, 0, 112);
	put(p, 4, QCOW2_MAGIC);
	put(p + 4, 4, version);
	put(p + 20, 4, bits);
	put(p + 48, 8, 1U << 21);
	put(p + 56, 4, 1);
	put(p + 96, 4, 4);
	put(p + 100, 4, 112);
	if (version == 2)
		memset(p + 72, fill, 40);
}

/* Return: offset behind it */
static uint32_t put_ext(uint32_t offset, uint32_t type, uint32_t len,
			const char *data)
{
	uint32_t i;

	put(t.old + offset, 4, type);
	put(t.old + offset + 4, 4, len);
	for (i = 0; i < ((len + 7) & ~7U); i++)
		t.old[offset + 8 + i] = i < len && data ? data[i] : i < len;
	return offset + 8 + ((len + 7) & ~7U);
}

static uint32_t put_end(uint32_t offset)
{
	return put_ext(offset, QCOW2_EXT_END, 0, NULL);
}

static uint32_t put_name(uint32_t offset, const char *name)
{
	memcpy(t.old + offset, name, strlen(name));
	put(t.old + 8, 8, offset);
	put(t.old + 16, 4, strlen(name));
	return offset + strlen(name);
}

static void test_first_link(void **state)
{
	start_header(3, 16, 0);
	put_end(put_ext(112, QCOW2_EXT_FEATURE_TABLE, 336, NULL));
	t.name = "base.qcow2";
	t.format = "qcow2";
	assert_true(relink());
	assert_int_equal(t.out.name_len, 0);
	assert_int_equal(get(t.new + 8, 8), 480);
	assert_int_equal(get(t.new + 456, 4), QCOW2_EXT_BACKING_FORMAT);
	assert_int_equal(get(t.new + 116, 4), 336);
}

static void test_format_in_place(void **state)
{
	uint32_t offset;

	start_header(3, 16, 0xee);
	offset = put_ext(112, QCOW2_EXT_BACKING_FORMAT, 5, "qcow2");
	offset = put_end(put_ext(offset, 0x12345678, 13, "thirteen....."));
	put_name(offset, "old");
	t.name = "new";
	t.format = "raw";
	assert_true(relink());
	assert_int_equal(get(t.new + 116, 4), 3);
	t.format = "vhdx1234";
	assert_true(relink());
	assert_int_equal(get(t.new + 116, 4), 8);
	t.format = "vhdx12345";
	assert_false(relink());
	t.format = "";
	assert_false(relink());
	t.format = NULL;
	assert_false(relink());
}

/* A format that has more room than it needs: what follows stays where it is. */
static void test_long_format(void **state)
{
	uint32_t offset;

	start_header(3, 16, 0xee);
	offset = put_ext(112, QCOW2_EXT_BACKING_FORMAT, 15, "fifteen_letters");
	offset = put_end(put_ext(offset, 0x12345678, 8, "eight..."));
	put_name(offset, "old");
	t.name = "new";
	t.format = "raw";
	assert_true(relink());
	assert_int_equal(get(t.new + 112 + 16, 4), QCOW2_EXT_PADDING);
}

/* No room behind the extensions: the first feature name makes room. */
static void test_feature_table(void **state)
{
	start_header(3, 16, 0);
	put_end(put_ext(112, QCOW2_EXT_FEATURE_TABLE, 384, NULL));
	memset(t.old + 120, 'a', 48);
	memset(t.old + 168, 'b', 48);
	t.name = "base.qcow2";
	t.format = "qcow2";
	assert_true(relink());
	assert_int_equal(get(t.new + 112, 4), QCOW2_EXT_BACKING_FORMAT);
	assert_int_equal(get(t.new + 128, 4), QCOW2_EXT_PADDING);
	assert_int_equal(get(t.new + 160, 4), QCOW2_EXT_FEATURE_TABLE);
	assert_int_equal(get(t.new + 164, 4), 336);
	assert_int_equal(t.new[168], 'b');
	assert_int_equal(t.out.name_offset, 512);
	assert_int_equal(t.out.name_len, 10);
	t.unit = 4096;
	assert_true(relink());
	assert_int_equal(get(t.new + 112, 4), QCOW2_EXT_FEATURE_TABLE);
	assert_int_equal(t.out.name_len, 0);
}

/* Tables of any length, where nothing else can make room */
static void test_feature_table_lengths(void **state)
{
	uint32_t len, offset, done = 0;

	for (len = 0; len < 400; len++) {
		start_header(3, 16, 0);
		offset = put_ext(112, QCOW2_EXT_FEATURE_TABLE, len, NULL);
		offset = put_ext(offset, 0x1234, 400, NULL);
		put_end(offset);
		t.name = "base.qcow2";
		t.format = "qcow2";
		done += relink();
		if (!len)
			assert_int_equal(done, 0);
	}
	assert_int_equal(done, 399);
}

static void test_no_room_for_format(void **state)
{
	start_header(3, 16, 0);
	put_end(put_ext(112, 0x1234, 384, NULL));
	t.name = "base.qcow2";
	t.format = "qcow2";
	assert_false(relink());
	assert_string_equal(t.fault.field, "backing format extension");
	t.unit = 4096;
	assert_true(relink());
	t.unit = 512;
	t.name = "";
	assert_true(relink());
}

static void test_clear(void **state)
{
	uint32_t offset;

	start_header(3, 16, 0);
	offset = put_ext(112, QCOW2_EXT_BACKING_FORMAT, 5, "qcow2");
	put_name(put_end(offset), "old");
	t.name = "";
	t.format = NULL;
	assert_true(relink());
	assert_int_equal(get(t.new + 8, 8), 0);
	assert_int_equal(get(t.new + 16, 4), 0);
}

/* The old name ended the extensions: an end marker takes over. */
static void test_end_without_mark(void **state)
{
	uint32_t offset, version;

	for (version = 2; version <= 3; version++) {
		start_header(version, 16, 0xee);
		offset = version == 2 ? 72 : 112;
		put_name(offset, "a-name-that-reads-as-an-extension");
		t.name = "";
		assert_true(relink());
		t.name = "new";
		t.format = "raw";
		assert_true(relink());
	}
	/* The last 8 bytes of the unit, and beyond */
	start_header(3, 16, 0xee);
	put_name(put_ext(112, 0x1234, 512 - 8 - 120, NULL), "old");
	t.name = "";
	assert_true(relink());
	start_header(3, 16, 0xee);
	put_name(put_ext(112, 0x1234, 512 - 120, NULL), "old");
	assert_false(relink());
	/* Extensions may fill all of the cluster. */
	start_header(3, 9, 0);
	put_ext(112, 0x1234, 512 - 120, NULL);
	assert_true(relink());
}

static void test_autoclear(void **state)
{
	start_header(3, 16, 0);
	put_end(112);
	put(t.old + 88, 8, 0x107);
	t.name = "base";
	t.format = "raw";
	assert_true(relink());
	assert_int_equal(get(t.new + 88, 8), 3);
	start_header(2, 16, 0xee);
	put_end(72);
	assert_true(relink());
	assert_int_equal(get(t.new + 96, 1), 'b');
}

/* Names of all lengths after one another, in the smallest of clusters too */
static void test_names(void **state)
{
	static char name[1025], old[1025];
	uint32_t bits, len, old_len, done;

	memset(name, 'n', sizeof(name));
	memset(old, 'o', sizeof(old));
	for (bits = 9; bits <= 13; bits++) {
		done = 0;
		for (len = 0; len <= 1024; len += 1 + len / 8) {
			for (old_len = 0; old_len <= 1023; old_len += 31) {
				if (160 + old_len > 1U << bits)
					break;
				start_header(3, bits, 0);
				t.unit = old_len & 1 ? 512 : 4096;
				put_end(put_ext(112, QCOW2_EXT_BACKING_FORMAT,
						3, "raw"));
				old[old_len] = '\0';
				put_name(160, old);
				old[old_len] = 'o';
				name[len] = '\0';
				t.name = name;
				t.format = "qcow2";
				done += relink();
				name[len] = 'n';
			}
		}
		assert_true(done > 100);
	}
}

static void test_long_name(void **state)
{
	static char name[1025];

	start_header(3, 16, 0);
	put_end(112);
	memset(name, 'n', 1023);
	t.name = name;
	t.format = "raw";
	assert_true(relink());
	assert_int_equal(t.out.name_offset, 512);
	name[1023] = 'n';
	assert_false(relink());
	assert_string_equal(t.fault.field, "backing_file_size");
}

static uint64_t random_state;

static uint32_t rnd(uint32_t below)
{
	random_state = random_state * 6364136223846793005ULL +
		1442695040888963407ULL;
	return (random_state >> 33) % below;
}

static uint32_t random_ext(uint32_t offset)
{
	static const uint32_t types[] = {
		QCOW2_EXT_BACKING_FORMAT, QCOW2_EXT_FEATURE_TABLE,
		QCOW2_EXT_BITMAPS, QCOW2_EXT_CRYPTO, QCOW2_EXT_DATA_FILE,
		QCOW2_EXT_PADDING, 0x77777777,
	};
	uint32_t type = types[rnd(7)], len;

	if (type == QCOW2_EXT_BACKING_FORMAT)
		len = rnd(20);
	else if (type == QCOW2_EXT_FEATURE_TABLE)
		len = rnd(3) ? 48 * rnd(9) : rnd(400);
	else
		len = rnd(2) ? rnd(40) : 8 * rnd(30);
	if (offset + 8 + len + 8 > t.len)
		return offset;
	return put_ext(offset, type, len, NULL);
}

static void random_header(void)
{
	uint32_t version = 2 + rnd(2), offset, count = rnd(5);
	char name[400];

	start_header(version, 9 + rnd(13), rnd(256));
	t.unit = rnd(2) ? 512 : 4096;
	offset = version == 2 ? 72 : 112;
	while (count--)
		offset = random_ext(offset);
	if (rnd(4) && offset + 8 <= t.len) {
		offset = put_end(offset);
		if (!rnd(4))
			put(t.old + offset - 4, 4, rnd(64));
	}
	if (rnd(3)) {
		memset(name, 'o', sizeof(name));
		name[rnd(rnd(2) ? 20 : 400)] = '\0';
		if (!rnd(3))
			offset += rnd(700);
		if (*name && offset + strlen(name) <= t.len)
			put_name(offset, name);
	}
}

/* Bytes of the header area are changed at random as well. */
static void mutate(void)
{
	uint32_t count = rnd(4);

	while (count--) {
		uint32_t where = 72 + rnd(rnd(2) ? 100 : t.len - 72);

		t.old[where] = rnd(3) ? rnd(256) : 0;
	}
}

static void test_random(void **state)
{
	static char name[1024];
	uint32_t i, done = 0;
	struct qcow2_header h;

	random_state = 1;
	for (i = 0; i < RANDOM_HEADERS; i++) {
		memset(name, 'n', sizeof(name));
		name[rnd(rnd(4) ? 40 : 1024)] = '\0';
		random_header();
		if (i & 1)
			mutate();
		if (qcow2_header_decode(t.old, t.len, &h, &t.fault) < 0)
			continue;
		t.name = name;
		t.format = rnd(2) ? "raw" : "qcow2";
		done += relink();
	}
	assert_true(done > RANDOM_HEADERS / 2);
}

/*
 * Real images
 */

static char image_path[64];

static int run(const char *format, ...)
{
	char command[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(command, sizeof(command), format, args);
	va_end(args);
	return system(command);
}

static void read_image(void)
{
	FILE *file = fopen(image_path, "r");
	struct qcow2_header h;

	assert_non_null(file);
	memset(t.old, 0, sizeof(t.old));
	assert_true(fread(t.old, 1, sizeof(t.old), file) > 0);
	fclose(file);
	assert_int_equal(qcow2_header_decode(t.old, 512, &h, &t.fault), 0);
	t.len = h.cluster_size < AREA_MAX ? h.cluster_size : AREA_MAX;
}

static void write_image(uint32_t offset, uint32_t len)
{
	FILE *file = fopen(image_path, "r+");

	assert_non_null(file);
	fseek(file, offset, SEEK_SET);
	assert_int_equal(fwrite(t.new + offset, 1, len, file), len);
	fclose(file);
}

/* Without the backing file, which does not exist */
#define CHECK_ALONE							\
	"qemu-img check -q 'json:{\"driver\":\"qcow2\",\"backing\":null,"	\
	"\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}'"

static void qemu_sees(const char *name, const char *format)
{
	assert_int_equal(run(CHECK_ALONE, image_path), 0);
	if (!*name) {
		assert_int_not_equal(run("qemu-img info -U %s | grep -q 'backing file:'",
					 image_path), 0);
		return;
	}
	assert_int_equal(run("qemu-img info -U %s | grep -q '^backing file: %s\\( (.*\\)\\?$'",
			     image_path, name), 0);
	assert_int_equal(run("qemu-img info -U %s | grep -q '^backing file format: %s$'",
			     image_path, format), 0);
}

/* As relink() on a file; @was is what qemu-img sees meanwhile. */
static void relink_file(const char *name, const char *format, const char *was,
			const char *was_format)
{
	uint32_t unit;

	read_image();
	t.name = name;
	t.format = format;
	assert_true(relink());
	unit = t.unit < t.len ? t.unit : t.len;
	write_image(t.out.name_offset, t.out.name_len);
	qemu_sees(was, was_format);
	write_image(0, unit);
	qemu_sees(name, format);
}

#define LONG_NAME	"a/rather/long/name/that/does/not/fit/into/the/first/block/of/the/image/and/ends/in/the/next.qcow2"

static void relink_real(const char *options, const char *extra)
{
	assert_int_equal(run("qemu-img create -q -f qcow2 -o %s %s 64M",
			     options, image_path), 0);
	if (extra)
		assert_int_equal(run(extra, image_path), 0);
	relink_file("base.raw", "raw", "", "");
	relink_file("other.qcow2", "qcow2", "base.raw", "raw");
	if (t.len > 512) {
		relink_file(LONG_NAME, "qcow2", "other.qcow2", "qcow2");
		relink_file("x" LONG_NAME, "raw", LONG_NAME, "qcow2");
	}
	relink_file("", NULL, t.len > 512 ? "x" LONG_NAME : "other.qcow2",
		    t.len > 512 ? "raw" : "qcow2");
	relink_file("b", "qcow2", "", "");
	/* QEMU writes the header itself, and so drops our padding. */
	assert_int_equal(run("qemu-img rebase -u -b c -F raw %s", image_path),
			 0);
	relink_file("d", "qcow2", "c", "raw");
}

static void test_real(void **state)
{
	static const char * const options[] = {
		"compat=1.1", "compat=0.10", "lazy_refcounts=on",
		"cluster_size=512", "cluster_size=1k", "cluster_size=2M",
		"cluster_size=512,compat=0.10", "extended_l2=on",
		"compression_type=zstd", "refcount_bits=1",
		"data_file=relink.data",
	};
	char dir[] = "/tmp/test-relink-XXXXXX";
	unsigned int i;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(chdir(dir), 0);
	snprintf(image_path, sizeof(image_path), "image.qcow2");
	for (t.unit = 512; t.unit <= 4096; t.unit *= 8) {
		for (i = 0; i < sizeof(options) / sizeof(options[0]); i++)
			relink_real(options[i], NULL);
		relink_real("cluster_size=64k",
			    "qemu-img bitmap --add %s bitmap0");
		relink_real("cluster_size=4k",
			    "qemu-img snapshot -c snap %s");
	}
	assert_int_equal(chdir("/"), 0);
	assert_int_equal(run("rm -r %s", dir), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_first_link),
		cmocka_unit_test(test_format_in_place),
		cmocka_unit_test(test_long_format),
		cmocka_unit_test(test_feature_table),
		cmocka_unit_test(test_feature_table_lengths),
		cmocka_unit_test(test_no_room_for_format),
		cmocka_unit_test(test_clear),
		cmocka_unit_test(test_end_without_mark),
		cmocka_unit_test(test_autoclear),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_long_name),
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_real),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
