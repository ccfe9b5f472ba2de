// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of internal snapshots of an open device: what is done while it
 * stands still, and who resumes it when something fails or is killed. The
 * device is only pretended (the linker puts functions of ours in the place of
 * those of dm.c and device.c); qemu-img works on a file.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "attach.h"
#include "chain.h"
#include "internal.h"
#include "job.h"
#include "recover.h"
#include "report.h"
#include "run.h"
#include "state.h"
#include "unfinished.h"

#define IMAGE	"build/standstill/a"
#define UUID	"QCOW2-DISK-0"

/**
 * struct pretended - the device, as all processes see it
 * @sectors: length of its table
 * @loaded: length of its inactive table, 0 if there is none
 * @suspended: it is
 * @suspends: how often it was
 * @open_count: how often it is open
 * @opened_late: somebody opens it just before it is suspended
 * @stuck: it cannot be resumed
 */
struct pretended {
	uint64_t sectors;
	uint64_t loaded;
	bool suspended;
	int suspends;
	int open_count;
	bool opened_late;
	bool stuck;
};

static struct pretended *vm;

/*
 * In the place of dm.c and device.c
 */

struct dm_state __wrap_dm_query(const char *name)
{
	struct dm_state state = {
		.exists = !strcmp(name, "vm"),
		.live = true,
		.uuid = UUID,
		.open_count = vm->open_count,
		.suspended = vm->suspended,
		.loaded = vm->loaded,
	};

	return state;
}

int __wrap_dm_available(void)
{
	return 0;
}

int __wrap_dm_suspend_now(const char *name, bool lockfs)
{
	vm->open_count += vm->opened_late;
	vm->suspended = true;
	vm->suspends++;
	return 0;
}

static int resume(void)
{
	if (vm->loaded)
		vm->sectors = vm->loaded;
	vm->loaded = 0;
	vm->suspended = false;
	return 0;
}

int __wrap_dm_resume_now(const char *name, bool lockfs, uint32_t *cookie)
{
	return resume();
}

int __wrap_dm_resume(const char *name)
{
	return vm->stuck ? report_fail(EIO, "It cannot be resumed.") : resume();
}

int __wrap_dm_load(const char *name, bool read_only,
		   const struct dm_segment *segment)
{
	vm->loaded = segment->length;
	return 0;
}

int __wrap_dm_clear(const char *name)
{
	vm->loaded = 0;
	return 0;
}

bool __wrap_dm_each(bool (*visit)(const char *name, void *data), void *data)
{
	return false;
}

char *__wrap_dm_status(const char *name)
{
	return text("rw 128 20/4096 0 0/0 0 0 0 1 - -");
}

bool __wrap_device_load(const char *name, struct device *device)
{
	memset(device, 0, sizeof(*device));
	if (strcmp(name, "vm"))
		return false;
	snprintf(device->name, sizeof(device->name), "vm");
	device->dm = __wrap_dm_query(name);
	device->sectors = vm->sectors;
	device->layers = grow_array(NULL, 0, sizeof(*device->layers));
	memset(device->layers, 0, sizeof(*device->layers));
	device->count = 1;
	device->layers[0].format = FORMAT_QCOW2;
	device->layers[0].path = absolute_path(IMAGE);
	image_id_of_path(IMAGE, &device->layers[0].id);
	device->features = text_copy("");
	return true;
}

char *__wrap_path_of_device(dev_t device)
{
	return absolute_path(IMAGE);
}

/*
 * Commands
 */

static void run(const char *command)
{
	assert_int_equal(system(command), 0);
}

/* A qemu-img that can fail, die, or wait; it takes the file for a device. */
static const char script[] =
	"#!/bin/bash\n"
	"cd build/standstill\n"
	"echo $$ >new && mv new here\n"
	"if [ -e fail ]; then echo it was me >&2; exit 1; fi\n"
	"if [ -e die ]; then rm -f die; kill -9 $$; fi\n"
	"while [ -e wait ]; do sleep 0.05; done\n"
	"args=(\"${@/host_device/file}\")\n"
	"exec /usr/bin/qemu-img \"${args[@]/\\\"direct\\\": true/\\\"direct\\\": false}\"\n";

