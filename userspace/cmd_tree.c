// SPDX-License-Identifier: GPL-2.0-only
/*
 * tree DIRECTORY|IMAGE|NAME: which image stands on which.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "device.h"
#include "forest.h"
#include "recover.h"
#include "report.h"
#include "scan.h"

/**
 * struct view - what is shown
 * @forest: all images that were found
 * @wanted: roots that are shown, by index; those of a device only
 * @drawn: images that are done, by index
 * @json: roots, or NULL for text
 */
struct view {
	struct forest forest;
	bool *wanted;
	bool *drawn;
	struct json_object *json;
};

static struct json_object *use_json(const struct forest_use *use)
{
	struct json_object *object = json_object_new_object();

	json_set_string(object, "name", use->name);
	json_set_number(object, "layer", use->layer);
	json_set_bool(object, "writes", use->writes);
	return object;
}

static struct json_object *image_json(const struct forest_image *image)
{
	struct json_object *object = json_object_new_object();
	struct json_object *uses = json_object_new_array();
	unsigned int i;

	for (i = 0; i < image->use_count; i++)
		json_object_array_add(uses, use_json(&image->uses[i]));
	json_set_string(object, "image", image->path);
	json_set_string(object, "format", image->format == FORMAT_UNKNOWN ?
			NULL : format_name(image->format));
	json_set_bool(object, "missing", image->missing);
	if (!image->missing) {
		json_set_number(object, "virtual-size", image->size);
		json_set_number(object, "allocated", image->allocated);
	}
	json_set_bool(object, "shared", forest_shared(image));
	json_object_object_add(object, "open", uses);
	return object;
}

static struct json_object *subtree_json(struct view *view, uint32_t index)
{
	struct json_object *object = image_json(&view->forest.images[index]);
	struct json_object *overlays = json_object_new_array();
	uint32_t i;

	view->drawn[index] = true;
	for (i = 0; i < view->forest.count; i++) {
		if (view->forest.images[i].backing == index && !view->drawn[i])
			json_object_array_add(overlays, subtree_json(view, i));
	}
	json_object_object_add(object, "overlays", overlays);
	return object;
}

/* Beside the image below, the name is enough. */
static const char *short_name(const struct forest_image *image,
			      const struct forest_image *below)
{
	const char *slash = strrchr(image->path, '/');
	size_t directory = slash ? slash - image->path + 1 : 0;

	if (!below || strncmp(image->path, below->path, directory) ||
	    strchr(below->path + directory, '/'))
		return image->path;
	return image->path + directory;
}

static void print_uses(const struct forest_image *image)
{
	const struct forest_use *use;
	unsigned int i;

	for (i = 0; i < image->use_count; i++) {
		use = &image->uses[i];
		if (use->layer)
			printf(", in %s[%u]", use->name, use->layer);
		else
			printf(", open as %s (%s)", use->name,
			       use->writes ? "rw" : "ro");
	}
}

static void print_image(const struct forest_image *image,
			const struct forest_image *below)
{
	char *name = text_printable(short_name(image, below));
	char size[SIZE_TEXT], allocated[SIZE_TEXT];

	printf("%s  ", name);
	free(name);
	if (image->missing) {
		puts(access(image->path, F_OK) ? "missing" : "cannot be read");
		return;
	}
	printf("%s, %s", image->format == FORMAT_UNKNOWN ? "format unknown" :
	       format_name(image->format), size_text(image->size, size));
	if (image->allocated)
		printf(", %s on disk", size_text(image->allocated, allocated));
	print_uses(image);
	if (forest_shared(image))
		printf(", shared");
	putchar('\n');
}

static uint32_t next_overlay(const struct view *view, uint32_t index,
			     uint32_t from)
{
	for (; from < view->forest.count; from++) {
		if (view->forest.images[from].backing == index &&
		    !view->drawn[from])
			return from;
	}
	return FOREST_NONE;
}

