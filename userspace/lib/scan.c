// SPDX-License-Identifier: GPL-2.0-only
/*
 * Looking for qcow2 images in directories.
 */
#include "scan.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "chain.h"
#include "device.h"
#include "dm.h"
#include "link.h"
#include "report.h"

/* Deeper than anybody goes; a bind mount of a directory below itself ends. */
#define DEPTH_MAX	40

/**
 * struct scan - a scan under way
 * @below: subdirectories, too
 * @visit: what is called
 * @data: for it
 */
struct scan {
	bool below;
	void (*visit)(const struct image *image, void *data);
	void *data;
};

bool scan_open(const char *path, struct image *image)
{
	int r;

	report_mute(true);
	r = image_open(path, FORMAT_QCOW2, image);
	report_mute(false);
	return !r;
}

char *scan_backing(const struct image *image)
{
	char *name, *directory, *path;

	report_mute(true);
	name = backing_name(image);
	report_mute(false);
	/* QEMU may know options that are not known here. */
	if (!name && image->backing)
		name = link_any_file(image->backing);
	if (!name || name[0] == '/')
		return name;
	directory = directory_of(image->path);
	path = text("%s/%s", directory, name);
	free(directory);
	free(name);
	return path;
}

static bool is_our_device(const struct stat *st)
{
	char *name = name_of_dm_device(st->st_rdev);
	struct dm_state state;
	bool ours = false;

	if (name) {
		state = dm_query(name);
		ours = state.exists && dm_uuid_is(&state, DM_UUID_OURS);
	}
	free(name);
	return ours;
}

static void scan_file(const struct scan *scan, const char *path,
		      const struct stat *st)
{
	struct image image;

	if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
		return;
	if (S_ISBLK(st->st_mode) && is_our_device(st))
		return;
	if (scan_open(path, &image))
		scan->visit(&image, scan->data);
	image_close(&image);
}

static int scan_level(const struct scan *scan, const char *path,
		      unsigned int depth);

static void scan_entry(const struct scan *scan, const char *path,
		       unsigned int depth)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return;
	if (S_ISDIR(st.st_mode) && scan->below && depth < DEPTH_MAX)
		scan_level(scan, path, depth + 1);
	else if (stat(path, &st) == 0)
		scan_file(scan, path, &st);
}

static int no_dots(const struct dirent *entry)
{
	return strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
}

static int scan_level(const struct scan *scan, const char *path,
		      unsigned int depth)
{
	bool root = !strcmp(path, "/");
	struct dirent **entries;
	int count, i;
	char *inside;

	count = scandir(path, &entries, no_dots, alphasort);
	if (count < 0)
		return -errno;
	for (i = 0; i < count; i++) {
		inside = text("%s/%s", root ? "" : path, entries[i]->d_name);
		scan_entry(scan, inside, depth);
		free(inside);
		free(entries[i]);
	}
	free(entries);
	return 0;
}

int scan_directory(const char *path, bool below,
		   void (*visit)(const struct image *image, void *data),
		   void *data)
{
	struct scan scan = { below, visit, data };
	int r = scan_level(&scan, path, 0);

	return r < 0 ? report_errno(-r, "Cannot read directory %s", path) : 0;
}
