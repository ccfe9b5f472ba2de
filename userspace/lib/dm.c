// SPDX-License-Identifier: GPL-2.0-only
/*
 * Device-mapper.
 */
#include "dm.h"

#include <errno.h>
#include <fcntl.h>
#include <libdevmapper.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "report.h"
#include "run.h"

#define TARGET	"qcow2"

/* What udev shall not do with our devices: look at what is in them. */
#define UDEV_FLAGS	(DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG |	\
			 DM_UDEV_DISABLE_DISK_RULES_FLAG |	\
			 DM_UDEV_DISABLE_OTHER_RULES_FLAG)

static char last_message[512];

/* Errors of libdevmapper are kept for our own message. */
__attribute__((format(printf, 5, 6)))
static void keep_message(int level, const char *file, int line, int error,
			 const char *format, ...)
{
	va_list args;

	(void)file;
	(void)line;
	(void)error;
	if ((level & 7) > 3)	/* _LOG_ERR */
		return;
	va_start(args, format);
	vsnprintf(last_message, sizeof(last_message), format, args);
	va_end(args);
}

void dm_init(void)
{
	dm_log_with_errno_init(keep_message);
}

bool dm_uuid_is(const struct dm_state *state, const char *prefix)
{
	return !strncmp(state->uuid, prefix, strlen(prefix));
}

bool dm_is_helper(const struct dm_state *state)
{
	return dm_uuid_is(state, DM_UUID_TAIL) ||
		dm_uuid_is(state, DM_UUID_CRYPT);
}

static struct dm_task *task_new(int type, const char *name)
{
	struct dm_task *task = dm_task_create(type);

	last_message[0] = '\0';
	if (task && name && !dm_task_set_name(task, name)) {
		dm_task_destroy(task);
		task = NULL;
	}
	return task;
}

int dm_available(void)
{
	char version[64];

	last_message[0] = '\0';
	if (dm_driver_version(version, sizeof(version)))
		return 0;
	if (geteuid() == 0)
		load_module("dm-mod");
	if (dm_driver_version(version, sizeof(version)))
		return 0;
	if (access("/dev/mapper/control", F_OK) == 0 &&
	    access("/dev/mapper/control", R_OK | W_OK) < 0)
		return report_errno(errno, "Cannot use device-mapper");
	return report_fail(ENODEV,
			   "Cannot use device-mapper; is the dm-mod module loaded? %s",
			   last_message);
}

/* The kernel's log says what a target did not like. Return: -1 without a log */
static int kernel_log_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
	return fd;
}

/* A record: "6,1234,5678,-;text\n" */
static void kernel_log_print(int fd)
{
	char record[8192], *message;
	ssize_t len;

	while (!report_muted() && (len = read(fd, record, sizeof(record) - 1)) > 0) {
		record[len] = '\0';
		message = strchr(record, ';');
		if (!message || strncmp(message + 1, "device-mapper:", 14))
			continue;
		message[strcspn(message, "\n")] = '\0';
		fprintf(stderr, "Kernel: %s\n", message + 1);
	}
}

/**
 * enum udev - what udev has to do with a task
 * @UDEV_NONE: nothing
 * @UDEV_WAIT: it is waited for
 * @UDEV_TRY: the same, if there is a semaphore left for that
 */
enum udev { UDEV_NONE, UDEV_WAIT, UDEV_TRY };

/* Runs a task that changes something. Return: 0 or a negative errno. */
static int task_run(struct dm_task *task, enum udev udev)
{
	uint32_t cookie = 0;
	int error = 0;

	if (udev && !dm_task_set_cookie(task, &cookie, UDEV_FLAGS) &&
	    udev == UDEV_WAIT)
		return -ENOMEM;
	if (!dm_task_run(task)) {
		error = dm_task_get_errno(task);
		if (!error)
			error = EIO;
	}
	if (udev)
		dm_udev_wait(cookie);
	return -error;
}

/* Runs and destroys a task; says what went wrong. */
static int task_do(struct dm_task *task, enum udev udev, const char *what,
		   const char *name)
{
	int log, error;

	if (!task)
		return report_memory();
	log = kernel_log_open();
	error = -task_run(task, udev);
	if (error) {
		report_errno(error, "Cannot %s device %s", what, name);
		if (log >= 0)
			kernel_log_print(log);
	}
	if (log >= 0)
		close(log);
	dm_task_destroy(task);
	/* The kernel's EINVAL is about an image, not about our command line. */
	return error == EINVAL ? -EIO : -error;
}

