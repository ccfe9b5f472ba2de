// SPDX-License-Identifier: GPL-2.0-only
/*
 * The moment in which loaded tables become active.
 */
#include "swap.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dm.h"
#include "report.h"
#include "stack.h"

/**
 * struct outcome - what the process that swaps tells the one that waits
 * @what: what failed, for a message, or NULL
 * @who: the device, mount point or socket it failed with
 * @error: positive errno
 * @edit: what the edit returned
 * @thawed: everything that was frozen is thawed
 *
 * In memory that both share: while devices stand still nothing is written that
 * may end on one of them, messages included.
 */
struct outcome {
	const char *what;
	const char *who;
	int error;
	int edit;
	bool thawed;
};

/*
 * Checks
 */

/* For a file, the device of its file system; else the device */
static dev_t place_of(const struct image_id *id, const char *path)
{
	dev_t place = id->block ? id->dev : stack_place(path);

	return place ? place : id->dev;
}

static int check_image(const struct swap *swap, const struct device *user,
		       const struct image_id *id, const char *path)
{
	const char *mount = freeze_holds(swap->freeze, id);
	const struct device *device;
	unsigned int i;

	if (mount)
		return report_fail(EINVAL,
				   "%s cannot be frozen: it holds %s, which device %s has to write to.",
				   mount, path, user->name);
	for (i = 0; i < swap->count; i++) {
		device = swap->devices[i];
		if (swap->count > 1 &&
		    stack_has(place_of(id, path), device->dm.device))
			return report_fail(EINVAL,
					   "Device %s holds %s of device %s: they cannot stand still together.",
					   device->name, path, user->name);
	}
	return 0;
}

int swap_check_new(const struct swap *swap, const struct device *user,
		   const char *path)
{
	const struct image_id id = { .dev = stack_place(path) };
	const char *mount = freeze_holds(swap->freeze, &id);
	const struct device *device;
	unsigned int i;

	if (mount)
		return report_fail(EINVAL,
				   "%s cannot be frozen: device %s has to go on in %s, which is on it.",
				   mount, user->name, path);
	for (i = 0; i < swap->count; i++) {
		device = swap->devices[i];
		if (stack_has(id.dev, device->dm.device))
			return report_fail(EINVAL,
					   "%s is on device %s: device %s cannot go on in it, as its first I/O would wait for ever. Put it elsewhere.",
					   path, device->name, user->name);
	}
	return 0;
}

/* Who edits must not need what stands still. */
static int check_system(const struct device *device)
{
	char *what = stack_system_on(device->dm.device);
	int r = 0;

	if (what)
		r = report_fail(EINVAL,
				"Device %s holds %s, which is needed while the device stands still.",
				device->name, what);
	free(what);
	return r;
}

static int check_device(const struct swap *swap, const struct device *device)
{
	int r = swap->edit ? check_system(device) : 0;
	const struct device_layer *layer;
	unsigned int i;

	for (i = 0; i < device->count && !r; i++) {
		layer = &device->layers[i];
		r = check_image(swap, device, &layer->id, layer->path);
		if (!r && layer->data_path)
			r = check_image(swap, device, &layer->data_id,
					layer->data_path);
	}
	return r;
}

int swap_check(const struct swap *swap)
{
	unsigned int i, j;
	int r = 0;

	for (i = 0; i < swap->count && !r; i++) {
		for (j = 0; j < i; j++) {
			if (!strcmp(swap->devices[i]->name,
				    swap->devices[j]->name))
				return report_fail(EINVAL,
						   "Device %s is named twice.",
						   swap->devices[i]->name);
		}
		r = check_device(swap, swap->devices[i]);
	}
	return r;
}

/*
 * In the process that swaps. No messages here.
 */

static int failed(struct outcome *outcome, const char *what, const char *who,
		  int error)
{
	if (error && !outcome->what) {
		outcome->what = what;
		outcome->who = who;
		outcome->error = -error;
	}
	return error;
}

/*
 * It is suspended, or was not even touched. What its old table needs is still
 * attached, so that no file is needed.
 */
static void load_old_table(const struct device *device, uint32_t *cookie)
{
	struct dm_segment segment = {
		.length = device->sectors,
		.target = "qcow2",
	};

	if (!dm_query(device->name).suspended)
		return;
	segment.params = device_params(device->layers, device->count,
				       ZERO_FROM_NONE, device->features,
				       device->feature_words);
	if (dm_load(device->name, device->dm.read_only, &segment) == 0)
		dm_resume_now(device->name, true, cookie);
	free(segment.params);
}

/* A file system that is frozen already cannot be frozen again. */
static bool has_frozen(const struct swap *swap, const struct device *device)
{
	struct image_id id = { true, device->dm.device, 0 };

	return freeze_holds(swap->freeze, &id);
}

