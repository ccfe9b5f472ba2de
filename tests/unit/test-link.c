// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of backing links.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "link.h"

static int parse(const char *name, struct link *link)
{
	return link_parse("/dir/image", name, link);
}

static void means(const char *name, const char *file, const char *format)
{
	struct link link;

	assert_int_equal(parse(name, &link), 0);
	assert_string_equal(link.name, file);
	if (format)
		assert_string_equal(link.format, format);
	else
		assert_null(link.format);
	link_free(&link);
	assert_null(link.name);
}

static void refused(const char *name, int error)
{
	struct link link;

	assert_int_equal(parse(name, &link), error);
	link_free(&link);
}

static void test_files(void **state)
{
	means("data", "data", NULL);
	means("/a/data", "/a/data", NULL);
	means("./a:b", "./a:b", NULL);
	means("file:data", "data", NULL);
	means("json:{\"driver\":\"file\",\"filename\":\"data\"}", "data", NULL);
	means("json:{\"filename\":\"data\"}", "data", NULL);
	means("json:{\"driver\":\"host_device\",\"filename\":\"/dev/x\"}",
	      "/dev/x", NULL);
	means("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"data\"}}",
	      "data", "raw");
	means("json:{\"driver\":\"raw\",\"file.filename\":\"data\"}", "data",
	      "raw");
	means("json:{\"driver\":\"file\",\"filename\":\"d\",\"locking\":\"auto\"}",
	      "d", NULL);
}

static void test_refused(void **state)
{
	refused("nbd:host:10809", -EOPNOTSUPP);
	refused("https://host/data", -EOPNOTSUPP);
	refused("json:{\"driver\":\"nbd\",\"host\":\"h\"}", -EOPNOTSUPP);
	refused("json:{\"driver\":\"file\"}", -EOPNOTSUPP);
	refused("json:{\"driver\":\"raw\",\"file\":\"node\"}", -EOPNOTSUPP);
	/* Another part of the file than all of it */
	refused("json:{\"driver\":\"raw\",\"offset\":512,\"file.filename\":\"d\"}",
		-EOPNOTSUPP);
	refused("json:[]", -EMEDIUMTYPE);
	refused("json:{", -EMEDIUMTYPE);
}

static void test_beside(void **state)
{
	char *path = link_beside("/dir/image", "data");

	assert_string_equal(path, "/dir/data");
	free(path);
	path = link_beside("/image", "a/data");
	assert_string_equal(path, "/a/data");
	free(path);
	path = link_beside("/dir/image", "/data");
	assert_string_equal(path, "/data");
	free(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_beside),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
