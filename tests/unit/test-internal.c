// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of internal snapshots of images that are not open: images that
 * qemu-img made, and broken snapshot tables. Devices are not there.
 */
#include <errno.h>
#include <fcntl.h>
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

#include "internal.h"
#include "lock.h"
#include "recover.h"
#include "state.h"

static void run(const char *command)
{
	assert_int_equal(system(command), 0);
}

static int fresh(void **state)
{
	(void)state;
	run("mkdir -p build/run && rm -rf build/internal build/run/* && mkdir build/internal");
	run("qemu-img create -q -f qcow2 build/internal/base 8M");
	run("qemu-img create -q -f qcow2 -b base -F qcow2 build/internal/a 4M");
	run("qemu-io -c 'write -P 1 0 1M' build/internal/a >/dev/null");
	return 0;
}

static bool force;

static void assert_no_journal(void)
{
	struct json_object *entry;

	assert_int_equal(journal_read(&entry), 0);
	assert_null(entry);
}

static int edit(enum internal_action action, const char *word)
{
	struct internal in = {
		.action = action,
		.word = word,
		.users.force = force,
	};
	int r;

	assert_int_equal(state_lock(true), 0);
	in.entry = journal_entry("internal", "", "");
	r = internal_closed(&in, "build/internal/a");
	if (!r)
		r = internal_run(&in);
	internal_close(&in);
	assert_no_journal();
	state_unlock();
	return r;
}

/* "ID:name ..." of all snapshots; free() it */
static char *names(void)
{
	char *all = strdup(""), *longer;
	struct snaptable table;
	struct image image;
	unsigned int i;

	assert_int_equal(image_open("build/internal/a", FORMAT_QCOW2, &image), 0);
	assert_int_equal(snaptable_read(&image, &table), 0);
	for (i = 0; i < table.count; i++) {
		assert_true(asprintf(&longer, "%s%s:%s ", all,
				     table.list[i].id,
				     table.list[i].name) >= 0);
		free(all);
		all = longer;
	}
	snaptable_free(&table);
	image_close(&image);
	return all;
}

static void expect_names(const char *expected)
{
	char *found = names();

	assert_string_equal(found, expected);
	free(found);
}

static void test_edit(void **state)
{
	(void)state;
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	run("qemu-img resize -q build/internal/a 6M");
	run("qemu-io -c 'write -P 2 0 1M' build/internal/a >/dev/null");
	assert_int_equal(edit(INTERNAL_CREATE, "two"), 0);
	expect_names("1:one 2:two ");
	/* with its size, and the link to the base stays */
	assert_int_equal(edit(INTERNAL_APPLY, "1"), 0);
	run("qemu-io -c 'read -P 1 0 1M' build/internal/a | (! grep -q failed)");
	run("qemu-img info build/internal/a | grep -q 'virtual size: 4 MiB'");
	run("qemu-img info build/internal/a | grep -q 'backing file: base'");
	assert_int_equal(edit(INTERNAL_APPLY, "two"), 0);
	run("qemu-io -c 'read -P 2 0 1M' build/internal/a | (! grep -q failed)");
	assert_int_equal(edit(INTERNAL_DELETE, "1"), 0);
	expect_names("2:two ");
	run("qemu-img check -q build/internal/a");
}

static void test_overlays(void **state)
{
	(void)state;
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	run("qemu-img create -q -f qcow2 -b a -F qcow2 build/internal/over");
	assert_int_equal(edit(INTERNAL_APPLY, "one"), -EBUSY);
	/* they read the same before and after */
	assert_int_equal(edit(INTERNAL_CREATE, "two"), 0);
	assert_int_equal(edit(INTERNAL_DELETE, "two"), 0);
	force = true;
	assert_int_equal(edit(INTERNAL_APPLY, "one"), 0);
	force = false;
}

