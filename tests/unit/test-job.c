// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of jobs: their records, what other processes make of them, and
 * their end by all means.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "job.h"
#include "jobwait.h"
#include "newimage.h"
#include "progress.h"
#include "report.h"
#include "state.h"

static const struct job_options plain;

static void wait_state(const char *name, const char *state)
{
	struct job_record record;
	int tries, same = 0;

	for (tries = 0; tries < 500 && !same; tries++) {
		if (job_load(name, &record)) {
			same = !strcmp(job_state(&record), state);
			job_free(&record);
		}
		usleep(10000);
	}
	assert_true(same);
}

static void fails_bandwidth(const char *word)
{
	uint64_t value;

	assert_int_equal(job_bandwidth(word, &value), -EINVAL);
}

static void test_bandwidth(void **state)
{
	uint64_t value;

	assert_int_equal(job_bandwidth("1", &value), 0);
	assert_int_equal(value, 1);
	assert_int_equal(job_bandwidth("12K", &value), 0);
	assert_int_equal(value, 12288);
	assert_int_equal(job_bandwidth("3G", &value), 0);
	assert_int_equal(value, 3ULL << 30);
	fails_bandwidth("");
	fails_bandwidth("0");
	fails_bandwidth("M");
	fails_bandwidth("-1");
	fails_bandwidth("1MB");
	fails_bandwidth("1x");
	fails_bandwidth("99999999999999999999");
	fails_bandwidth("9999999999T");
}

static void test_progress_text(void **state)
{
	char buf[PROGRESS_TEXT];

	assert_string_equal(progress_text(0, 0, 0, buf), "100%, 0 B of 0 B");
	assert_string_equal(progress_text(1 << 20, 4 << 20, 0, buf),
			    " 25%, 1 MiB of 4 MiB");
	assert_string_equal(progress_text(1 << 20, 4 << 20, 1024, buf),
			    " 25%, 1 MiB of 4 MiB, 1 KiB/s, 51:12 left");
	assert_string_equal(progress_text(0, 4ULL << 30, 1 << 20, buf),
			    "  0%, 0 B of 4 GiB, 1 MiB/s, 1:08:16 left");
	assert_int_equal(progress_percent(UINT64_MAX - 1, UINT64_MAX), 100);
	assert_int_equal(progress_percent(5, 4), 100);
}

/* In the foreground nothing stays; meanwhile others are refused. */
static void test_foreground(void **state)
{
	struct job_record record;
	char uuid[JOB_UUID_MAX];
	int status;

	assert_int_equal(job_check_none("vm"), 0);
	assert_int_equal(job_begin("vm", "commit", &plain), 0);
	assert_true(job_load("vm", &record));
	assert_true(job_running(&record));
	assert_string_equal(record.operation, "commit");
	assert_int_equal(record.pid, getpid());
	job_free(&record);
	job_uuid("to", uuid);
	assert_true(job_uuid_alive(uuid));
	/* Not for this process, but for another */
	assert_int_equal(job_check_none("vm"), 0);
	if (!fork())
		_exit(job_check_none("vm") == -EBUSY ? 0 : 1);
	wait(&status);
	assert_int_equal(status, 0);
	job_progress(1, 2);
	assert_int_equal(job_end(-EIO), -EIO);
	assert_false(job_load("vm", &record));
	assert_false(job_uuid_alive("QCOW2-JOB-1-1-to"));
	assert_false(job_uuid_alive("QCOW2-DISK-1"));
}

