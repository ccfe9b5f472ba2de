// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is remembered between commands.
 */
#include "state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "durable.h"
#include "report.h"

/* Tests have their own. */
#ifndef STATE_DIR
#define STATE_DIR	"/run/qcow2setup"
#endif
#ifndef LASTING_DIR
#define LASTING_DIR	"/var/lib/qcow2setup"
#endif
#define DEVICE_DIR	STATE_DIR "/device"
#define LOOP_DIR	STATE_DIR "/loop"
#define JOB_DIR		STATE_DIR "/jobs"
#define JOURNAL		STATE_DIR "/journal"
#define UNFINISHED_DIR	STATE_DIR "/unfinished"

static int lock_fd = -1;

static int make_directories(void)
{
	static const char * const dirs[] = {
		STATE_DIR, DEVICE_DIR, LOOP_DIR, JOB_DIR, UNFINISHED_DIR,
	};
	unsigned int i;

	for (i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		if (mkdir(dirs[i], 0700) < 0 && errno != EEXIST)
			return report_errno(errno, "Cannot create %s", dirs[i]);
	}
	return 0;
}

int state_lock(bool wait)
{
	int fd, r;

	r = make_directories();
	if (r < 0)
		return r;
	fd = open(STATE_DIR "/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return report_errno(errno, "Cannot open %s/lock", STATE_DIR);
	do {
		r = flock(fd, wait ? LOCK_EX : LOCK_EX | LOCK_NB);
	} while (r < 0 && errno == EINTR);
	if (r < 0) {
		r = errno;
		close(fd);
		if (r == EWOULDBLOCK)
			return -EAGAIN;
		return report_errno(r, "Cannot lock %s/lock", STATE_DIR);
	}
	lock_fd = fd;
	return 0;
}

void state_unlock(void)
{
	if (lock_fd >= 0)
		close(lock_fd);
	lock_fd = -1;
}

int state_lock_fd(void)
{
	return lock_fd;
}

static int write_all(int fd, const char *data)
{
	size_t left = strlen(data);
	ssize_t n;

	while (left) {
		n = write(fd, data, left);
		if (n < 0)
			return -errno;
		data += n;
		left -= n;
	}
	return 0;
}

/* Return: 0, or an error, not reported */
static int put_file(const char *path, struct json_object *content, bool lasting)
{
	char *temporary = text("%s.new", path);
	int fd, r;

	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	r = fd < 0 ? -errno :
		write_all(fd, json_object_to_json_string(content));
	if (!r && lasting && fsync(fd) < 0)
		r = -errno;
	if (fd >= 0)
		close(fd);
	if (!r && rename(temporary, path) < 0)
		r = -errno;
	free(temporary);
	return r;
}

static int replace_file(const char *path, struct json_object *content)
{
	int r = put_file(path, content, false);

	return r < 0 ? report_errno(-r, "Cannot write %s", path) : 0;
}

static struct json_object *whole_entry;

void journal_whole(struct json_object *whole)
{
	whole_entry = whole;
}

int journal_write(struct json_object *entry)
{
	return replace_file(JOURNAL, whole_entry ? whole_entry : entry);
}

int journal_read(struct json_object **entry)
{
	int fd = open(JOURNAL, O_RDONLY | O_CLOEXEC);

	*entry = NULL;
	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0)
		return report_errno(errno, "Cannot read %s", JOURNAL);
	*entry = json_object_from_fd(fd);
	close(fd);
	/* It is replaced in one step, and whole: this is not of our making. */
	if (!*entry)
		report_warn("%s is no journal of ours.", JOURNAL);
	return 0;
}

void journal_clear(void)
{
	unlink(JOURNAL);
}

int journal_set_aside(void)
{
	char *path = NULL;
	unsigned int n = 0;
	int r = 0;

	do {
		free(path);
		path = text("%s/%u", UNFINISHED_DIR, n++);
	} while (access(path, F_OK) == 0);
	if (rename(JOURNAL, path) < 0)
		r = report_errno(errno, "Cannot rename %s", JOURNAL);
	free(path);
	return r;
}

static void visit_unfinished(const char *name,
			     bool (*visit)(struct json_object *entry, void *data),
			     void *data)
{
	char *path = text("%s/%s", UNFINISHED_DIR, name);
	struct json_object *entry = json_object_from_file(path);

	if (entry && visit(entry, data))
		unlink(path);
	json_object_put(entry);
	free(path);
}

void unfinished_each(bool (*visit)(struct json_object *entry, void *data),
		     void *data)
{
	struct dirent *entry;
	DIR *dir;

	dir = opendir(UNFINISHED_DIR);
	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] != '.')
			visit_unfinished(entry->d_name, visit, data);
	}
	if (dir)
		closedir(dir);
}

/* A device's name is no path (see device_name_check()), but may be "x.new". */
static char *device_file(const char *name)
{
	return text("%s/%s.json", DEVICE_DIR, name);
}