static int suspend_all(const struct swap *swap, struct outcome *outcome)
{
	const struct device *device;
	unsigned int i;
	int r = 0;

	for (i = 0; i < swap->count && !r; i++) {
		device = swap->devices[i];
		r = dm_suspend_now(device->name, !has_frozen(swap, device));
		failed(outcome, "Cannot suspend device", device->name, r);
	}
	return r;
}

/* Return: 0, or the error of the first one that could not be resumed */
static int resume_all(const struct swap *swap, struct outcome *outcome,
		      uint32_t *cookie)
{
	const struct device *device;
	unsigned int i;
	int r = 0, one;

	for (i = 0; i < swap->count && !r; i++) {
		device = swap->devices[i];
		one = dm_resume_now(device->name, !has_frozen(swap, device),
				    cookie);
		failed(outcome, "Cannot resume device", device->name, one);
		/* From the first one on there is no way back for the others. */
		if (!i)
			r = one;
	}
	return r;
}

static void swap_all(const struct swap *swap, struct outcome *outcome,
		     uint32_t *cookie)
{
	unsigned int i;
	int r = 0;

	/* For one device the resume suspends it, too. */
	if (swap->count > 1 || swap->edit)
		r = suspend_all(swap, outcome);
	if (!r && swap->edit) {
		r = swap->edit(swap->data);
		outcome->edit = r;
	}
	if (!r)
		resume_all(swap, outcome, cookie);
	for (i = 0; i < swap->count && (outcome->what || r); i++)
		load_old_table(swap->devices[i], cookie);
}

static void run_here(const struct swap *swap, struct outcome *outcome)
{
	const char *who = NULL;
	struct freeze frozen;
	uint32_t cookie = 0;
	int r;

	/* Our own pages could be on the devices. */
	mlockall(MCL_CURRENT | MCL_FUTURE);
	report_mute(true);
	r = freeze_begin(swap->freeze, &frozen, &who);
	failed(outcome, "Cannot freeze", who, r);
	if (!r)
		swap_all(swap, outcome, &cookie);
	r = freeze_end(&frozen, &who);
	failed(outcome, "Cannot thaw", who, r);
	outcome->thawed = !r;
	/* udev may be slow, or need what was frozen. */
	dm_settle(cookie);
}

/*
 * In the process that waits
 */

static int report_outcome(const struct outcome *outcome)
{
	if (!outcome->what)
		return outcome->edit;
	report_errno(outcome->error, "%s %s", outcome->what, outcome->who);
	/* The kernel's EINVAL is not about the command line. */
	return outcome->error == EINVAL ? -EIO : -outcome->error;
}

/*
 * An edit is over only when the program that it has started is, too. That one is
 * in the group of the process that edits, and a child of ours when that is gone.
 */
static void wait_orphans(pid_t group)
{
	while (waitpid(-group, NULL, 0) > 0 || errno == EINTR)
		;
}

static int wait_for(pid_t pid, const struct outcome *outcome)
{
	int status, r;

	do {
		r = waitpid(pid, &status, 0);
	} while (r < 0 && errno == EINTR);
	if (r == pid && WIFEXITED(status))
		return report_outcome(outcome);
	return report_fail(EIO,
			   "The process that was to resume the devices was killed.");
}

void swap_restore(const struct device *device)
{
	uint32_t cookie = 0;

	load_old_table(device, &cookie);
	dm_settle(cookie);
}

int swap_run(struct swap *swap)
{
	struct outcome *outcome;
	sigset_t all, before;
	pid_t pid;
	int r;

	outcome = mmap(NULL, sizeof(*outcome), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (outcome == MAP_FAILED)
		return report_memory();
	memset(outcome, 0, sizeof(*outcome));
	fflush(stdout);
	/*
	 * A signal in the middle of an ioctl can end it, with a device suspended.
	 * The child is known to nobody, and finishes if we are killed. Who ends all
	 * processes of a service, or of the machine, signals it as well: it takes
	 * none. It has the state lock and what is attached, too: no other command
	 * starts before it ends.
	 */
	prctl(PR_SET_CHILD_SUBREAPER, !!swap->edit);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	pid = fork();
	if (pid)
		sigprocmask(SIG_SETMASK, &before, NULL);
	if (!pid) {
		setsid();
		run_here(swap, outcome);
		_exit(0);
	}
	mlockall(MCL_CURRENT | MCL_FUTURE);
	r = pid < 0 ? report_errno(errno, "Cannot start a process") :
		wait_for(pid, outcome);
	if (swap->edit && pid > 0)
		wait_orphans(pid);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	swap->thawed = outcome->thawed;
	swap->edit_error = outcome->edit;
	munlockall();
	munmap(outcome, sizeof(*outcome));
	return r;
}
