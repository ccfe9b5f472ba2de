// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of what is left to do of a job that died when its chain was what it was
 * to become, or was on the way: images that qemu-img made, and a record. Devices are
 * not there.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "chain.h"
#include "dm.h"
#include "fate.h"
#include "finish.h"
#include "job.h"
#include "layerlist.h"
#include "leftover.h"
#include "live.h"
#include "report.h"
#include "state.h"

static void run(const char *command)
{
	assert_int_equal(system(command), 0);
}

static bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

/* Layers of the chain, @count of them */
static struct json_object *layers_of(const char *path, unsigned int count)
{
	struct json_object *layers;
	struct chain chain;
	unsigned int whole;

	assert_int_equal(chain_open(path, NULL, &chain), 0);
	whole = chain.count;
	chain.count = count;
	layers = layers_json(&chain);
	chain.count = whole;
	chain_close(&chain);
	return layers;
}

static struct json_object *plan_of(const char *path)
{
	struct json_object *plan = fate_new("commit");
	struct image image;

	assert_int_equal(image_open(path, FORMAT_QCOW2, &image), 0);
	fate_add_image(plan, FATE_DELETED, &image);
	image_close(&image);
	return plan;
}

/* A job that has taken ./mid out of ./top, and is to delete it */
static void job_dies(void)
{
	struct json_object *record = json_object_new_object();
	struct json_object *notes = json_object_new_object();
	char *subject = absolute_path("./top");

	json_object_object_add(notes, "chain", layers_of("./top", 2));
	json_object_object_add(notes, "gone", layers_of("./mid", 1));
	json_object_object_add(notes, "plan", plan_of("./mid"));
	json_set_string(record, "name", "top");
	json_set_string(record, "subject", subject);
	json_set_string(record, "operation", "commit");
	json_set_string(record, "command", "qcow2setup commit ./top --delete");
	json_set_string(record, "state", "running");
	json_set_number(record, "pid", getpid());
	/* This process began later. */
	json_set_number(record, "start", 1);
	json_object_object_add(record, JOB_NOTES, notes);
	assert_int_equal(job_state_save("top", record), 0);
	json_object_put(record);
	free(subject);
}

/* An image and its data file: one process deletes both, another may have to. */
static int make_images(void **state)
{
	run("qemu-img create -q -f qcow2 base 1M");
	run("qemu-img create -q -f qcow2 -o data_file=mid.data -b base -F qcow2 mid");
	run("qemu-img create -q -f qcow2 -b base -F qcow2 top");
	job_dies();
	return 0;
}

static int remove_images(void **state)
{
	job_state_remove("top");
	run("rm -f base mid.data mid top other");
	return 0;
}

static void test_order(void **state)
{
	struct json_object *plan = plan_of("./mid"), *deleted;

	assert_true(json_object_object_get_ex(plan, "deleted", &deleted));
	assert_int_equal(json_object_array_length(deleted), 2);
	assert_non_null(strstr(json_object_get_string(json_object_array_get_idx(deleted, 0)),
			       "mid.data"));
	json_object_put(plan);
}

static void test_killed_before(void **state)
{
	finish_dead();
	assert_false(exists("mid.data"));
	assert_false(exists("mid"));
	assert_true(exists("base"));
}

static void test_killed_between(void **state)
{
	assert_int_equal(unlink("mid.data"), 0);
	finish_dead();
	assert_false(exists("mid"));
	assert_true(exists("base"));
}

/* Somebody stands on it by now. */
static void test_used_since(void **state)
{
	run("qemu-img create -q -f qcow2 -b mid -F qcow2 other");
	report_mute(true);
	finish_dead();
	report_mute(false);
	assert_true(exists("mid.data"));
	assert_true(exists("mid"));
}

static void test_another_image_since(void **state)
{
	run("cp mid other; rm mid; cp other mid");
	finish_dead();
	assert_true(exists("mid.data"));
	assert_true(exists("mid"));
}

/* Up to where it has noted what it is to come to; then the power goes. */
static void job_is_cut_off(bool ends)
{
	const struct job_options options = { 0 };
	char *subject = absolute_path("./top");
	struct json_object *plan;
	int status;

	if (!fork()) {
		assert_int_equal(job_begin(subject, "commit", &options), 0);
		plan = plan_of("./mid");
		assert_int_equal(job_note_lasting(finish_notes(layers_of("./top", 2),
							       layers_of("./mid", 1),
							       NULL, plan)),
				 0);
		_exit(ends ? -job_end(-EIO) : EIO);
	}
	wait(&status);
	assert_int_equal(WEXITSTATUS(status), EIO);
	/* All that is in /run */
	run("rm -f " STATE_DIR "/jobs/*");
	free(subject);
}

static bool said_again(void)
{
	struct live live = { .word = "./top" };
	bool again;

	live.subject = absolute_path("./top");
	assert_int_equal(chain_open("./top", NULL, &live.chain), 0);
	again = finish_again(&live, false);
	chain_close(&live.chain);
	free(live.subject);
	return again;
}

static void test_reboot(void **state)
{
	job_state_remove("top");
	job_is_cut_off(false);
	assert_false(said_again());
	job_lasting_adopt();
	finish_dead();
	assert_false(exists("mid.data"));
	assert_false(exists("mid"));
	/* The same command says what it would have, once. */
	assert_true(said_again());
	job_lasting_adopt();
	assert_false(said_again());
}

/* A job that was killed and finished is not finished again by the next boot. */
static void test_reboot_after_all(void **state)
{
	job_state_remove("top");
	job_is_cut_off(false);
	job_lasting_adopt();
	finish_dead();
	run("rm -f " STATE_DIR "/jobs/*");
	run("qemu-img create -q -f qcow2 -o data_file=mid.data -b base -F qcow2 mid");
	job_lasting_adopt();
	finish_dead();
	assert_true(exists("mid"));
}

static void test_reboot_after_the_end(void **state)
{
	job_state_remove("top");
	job_is_cut_off(true);
	job_lasting_adopt();
	finish_dead();
	assert_true(exists("mid"));
}

/* Which layers it had taken out, as other overlays are not */
static void test_reboot_on_the_way(void **state)
{
	char *subject = absolute_path("./top");
	struct json_object *left;
	struct chain chain;
	bool again;

	job_state_remove("top");
	job_is_cut_off(false);
	job_lasting_adopt();
	assert_int_equal(chain_open("./top", NULL, &chain), 0);
	left = leftover_layers(subject, &chain, &again);
	assert_true(again);
	assert_int_equal(json_object_array_length(left), 1);
	json_object_put(left);
	chain_close(&chain);
	free(subject);
}

static int set_up(void **state)
{
	char *dir = strdup("/tmp/test-finish-XXXXXX");
	int r;

	dm_init();
	if (!mkdtemp(dir) || chdir(dir) < 0)
		return -1;
	*state = dir;
	/* Makes the directories. */
	r = state_lock(true);
	state_unlock();
	return r;
}

static int tear_down(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r '%s'", (char *)*state);
	free(*state);
	return chdir("/") < 0 ? -1 : system(command);
}

#define TEST(function) \
	cmocka_unit_test_setup_teardown(function, make_images, remove_images)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_order),
		TEST(test_killed_before),
		TEST(test_killed_between),
		TEST(test_used_since),
		TEST(test_another_image_since),
		TEST(test_reboot),
		TEST(test_reboot_after_all),
		TEST(test_reboot_after_the_end),
		TEST(test_reboot_on_the_way),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
