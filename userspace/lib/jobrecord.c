// SPDX-License-Identifier: GPL-2.0-only
/*
 * Records of jobs.
 */
#include "jobrecord.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "identity.h"
#include "report.h"
#include "state.h"

/* Enough of what a job said; the end of it, where it is more */
#define MESSAGES_MAX	65536

/* Field of /proc/PID/stat where the time of the start is */
#define START_FIELD	22

/* @line ends with the fields from the third on: a letter, then numbers. */
static unsigned long long start_of(const char *line)
{
	unsigned int field;

	/* The name of the process stands in parentheses, and may hold any. */
	line = strrchr(line, ')');
	if (!line || line[1] != ' ' || line[2] == 'Z' || line[2] == 'X')
		return 0;
	for (field = 2; line && field < START_FIELD; field++)
		line = strchr(line + 1, ' ');
	return line ? strtoull(line, NULL, 10) : 0;
}

unsigned long long process_start(pid_t pid)
{
	unsigned long long start = 0;
	char path[64], line[1024];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	file = fopen(path, "re");
	if (!file)
		return 0;
	if (fgets(line, sizeof(line), file))
		start = start_of(line);
	fclose(file);
	return start;
}

static const char *string_of(struct json_object *json, const char *key)
{
	const char *string = json_string(json, key);

	return string ? string : "";
}

bool job_load_name(const char *name, struct job_record *record)
{
	struct json_object *json = job_state_load(name), *kept = NULL;

	if (!json)
		return false;
	memset(record, 0, sizeof(*record));
	record->json = json;
	record->name = string_of(json, "name");
	record->subject = string_of(json, "subject");
	record->operation = string_of(json, "operation");
	record->command = string_of(json, "command");
	record->state = string_of(json, "state");
	record->pid = json_number(json, "pid");
	record->start = json_number(json, "start");
	json_object_object_get_ex(json, "kept", &kept);
	record->kept = json_object_get_boolean(kept);
	record->done = json_number(json, "done");
	record->total = json_number(json, "total");
	record->rate = json_number(json, "rate");
	record->result = json_number(json, "result");
	record->alive = record->start &&
		process_start(record->pid) == record->start;
	return true;
}

bool job_subject_same(const char *a, const char *b)
{
	struct image_id ia, ib;

	if (!strcmp(a, b))
		return true;
	return strchr(a, '/') && strchr(b, '/') &&
		image_id_of_path(a, &ia) && image_id_of_path(b, &ib) &&
		image_id_equal(&ia, &ib);
}

struct each {
	bool (*visit)(const struct job_record *record, void *data);
	void *data;
};

static bool visit_name(const char *name, void *data)
{
	const struct each *each = data;
	struct job_record record;
	bool done;

	if (!job_load_name(name, &record))
		return false;
	done = each->visit(&record, each->data);
	job_free(&record);
	return done;
}

void job_each(bool (*visit)(const struct job_record *record, void *data),
	      void *data)
{
	struct each each = { visit, data };

	job_state_each(visit_name, &each);
}

struct search {
	const char *word;
	struct job_record *found;
	bool done;
};

static bool visit_subject(const struct job_record *record, void *data)
{
	struct search *search = data;

	if (!job_subject_same(record->subject, search->word))
		return false;
	*search->found = *record;
	json_object_get(record->json);
	search->done = true;
	return true;
}

bool job_load(const char *word, struct job_record *record)
{
	struct search search = { word, record, false };

	/* A device goes before an image of the same name. */
	job_each(visit_subject, &search);
	if (search.done)
		return true;
	return !strchr(word, '/') && job_load_name(word, record);
}

void job_free(struct job_record *record)
{
	json_object_put(record->json);
	record->json = NULL;
}

bool job_running(const struct job_record *record)
{
	return record->alive && !strcmp(record->state, "running");
}

bool job_dead(const struct job_record *record)
{
	return !record->alive && !strcmp(record->state, "running");
}

struct json_object *job_notes(const struct job_record *record)
{
	struct json_object *notes = NULL;

	json_object_object_get_ex(record->json, JOB_NOTES, &notes);
	return notes;
}

const char *job_state(const struct job_record *record)
{
	return job_dead(record) ? "dead" : record->state;
}

void job_forget(const struct job_record *record)
{
	job_state_remove(record->name);
}

void job_want_result(const struct job_record *record)
{
	char *path = job_state_path(record->name, JOB_WANTED);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (fd >= 0)
		close(fd);
	free(path);
}

bool job_is_wanted(const char *name)
{
	char *path = job_state_path(name, JOB_WANTED);
	bool wanted = access(path, F_OK) == 0;

	free(path);
	return wanted;
}

char *job_messages(const struct job_record *record)
{
	char *path = job_state_path(record->name, JOB_LOG), *messages = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;
	off_t end;

	free(path);
	if (fd < 0)
		return NULL;
	end = lseek(fd, 0, SEEK_END);
	messages = grow_array(NULL, MESSAGES_MAX, 1);
	len = pread(fd, messages, MESSAGES_MAX,
		    end > MESSAGES_MAX ? end - MESSAGES_MAX : 0);
	messages[len > 0 ? len : 0] = '\0';
	close(fd);
	return messages;
}
