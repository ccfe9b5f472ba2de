// SPDX-License-Identifier: GPL-2.0-only
/*
 * Block devices that are made of others.
 */
#include "stack.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "image.h"
#include "report.h"

/* A device is made of others, and these of others, no deeper than that. */
#define DEPTH_MAX	16

/* Return: the device number that a file in sysfs has, or 0 */
static dev_t number_in(const char *path)
{
	FILE *file = fopen(path, "re");
	unsigned int major, minor;
	dev_t number = 0;
	char line[32];

	if (!file)
		return 0;
	if (fgets(line, sizeof(line), file) &&
	    sscanf(line, "%u:%u", &major, &minor) == 2)
		number = makedev(major, minor);
	fclose(file);
	return number;
}

/* A partition of the kernel's stands in the directory of its disk. */
static dev_t disk_of(dev_t device)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/partition",
		 major(device), minor(device));
	if (access(path, F_OK) < 0)
		return 0;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../dev",
		 major(device), minor(device));
	return number_in(path);
}

/* What is behind a loop device, whosoever it is */
static dev_t file_of(dev_t device)
{
	char path[64], *line = NULL;
	dev_t place = 0;
	size_t size = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/loop/backing_file",
		 major(device), minor(device));
	file = fopen(path, "re");
	if (file && getline(&line, &size, file) > 0) {
		line[strcspn(line, "\n")] = '\0';
		place = stack_place(line);
	}
	if (file)
		fclose(file);
	free(line);
	return place;
}

static bool has(dev_t device, dev_t part, unsigned int depth);

static bool has_below(dev_t below, dev_t part, unsigned int depth)
{
	return below && has(below, part, depth + 1);
}

static bool has(dev_t device, dev_t part, unsigned int depth)
{
	struct dirent *entry;
	bool found = device == part;
	char path[320];
	DIR *dir;

	if (found || depth > DEPTH_MAX)
		return found;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves",
		 major(device), minor(device));
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/class/block/%s/dev",
			 entry->d_name);
		found = entry->d_name[0] != '.' &&
			has_below(number_in(path), part, depth);
	}
	if (dir)
		closedir(dir);
	return found || has_below(disk_of(device), part, depth) ||
		has_below(file_of(device), part, depth);
}

bool stack_has(dev_t device, dev_t part)
{
	return has(device, part, 0);
}

/* The block device that a file system is mounted from, or 0 */
static dev_t mounted_from(const char *path)
{
	char *line = NULL, *rest, *source;
	struct statx info;
	dev_t device = 0;
	struct stat st;
	size_t size = 0;
	FILE *file;

	if (statx(AT_FDCWD, path, 0, STATX_MNT_ID, &info) < 0 ||
	    !(info.stx_mask & STATX_MNT_ID))
		return 0;
	file = fopen("/proc/self/mountinfo", "re");
	while (file && !device && getline(&line, &size, file) > 0) {
		rest = strstr(line, " - ");
		source = NULL;
		if (rest && strtoul(line, NULL, 10) == info.stx_mnt_id &&
		    sscanf(rest, " - %*s %ms", &source) == 1 &&
		    stat(source, &st) == 0 && S_ISBLK(st.st_mode))
			device = st.st_rdev;
		free(source);
	}
	if (file)
		fclose(file);
	free(line);
	return device;
}

/* btrfs and others have numbers that are no block device's. */
static dev_t device_of(const char *path, const struct stat *st)
{
	dev_t device = major(st->st_dev) ? 0 : mounted_from(path);

	return device ? device : st->st_dev;
}

dev_t stack_place(const char *path)
{
	char *directory;
	struct stat st;
	dev_t device;

	if (stat(path, &st) == 0)
		return S_ISBLK(st.st_mode) ? st.st_rdev : device_of(path, &st);
	directory = directory_of(path);
	device = stat(directory, &st) < 0 ? 0 : device_of(directory, &st);
	free(directory);
	return device;
}

static bool lies_on(const char *path, dev_t device)
{
	return access(path, F_OK) == 0 && stack_has(stack_place(path), device);
}

static char *swap_on(dev_t device)
{
	char *line = NULL, *found = NULL;
	size_t size = 0;
	FILE *file;

	file = fopen("/proc/swaps", "re");
	while (file && !found && getline(&line, &size, file) > 0) {
		line[strcspn(line, " \t\n")] = '\0';
		if (lies_on(line, device))
			found = text("swap space (%s)", line);
	}
	if (file)
		fclose(file);
	free(line);
	return found;
}

char *stack_system_on(dev_t device)
{
	static const char * const paths[] = {
		"/", "/usr", "/usr/bin/qemu-img", "/proc/self/exe",
	};
	unsigned int i;

	for (i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		if (lies_on(paths[i], device))
			return text("the file system of %s", paths[i]);
	}
	return swap_on(device);
}
