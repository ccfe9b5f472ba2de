// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of the search for other users of images, among files that qemu-img
 * made. Devices are not there.
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

#include "dm.h"
#include "layerlist.h"
#include "lock.h"
#include "scan.h"
#include "users.h"

static void run(const char *command)
{
	assert_int_equal(system(command), 0);
}

static void overlay(const char *name, const char *backing, const char *format)
{
	char command[512];

	snprintf(command, sizeof(command),
		 "qemu-img create -q -f qcow2 -u -b '%s' -F %s '%s' 1M",
		 backing, format, name);
	run(command);
}

/* What a job that was killed has left, or NULL */
static struct json_object *left;

/* Checks what happens if layers @first to @last of the chain are victims. */
static int check_range(unsigned int first, unsigned int last,
		       const char *search, bool force)
{
	const struct image *victims[8];
	unsigned int count = 0;
	struct chain chain;
	struct users users = {
		.chain = &chain,
		.left = left,
		.search = &search,
		.nsearch = search ? 1 : 0,
		.force = force,
	};
	int r;

	assert_int_equal(chain_open("dir/top", NULL, &chain), 0);
	assert_int_equal(chain.count, 4);
	while (first <= last)
		victims[count++] = &chain.layers[first++];
	r = users_check(&users, victims, count);
	chain_close(&chain);
	return r;
}

static int set_up(void **state)
{
	char *dir = strdup("/tmp/test-users-XXXXXX");

	dm_init();
	if (!mkdtemp(dir) || chdir(dir) < 0)
		return -1;
	run("mkdir -p dir far/away/below");
	run("truncate -s 1M dir/base");
	overlay("dir/one", "base", "raw");
	overlay("dir/two", "one", "qcow2");
	overlay("dir/top", "two", "qcow2");
	*state = dir;
	return 0;
}

static int tear_down(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r '%s'", (char *)*state);
	free(*state);
	return chdir("/") < 0 ? -1 : system(command);
}

static void test_none(void **state)
{
	assert_int_equal(check_range(0, 3, NULL, false), 0);
	/* What is no image does not matter, and is not complained of. */
	run("echo garbage >dir/garbage; mkfifo dir/fifo");
	run("head -c 100 dir/one >dir/short; ln -s nowhere dir/dangling");
	assert_int_equal(check_range(0, 3, ".", false), 0);
	/* The same image by other names is not another one. */
	run("ln dir/top dir/hard; ln -s top dir/soft");
	assert_int_equal(check_range(0, 3, ".", false), 0);
	run("rm dir/garbage dir/fifo dir/short dir/dangling dir/hard dir/soft");
}

static void test_beside(void **state)
{
	overlay("dir/other", "one", "qcow2");
	assert_int_equal(check_range(2, 3, NULL, false), -EBUSY);
	assert_int_equal(check_range(2, 2, NULL, false), -EBUSY);
	assert_int_equal(check_range(2, 2, NULL, true), 0);
	/* It stands on none of these; one keeps its contents. */
	assert_int_equal(check_range(0, 1, NULL, false), 0);
	assert_int_equal(check_range(3, 3, NULL, false), 0);
	run("rm dir/other");
}

/* A job that was killed had merged it already: it does not matter, others do. */
static void test_left(void **state)
{
	struct chain chain;

	overlay("dir/merged", "one", "qcow2");
	assert_int_equal(check_range(2, 2, NULL, false), -EBUSY);
	assert_int_equal(chain_open("dir/merged", NULL, &chain), 0);
	chain.count = 1;
	left = layers_json(&chain);
	chain.count = 3;
	chain_close(&chain);
	assert_int_equal(check_range(2, 2, NULL, false), 0);
	overlay("dir/other", "one", "qcow2");
	assert_int_equal(check_range(2, 2, NULL, false), -EBUSY);
	json_object_put(left);
	left = NULL;
	run("rm dir/merged dir/other");
}

