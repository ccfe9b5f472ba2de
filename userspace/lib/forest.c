// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which image stands on which.
 */
#include "forest.h"

#include <stdlib.h>
#include <string.h>

#include "dm.h"
#include "report.h"
#include "scan.h"

/* As many layers as the target takes; we go along links by recursion. */
#define DEPTH_MAX	1024

static uint32_t find(const struct forest *forest, const struct image_id *id)
{
	uint32_t i;

	for (i = 0; i < forest->count; i++) {
		if (!forest->images[i].missing &&
		    image_id_equal(&forest->images[i].id, id))
			return i;
	}
	return FOREST_NONE;
}

static uint32_t find_missing(const struct forest *forest, const char *path)
{
	uint32_t i;

	for (i = 0; i < forest->count; i++) {
		if (forest->images[i].missing &&
		    !strcmp(forest->images[i].path, path))
			return i;
	}
	return FOREST_NONE;
}

/* Links are full of "..": the directory as the kernel has it, and the name */
static char *tidy_path(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *directory = directory_of(path);
	char *real = realpath(directory, NULL), *tidy;

	if (!real || !slash)
		tidy = text_copy(path);
	else
		tidy = text("%s/%s", strcmp(real, "/") ? real : "", slash + 1);
	free(directory);
	free(real);
	return tidy;
}

static uint32_t new_image(struct forest *forest, const char *path)
{
	struct forest_image *image;

	forest->images = grow_array(forest->images, forest->count,
				    sizeof(*forest->images));
	image = &forest->images[forest->count];
	memset(image, 0, sizeof(*image));
	image->path = tidy_path(path);
	image->backing = FOREST_NONE;
	return forest->count++;
}

static uint32_t add_missing(struct forest *forest, const char *path,
			    enum image_format format)
{
	char *tidy = tidy_path(path);
	uint32_t index = find_missing(forest, tidy);

	free(tidy);
	if (index != FOREST_NONE)
		return index;
	index = new_image(forest, path);
	forest->images[index].missing = true;
	forest->images[index].format = format;
	return index;
}

/* A chain that is too long is shown in parts. */
static void link_to(struct forest *forest, uint32_t index, uint32_t backing)
{
	unsigned int below = forest->images[backing].below + 1;

	if (below >= DEPTH_MAX)
		return;
	forest->images[index].below = below;
	forest->images[index].backing = backing;
	forest->images[backing].overlays++;
}

/* What is in a raw image is a guest's, also where it looks like a link. */
static void make_raw(struct forest *forest, uint32_t index)
{
	struct forest_image *image = &forest->images[index];
	struct image raw;

	if (image->format == FORMAT_RAW)
		return;
	if (image->backing != FOREST_NONE)
		forest->images[image->backing].overlays--;
	image->backing = FOREST_NONE;
	image->format = FORMAT_RAW;
	report_mute(true);
	if (image_open(image->path, FORMAT_RAW, &raw) == 0) {
		image->size = raw.size;
		image->allocated = raw.allocated;
	}
	report_mute(false);
	image_close(&raw);
}

static enum image_format recorded_format(const struct image *image)
{
	return image->backing_format ? format_of_name(image->backing_format) :
		FORMAT_UNKNOWN;
}

static uint32_t add_opened(struct forest *forest, const struct image *image)
{
	uint32_t index = find(forest, &image->id), backing;
	char *path;

	if (index != FOREST_NONE)
		return index;
	index = new_image(forest, image->path);
	forest->images[index].id = image->id;
	forest->images[index].format = image->format;
	forest->images[index].size = image->size;
	forest->images[index].allocated = image->allocated;
	path = image->format == FORMAT_QCOW2 && forest->depth < DEPTH_MAX ?
		scan_backing(image) : NULL;
	if (!path)
		return index;
	forest->depth++;
	backing = forest_add(forest, path, recorded_format(image));
	forest->depth--;
	free(path);
	link_to(forest, index, backing);
	return index;
}

/* Not a qcow2 image, and nobody says what it is */
static uint32_t add_unknown(struct forest *forest, const char *path)
{
	struct image image;
	uint32_t index;

	report_mute(true);
	if (image_open(path, FORMAT_RAW, &image) == 0) {
		index = add_opened(forest, &image);
		forest->images[index].format = FORMAT_UNKNOWN;
	} else {
		index = add_missing(forest, path, FORMAT_UNKNOWN);
	}
	report_mute(false);
	image_close(&image);
	return index;
}

uint32_t forest_add(struct forest *forest, const char *path,
		    enum image_format format)
{
	struct image_id id;
	struct image image;
	uint32_t index;

	if (!image_id_of_path(path, &id))
		return add_missing(forest, path, format);
	index = find(forest, &id);
	if (index == FOREST_NONE) {
		if (format != FORMAT_RAW && scan_open(path, &image))
			index = add_opened(forest, &image);
		else
			index = add_unknown(forest, path);
		if (format != FORMAT_RAW)
			image_close(&image);
	}
	if (format == FORMAT_RAW)
		make_raw(forest, index);
	return index;
}

static void visit_image(const struct image *image, void *data)
{
	add_opened(data, image);
}

int forest_add_directory(struct forest *forest, const char *path, bool below)
{
	return scan_directory(path, below, visit_image, forest);
}

static void add_use(struct forest *forest, const struct device *device,
		    unsigned int layer)
{
	uint32_t index = find(forest, &device->layers[layer].id);
	struct forest_image *image;
	struct forest_use *use;

	if (index == FOREST_NONE)
		return;
	image = &forest->images[index];
	image->uses = grow_array(image->uses, image->use_count,
				 sizeof(*image->uses));
	use = &image->uses[image->use_count++];
	memcpy(use->name, device->name, sizeof(use->name));
	use->layer = layer;
	use->writes = !layer && !device->dm.read_only;
}

static bool visit_device(const char *name, void *data)
{
	struct device device;
	unsigned int i;

	if (!device_load(name, &device))
		return false;
	/* What a job makes for itself is nobody's chain. */
	for (i = 0; i < device.count &&
	     !dm_uuid_is(&device.dm, DM_UUID_JOB); i++)
		add_use(data, &device, i);
	device_free(&device);
	return false;
}

void forest_add_uses(struct forest *forest)
{
	dm_each(visit_device, forest);
}

uint32_t forest_root(const struct forest *forest, uint32_t index)
{
	uint32_t steps;

	for (steps = 0; steps < forest->count &&
	     forest->images[index].backing != FOREST_NONE; steps++)
		index = forest->images[index].backing;
	return index;
}

bool forest_shared(const struct forest_image *image)
{
	return image->overlays > 1 || image->use_count > 1;
}

void forest_free(struct forest *forest)
{
	while (forest->count) {
		forest->count--;
		free(forest->images[forest->count].path);
		free(forest->images[forest->count].uses);
	}
	free(forest->images);
	forest->images = NULL;
}
