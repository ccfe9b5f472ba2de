// SPDX-License-Identifier: GPL-2.0-only
/*
 * Block devices that are made of others.
 */
#include "stack.h"

#include <dirent.h>
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

static bool has(dev_t device, dev_t part, unsigned int depth)
{
	unsigned int major, minor;
	struct dirent *entry;
	bool found = device == part;
	char path[320], line[32];
	FILE *file;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves",
		 major(device), minor(device));
	dir = found || depth > DEPTH_MAX ? NULL : opendir(path);
	while (dir && !found && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/class/block/%s/dev",
			 entry->d_name);
		file = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
		if (!file)
			continue;
		if (fgets(line, sizeof(line), file) &&
		    sscanf(line, "%u:%u", &major, &minor) == 2)
			found = has(makedev(major, minor), part, depth + 1);
		fclose(file);
	}
	if (dir)
		closedir(dir);
	return found;
}

bool stack_has(dev_t device, dev_t part)
{
	return has(device, part, 0);
}

dev_t stack_place(const char *path)
{
	struct stat st = { 0 };
	char *directory;

	if (stat(path, &st) == 0)
		return S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
	directory = directory_of(path);
	if (stat(directory, &st) < 0)
		st.st_dev = 0;
	free(directory);
	return st.st_dev;
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