/* An external data file fares as its image does. */
static void test_data_file(void **state)
{
	run("cd dir && qemu-img create -q -f qcow2 -o data_file=two.data two 1M");
	run("cd dir && qemu-img rebase -q -u -b one -F qcow2 two");
	assert_int_equal(check_range(0, 3, NULL, false), 0);
	overlay("dir/other", "two.data", "raw");
	assert_int_equal(check_range(1, 1, NULL, false), -EBUSY);
	assert_int_equal(check_range(2, 2, NULL, false), 0);
	run("rm dir/other; cp dir/two dir/twin");
	assert_int_equal(check_range(1, 1, NULL, false), -EBUSY);
	assert_int_equal(check_range(0, 0, NULL, false), 0);
	run("rm dir/twin dir/two.data");
	assert_int_equal(check_range(1, 1, NULL, false), -ENOENT);
	overlay("dir/two", "one", "qcow2");
}

/* A raw base, by an overlay that does not tell the format */
static void test_no_format(void **state)
{
	run("qemu-img create -q -f qcow2 -o compat=0.10 dir/old 1M");
	run("qemu-img rebase -u -b base -F raw dir/old");
	/* The format extension follows the header of version 2. */
	run("printf '\\1\\1\\1\\1' | dd of=dir/old bs=1 seek=72 conv=notrunc status=none");
	assert_int_equal(check_range(3, 3, NULL, false), -EBUSY);
	run("rm dir/old");
}

static void test_search(void **state)
{
	char path[256];

	assert_non_null(getcwd(path, sizeof(path)));
	overlay("far/away/below/other", "../../../dir/two", "qcow2");
	assert_int_equal(check_range(1, 1, NULL, false), 0);
	assert_int_equal(check_range(1, 1, "far/away/below", false), -EBUSY);
	assert_int_equal(check_range(1, 1, "far", false), -EBUSY);
	assert_int_equal(check_range(1, 1, path, false), -EBUSY);
	assert_int_equal(check_range(2, 2, "far", false), 0);
	assert_int_equal(check_range(1, 1, "nowhere", false), -ENOENT);
	/* By a link of another name, and over an image in between */
	run("ln -s ../../dir/two far/away/two");
	overlay("far/away/middle", "two", "qcow2");
	run("mv far/away/middle far/away/below/middle");
	run("rm far/away/below/other; ln -s ../two far/away/below/two");
	overlay("dir/late", "../far/away/below/middle", "qcow2");
	assert_int_equal(check_range(1, 1, NULL, false), -EBUSY);
	run("rm dir/late");
	assert_int_equal(check_range(1, 1, NULL, false), 0);
	run("rm far/away/below/* far/away/two");
}

/* An overlay of what keeps its contents is not harmed by what is below. */
static void test_above(void **state)
{
	overlay("dir/other", "top", "qcow2");
	assert_int_equal(check_range(1, 3, NULL, false), 0);
	assert_int_equal(check_range(0, 1, NULL, false), -EBUSY);
	run("rm dir/other");
}

static void test_loop(void **state)
{
	overlay("dir/a", "b", "qcow2");
	overlay("dir/b", "a", "qcow2");
	overlay("dir/c", "c", "qcow2");
	assert_int_equal(check_range(0, 3, NULL, false), 0);
	run("rm dir/a dir/b dir/c");
}

static void test_locked(void **state)
{
	int fd = open("dir/one", O_RDWR);

	assert_int_equal(lock_acquire(fd, ROLE_READ, NULL), 0);
	assert_int_equal(check_range(2, 2, NULL, false), -EBUSY);
	assert_int_equal(check_range(2, 2, NULL, true), -EBUSY);
	assert_int_equal(check_range(3, 3, NULL, false), 0);
	close(fd);
	assert_int_equal(check_range(2, 2, NULL, false), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_none),
		cmocka_unit_test(test_beside),
		cmocka_unit_test(test_left),
		cmocka_unit_test(test_data_file),
		cmocka_unit_test(test_no_format),
		cmocka_unit_test(test_search),
		cmocka_unit_test(test_above),
		cmocka_unit_test(test_loop),
		cmocka_unit_test(test_locked),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
