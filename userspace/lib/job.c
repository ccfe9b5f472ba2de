// SPDX-License-Identifier: GPL-2.0-only
/*
 * The job of this process.
 */
#include "job.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dm.h"
#include "progress.h"
#include "report.h"
#include "state.h"
#include "unfinished.h"

/* The record is written this often. */
#define RECORD_SECONDS	1.0

/* A job that was held up may catch up with that much of its allowance. */
#define BURST_SECONDS	0.1

/* The longest sleep in which a signal to another thread is not noticed */
#define SLEEP_SECONDS	0.1

/**
 * struct job - the job of this process
 * @record: what others see
 * @name: of the job
 * @bandwidth: bytes a second, 0 without limit
 * @detached: nobody is there to look
 * @keep: the notes outlast the job
 * @progress: shown to the user
 * @recorded: when the record was written last
 * @next: when the next byte may be copied, by @bandwidth
 * @signals: what the signals did before
 */
struct job {
	struct json_object *record;
	char *name;
	uint64_t bandwidth;
	bool detached;
	bool keep;
	struct progress progress;
	double recorded;
	double next;
	struct sigaction signals[4];
};

/* The last: nobody is there any more to read what it says. */
static const int cancelling[4] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE };

static struct job job;
static atomic_bool cancel_asked;
static atomic_bool cancel_ignored;

static void ask_cancel(int signal)
{
	(void)signal;
	if (!cancel_ignored)
		cancel_asked = true;
}

static void catch_signals(void)
{
	struct sigaction action = {
		.sa_handler = ask_cancel,
		/* What is under way ends as it would without the signal. */
		.sa_flags = SA_RESTART,
	};
	unsigned int i;

	cancel_asked = false;
	cancel_ignored = false;
	for (i = 0; i < 4; i++)
		sigaction(cancelling[i], &action, &job.signals[i]);
}

static void release_signals(void)
{
	unsigned int i;

	for (i = 0; i < 4; i++)
		sigaction(cancelling[i], &job.signals[i], NULL);
}

static uint64_t suffix_factor(const char *suffix)
{
	static const char letters[] = "KMGT";
	const char *letter = *suffix ? strchr(letters, *suffix) : NULL;

	if (!*suffix)
		return 1;
	if (!letter || suffix[1])
		return 0;
	return 1024ULL << 10 * (letter - letters);
}

int job_bandwidth(const char *word, uint64_t *bandwidth)
{
	unsigned long long number;
	uint64_t factor;
	char *end;

	errno = 0;
	number = strtoull(word, &end, 10);
	factor = suffix_factor(end);
	if (word[0] < '0' || word[0] > '9' || errno || !number || !factor ||
	    number > INT64_MAX / factor)
		return report_fail(EINVAL,
				   "--bandwidth needs a number of bytes a second, as 100M, not '%s'.",
				   word);
	*bandwidth = number * factor;
	return 0;
}

const char *job_subject(void)
{
	return job.record ? json_string(job.record, "subject") : NULL;
}

int job_check_none(const char *subject)
{
	struct job_record record;
	int r = unfinished_check_device(subject);

	if (r < 0 || !job_load(subject, &record))
		return r;
	if (job_running(&record) && record.pid != getpid() &&
	    job_subject_same(record.subject, subject))
		r = report_fail(EBUSY,
				"%s has a job: %s, process %d. See 'qcow2setup jobs'; 'qcow2setup cancel %s' stops it.",
				subject, record.operation, (int)record.pid,
				record.name);
	job_free(&record);
	return r;
}

/* A name that no other subject's job has */
static bool name_is_taken(const char *name, const char *subject)
{
	struct json_object *record = job_state_load(name);
	const char *other = record ? json_string(record, "subject") : NULL;
	bool taken = other && !job_subject_same(other, subject);

	json_object_put(record);
	return taken;
}

/* A job before, of which there is a record yet: a subject has one at most. */
static char *name_before(const char *subject)
{
	struct job_record record;
	char *name = NULL;

	if (!job_load(subject, &record))
		return NULL;
	if (job_subject_same(record.subject, subject))
		name = text_copy(record.name);
	job_free(&record);
	return name;
}

static char *new_name(const char *subject)
{
	const char *slash = strrchr(subject, '/');
	char *base = text("%.*s", DM_NAME_MAX, slash ? slash + 1 : subject);
	char *name = text_copy(base);
	unsigned int number = 1;

	while (name_is_taken(name, subject)) {
		free(name);
		name = text("%s.%u", base, ++number);
	}
	free(base);
	return name;
}