static int fresh(void **state)
{
	int fd;

	run("mkdir -p build/run && rm -rf build/standstill build/run/*");
	run("mkdir -p build/standstill/bin");
	run("/usr/bin/qemu-img create -q -f qcow2 " IMAGE " 4M");
	run("qemu-io -c 'write -P 1 0 1M' " IMAGE " >/dev/null");
	fd = open("build/standstill/bin/qemu-img", O_WRONLY | O_CREAT, 0755);
	assert_int_equal(write(fd, script, sizeof(script) - 1),
			 sizeof(script) - 1);
	close(fd);
	memset(vm, 0, sizeof(*vm));
	vm->sectors = 8192;
	return 0;
}

static int change(enum internal_action action, const char *word)
{
	const struct freeze nothing = { 0 };
	struct internal in = {
		.action = action,
		.word = word,
		.freeze = &nothing,
	};
	int r = begin_change(true);

	if (r < 0)
		return r;
	r = internal_device(&in, "vm");
	if (!r) {
		in.entry = journal_entry("internal", "vm", UUID);
		r = internal_run(&in);
	}
	internal_close(&in);
	recover();
	state_unlock();
	return r;
}

static pid_t start(enum internal_action action, const char *word)
{
	pid_t pid = fork();

	if (!pid)
		_exit(-change(action, word));
	return pid;
}

static pid_t start_waiting(enum internal_action action, const char *word)
{
	pid_t pid;

	run("touch build/standstill/wait && rm -f build/standstill/here");
	pid = start(action, word);
	while (access("build/standstill/here", F_OK) < 0)
		usleep(10000);
	assert_true(vm->suspended);
	return pid;
}