static void test_which(void **state)
{
	(void)state;
	run("qemu-img snapshot -c 2 build/internal/a");
	run("qemu-img snapshot -c twin build/internal/a");
	run("qemu-img snapshot -c twin build/internal/a");
	expect_names("1:2 2:twin 3:twin ");
	assert_int_equal(edit(INTERNAL_CREATE, "twin"), -EEXIST);
	assert_int_equal(edit(INTERNAL_CREATE, "3"), -EEXIST);
	assert_int_equal(edit(INTERNAL_CREATE, ""), -EINVAL);
	assert_int_equal(edit(INTERNAL_APPLY, "none"), -ENOENT);
	/* qemu-img would delete ID 2 */
	assert_int_equal(edit(INTERNAL_DELETE, "3"), -EOPNOTSUPP);
	/* the ID counts before the name */
	assert_int_equal(edit(INTERNAL_DELETE, "2"), 0);
	expect_names("1:2 3:twin ");
	assert_int_equal(edit(INTERNAL_DELETE, "2"), 0);
	assert_int_equal(edit(INTERNAL_DELETE, "3"), 0);
	expect_names("");
	assert_int_equal(edit(INTERNAL_CREATE, "-c --x"), 0);
	expect_names("1:-c --x ");
}

static void test_refcounts(void **state)
{
	(void)state;
	run("qemu-img create -q -f qcow2 -o refcount_bits=2 build/internal/a 4M");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	assert_int_equal(edit(INTERNAL_CREATE, "two"), 0);
	assert_int_equal(edit(INTERNAL_CREATE, "three"), -EOPNOTSUPP);
	run("qemu-img check -q build/internal/a");
}

/* Both snapshots and the present state have it, and apply counts once more. */
static void test_no_refcount_left_to_apply(void **state)
{
	(void)state;
	run("qemu-img create -q -f qcow2 -o refcount_bits=2 build/internal/a 1M");
	run("qemu-io -c 'write -P 1 0 64k' build/internal/a >/dev/null");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	run("qemu-img resize -q build/internal/a 4M");
	assert_int_equal(edit(INTERNAL_CREATE, "two"), 0);
	run("qemu-io -c 'write -P 2 2M 1M' build/internal/a >/dev/null");
	assert_int_equal(edit(INTERNAL_APPLY, "one"), -EOPNOTSUPP);
	run("qemu-io -c 'read -P 2 2M 1M' build/internal/a | (! grep -q failed)");
	run("qemu-img check -q build/internal/a");
	assert_int_equal(edit(INTERNAL_DELETE, "two"), 0);
	assert_int_equal(edit(INTERNAL_APPLY, "one"), 0);
	run("qemu-img info build/internal/a | grep -q 'virtual size: 1 MiB'");
	run("qemu-img check -q build/internal/a");
}

/* Two in one host cluster: a snapshot adds two references. */
static void test_no_refcount_left_for_compressed(void **state)
{
	(void)state;
	run("qemu-img create -q -f qcow2 -o refcount_bits=2 build/internal/a 4M");
	run("qemu-io -c 'write -c -P 1 0 128k' build/internal/a >/dev/null");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), -EOPNOTSUPP);
	expect_names("");
	run("qemu-img check -q build/internal/a");
	run("qemu-io -c 'write -P 1 0 128k' build/internal/a >/dev/null");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	run("qemu-img check -q build/internal/a");
}

static void test_bitmaps(void **state)
{
	(void)state;
	run("qemu-img bitmap --add build/internal/a b0");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	assert_int_equal(edit(INTERNAL_APPLY, "one"), -EOPNOTSUPP);
	run("qemu-img info build/internal/a | grep -q 'name: b0'");
	run("qemu-img bitmap --remove build/internal/a b0");
	assert_int_equal(edit(INTERNAL_APPLY, "one"), 0);
	assert_int_equal(edit(INTERNAL_DELETE, "one"), 0);
	run("qemu-img check -q build/internal/a");
}

