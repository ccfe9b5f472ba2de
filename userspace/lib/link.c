// SPDX-License-Identifier: GPL-2.0-only
/*
 * Backing links.
 */
#include "link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

/* As QEMU has it: a colon before the first slash ends the name of a protocol. */
bool link_has_protocol(const char *name)
{
	return name[strcspn(name, ":/")] == ':';
}

char *link_beside(const char *image, const char *name)
{
	const char *slash = strrchr(image, '/');

	if (name[0] == '/')
		return text_copy(name);
	return text("%.*s%s", (int)(slash - image) + 1, image, name);
}

char *link_of_file(const char *name)
{
	return text("%s%s", link_has_protocol(name) ? "./" : "", name);
}

/**
 * struct recorded - a link as an image records it
 * @image: path of the image
 * @name: the link
 */
struct recorded {
	const char *image;
	const char *name;
};

static int json_refuse(const struct recorded *from, const char *what)
{
	return report_fail(EOPNOTSUPP,
			   "%s: json: backing name with %s is not supported (plain file and host_device are): %s.",
			   from->image, what, from->name);
}

/* Options that change how QEMU opens a file, not what is in it */
static bool is_harmless(const char *key)
{
	static const char * const keys[] = {
		"node-name", "read-only", "auto-read-only", "aio", "locking",
		"discard", "detect-zeroes", "force-share", "cache",
		"cache.direct", "cache.no-flush",
	};
	unsigned int i;

	if (!strncmp(key, "file.", 5))
		key += 5;
	for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (!strcmp(key, keys[i]))
			return true;
	}
	return false;
}

static bool is_file_driver(const char *driver)
{
	return !strcmp(driver, "file") || !strcmp(driver, "host_device");
}

static int json_protocol(const struct recorded *from, const char *driver,
			 const char *name, struct link *link)
{
	char *what;
	int r;

	if (driver && !is_file_driver(driver)) {
		what = text("driver '%s'", driver);
		r = json_refuse(from, what);
		free(what);
		return r;
	}
	if (!name)
		return json_refuse(from, "no file name");
	link->name = text_copy(name);
	return 0;
}

/* What must not stand at this level of a json: name */
static int json_check_keys(const struct recorded *from, struct json_object *object,
			   bool format_level)
{
	json_object_object_foreach(object, key, value) {
		bool known = !strcmp(key, "driver") || is_harmless(key);
		char *what;
		int r;

		(void)value;
		if (format_level)
			known |= !strcmp(key, "file") ||
				!strcmp(key, "file.driver") ||
				!strcmp(key, "file.filename");
		else
			known |= !strcmp(key, "filename");
		if (known)
			continue;
		what = text("'%s'", key);
		r = json_refuse(from, what);
		free(what);
		return r;
	}
	return 0;
}

static int json_file(const struct recorded *from, struct json_object *file,
		     struct link *link)
{
	int r;

	if (!json_object_is_type(file, json_type_object))
		return json_refuse(from, "a reference to another node");
	r = json_check_keys(from, file, false);
	if (r < 0)
		return r;
	return json_protocol(from, json_string(file, "driver"),
			     json_string(file, "filename"), link);
}

static int json_parse(const struct recorded *from, struct json_object *object,
		      struct link *link)
{
	const char *driver = json_string(object, "driver");
	struct json_object *file;
	int r;

	if (driver && is_file_driver(driver))
		return json_file(from, object, link);
	if (!driver && json_string(object, "filename"))
		return json_file(from, object, link);
	if (driver && strcmp(driver, "qcow2") && strcmp(driver, "raw"))
		return json_protocol(from, driver, NULL, link);
	r = json_check_keys(from, object, true);
	if (r < 0)
		return r;
	link->format = text_copy(driver);
	if (json_object_object_get_ex(object, "file", &file))
		return json_file(from, file, link);
	return json_protocol(from, json_string(object, "file.driver"),
			     json_string(object, "file.filename"), link);
}

static int parse_json_link(const struct recorded *from, struct link *link)
{
	struct json_object *object;
	int r;

	object = json_tokener_parse(from->name + strlen("json:"));
	if (json_object_is_type(object, json_type_object))
		r = json_parse(from, object, link);
	else
		r = report_fail(EMEDIUMTYPE,
				"%s: backing name is not valid JSON: %s.",
				from->image, from->name);
	json_object_put(object);
	return r;
}

int link_parse(const char *image, const char *name, struct link *link)
{
	struct recorded from = { image, name };

	memset(link, 0, sizeof(*link));
	if (!strncmp(name, "json:", 5))
		return parse_json_link(&from, link);
	if (!strncmp(name, "file:", 5))
		name += 5;
	else if (link_has_protocol(name))
		return report_fail(EOPNOTSUPP,
				   "%s: backing file '%s' is neither a file nor a block device.",
				   image, name);
	link->name = text_copy(name);
	return 0;
}

static bool ends_in_filename(const char *key)
{
	const char *dot = strrchr(key, '.');

	return !strcmp(dot ? dot + 1 : key, "filename");
}

static const char *find_filename(struct json_object *object)
{
	const char *found = NULL;

	if (!json_object_is_type(object, json_type_object))
		return NULL;
	json_object_object_foreach(object, key, value) {
		if (!found && ends_in_filename(key) &&
		    json_object_is_type(value, json_type_string))
			found = json_object_get_string(value);
		else if (!found)
			found = find_filename(value);
	}
	return found;
}

char *link_any_file(const char *name)
{
	struct json_object *object;
	const char *found;
	char *file = NULL;

	if (strncmp(name, "json:", 5))
		return NULL;
	object = json_tokener_parse(name + strlen("json:"));
	found = find_filename(object);
	if (found)
		file = text_copy(found);
	json_object_put(object);
	return file;
}

void link_free(struct link *link)
{
	free(link->name);
	free(link->format);
	link->name = NULL;
	link->format = NULL;
}