int device_state_save(const char *name, struct json_object *state)
{
	char *path = device_file(name);
	int r = replace_file(path, state);

	free(path);
	return r;
}

struct json_object *device_state_load(const char *name)
{
	struct json_object *state = NULL;
	char *path = device_file(name);

	if (access(path, R_OK) == 0)
		state = json_object_from_file(path);
	free(path);
	return state;
}

void device_state_remove(const char *name)
{
	char *path = device_file(name);

	unlink(path);
	free(path);
}

void device_state_prune(bool (*exists)(const char *name, const char *uuid))
{
	struct json_object *state;
	struct dirent *entry;
	const char *uuid;
	size_t len;
	DIR *dir;

	dir = opendir(DEVICE_DIR);
	while (dir && (entry = readdir(dir))) {
		len = strlen(entry->d_name);
		if (len <= 5 || strcmp(entry->d_name + len - 5, ".json"))
			continue;
		entry->d_name[len - 5] = '\0';
		state = device_state_load(entry->d_name);
		uuid = state ? json_string(state, "uuid") : NULL;
		if (!uuid || !exists(entry->d_name, uuid))
			device_state_remove(entry->d_name);
		json_object_put(state);
	}
	if (dir)
		closedir(dir);
}

int job_state_check(void)
{
	if (access(JOB_DIR, R_OK | X_OK) == 0 || errno != EACCES)
		return 0;
	return report_errno(errno, "Cannot read %s", JOB_DIR);
}

char *job_state_path(const char *name, const char *ending)
{
	return text("%s/%s%s", JOB_DIR, name, ending);
}

int job_state_save(const char *name, struct json_object *record)
{
	char *path = job_state_path(name, JOB_RECORD);
	int r = replace_file(path, record);

	free(path);
	return r;
}

struct json_object *job_state_load(const char *name)
{
	char *path = job_state_path(name, JOB_RECORD);
	struct json_object *record = NULL;

	if (access(path, R_OK) == 0)
		record = json_object_from_file(path);
	free(path);
	return record;
}

/* Calls @visit for each record in a directory until it returns true. */
static void each_record(const char *directory,
			bool (*visit)(const char *name, void *data), void *data)
{
	const size_t ending = strlen(JOB_RECORD);
	struct dirent *entry;
	bool done = false;
	size_t len;
	DIR *dir;

	dir = opendir(directory);
	while (dir && !done && (entry = readdir(dir))) {
		len = strlen(entry->d_name);
		if (len <= ending ||
		    strcmp(entry->d_name + len - ending, JOB_RECORD))
			continue;
		entry->d_name[len - ending] = '\0';
		done = visit(entry->d_name, data);
	}
	if (dir)
		closedir(dir);
}

void job_state_each(bool (*visit)(const char *name, void *data), void *data)
{
	each_record(JOB_DIR, visit, data);
}

static char *lasting_file(const char *name)
{
	return text("%s/%s%s", LASTING_DIR, name, JOB_RECORD);
}

void job_lasting_save(const char *name, struct json_object *record)
{
	char *path = lasting_file(name);

	mkdir(LASTING_DIR, 0700);
	if (put_file(path, record, true) == 0)
		durable_try(LASTING_DIR);
	free(path);
}

void job_lasting_remove(const char *name)
{
	char *path = lasting_file(name);

	if (unlink(path) == 0)
		durable_try(LASTING_DIR);
	free(path);
}

static bool adopt(const char *name, void *data)
{
	char *path = job_state_path(name, JOB_RECORD);
	char *lasting = lasting_file(name);
	struct json_object *record = NULL;

	(void)data;
	if (access(path, F_OK) < 0)
		record = json_object_from_file(lasting);
	if (record)
		job_state_save(name, record);
	json_object_put(record);
	free(lasting);
	free(path);
	return false;
}

void job_lasting_adopt(void)
{
	each_record(LASTING_DIR, adopt, NULL);
}

void job_state_remove(const char *name)
{
	static const char * const endings[] = {
		JOB_RECORD, JOB_LOG, JOB_WANTED,
	};
	unsigned int i;
	char *path;

	for (i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
		path = job_state_path(name, endings[i]);
		unlink(path);
		free(path);
	}
	job_lasting_remove(name);
}

void loop_mark(int index)
{
	char *path = text("%s/loop%d", LOOP_DIR, index);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (fd >= 0)
		close(fd);
	free(path);
}

void loop_unmark(int index)
{
	char *path = text("%s/loop%d", LOOP_DIR, index);

	unlink(path);
	free(path);
}

void loop_marks_prune(bool (*ours)(int index))
{
	struct dirent *entry;
	int index;
	DIR *dir;

	dir = opendir(LOOP_DIR);
	while (dir && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, "loop%d", &index) == 1 && !ours(index))
			loop_unmark(index);
	}
	if (dir)
		closedir(dir);
}
