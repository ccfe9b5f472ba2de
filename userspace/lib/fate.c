// SPDX-License-Identifier: GPL-2.0-only
/*
 * What becomes of the images.
 */
#include "fate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "durable.h"
#include "report.h"

static const struct {
	const char *key;
	const char *will;
	const char *is;
} fates[] = {
	[FATE_READ] = { "read", "read", NULL },
	[FATE_WRITTEN] = { "written", "write", NULL },
	[FATE_INVALID] = { "invalid", "invalid then", "now invalid" },
	[FATE_UNNEEDED] = { "unneeded", "not needed then", "not needed any more" },
	[FATE_DELETED] = { "deleted", "delete", "deleted" },
};

#define FATES	(sizeof(fates) / sizeof(fates[0]))

static struct json_object *list_of(struct json_object *plan, unsigned int fate)
{
	struct json_object *list = NULL;

	json_object_object_get_ex(plan, fates[fate].key, &list);
	return list;
}

struct json_object *fate_new(const char *operation)
{
	struct json_object *plan = json_object_new_object();
	unsigned int i;

	json_set_string(plan, "operation", operation);
	for (i = 0; i < FATES; i++)
		json_object_object_add(plan, fates[i].key,
				       json_object_new_array());
	return plan;
}

void fate_add(struct json_object *plan, enum fate fate, const char *path)
{
	json_object_array_add(list_of(plan, fate),
			      json_object_new_string(path));
}

void fate_add_pair(struct json_object *plan, enum fate fate, const char *path,
		   const char *data)
{
	bool data_first = data && fate == FATE_DELETED;

	if (data_first)
		fate_add(plan, fate, data);
	fate_add(plan, fate, path);
	if (data && !data_first)
		fate_add(plan, fate, data);
}

void fate_add_image(struct json_object *plan, enum fate fate,
		    const struct image *image)
{
	char *data;

	if (image_data_path(image, &data) < 0)
		data = NULL;
	fate_add_pair(plan, fate, image->path, data);
	free(data);
}

void fate_link(struct json_object *plan, const char *path, const char *link)
{
	struct json_object *relink = json_object_new_object();

	json_set_string(relink, "image", path);
	json_set_string(relink, "backing-file", link);
	json_object_object_add(plan, "relinked", relink);
}

static void print_list(struct json_object *plan, unsigned int fate,
		       const char *word)
{
	struct json_object *list = list_of(plan, fate), *image;
	char *path;
	size_t i;

	for (i = 0; i < json_object_array_length(list); i++) {
		image = json_object_array_get_idx(list, i);
		path = text_printable(json_object_get_string(image));
		printf("%s: %s\n", word, path);
		free(path);
	}
}

static void print_link(struct json_object *plan)
{
	struct json_object *relink;
	char *image, *link;

	if (!json_object_object_get_ex(plan, "relinked", &relink))
		return;
	image = text_printable(json_string(relink, "image"));
	link = text_printable(json_string(relink, "backing-file"));
	printf("link: %s to %s\n", image, link ? link : "none");
	free(link);
	free(image);
}

static void print_size(struct json_object *plan, const char *key,
		       const char *word)
{
	char size[SIZE_TEXT];

	if (json_object_object_get_ex(plan, key, NULL))
		printf("%s: %s\n", word,
		       size_text(json_number(plan, key), size));
}

/* One line: there may be lines of events before it. */
static void print_json(struct json_object *plan)
{
	json_print(plan, JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE);
}

void fate_plan(struct json_object *plan, bool json)
{
	unsigned int i;

	if (json) {
		print_json(plan);
		json_object_put(plan);
		return;
	}
	print_list(plan, FATE_READ, fates[FATE_READ].will);
	print_list(plan, FATE_WRITTEN, fates[FATE_WRITTEN].will);
	print_size(plan, "grown-to", "grow to");
	print_size(plan, "data-bytes", "copy");
	print_size(plan, "zero-bytes", "zeroes");
	print_link(plan);
	for (i = FATE_INVALID; i < FATES; i++)
		print_list(plan, i, fates[i].will);
	json_object_put(plan);
}

bool fate_is(struct json_object *plan, enum fate fate, const char *path)
{
	struct json_object *list = list_of(plan, fate), *image;
	size_t i;

	for (i = 0; i < json_object_array_length(list); i++) {
		image = json_object_array_get_idx(list, i);
		if (!strcmp(json_object_get_string(image), path))
			return true;
	}
	return false;
}

void fate_delete_file(const char *path)
{
	char *file = realpath(path, NULL);
	struct stat st;

	if (file && stat(file, &st) == 0 && S_ISBLK(st.st_mode))
		report_warn("%s is a block device: it is not deleted.", path);
	else if (file && unlink(file) < 0)
		report_warn("Cannot delete %s: %s.", path, strerror(errno));
	else if (file)
		/* The record that it is to go is next to go, or its image. */
		durable_name(file);
	free(file);
}

static void take(struct json_object *plan, enum fate fate, const char *path)
{
	struct json_object *list = list_of(plan, fate), *image;
	size_t i = json_object_array_length(list);

	while (i--) {
		image = json_object_array_get_idx(list, i);
		if (!strcmp(json_object_get_string(image), path))
			json_object_array_del_idx(list, i, 1);
	}
}

void fate_change(struct json_object *plan, enum fate from, enum fate to,
		 const char *path, const char *data)
{
	take(plan, from, path);
	if (data)
		take(plan, from, data);
	fate_add_pair(plan, to, path, data);
}

void fate_tell(struct json_object *plan, bool json)
{
	unsigned int i;

	if (json)
		print_json(plan);
	for (i = FATE_INVALID; i < FATES && !json; i++)
		print_list(plan, i, fates[i].is);
	json_object_put(plan);
}
