// SPDX-License-Identifier: GPL-2.0-only
/*
 * Messages, exit codes and JSON output.
 */
#include "report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool muted;

void report_mute(bool mute)
{
	muted = mute;
}

bool report_muted(void)
{
	return muted;
}

static void print(const char *format, va_list args, const char *tail)
{
	if (muted)
		return;
	/* What was printed so far comes first where both go to one file. */
	fflush(stdout);
	vfprintf(stderr, format, args);
	fprintf(stderr, "%s%s\n", tail ? ": " : "", tail ? tail : "");
}

int report_fail(int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print(format, args, NULL);
	va_end(args);
	return -error;
}

int report_errno(int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print(format, args, strerror(error));
	va_end(args);
	return -error;
}

void report_warn(const char *format, ...)
{
	va_list args;

	if (muted)
		return;
	fflush(stdout);
	fputs("WARNING: ", stderr);
	va_start(args, format);
	print(format, args, NULL);
	va_end(args);
}

int report_memory(void)
{
	return report_fail(ENOMEM, "Out of memory.");
}

enum exit_code report_exit_code(int result)
{
	switch (-result) {
	case 0:
		return EXIT_OK;
	case EINVAL:
		return EXIT_WRONG_PARAMETERS;
	case EPERM:
	case EACCES:
	case ENOKEY:
		return EXIT_NO_PERMISSION;
	case ENOMEM:
		return EXIT_OUT_OF_MEMORY;
	case EEXIST:
	case EBUSY:
		return EXIT_BUSY;
	default:
		return EXIT_WRONG_DEVICE;
	}
}

void report_json(struct json_object *object)
{
	puts(json_object_to_json_string_ext(object,
					    JSON_C_TO_STRING_PRETTY |
					    JSON_C_TO_STRING_SPACED |
					    JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(object);
}

void json_set_string(struct json_object *object, const char *key,
		     const char *value)
{
	json_object_object_add(object, key,
			       value ? json_object_new_string(value) : NULL);
}

void json_set_number(struct json_object *object, const char *key,
		     uint64_t value)
{
	json_object_object_add(object, key, json_object_new_int64(value));
}

void json_set_bool(struct json_object *object, const char *key, int value)
{
	json_object_object_add(object, key, json_object_new_boolean(value));
}

const char *json_string(struct json_object *object, const char *key)
{
	struct json_object *value;

	if (!json_object_object_get_ex(object, key, &value) ||
	    !json_object_is_type(value, json_type_string))
		return NULL;
	return json_object_get_string(value);
}

uint64_t json_number(struct json_object *object, const char *key)
{
	struct json_object *value;

	if (!json_object_object_get_ex(object, key, &value))
		return 0;
	return json_object_get_int64(value);
}

const char *size_text(uint64_t bytes, char buf[SIZE_TEXT])
{
	static const char * const units[] = {
		"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"
	};
	double value = bytes;
	int unit = -1;

	while (value >= 1024 && unit < 5) {
		value /= 1024;
		unit++;
	}
	if (unit < 0)
		snprintf(buf, SIZE_TEXT, "%u B", (unsigned int)bytes);
	else
		snprintf(buf, SIZE_TEXT, "%.3g %s",
			 value < 1000 ? value : (double)(int)value, units[unit]);
	return buf;
}

static void *memory_or_exit(void *memory)
{
	if (!memory) {
		report_memory();
		exit(EXIT_OUT_OF_MEMORY);
	}
	return memory;
}

char *text(const char *format, ...)
{
	va_list args;
	char *string;
	int len;

	va_start(args, format);
	len = vasprintf(&string, format, args);
	va_end(args);
	return memory_or_exit(len < 0 ? NULL : string);
}

char *text_copy(const char *string)
{
	return string ? memory_or_exit(strdup(string)) : NULL;
}

void *grow_array(void *array, unsigned int count, size_t size)
{
	return memory_or_exit(realloc(array, (count + 1) * size));
}
