// SPDX-License-Identifier: GPL-2.0-only
/*
 * Messages, exit codes and JSON output.
 */
#include "report.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool muted;

void report_mute(bool mute)
{
	muted = mute;
}

bool report_muted(void)
{
	return muted;
}

/* U+0080 to U+009F, as UTF-8 has them: U+009B is as good as ESC [. */
static bool is_control2(const unsigned char *p)
{
	return p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f;
}

/* Much of it may come from images, and do to a terminal what it likes. */
static char *printable(char *string)
{
	char *p;

	for (p = string; *p; p++) {
		if (iscntrl((unsigned char)*p))
			*p = '?';
		else if (is_control2((unsigned char *)p))
			p = memset(p, '?', 2) + 1;
	}
	return string;
}

static void print(const char *format, va_list args, const char *tail)
{
	char *message = NULL;

	if (muted)
		return;
	if (vasprintf(&message, format, args) < 0)
		message = NULL;
	/* What was printed so far comes first where both go to one file. */
	fflush(stdout);
	fprintf(stderr, "%s%s%s\n", message ? printable(message) :
		"Out of memory.", tail ? ": " : "", tail ? tail : "");
	free(message);
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
	bool denied = error == EPERM || error == EACCES;
	va_list args;
	char *why;

	why = text("%s%s", strerror(error),
		   denied && geteuid() ? " (you are not root)" : "");
	va_start(args, format);
	print(format, args, why);
	va_end(args);
	free(why);
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

static void *memory_or_exit(void *memory)
{
	if (!memory) {
		report_memory();
		exit(EXIT_OUT_OF_MEMORY);
	}
	return memory;
}

/* Return: bytes of the character of UTF-8 that a string begins with; 0: it is none */
static unsigned int utf8_length(const unsigned char *s)
{
	/* Bounds of the second byte: no longer than needed, no surrogates (RFC 3629) */
	unsigned char least = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
	unsigned char most = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
	unsigned int length, i;

	if (s[0] < 0x80)
		return 1;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	if (s[1] < least || s[1] > most)
		return 0;
	for (i = 2; i < length; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	}
	return length;
}

/* Code points that are no character for ever (Unicode, "Noncharacters") */
static bool is_noncharacter(const unsigned char *s, unsigned int length)
{
	if (length < 3)
		return false;
	if (s[0] == 0xef && s[1] == 0xb7 && s[2] >= 0x90 && s[2] <= 0xaf)
		return true;
	return s[length - 1] >= 0xbe && s[length - 2] == 0xbf &&
		(length == 3 ? s[0] == 0xef : (s[1] & 0x0f) == 0x0f);
}

bool text_is_utf8(const char *string)
{
	const unsigned char *s = (const unsigned char *)string;
	unsigned int length = 1;

	for (; *s && length; s += length) {
		length = utf8_length(s);
		if (is_noncharacter(s, length))
			return false;
	}
	return length;
}

char *json_text(struct json_object *object, int flags)
{
	static const char unknown[] = "\xef\xbf\xbd";
	const char *string = json_object_to_json_string_ext(object, flags);
	unsigned int length;
	char *result, *to;

	string = memory_or_exit((void *)string);
	result = memory_or_exit(malloc(strlen(string) * strlen(unknown) + 1));
	for (to = result; *string; string += length ? length : 1) {
		length = utf8_length((const unsigned char *)string);
		to = mempcpy(to, length ? string : unknown,
			     length ? length : strlen(unknown));
	}
	*to = '\0';
	return result;
}

void json_print(struct json_object *object, int flags)
{
	char *string = json_text(object, flags);

	puts(string);
	free(string);
}

void report_json(struct json_object *object)
{
	json_print(object, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
		   JSON_C_TO_STRING_NOSLASHESCAPE);
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

char *text_printable(const char *string)
{
	return string ? printable(text_copy(string)) : NULL;
}

char *text_copy(const char *string)
{
	return string ? memory_or_exit(strdup(string)) : NULL;
}

void *grow_array(void *array, unsigned int count, size_t size)
{
	return memory_or_exit(realloc(array, (count + 1) * size));
}