/* Return: whether the kernel has a target now, or nobody can tell */
static bool target_known(const char *target)
{
	struct dm_task *task = task_new(DM_DEVICE_LIST_VERSIONS, NULL);
	struct dm_versions *version, *last;
	bool known = true;

	if (task && dm_task_run(task)) {
		version = dm_task_get_versions(task);
		do {
			last = version;
			known = !strcmp(version->name, target);
			version = (void *)((char *)version + version->next);
		} while (!known && version != last);
	}
	if (task)
		dm_task_destroy(task);
	return known;
}

/* The kernel has tried to load the module; all it says is "Invalid argument". */
static void tell_missing(const struct dm_segment *segments, unsigned int count)
{
	struct utsname kernel;
	unsigned int i;

	for (i = 0; i < count; i++) {
		if (target_known(segments[i].target) || uname(&kernel) < 0)
			continue;
		report_fail(ENOPKG,
			    "The kernel has no target '%s': is the module dm-%s installed for Linux %s ('modprobe dm-%s' tells)?",
			    segments[i].target, segments[i].target,
			    kernel.release, segments[i].target);
		return;
	}
}

/* Fills, runs and destroys a task that makes a table; NULL: there was no memory. */
static int task_do_table(struct dm_task *task, enum udev udev, const char *what,
			 const char *name, bool read_only,
			 const struct dm_segment *segments, unsigned int count)
{
	bool filled = task && (!read_only || dm_task_set_ro(task));
	unsigned int i;
	int r;

	for (i = 0; i < count && filled; i++)
		filled = dm_task_add_target(task, segments[i].start,
					    segments[i].length,
					    segments[i].target,
					    segments[i].params);
	if (!filled) {
		if (task)
			dm_task_destroy(task);
		return report_memory();
	}
	r = task_do(task, udev, what, name);
	if (r < 0)
		tell_missing(segments, count);
	return r;
}

int dm_create(const char *name, const char *uuid, bool read_only,
	      const struct dm_segment *segments, unsigned int count)
{
	struct dm_task *task = task_new(DM_DEVICE_CREATE, name);

	if (task && !dm_task_set_uuid(task, uuid)) {
		dm_task_destroy(task);
		task = NULL;
	}
	return task_do_table(task, UDEV_WAIT, "create", name, read_only,
			     segments, count);
}

int dm_load(const char *name, bool read_only, const struct dm_segment *segment)
{
	return task_do_table(task_new(DM_DEVICE_RELOAD, name), UDEV_NONE,
			     "load a table into", name, read_only, segment, 1);
}

int dm_resume(const char *name)
{
	return task_do(task_new(DM_DEVICE_RESUME, name), UDEV_TRY, "resume",
		       name);
}

int dm_suspend(const char *name)
{
	return task_do(task_new(DM_DEVICE_SUSPEND, name), UDEV_NONE, "suspend",
		       name);
}

static int errno_of(struct dm_task *task)
{
	int error = dm_task_get_errno(task);

	return error ? -error : -EIO;
}

int dm_suspend_now(const char *name, bool lockfs)
{
	struct dm_task *task = task_new(DM_DEVICE_SUSPEND, name);
	int r = -ENOMEM;

	if (task && (lockfs || dm_task_skip_lockfs(task)))
		r = dm_task_run(task) ? 0 : errno_of(task);
	if (task)
		dm_task_destroy(task);
	return r;
}

int dm_resume_now(const char *name, bool lockfs, uint32_t *cookie)
{
	struct dm_task *task = task_new(DM_DEVICE_RESUME, name);
	int r = -ENOMEM;

	if (task && (lockfs || dm_task_skip_lockfs(task))) {
		/* Without a semaphore udev is not waited for. */
		dm_task_set_cookie(task, cookie, UDEV_FLAGS);
		r = dm_task_run(task) ? 0 : errno_of(task);
	}
	if (task)
		dm_task_destroy(task);
	return r;
}

