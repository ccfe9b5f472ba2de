// SPDX-License-Identifier: GPL-2.0-only
/*
 * Waiting for the job of another process.
 */
#include "jobwait.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "jobrecord.h"
#include "progress.h"
#include "report.h"
#include "state.h"

/* How often a look is taken */
#define LOOK_MSEC	200

/**
 * struct waiting - a wait under way
 * @name: of the job
 * @pid: its process
 * @start: when that began
 * @process: descriptor of its process
 * @progress: shown meanwhile
 */
struct waiting {
	char *name;
	pid_t pid;
	unsigned long long start;
	int process;
	struct progress progress;
};

/* The process that the record means, and no other that has its number now */
static int open_process(const struct job_record *record)
{
	int fd = syscall(SYS_pidfd_open, record->pid, 0);

	if (fd < 0)
		return errno == ESRCH ? -ESRCH :
			report_errno(errno, "Cannot watch process %d",
				     (int)record->pid);
	if (process_start(record->pid) == record->start)
		return fd;
	close(fd);
	return -ESRCH;
}

static int send_cancel(const struct waiting *waiting)
{
	if (syscall(SYS_pidfd_send_signal, waiting->process, SIGTERM, NULL,
		    0) == 0 || errno == ESRCH)
		return 0;
	return report_errno(errno, "Cannot stop job %s", waiting->name);
}

static bool is_over(const struct waiting *waiting)
{
	struct pollfd end = { .fd = waiting->process, .events = POLLIN };

	return poll(&end, 1, LOOK_MSEC) > 0;
}

/* Another job may have the name by now. Return: false if there is no record any more */
static bool load(const struct waiting *waiting, struct job_record *record)
{
	if (!job_load_name(waiting->name, record))
		return false;
	if (record->pid == waiting->pid && record->start == waiting->start)
		return true;
	job_free(record);
	return false;
}

/* Return: whether the job goes on */
static bool look(struct waiting *waiting)
{
	struct job_record record;
	bool running;

	if (!load(waiting, &record))
		return false;
	running = job_running(&record);
	if (running && record.total)
		progress_update(&waiting->progress, record.done, record.total);
	job_free(&record);
	return running;
}

static void wait_over(struct waiting *waiting)
{
	while (!is_over(waiting) && look(waiting))
		;
}

static void print_messages(const struct job_record *record)
{
	char *messages = job_messages(record);

	if (messages && *messages) {
		fflush(stdout);
		fputs(messages, stderr);
	}
	free(messages);
}

static void forget(const struct waiting *waiting)
{
	struct job_record record;

	if (!load(waiting, &record))
		return;
	job_forget(&record);
	job_free(&record);
}

/* What became of a job that is not under way (any more) */
static int result_of(const struct waiting *waiting,
		     const struct job_record *record)
{
	int r = record->result;

	print_messages(record);
	if (!strcmp(job_state(record), "dead"))
		return report_fail(EIO,
				   "Job %s was killed. What it worked on is valid: run the command again, or 'qcow2setup jobs --clean'.",
				   record->name);
	/* In the foreground it told the user itself. */
	if (r < 0 && !record->kept)
		report_fail(-r, "Job %s: %s.", record->name, record->state);
	/* Else the next such command takes up what it noted. */
	if (!job_notes(record))
		forget(waiting);
	return r;
}

static int wait_running(struct waiting *waiting,
			const struct job_record *record, bool cancel, bool json)
{
	int r = 0;

	waiting->process = open_process(record);
	if (waiting->process == -ESRCH)
		return 0;
	if (waiting->process < 0)
		return waiting->process;
	job_want_result(record);
	progress_begin(&waiting->progress, waiting->name, record->operation,
		       json);
	if (cancel)
		r = send_cancel(waiting);
	if (!r)
		wait_over(waiting);
	close(waiting->process);
	return r;
}

/* How far it came at last, and how long it took for that */
static void show_end(struct waiting *waiting, const struct job_record *record)
{
	struct progress *progress = &waiting->progress;

	progress->done = record->done;
	progress->total = record->total;
	if (record->rate)
		progress->start = progress_now() -
			(double)record->done / record->rate;
	progress_end(progress, job_state(record));
}

static int finish(struct waiting *waiting, bool shown)
{
	struct job_record record;
	int r;

	if (!load(waiting, &record))
		return report_fail(ENOENT,
				   "Job %s is over; it told its result where it ran.",
				   waiting->name);
	if (shown)
		show_end(waiting, &record);
	r = result_of(waiting, &record);
	job_free(&record);
	return r;
}

int job_wait(const char *word, bool cancel, bool json)
{
	struct waiting waiting = { .process = -1 };
	struct job_record record;
	bool running;
	int r = job_state_check();

	if (r < 0)
		return r;
	if (!job_load(word, &record))
		return report_fail(ENOENT, "There is no job %s.", word);
	waiting.name = text_copy(record.name);
	waiting.pid = record.pid;
	waiting.start = record.start;
	running = job_running(&record);
	if (running)
		r = wait_running(&waiting, &record, cancel, json);
	if (!r)
		r = finish(&waiting, running);
	job_free(&record);
	free(waiting.name);
	return r;
}