/* Images of the same name in two directories have a job each. */
static void test_names(void **state)
{
	struct job_record record;
	pid_t pid = fork();

	if (!pid) {
		job_begin("/a/image", "pull", &plain);
		pause();
		_exit(job_end(0));
	}
	wait_state("/a/image", "running");
	assert_int_equal(job_begin("/b/image", "pull", &plain), 0);
	assert_true(job_load("/b/image", &record));
	assert_string_equal(record.name, "image.2");
	job_free(&record);
	assert_true(job_load_name("image", &record));
	assert_string_equal(record.subject, "/a/image");
	job_free(&record);
	assert_int_equal(job_end(0), 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_true(job_load("image", &record));
	assert_string_equal(job_state(&record), "dead");
	assert_true(job_dead(&record));
	assert_int_equal(job_wait("/a/image", false, false), -EIO);
	job_forget(&record);
	job_free(&record);
}

static struct json_object *note(const char *path)
{
	const struct image_id id = { .dev = 1, .ino = 2 };
	struct json_object *note = json_object_new_object();

	new_image_note(note, path, &id);
	return note;
}

/* What is to be undone is in the record as long as the job is not over. */
static void test_notes(void **state)
{
	struct job_options options = { .detach = true };
	struct json_object *made;
	struct job_record record;

	if (!fork()) {
		job_begin("vm", "copy", &options);
		assert_int_equal(job_note(note("/a")), 0);
		assert_int_equal(job_note(note("/b")), 0);
		assert_true(job_load("vm", &record));
		assert_true(json_object_object_get_ex(job_notes(&record), "new",
						      &made));
		assert_string_equal(json_string(made, "path"), "/b");
		job_free(&record);
		_exit(report_exit_code(job_end(0)));
	}
	wait(NULL);
	wait_state("vm", "done");
	assert_true(job_load("vm", &record));
	assert_false(job_dead(&record));
	assert_null(job_notes(&record));
	job_free(&record);
	assert_int_equal(job_wait("vm", false, false), 0);
}

static void work_until_cancelled(void)
{
	uint64_t done = 0;

	while (!job_cancelled()) {
		job_throttle(1 << 20);
		job_progress(done += 1 << 20, 1ULL << 40);
	}
}

/* The first process ends at once, the job goes on, and is cancelled. */
static void test_detach_cancel(void **state)
{
	struct job_options options = { .detach = true, .bandwidth = 10 << 20 };
	pid_t pid = fork();
	int status;

	if (!pid) {
		job_begin("vm", "copy", &options);
		work_until_cancelled();
		_exit(report_exit_code(job_end(-ECANCELED)));
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	wait_state("vm", "running");
	assert_int_equal(job_wait("vm", true, false), -ECANCELED);
	assert_int_equal(job_wait("vm", false, false), -ENOENT);
}

/* The result, and what was said, waits for who asks. */
static void test_detach_result(void **state)
{
	struct job_options options = { .detach = true };
	struct job_record record;
	char *messages;

	if (!fork()) {
		job_begin("vm", "copy", &options);
		report_fail(ENOSPC, "No space for %s.", "vm");
		_exit(report_exit_code(job_end(-ENOSPC)));
	}
	wait(NULL);
	wait_state("vm", "failed");
	assert_true(job_load("vm", &record));
	messages = job_messages(&record);
	assert_string_equal(messages, "No space for vm.\n");
	free(messages);
	job_free(&record);
	assert_int_equal(job_wait("vm", false, false), -ENOSPC);
	assert_false(job_load("vm", &record));
}

/* Who waits for a job in the foreground learns its result as well. */
static void test_wait_foreground(void **state)
{
	struct job_record record;
	pid_t pid = fork();

	if (!pid) {
		job_begin("vm", "commit", &plain);
		while (!job_is_wanted("vm"))
			usleep(10000);
		_exit(job_end(0));
	}
	wait_state("vm", "running");
	assert_int_equal(job_wait("vm", false, true), 0);
	waitpid(pid, NULL, 0);
	assert_false(job_load("vm", &record));
}

/* Past the point of no return a signal changes nothing. */
static void test_finishing(void **state)
{
	assert_int_equal(job_begin("vm", "commit", &plain), 0);
	assert_false(job_cancelled());
	job_finishing();
	raise(SIGINT);
	assert_false(job_cancelled());
	assert_int_equal(job_end(0), 0);
	assert_int_equal(job_begin("vm", "commit", &plain), 0);
	raise(SIGTERM);
	assert_true(job_cancelled());
	job_finishing();
	assert_true(job_cancelled());
	assert_int_equal(job_end(-ECANCELED), -ECANCELED);
}

static void test_throttle(void **state)
{
	struct job_options options = { .bandwidth = 10 << 20 };
	double start;
	int i;

	assert_int_equal(job_begin("vm", "commit", &options), 0);
	start = progress_now();
	for (i = 0; i < 32; i++)
		job_throttle(1 << 18);
	/* 8 MiB at 10 MiB/s, of which a little is free at the start */
	assert_true(progress_now() - start > 0.6);
	assert_true(progress_now() - start < 3);
	raise(SIGTERM);
	start = progress_now();
	job_throttle(100 << 20);
	job_throttle(100 << 20);
	assert_true(progress_now() - start < 1);
	job_end(-ECANCELED);
}

static int set_up(void **state)
{
	/* Makes the directories. */
	int r = state_lock(true);

	state_unlock();
	return r;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bandwidth),
		cmocka_unit_test(test_progress_text),
		cmocka_unit_test(test_foreground),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_notes),
		cmocka_unit_test(test_detach_cancel),
		cmocka_unit_test(test_detach_result),
		cmocka_unit_test(test_wait_foreground),
		cmocka_unit_test(test_finishing),
		cmocka_unit_test(test_throttle),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, NULL);
}