static void test_locked(void **state)
{
	int fd = open("build/internal/a", O_RDWR);

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(lock_acquire(fd, ROLE_READ, NULL), 0);
	assert_int_equal(edit(INTERNAL_CREATE, "one"), -EBUSY);
	close(fd);
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
}

/* Overwrites @len bytes of the snapshot table's first entry. */
static void spoil(unsigned int offset, const char *bytes, unsigned int len)
{
	struct image image;
	int fd = open("build/internal/a", O_RDWR);

	assert_int_equal(image_open("build/internal/a", FORMAT_QCOW2, &image), 0);
	assert_int_equal(pwrite(fd, bytes, len,
				image.header.snapshots_offset + offset), len);
	image_close(&image);
	close(fd);
}

static int read_table(void)
{
	struct snaptable table;
	struct image image;
	int r;

	assert_int_equal(image_open("build/internal/a", FORMAT_QCOW2, &image), 0);
	r = snaptable_read(&image, &table);
	snaptable_free(&table);
	image_close(&image);
	return r;
}

static void test_unfit(void **state)
{
	(void)state;
	run("cd build/internal && qemu-img create -q -f qcow2 -o data_file=data a 4M");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), -EOPNOTSUPP);
	run("qemu-img create -q -f raw build/internal/a 4M");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), -EMEDIUMTYPE);
	/* dirty: qemu-img would repair it; corrupt */
	run("qemu-img create -q -f qcow2 build/internal/a 4M");
	run("printf '\\1' | dd of=build/internal/a bs=1 seek=79 conv=notrunc status=none");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), -EUCLEAN);
	run("printf '\\2' | dd of=build/internal/a bs=1 seek=79 conv=notrunc status=none");
	assert_int_equal(edit(INTERNAL_CREATE, "one"), -EUCLEAN);
}

static void test_broken(void **state)
{
	int fd;

	(void)state;
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	assert_int_equal(read_table(), 0);
	/* an L1 table that is not aligned; one of 2^32 - 1 entries */
	spoil(0, "\0\0\0\0\0\0\0\1", 8);
	assert_int_equal(read_table(), -EMEDIUMTYPE);
	spoil(0, "\0\0\0\0\0\0\0\0\377\377\377\377", 12);
	assert_int_equal(read_table(), -EMEDIUMTYPE);
	/* an entry of the greatest length; it leaves the file */
	spoil(8, "\0\0\0\1\377\377\377\377", 8);
	assert_int_equal(read_table(), -EUCLEAN);
	run("truncate -s +1M build/internal/a");
	assert_int_equal(read_table(), 0);
	/* more extra data than QEMU allows */
	spoil(36, "\0\0\4\1", 4);
	assert_int_equal(read_table(), -EMEDIUMTYPE);
	/* 65536 entries in a file that ends */
	fd = open("build/internal/a", O_RDWR);
	assert_int_equal(pwrite(fd, "\0\1\0\0", 4, 60), 4);
	spoil(12, "\0\0\0\0", 4);
	spoil(36, "\0\0\0\0", 4);
	close(fd);
	assert_int_equal(read_table(), -EUCLEAN);
	/* an empty file behind the header */
	run("truncate -s 65536 build/internal/a");
	assert_int_equal(read_table(), -EUCLEAN);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_edit, fresh),
		cmocka_unit_test_setup(test_overlays, fresh),
		cmocka_unit_test_setup(test_which, fresh),
		cmocka_unit_test_setup(test_refcounts, fresh),
		cmocka_unit_test_setup(test_no_refcount_left_to_apply, fresh),
		cmocka_unit_test_setup(test_no_refcount_left_for_compressed,
				       fresh),
		cmocka_unit_test_setup(test_bitmaps, fresh),
		cmocka_unit_test_setup(test_locked, fresh),
		cmocka_unit_test_setup(test_unfit, fresh),
		cmocka_unit_test_setup(test_broken, fresh),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
