/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Messages, exit codes and JSON output.
 *
 * Functions of the library return 0 or a negative errno.  The one that finds
 * an error reports it, with what to do about it; its callers only pass the
 * number on, and main() makes the exit code of it.
 */
#ifndef REPORT_H
#define REPORT_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

/* Exit codes, those of cryptsetup */
enum exit_code {
	EXIT_OK = 0,
	EXIT_WRONG_PARAMETERS = 1,
	EXIT_NO_PERMISSION = 2,
	EXIT_OUT_OF_MEMORY = 3,
	EXIT_WRONG_DEVICE = 4,
	EXIT_BUSY = 5,
};

/**
 * report_fail() - say what went wrong, on standard error
 * @error: positive errno; EINVAL stands for wrong parameters
 * @format: one sentence
 *
 * Return: -@error
 */
int report_fail(int error, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/**
 * report_errno() - as report_fail(), with the text of the errno behind it
 * @error: positive errno
 * @format: start of a sentence
 *
 * Return: -@error
 */
int report_errno(int error, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/** report_warn() - a message about something that does not stop the command */
void report_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** report_mute() - say nothing of errors: they are expected, and do not matter */
void report_mute(bool mute);

/** report_muted() - was report_mute() called? */
bool report_muted(void);

/** report_memory() - say that memory is out.  Return: -ENOMEM */
int report_memory(void);

/**
 * report_exit_code() - the exit code for the result of a command
 * @result: 0 or a negative errno
 */
enum exit_code report_exit_code(int result);

/** report_json() - print @object on standard output and drop it */
void report_json(struct json_object *object);

/**
 * json_text() - JSON to be printed
 * @object: what
 * @flags: JSON_C_TO_STRING_*
 *
 * JSON is UTF-8, and names of files may be any bytes: U+FFFD stands for those that are
 * no character.
 *
 * Return: the text; free() it.
 */
char *json_text(struct json_object *object, int flags);

/** json_print() - print json_text() as a line on standard output */
void json_print(struct json_object *object, int flags);

/**
 * json_set_string() - add a string to an object; NULL becomes null
 * json_set_number() - add a number to an object
 * json_set_bool() - add a truth value to an object
 * json_string() - the string @key of an object, or NULL
 * json_number() - the number @key of an object, or 0
 */
void json_set_string(struct json_object *object, const char *key,
		     const char *value);
void json_set_number(struct json_object *object, const char *key,
		     uint64_t value);
void json_set_bool(struct json_object *object, const char *key, int value);
const char *json_string(struct json_object *object, const char *key);
uint64_t json_number(struct json_object *object, const char *key);

/* Room for what size_text() writes */
#define SIZE_TEXT	32

/** size_text() - "1.5 GiB" for a number of bytes, in @buf; returns @buf */
const char *size_text(uint64_t bytes, char buf[SIZE_TEXT]);

/**
 * text() - a formatted string in memory of its own
 *
 * Running out of memory for a line of text ends the program: nothing is
 * undone here that the next command would not undo (see recover.h).
 */
char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** text_copy() - a copy of a string, NULL for NULL; ends as text() */
char *text_copy(const char *string);

/** text_printable() - the same with '?' for control characters */
char *text_printable(const char *string);

/** text_is_utf8() - is all of a string characters of UTF-8, as QEMU has JSON? */
bool text_is_utf8(const char *string);

/** grow_array() - room for one more element; ends as text() */
void *grow_array(void *array, unsigned int count, size_t size);

#endif /* REPORT_H */
