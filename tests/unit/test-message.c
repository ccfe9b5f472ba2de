// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit test of the messages that work through a device: what a suspend cuts short is
 * sent again. The kernel is only pretended.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dm-ioctl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <cmocka.h>

#include "message.h"

#define SECTORS	(100ULL << 11)

/* Messages so far, and sectors that they did */
static atomic_uint messages;
static atomic_ullong swept;

int __wrap_open64(const char *path, int flags, ...)
{
	va_list args;
	int mode = 0;

	if (flags & O_CREAT) {
		va_start(args, flags);
		mode = va_arg(args, int);
		va_end(args);
	}
	if (!strcmp(path, "/dev/mapper/control"))
		path = "/dev/null";
	return openat(AT_FDCWD, path, flags, mode);
}

/* Every third message meets a suspend as it begins. */
static uint64_t work(const char *message, unsigned int number)
{
	uint64_t start, count;

	if (sscanf(message, "copy %" SCNu64 " %" SCNu64 " 1", &start, &count) != 2)
		fail();
	return number % 3 ? count : 0;
}

int __wrap_ioctl(int fd, unsigned long request, struct dm_ioctl *header)
{
	char *data = (char *)header + header->data_start;
	struct dm_target_msg *target = (void *)data;
	unsigned int number = ++messages;
	uint64_t done;

	(void)fd;
	assert_true(request == DM_TARGET_MSG);
	if (number % 5 == 0) {
		errno = EAGAIN;
		return -1;
	}
	done = work(target->message, number);
	header->flags |= DM_DATA_OUT_FLAG;
	sprintf(data, "%" PRIu64 " %" PRIu64, done, done / 2);
	return 0;
}

static int pace(void *data, uint64_t done, uint64_t copied)
{
	(void)data;
	assert_int_equal(copied, done / 2);
	swept += done;
	return 0;
}

static void suspended_meanwhile(void **state)
{
	const struct sweep sweep = {
		.name = "vm",
		.verb = "copy",
		.tail = "1",
		.end = SECTORS,
		.pace = pace,
	};

	(void)state;
	assert_int_equal(sweep_run(&sweep), 0);
	assert_int_equal(swept, SECTORS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(suspended_meanwhile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
