// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit test of cutting files: never another one than the image, whoever changes what
 * its name leads to.  And of making one longer that a guest writes to.
 */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

#include "attach.h"
#include "report.h"
#include "trim.h"

#define IMAGE	"build/trim-image"
#define OTHER	"build/trim-other"
#define LONG	(4 << 20)
#define ROUNDS	3000

static atomic_bool stop;

/* The name leads to the image and to the other file by turns. */
static void *swap_names(void *data)
{
	while (!stop)
		renameat2(AT_FDCWD, IMAGE, AT_FDCWD, OTHER, RENAME_EXCHANGE);
	return data;
}

static off_t length_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_size;
}

static int long_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, LONG), 0);
	return fd;
}

static bool cut(const struct image_id *id, int image)
{
	struct trim trim;

	assert_int_equal(ftruncate(image, LONG), 0);
	trim_prepare(IMAGE, id, 0, &trim);
	trim_finish(&trim, true);
	return length_of(image) < LONG;
}

static void only_the_image(void **state)
{
	struct image_id id;
	pthread_t thread;
	int image, other, i;

	unlink(IMAGE);
	unlink(OTHER);
	assert_int_equal(system("qemu-img create -q -f qcow2 " IMAGE " 1M"), 0);
	assert_true(image_id_of_path(IMAGE, &id));
	image = long_file(IMAGE);
	other = long_file(OTHER);
	report_mute(true);
	assert_true(cut(&id, image));
	assert_int_equal(pthread_create(&thread, NULL, swap_names, NULL), 0);
	for (i = 0; i < ROUNDS && length_of(other) == LONG; i++)
		cut(&id, image);
	stop = true;
	pthread_join(thread, NULL);
	assert_int_equal(length_of(other), LONG);
	close(image);
	close(other);
	unlink(IMAGE);
	unlink(OTHER);
}

static bool guest_writes;

/* In place of the C library's: it takes a while, in which a guest writes. */
int ftruncate(int fd, off_t length)
{
	static _Alignas(4096) char data[LONG / 2];

	memset(data, 1, sizeof(data));
	if (guest_writes)
		assert_int_equal(pwrite(fd, data, sizeof(data), LONG / 2),
				 sizeof(data));
	return syscall(SYS_ftruncate, fd, length);
}

static void longer_under_a_guest(void **state)
{
	struct image image;
	int fd;

	unlink(IMAGE);
	assert_int_equal(system("qemu-img create -q -f qcow2 " IMAGE " 64M"), 0);
	fd = long_file(IMAGE);
	assert_int_equal(image_open(IMAGE, FORMAT_QCOW2, &image), 0);
	guest_writes = true;
	assert_int_equal(attach_extend(&image, LONG), 0);
	guest_writes = false;
	assert_true(length_of(fd) > 64 << 20);
	image_close(&image);
	close(fd);
	unlink(IMAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_the_image),
		cmocka_unit_test(longer_under_a_guest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
