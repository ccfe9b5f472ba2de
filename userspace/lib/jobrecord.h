/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Records of jobs, as other processes see them.
 */
#ifndef JOBRECORD_H
#define JOBRECORD_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Notes of a job that runs: "new", a file that was made (newimage.h); "grown", one
 * that was made longer, and "old", the top that the device leaves (trim_top_of());
 * what the chain is to become (finish.h)
 */
#define JOB_NOTES	"notes"

/**
 * struct job_record - a job as its record has it
 * @name: of the job, and of its file
 * @subject: device, or path of an image
 * @operation: name of the command
 * @command: the command line
 * @state: "running", "done", "failed" or "cancelled"
 * @pid: process
 * @start: when that process started, in ticks since the boot
 * @kept: it stays when the job is over
 * @done: bytes
 * @total: bytes
 * @rate: bytes a second
 * @result: 0 or a negative errno of a job that is over
 * @alive: the process runs
 *
 * The strings belong to @json, and are never NULL.
 */
struct job_record {
	const char *name;
	const char *subject;
	const char *operation;
	const char *command;
	const char *state;
	pid_t pid;
	unsigned long long start;
	bool kept;
	uint64_t done;
	uint64_t total;
	uint64_t rate;
	int result;
	bool alive;
	struct json_object *json;
};

/**
 * job_load() - read a record
 * @word: name of a job, of its device, or path of its image
 * @record: result; free it with job_free() if there was one
 *
 * Return: whether there is one.
 */
bool job_load(const char *word, struct job_record *record);

/** job_load_name() - the same by the name of the job alone */
bool job_load_name(const char *name, struct job_record *record);

/** job_free() - free what job_load() filled */
void job_free(struct job_record *record);

/** job_running() - is the job under way, not over and not dead? */
bool job_running(const struct job_record *record);

/** job_dead() - was it killed? */
bool job_dead(const struct job_record *record);

/** job_notes() - its notes, or NULL; they belong to the record */
struct json_object *job_notes(const struct job_record *record);

/** job_state() - its state in a word: @record->state, or "dead" */
const char *job_state(const struct job_record *record);

/** job_each() - call @visit for each record until it returns true */
void job_each(bool (*visit)(const struct job_record *record, void *data),
	      void *data);

/** job_forget() - remove the record and the messages of a job */
void job_forget(const struct job_record *record);

/** job_want_result() - ask that a record stays until job_forget() */
void job_want_result(const struct job_record *record);

/** job_is_wanted() - did somebody ask for that? */
bool job_is_wanted(const char *name);

/** job_messages() - what a detached job had to say, or NULL; free() it */
char *job_messages(const struct job_record *record);

/** job_subject_same() - do two words name the same device or image? */
bool job_subject_same(const char *a, const char *b);

/**
 * process_start() - when a process started
 * @pid: the process
 *
 * Return: ticks since the boot, or 0 if there is no such process any more.
 */
unsigned long long process_start(pid_t pid);

#endif /* JOBRECORD_H */