static int result(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

static void assert_no_journal(void)
{
	struct json_object *entry;

	assert_int_equal(journal_read(&entry), 0);
	assert_null(entry);
}

static int edit(enum internal_action action, const char *word)
{
	int r = result(start(action, word));

	assert_false(vm->suspended);
	assert_int_equal(vm->loaded, 0);
	assert_no_journal();
	return r;
}

static void let_go(void)
{
	run("rm build/standstill/wait");
}

/* The process that is to resume the device */
static pid_t guard_of(pid_t pid)
{
	char path[64];
	int guard = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_int_equal(fscanf(file, "%d", &guard), 1);
	fclose(file);
	return guard;
}

/* What the next command does first */
static void next_command(void)
{
	assert_int_equal(begin_change(true), 0);
	state_unlock();
	assert_false(vm->suspended);
	assert_no_journal();
}

static void write_image(int pattern)
{
	char command[128];

	snprintf(command, sizeof(command),
		 "qemu-io -c 'write -P %d 0 1M' " IMAGE " >/dev/null", pattern);
	run(command);
}

static void expect_image(int pattern)
{
	char command[128];

	snprintf(command, sizeof(command),
		 "qemu-io -c 'read -P %d 0 1M' " IMAGE " | (! grep -q failed)",
		 pattern);
	run(command);
}

static void expect_count(unsigned int count)
{
	struct image image;

	assert_int_equal(image_open(IMAGE, FORMAT_QCOW2, &image), 0);
	assert_int_equal(image.header.nb_snapshots, count);
	image_close(&image);
}

/*
 * Tests
 */

static void test_edit(void **state)
{
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	assert_int_equal(vm->suspends, 1);
	run("/usr/bin/qemu-img resize -q " IMAGE " 6M");
	vm->sectors = 12288;
	write_image(2);
	assert_int_equal(edit(INTERNAL_CREATE, "two"), 0);
	assert_int_equal(edit(INTERNAL_APPLY, "one"), 0);
	assert_int_equal(vm->sectors, 8192);
	expect_image(1);
	assert_int_equal(edit(INTERNAL_APPLY, "2"), 0);
	assert_int_equal(vm->sectors, 12288);
	expect_image(2);
	assert_int_equal(edit(INTERNAL_DELETE, "one"), 0);
	expect_count(1);
	assert_int_equal(vm->suspends, 5);
	run("/usr/bin/qemu-img check -q " IMAGE);
}

static void test_in_use(void **state)
{
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	write_image(2);
	vm->open_count = 1;
	assert_int_equal(edit(INTERNAL_APPLY, "one"), -EBUSY);
	assert_int_equal(vm->suspends, 1);
	vm->open_count = 0;
	/* opened between the check and the suspend */
	vm->opened_late = true;
	assert_int_equal(edit(INTERNAL_APPLY, "one"), -EBUSY);
	assert_int_equal(vm->suspends, 2);
	expect_image(2);
}

static void test_qemu_img_fails(void **state)
{
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	write_image(2);
	run("touch build/standstill/fail");
	assert_int_equal(edit(INTERNAL_CREATE, "two"), -EIO);
	assert_int_equal(edit(INTERNAL_APPLY, "one"), -EIO);
	run("rm build/standstill/fail");
	run("touch build/standstill/die");
	assert_int_equal(edit(INTERNAL_DELETE, "one"), -EINTR);
	expect_count(1);
	/* half an apply is not left behind */
	run("touch build/standstill/die");
	assert_int_equal(edit(INTERNAL_APPLY, "one"), 0);
	expect_image(1);
}

static void test_command_killed(void **state)
{
	pid_t pid = start_waiting(INTERNAL_CREATE, "one");

	kill(pid, SIGKILL);
	result(pid);
	assert_true(vm->suspended);
	let_go();
	/* it waits for the process that finishes */
	next_command();
	expect_count(1);
}

static void test_guard_killed(void **state)
{
	pid_t pid = start_waiting(INTERNAL_CREATE, "one");

	kill(guard_of(pid), SIGKILL);
	usleep(500000);
	/* not under a qemu-img that is at work */
	assert_true(vm->suspended);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
	let_go();
	assert_int_equal(result(pid), -EIO);
	assert_false(vm->suspended);
	assert_no_journal();
	expect_count(1);
}

static void test_both_killed(void **state)
{
	pid_t pid = start_waiting(INTERNAL_CREATE, "one");

	kill(guard_of(pid), SIGKILL);
	kill(pid, SIGKILL);
	result(pid);
	usleep(200000);
	assert_true(vm->suspended);
	assert_int_equal(state_lock(false), -EAGAIN);
	let_go();
	next_command();
	expect_count(1);
}

static void kill_all(pid_t pid)
{
	kill(guard_of(pid), SIGKILL);
	kill(pid, SIGKILL);
	result(pid);
	run("kill -9 $(cat build/standstill/here)");
}

static void test_all_killed(void **state)
{
	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	run("/usr/bin/qemu-img resize -q " IMAGE " 6M");
	vm->sectors = 12288;
	write_image(2);
	kill_all(start_waiting(INTERNAL_APPLY, "one"));
	let_go();
	/* the contents may be mixed: it is applied, with the size */
	next_command();
	expect_image(1);
	assert_int_equal(vm->sectors, 8192);
	write_image(3);
	kill_all(start_waiting(INTERNAL_CREATE, "two"));
	let_go();
	next_command();
	expect_image(3);
	expect_count(1);
}

/* Suspended, but nothing has begun: somebody may have it open. */
static void test_killed_before_apply(void **state)
{
	struct json_object *entry = journal_entry("internal", "vm", UUID);

	assert_int_equal(edit(INTERNAL_CREATE, "one"), 0);
	write_image(2);
	assert_int_equal(journal_write(entry), 0);
	json_object_put(entry);
	vm->suspended = true;
	next_command();
	expect_image(2);
}

static void expect_checks(int result)
{
	struct image image;

	assert_int_equal(image_open(IMAGE, FORMAT_QCOW2, &image), 0);
	assert_int_equal(unfinished_check_device("vm"), result);
	assert_int_equal(unfinished_check_image(&image, false), result);
	assert_int_equal(job_check_none("vm"), result);
	assert_int_equal(attach_check_unused(&image, ROLE_READ), result);
	assert_int_equal(unfinished_check_device("other"), 0);
	image_close(&image);
}

/* What a close was to do */
static struct json_object *close_entry(void)
{
	struct json_object *entry = journal_entry("close", "vm", UUID);
	struct chain chain;

	assert_int_equal(chain_open(IMAGE, NULL, &chain), 0);
	json_object_object_add(entry, "state",
			       state_json("vm", UUID, layers_json(&chain),
					  NO_LENGTH));
	chain_close(&chain);
	return entry;
}

/* Others go on; it is tried each time, and stays what is left to do. */
static void test_cannot_be_recovered(void **state)
{
	struct json_object *entry = close_entry();

	assert_int_equal(journal_write(entry), 0);
	json_object_put(entry);
	vm->suspended = true;
	vm->stuck = true;
	expect_checks(0);
	assert_int_equal(begin_change(true), 0);
	assert_no_journal();
	assert_true(vm->suspended);
	expect_checks(-EBUSY);
	/* Another command, which has a journal of its own */
	entry = journal_entry("create", "", "");
	assert_int_equal(journal_write(entry), 0);
	json_object_put(entry);
	assert_int_equal(recover(), 0);
	state_unlock();
	assert_no_journal();
	expect_checks(-EBUSY);
	vm->stuck = false;
	next_command();
	assert_false(vm->suspended);
	expect_checks(0);
}

static void test_part_of_a_group(void **state)
{
	struct json_object *entry = journal_entry("group", "", "");
	struct json_object *parts = json_object_new_array();

	json_object_array_add(parts, journal_entry("snapshot", "x", ""));
	json_object_array_add(parts, close_entry());
	json_object_object_add(entry, "parts", parts);
	assert_int_equal(state_lock(true), 0);
	assert_int_equal(journal_write(entry), 0);
	json_object_put(entry);
	assert_int_equal(journal_set_aside(), 0);
	state_unlock();
	expect_checks(-EBUSY);
}

static void expect_silence(bool silent)
{
	int errors = run_errors(), old = dup(STDERR_FILENO);
	struct stat st;

	assert_int_equal(dup2(errors, STDERR_FILENO), STDERR_FILENO);
	assert_int_equal(begin_change(true), 0);
	state_unlock();
	assert_int_equal(dup2(old, STDERR_FILENO), STDERR_FILENO);
	close(old);
	assert_int_equal(fstat(errors, &st), 0);
	close(errors);
	assert_int_equal(!st.st_size, silent);
}

static void test_said_once(void **state)
{
	struct json_object *entry = close_entry();

	vm->suspended = true;
	vm->stuck = true;
	assert_int_equal(journal_write(entry), 0);
	expect_silence(false);
	expect_silence(true);
	/* Two of them */
	assert_int_equal(journal_write(entry), 0);
	expect_silence(false);
	expect_silence(true);
	json_object_put(entry);
	vm->stuck = false;
	next_command();
	expect_checks(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_edit, fresh),
		cmocka_unit_test_setup(test_in_use, fresh),
		cmocka_unit_test_setup(test_qemu_img_fails, fresh),
		cmocka_unit_test_setup(test_command_killed, fresh),
		cmocka_unit_test_setup(test_guard_killed, fresh),
		cmocka_unit_test_setup(test_both_killed, fresh),
		cmocka_unit_test_setup(test_all_killed, fresh),
		cmocka_unit_test_setup(test_killed_before_apply, fresh),
		cmocka_unit_test_setup(test_cannot_be_recovered, fresh),
		cmocka_unit_test_setup(test_part_of_a_group, fresh),
		cmocka_unit_test_setup(test_said_once, fresh),
	};
	char *path;

	vm = mmap(NULL, sizeof(*vm), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (asprintf(&path, "build/standstill/bin:%s", getenv("PATH")) < 0)
		return 1;
	setenv("PATH", path, 1);
	free(path);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