void dm_settle(uint32_t cookie)
{
	dm_udev_wait(cookie);
}

int dm_clear(const char *name)
{
	return task_do(task_new(DM_DEVICE_CLEAR, name), UDEV_NONE,
		       "drop the inactive table of", name);
}

int dm_remove(const char *name, bool deferred)
{
	struct dm_task *task = task_new(DM_DEVICE_REMOVE, name);
	int r;

	if (!task || (deferred && !dm_task_deferred_remove(task)) ||
	    (!deferred && !dm_task_retry_remove(task))) {
		if (task)
			dm_task_destroy(task);
		return report_memory();
	}
	r = task_run(task, UDEV_WAIT);
	dm_task_destroy(task);
	if (r == -ENXIO)	/* it is gone */
		return 0;
	if (r < 0 && r != -EBUSY)
		report_errno(-r, "Cannot remove device %s", name);
	return r;
}

int dm_hold(const char *name, const char *uuid, dev_t *device)
{
	struct dm_state state = dm_query(name);
	char *path;
	int fd;

	if (!state.exists || !state.live || strcmp(state.uuid, uuid))
		return -ENODEV;
	path = text("/dev/dm-%u", minor(state.device));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	free(path);
	if (fd < 0)
		return -errno;
	*device = state.device;
	if (!state.deferred)
		dm_remove(name, true);
	return fd;
}

struct dm_state dm_query(const char *name)
{
	struct dm_state state = { 0 };
	struct dm_task *task = task_new(DM_DEVICE_INFO, name);
	struct dm_info info;

	if (task && dm_task_run(task) && dm_task_get_info(task, &info) &&
	    info.exists) {
		state.exists = true;
		state.device = makedev(info.major, info.minor);
		state.open_count = info.open_count;
		state.read_only = info.read_only;
		state.suspended = info.suspended;
		state.live = info.live_table;
		state.loaded = info.inactive_table;
		state.deferred = info.deferred_remove;
		snprintf(state.uuid, sizeof(state.uuid), "%s",
			 dm_task_get_uuid(task) ? dm_task_get_uuid(task) : "");
	}
	if (task)
		dm_task_destroy(task);
	return state;
}

/* The arguments or the status of the only line of a device, if it has the target */
static bool only_line(int type, const char *name, const char *wanted,
		      struct dm_segment *segment)
{
	struct dm_task *task = task_new(type, name);
	char *target = NULL, *params = NULL;
	bool found = false;
	void *next;

	/* A status must not commit: that is for those who write. */
	if (task && dm_task_no_flush(task) && dm_task_run(task)) {
		next = dm_get_next_target(task, NULL, &segment->start,
					  &segment->length, &target, &params);
		found = !next && target && !strcmp(target, wanted);
	}
	segment->target = wanted;
	segment->params = found ? text_copy(params ? params : "") : NULL;
	if (task)
		dm_task_destroy(task);
	return found;
}

bool dm_table_of(const char *name, const char *target,
		 struct dm_segment *segment)
{
	return only_line(DM_DEVICE_TABLE, name, target, segment);
}

bool dm_table(const char *name, struct dm_segment *segment)
{
	return dm_table_of(name, TARGET, segment);
}

char *dm_status(const char *name)
{
	struct dm_segment segment;

	only_line(DM_DEVICE_STATUS, name, TARGET, &segment);
	return segment.params;
}

bool dm_each(bool (*visit)(const char *name, void *data), void *data)
{
	struct dm_task *task = task_new(DM_DEVICE_LIST, NULL);
	struct dm_names *names;
	unsigned int next = 0;
	bool done = false;

	if (!task || !dm_task_run(task)) {
		if (task)
			dm_task_destroy(task);
		return false;
	}
	names = dm_task_get_names(task);
	if (names && names->dev) {
		do {
			names = (struct dm_names *)((char *)names + next);
			done = visit(names->name, data);
			next = names->next;
		} while (next && !done);
	}
	dm_task_destroy(task);
	return done;
}

void dm_drop_node(const char *name)
{
	char *path = text("%s/%s", dm_dir(), name);
	struct stat st;

	if (!dm_query(name).exists && lstat(path, &st) == 0 &&
	    S_ISBLK(st.st_mode))
		unlink(path);
	free(path);
}
