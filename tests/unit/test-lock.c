// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit test of the locks: a conflict counts as ours only where the holders were seen.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mount.h>
#include <unistd.h>
#include <cmocka.h>

#include "lock.h"

#define IMAGE	"build/locked"

static int open_image(void)
{
	int fd = open(IMAGE, O_RDWR | O_CREAT, 0600);

	assert_true(fd >= 0);
	return fd;
}

static void mates(void **state)
{
	const struct lock_mates one = { 1, 0 }, none = { 0, 0 };
	int a = open_image(), b = open_image(), c = open_image();

	assert_int_equal(lock_acquire(a, ROLE_READ, NULL), 0);
	assert_int_equal(lock_acquire(b, ROLE_WRITE, NULL), -EBUSY);
	assert_int_equal(lock_acquire(b, ROLE_WRITE, &none), -EBUSY);
	assert_int_equal(lock_test(b, ROLE_WRITE, &one), 0);
	assert_int_equal(lock_acquire(c, ROLE_READ, NULL), 0);
	assert_int_equal(lock_acquire(b, ROLE_WRITE, &one), -EBUSY);
	close(c);
	assert_int_equal(lock_acquire(b, ROLE_WRITE, &one), 0);
	close(a);
	close(b);
}

/* As where a file system has another inode number there than stat() tells */
static void unseen(void **state)
{
	const struct lock_mates one = { 1, 0 };
	int a = open_image(), b = open_image();

	if (unshare(CLONE_NEWNS) < 0 ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("/dev/null", "/proc/locks", NULL, MS_BIND, NULL) < 0)
		skip();
	assert_int_equal(lock_acquire(a, ROLE_READ, NULL), 0);
	assert_int_equal(lock_acquire(b, ROLE_WRITE, &one), -EBUSY);
	close(a);
	close(b);
	unlink(IMAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mates),
		cmocka_unit_test(unseen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
