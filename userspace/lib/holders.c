// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who keeps a block device open?
 */
#include "holders.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "device.h"
#include "dm.h"
#include "report.h"

/* Enough to find the culprit */
#define MAX_PROCESSES	5

/* Appends, and frees @part */
static void append(char **all, char *part)
{
	char *longer = text("%s%s%s", *all, **all ? ", " : "", part);

	free(part);
	free(*all);
	*all = longer;
}

static bool is_device(const char *path, dev_t device)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISBLK(st.st_mode) &&
		st.st_rdev == device;
}

static void add_mounts(dev_t device, char **all)
{
	unsigned int major, minor;
	char *line = NULL, *point;
	size_t size = 0;
	FILE *file;

	file = fopen("/proc/self/mountinfo", "re");
	while (file && getline(&line, &size, file) > 0) {
		point = NULL;
		if (sscanf(line, "%*d %*d %u:%u %*s %ms", &major, &minor,
			   &point) == 3 && makedev(major, minor) == device)
			append(all, text("mounted on %s", point));
		free(point);
	}
	if (file)
		fclose(file);
	free(line);
}

static void add_swap(dev_t device, char **all)
{
	char *line = NULL;
	size_t size = 0;
	FILE *file;

	file = fopen("/proc/swaps", "re");
	while (file && getline(&line, &size, file) > 0) {
		line[strcspn(line, " \t\n")] = '\0';
		if (is_device(line, device))
			append(all, text("swap space"));
	}
	if (file)
		fclose(file);
	free(line);
}

static void add_devices(dev_t device, char **all)
{
	unsigned int major, minor;
	char path[128], *number;
	struct dirent *entry;
	size_t size;
	FILE *file;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders",
		 major(device), minor(device));
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/block/%.64s/dev",
			 entry->d_name);
		number = NULL;
		size = 0;
		file = fopen(path, "re");
		if (file && getline(&number, &size, file) > 0 &&
		    sscanf(number, "%u:%u", &major, &minor) == 2) {
			char *name = path_of_device(makedev(major, minor));

			append(all, text("device %s", name));
			free(name);
		}
		free(number);
		if (file)
			fclose(file);
	}
	if (dir)
		closedir(dir);
}

static bool process_has(const char *pid, dev_t device)
{
	struct dirent *entry;
	char path[300];
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.16s/fd", pid);
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%.16s/fd/%.32s", pid,
			 entry->d_name);
		found = isdigit(entry->d_name[0]) && is_device(path, device);
	}
	if (dir)
		closedir(dir);
	return found;
}

static char *process_text(const char *pid)
{
	char path[64], name[64] = "?";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%.16s/comm", pid);
	file = fopen(path, "re");
	if (file) {
		if (fgets(name, sizeof(name), file))
			name[strcspn(name, "\n")] = '\0';
		fclose(file);
	}
	return text("process %s (%s)", name, pid);
}

static void add_processes(dev_t device, char **all)
{
	struct dirent *entry;
	int count = 0;
	DIR *dir;

	dir = opendir("/proc");
	while (dir && count < MAX_PROCESSES && (entry = readdir(dir))) {
		if (!isdigit(entry->d_name[0]) ||
		    atoi(entry->d_name) == getpid() ||
		    !process_has(entry->d_name, device))
			continue;
		append(all, process_text(entry->d_name));
		count++;
	}
	if (dir)
		closedir(dir);
}

char *holders_text(dev_t device)
{
	char *all = text_copy("");

	add_mounts(device, &all);
	add_swap(device, &all);
	add_devices(device, &all);
	add_processes(device, &all);
	return all;
}

int holders_refuse(dev_t device, const char *kind, const char *name,
		   const char *state)
{
	char *who = holders_text(device);
	int r;

	r = report_fail(EBUSY, "%s %s is %s%s%s.", kind, name, state,
			*who ? ": " : "", who);
	free(who);
	return r;
}

int holders_check(const char *name)
{
	struct dm_state state = dm_query(name);

	return state.open_count ?
		holders_refuse(state.device, "Device", name, "in use") : 0;
}