static char *name_of(const char *subject)
{
	char *name = name_before(subject);

	return name ? name : new_name(subject);
}

/* The command line of this process, its words with blanks between them */
char *job_command_line(void)
{
	char buf[4096];
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t len = fd < 0 ? 0 : read(fd, buf, sizeof(buf) - 1), i;

	if (fd >= 0)
		close(fd);
	if (len <= 0)
		return text_copy("");
	for (i = 0; i < len - 1; i++) {
		if (!buf[i])
			buf[i] = ' ';
	}
	buf[len] = '\0';
	return text_copy(buf);
}

static int write_record(void)
{
	job.recorded = progress_now();
	return job_state_save(job.name, job.record);
}

static int make_record(const char *subject, const char *operation)
{
	char *command = job_command_line();

	job.record = json_object_new_object();
	json_set_string(job.record, "name", job.name);
	json_set_string(job.record, "subject", subject);
	json_set_string(job.record, "operation", operation);
	json_set_string(job.record, "command", command);
	json_set_string(job.record, "state", "running");
	json_set_number(job.record, "pid", getpid());
	json_set_number(job.record, "start", process_start(getpid()));
	json_set_bool(job.record, "kept", job.detached);
	free(command);
	return write_record();
}

/* All notes are one member of the record. */
static struct json_object *notes(void)
{
	struct json_object *all = NULL;

	if (!json_object_object_get_ex(job.record, JOB_NOTES, &all)) {
		all = json_object_new_object();
		json_object_object_add(job.record, JOB_NOTES, all);
	}
	return all;
}

int job_note(struct json_object *note)
{
	json_object_object_foreach(note, key, value)
		json_object_object_add(notes(), key, json_object_get(value));
	json_object_put(note);
	return write_record();
}

/* The process is none of the next boot's. */
static struct json_object *lasting_record(struct json_object *notes)
{
	static const char * const keys[] = {
		"name", "subject", "operation", "command", "state",
	};
	struct json_object *record = json_object_new_object();
	unsigned int i;

	for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		json_set_string(record, keys[i],
				json_string(job.record, keys[i]));
	json_object_object_add(record, JOB_NOTES, json_object_get(notes));
	return record;
}

int job_note_lasting(struct json_object *note)
{
	struct json_object *record = lasting_record(note);

	job_lasting_save(job.name, record);
	json_object_put(record);
	return job_note(note);
}

static void drop_job(void)
{
	json_object_put(job.record);
	free(job.name);
	memset(&job, 0, sizeof(job));
}

/* Standard streams of a process in the background: its messages are kept. */
static int redirect(void)
{
	char *path = job_state_path(job.name, JOB_LOG);
	int log, null;

	log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC,
		   0600);
	null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	free(path);
	if (log < 0 || null < 0)
		return report_errno(errno, "Cannot open the log of the job");
	fflush(stdout);
	dup2(null, STDIN_FILENO);
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	close(null);
	close(log);
	return 0;
}

/* Ends when the job has its record; without a word if it was not written. */
static int wait_started(int fd)
{
	char byte;
	ssize_t n;

	do {
		n = read(fd, &byte, 1);
	} while (n < 0 && errno == EINTR);
	close(fd);
	return n == 1 ? 0 : -EIO;
}

static void print_started(bool json)
{
	struct json_object *object;

	if (json) {
		object = json_object_new_object();
		json_set_string(object, "event", "detach");
		json_set_string(object, "name", job.name);
		json_print(object, JSON_C_TO_STRING_PLAIN);
		json_object_put(object);
	} else {
		printf("Job %s is under way; see 'qcow2setup wait %s'.\n",
		       job.name, job.name);
	}
	fflush(stdout);
}

/* Return: descriptor to write a byte to when it is under way; or an error */
static int detach(bool json)
{
	int ends[2], r;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return report_errno(errno, "Cannot create a pipe");
	fflush(stdout);
	pid = fork();
	if (pid < 0) {
		r = report_errno(errno, "Cannot start a process");
		close(ends[0]);
		close(ends[1]);
		return r;
	}
	if (!pid) {
		close(ends[0]);
		setsid();
		return ends[1];
	}
	close(ends[1]);
	r = wait_started(ends[0]);
	if (r < 0)
		return r;
	/* The other process has all that is to be undone, and the state lock. */
	state_unlock();
	print_started(json);
	_exit(EXIT_OK);
}