/* @indent is what stands before the lines of what is on it. */
static void print_subtree(struct view *view, uint32_t index,
			  const struct forest_image *below, const char *indent)
{
	const struct forest_image *image = &view->forest.images[index];
	uint32_t overlay, next;
	char *deeper;

	view->drawn[index] = true;
	print_image(image, below);
	overlay = next_overlay(view, index, 0);
	while (overlay != FOREST_NONE) {
		next = next_overlay(view, index, overlay + 1);
		printf("%s%s", indent, next == FOREST_NONE ? "`-- " : "|-- ");
		deeper = text("%s%s", indent,
			      next == FOREST_NONE ? "    " : "|   ");
		print_subtree(view, overlay, image, deeper);
		free(deeper);
		overlay = next;
	}
}

static void show_root(struct view *view, uint32_t index)
{
	if (view->json)
		json_object_array_add(view->json, subtree_json(view, index));
	else
		print_subtree(view, index, NULL, "");
}

/*
 * Whether an image is to be shown at the left. What only a link in a raw disk led
 * to is none.
 */
static bool is_root(const struct view *view, uint32_t index)
{
	const struct forest_image *image = &view->forest.images[index];

	if (view->drawn[index])
		return false;
	if (view->wanted)
		return view->wanted[index];
	if (image->format != FORMAT_QCOW2 && !image->overlays)
		return false;
	return forest_root(&view->forest, index) == index ||
		view->forest.images[forest_root(&view->forest, index)].backing !=
		FOREST_NONE;
}

static void show(struct view *view)
{
	uint32_t i;

	view->drawn = calloc(view->forest.count + 1, sizeof(bool));
	for (i = 0; view->drawn && i < view->forest.count; i++) {
		if (is_root(view, i))
			show_root(view, i);
	}
	free(view->drawn);
	view->drawn = NULL;
}

static int add_directory_of(struct view *view, const char *path)
{
	char *directory = directory_of(path);
	int r = forest_add_directory(&view->forest, directory, false);

	free(directory);
	return r;
}

/* The whole tree that an image is in, as far as it is in these directories */
static void want_tree_of(struct view *view, uint32_t image)
{
	view->wanted = calloc(view->forest.count + 1, sizeof(bool));
	if (view->wanted)
		view->wanted[forest_root(&view->forest, image)] = true;
}

static int add_device(struct view *view, const char *name)
{
	struct device device;
	unsigned int i;
	uint32_t top;
	int r;

	r = device_name_check(name);
	if (r < 0)
		return r;
	if (!device_load(name, &device))
		return device_inactive(name);
	top = forest_add(&view->forest, device.layers[0].path,
			 device.layers[0].format);
	for (i = 0; i < device.count && !r; i++)
		r = add_directory_of(view, device.layers[i].path);
	want_tree_of(view, top);
	device_free(&device);
	return r;
}

static int add_path(struct view *view, const char *word)
{
	char *path = absolute_path(word);
	struct stat st;
	uint32_t top;
	int r;

	if (stat(path, &st) < 0) {
		r = report_errno(errno, "Cannot read %s", word);
	} else if (S_ISDIR(st.st_mode)) {
		r = forest_add_directory(&view->forest, path, true);
	} else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
		r = report_fail(ENOTBLK,
				"%s is neither a directory, a file nor a block device.",
				word);
	} else {
		top = forest_add(&view->forest, path, FORMAT_UNKNOWN);
		r = add_directory_of(view, path);
		want_tree_of(view, top);
	}
	free(path);
	return r;
}

/* A directory needs no device-mapper. */
static int begin(bool device)
{
	int r;

	report_mute(!device);
	r = begin_look();
	report_mute(false);
	return device ? r : 0;
}

int cmd_tree(struct arguments *args)
{
	const char *word = args->words[0];
	bool path = is_path(word) || !strcmp(word, ".") || !strcmp(word, "..");
	struct view view = { 0 };
	int r;

	r = begin(!path);
	if (!r)
		r = path ? add_path(&view, word) : add_device(&view, word);
	if (!r) {
		forest_add_uses(&view.forest);
		if (args->json)
			view.json = json_object_new_array();
		show(&view);
	}
	if (view.json)
		report_json(view.json);
	free(view.wanted);
	forest_free(&view.forest);
	return r;
}
