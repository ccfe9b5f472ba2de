// SPDX-License-Identifier: GPL-2.0-only
/*
 * qemu-img.
 */
#include "qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report.h"
#include "run.h"

#define MAX_ARGS	20

int qemu_missing(void)
{
	return report_fail(ENOENT,
			   "Cannot find qemu-img (package qemu-utils).");
}

static int run_qemu_img(const char *const argv[], const char *directory)
{
	struct run_files files = { -1, -1, -1, directory };

	switch (run_program(argv, &files)) {
	case 0:
		return 0;
	case -ENOENT:
		return qemu_missing();
	default:
		return report_fail(EIO, "qemu-img failed.");
	}
}

/* A comma in a value stands there twice. */
static char *unescape(const char *value)
{
	char *result = text_copy(value), *to = result;

	for (; *value && (value[0] != ',' || value[1] == ','); value++) {
		if (*value == ',')
			value++;
		*to++ = *value;
	}
	*to = '\0';
	return result;
}

/* Where the next option starts */
static const char *next_option(const char *options)
{
	for (; *options; options++) {
		if (*options != ',')
			continue;
		if (options[1] != ',')
			return options + 1;
		options++;
	}
	return options;
}

char *qemu_option(const char *options, const char *key)
{
	size_t length = strlen(key);
	const char *found = NULL;

	/* Of several the last one counts. */
	for (; options && *options; options = next_option(options)) {
		if (!strncmp(options, key, length) && options[length] == '=')
			found = options + length + 1;
	}
	return found ? unescape(found) : NULL;
}

static int sync_path(const char *path, int flags)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | flags), r = 0;

	if (fd < 0 || fsync(fd) < 0)
		r = report_errno(errno, "Cannot write %s", path);
	if (fd >= 0)
		close(fd);
	return r;
}

/* The file, and its name */
static int make_durable(const char *path)
{
	char *directory = directory_of(path);
	int r = sync_path(path, 0);

	if (!r)
		r = sync_path(directory, O_DIRECTORY);
	free(directory);
	return r;
}

int qemu_create(const struct new_image *image)
{
	const char *argv[MAX_ARGS] = { "qemu-img", "create", "-q", "-f", "qcow2" };
	char *directory = directory_of(image->path);
	unsigned int n = 5;
	int r;

	if (image->options) {
		argv[n++] = "-o";
		argv[n++] = image->options;
	}
	if (image->backing) {
		argv[n++] = "-u";
		argv[n++] = "-b";
		argv[n++] = image->backing;
		argv[n++] = "-F";
		argv[n++] = image->backing_format;
	}
	argv[n++] = "--";
	argv[n++] = image->path;
	if (image->size)
		argv[n++] = image->size;
	/* What it takes the name of a data file from, which we see from there */
	r = run_qemu_img(argv, directory);
	if (!r)
		r = make_durable(image->path);
	if (!r && image->data)
		r = make_durable(image->data);
	free(directory);
	return r;
}

/* The page cache of a block device does not know what the target wrote there. */
static struct json_object *node_at(const char *path, bool is_device,
				   enum image_format format)
{
	struct json_object *node = json_object_new_object();
	struct json_object *file = json_object_new_object();
	struct json_object *cache = json_object_new_object();

	json_set_string(file, "driver", is_device ? "host_device" : "file");
	json_set_string(file, "filename", path);
	json_set_bool(cache, "direct", is_device);
	json_object_object_add(file, "cache", cache);
	json_set_string(node, "driver", format_name(format));
	json_object_object_add(node, "file", file);
	if (format == FORMAT_QCOW2)
		json_object_object_add(node, "backing", NULL);
	return node;
}

static struct json_object *node_of(const struct image *image)
{
	return node_at(image->path, image->is_device, image->format);
}

/* QEMU would look for the data file in its working directory. */
static struct json_object *node_with_data(const struct image *image)
{
	struct json_object *node = node_of(image);
	struct image data;

	if (!image_external(image))
		return node;
	if (image_open_data(image, &data) == 0)
		json_object_object_add(node, "data-file", node_of(&data));
	image_close(&data);
	return node;
}

static struct json_object *node_of_zeroes(uint64_t size)
{
	struct json_object *node = json_object_new_object();

	json_set_string(node, "driver", "null-co");
	json_set_number(node, "size", size);
	json_set_bool(node, "read-zeroes", true);
	return node;
}

/* Drops @node. */
static char *name_of(struct json_object *node)
{
	char *name = text("json:%s", json_object_to_json_string(node));

	json_object_put(node);
	return name;
}

/*
 * The image alone: what it is linked to may be missing, in use, or of a format that
 * QEMU would have to guess.
 */
static char *name_alone(const struct image *image)
{
	return name_of(node_with_data(image));
}

/* QEMU makes the new part zeroes where what is below is longer. */
static char *name_over(const struct image *image, struct json_object *below)
{
	struct json_object *node = node_with_data(image);

	if (below)
		json_object_object_add(node, "backing", below);
	return name_of(node);
}

int qemu_check(const struct image *image, bool repair,
	       struct json_object **report)
{
	char *name = name_alone(image), *output;
	const char *argv[MAX_ARGS] = {
		"qemu-img", "check", "--output=json", name,
	};
	int r;

	if (repair) {
		argv[4] = "-r";
		argv[5] = "all";
	}
	*report = NULL;
	r = run_output(argv, &output);
	if (output && *output)
		*report = json_tokener_parse(output);
	if (r == -ENOENT)
		qemu_missing();
	else if (r == -EINTR)
		report_fail(EIO, "qemu-img failed.");
	free(output);
	free(name);
	return r;
}

int qemu_resize(const struct image *image, const struct image *below,
		bool hide, uint64_t size)
{
	struct json_object *node = below ? node_with_data(below) :
		hide ? node_of_zeroes(size) : NULL;
	char *name = name_over(image, node), bytes[24];
	const char *argv[MAX_ARGS] = {
		"qemu-img", "resize", "-q", "--shrink", name, bytes,
	};
	int r;

	snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size);
	r = run_qemu_img(argv, NULL);
	free(name);
	return r < 0 ? r : sync_path(image->path, 0);
}

/*
 * With lazy refcounts a killed qemu-img would leave the dirty bit set, and the
 * kernel does not write to such an image.
 */
static char *name_to_edit(const struct qemu_snapshot *edit)
{
	struct json_object *node, *file;

	node = node_at(edit->path, edit->is_device, FORMAT_QCOW2);
	json_object_object_get_ex(node, "file", &file);
	json_set_string(file, "locking", "off");
	json_set_bool(node, "lazy-refcounts", false);
	return name_of(node);
}

int qemu_snapshot(const struct qemu_snapshot *edit)
{
	struct run_files files = {
		.output = -1,
		.errors = edit->errors,
		.keep = edit->keep,
	};
	char *name = name_to_edit(edit);
	const char *const argv[] = {
		"qemu-img", "snapshot", edit->option, edit->name, "--", name,
		NULL,
	};
	int r = run_program(argv, &files);

	free(name);
	return r;
}