static int begin_here(const char *subject, const char *operation)
{
	int r;

	job_state_remove(job.name);
	r = make_record(subject, operation);
	if (!r)
		catch_signals();
	return r;
}

static int begin_detached(const char *subject, const char *operation,
			  const struct job_options *options)
{
	int started = detach(options->json), r;

	if (started < 0)
		return started;
	if (options->unlock)
		unlock_lock_memory(options->unlock);
	job.detached = true;
	r = begin_here(subject, operation);
	if (!r)
		r = redirect();
	/* The first process returns the error, and cleans up. */
	if (r < 0 || write(started, "", 1) != 1)
		_exit(report_exit_code(r < 0 ? r : -EIO));
	close(started);
	return 0;
}

int job_begin(const char *subject, const char *operation,
	      const struct job_options *options)
{
	int r = job_check_none(subject);

	if (r < 0)
		return r;
	memset(&job, 0, sizeof(job));
	job.name = name_of(subject);
	job.bandwidth = options->bandwidth;
	r = options->detach ?
		begin_detached(subject, operation, options) :
		begin_here(subject, operation);
	if (r < 0) {
		drop_job();
		return r;
	}
	progress_begin(&job.progress, job.name,
		       json_string(job.record, "operation"),
		       options->json && !job.detached);
	if (job.detached)
		job.progress.mode = PROGRESS_NONE;
	return 0;
}

static void record_progress(void)
{
	json_set_number(job.record, "done", job.progress.done);
	json_set_number(job.record, "total", job.progress.total);
	json_set_number(job.record, "rate", job.progress.rate);
}

void job_progress(uint64_t done, uint64_t total)
{
	progress_update(&job.progress, done, total);
	if (progress_now() - job.recorded < RECORD_SECONDS)
		return;
	record_progress();
	write_record();
}

static void sleep_seconds(double seconds)
{
	struct timespec time;

	if (seconds > SLEEP_SECONDS)
		seconds = SLEEP_SECONDS;
	time.tv_sec = 0;
	time.tv_nsec = seconds * 1e9;
	nanosleep(&time, NULL);
}

void job_throttle(uint64_t bytes)
{
	double now;

	if (!job.bandwidth)
		return;
	now = progress_now();
	if (job.next < now - BURST_SECONDS)
		job.next = now - BURST_SECONDS;
	while (now < job.next && !job_cancelled()) {
		sleep_seconds(job.next - now);
		now = progress_now();
	}
	job.next += (double)bytes / job.bandwidth;
}

bool job_cancelled(void)
{
	return cancel_asked;
}

void job_finishing(void)
{
	cancel_ignored = true;
}

void job_stage(void)
{
	cancel_ignored = false;
}

void job_keep(void)
{
	job.keep = true;
}

static const char *state_of(int result)
{
	if (!result)
		return "done";
	return result == -ECANCELED ? "cancelled" : "failed";
}

int job_end(int result)
{
	const char *state = state_of(result);

	progress_end(&job.progress, state);
	if (result == -ECANCELED)
		report_fail(ECANCELED, "%s of %s was cancelled.",
			    json_string(job.record, "operation"),
			    json_string(job.record, "subject"));
	record_progress();
	json_set_string(job.record, "state", state);
	json_object_object_add(job.record, "result",
			       json_object_new_int(result));
	if (!job.keep)
		json_object_object_del(job.record, JOB_NOTES);
	/* Who waits reads the record; in the foreground the user knows. */
	write_record();
	if (!job.keep)
		job_lasting_remove(job.name);
	if (!job.keep && !job.detached && !job_is_wanted(job.name))
		job_state_remove(job.name);
	release_signals();
	drop_job();
	return result;
}

void job_uuid(const char *role, char uuid[JOB_UUID_MAX])
{
	snprintf(uuid, JOB_UUID_MAX, DM_UUID_JOB "%d-%llu-%s", (int)getpid(),
		 process_start(getpid()), role);
}

bool job_uuid_alive(const char *uuid)
{
	unsigned long long start;
	int pid;

	return sscanf(uuid, DM_UUID_JOB "%d-%llu-", &pid, &start) == 2 &&
		process_start(pid) == start;
}
