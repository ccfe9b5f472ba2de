// SPDX-License-Identifier: GPL-2.0-only
/*
 * Another table for an open device.
 */
#include "pivot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel_status.h"
#include "report.h"

int pivot_check(const struct device *device)
{
	struct kernel_status status;

	if (device->dm.suspended)
		return report_fail(EBUSY, "Device %s is suspended.",
				   device->name);
	if (device->dm.loaded)
		return report_fail(EBUSY,
				   "Device %s has an inactive table: another program is changing it.",
				   device->name);
	if (kernel_status_read(device->name, &status) &&
	    !strcmp(status.mode, "failed"))
		return report_fail(EIO,
				   "Device %s could not write to its image any more (%s).",
				   device->name, status.reason);
	return 0;
}

struct pivot pivot_same(const struct device *device)
{
	struct pivot pivot = {
		.layers = device->layers,
		.count = device->count,
		.zero_from = ZERO_FROM_NONE,
		.features = device->features,
		.feature_words = device->feature_words,
	};

	return pivot;
}

static int load(const struct device *device, const struct pivot *pivot)
{
	struct dm_segment segment = {
		.length = device->sectors,
		.target = "qcow2",
	};
	int r;

	segment.params = device_params(pivot->layers, pivot->count,
				       pivot->zero_from, pivot->features,
				       pivot->feature_words);
	r = dm_load(device->name, device->dm.read_only, &segment);
	free(segment.params);
	return r;
}

/*
 * The ioctl failed: the device is suspended now, with either table, or was not
 * even touched. What the old table needs is still attached.
 */
static void load_old_table(const struct device *device)
{
	struct pivot old = pivot_same(device);

	if (!dm_query(device->name).suspended)
		return;
	if (load(device, &old) == 0)
		dm_resume(device->name);
}

static int swap_at_once(const struct device *device)
{
	int r;

	/* Our own pages could be on the device. */
	mlockall(MCL_CURRENT | MCL_FUTURE);
	r = dm_resume(device->name);
	if (r < 0)
		load_old_table(device);
	munlockall();
	return r;
}

/*
 * A signal that ends the process in the middle of the ioctl can end the ioctl,
 * with the device suspended. So there are two processes: the child, which
 * nobody knows of, finishes if we are killed; we do if the child is. It has the
 * state lock and our attachments, too: no other command starts before it ends.
 */
static int swap_in_child(const struct device *device)
{
	int status, r;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0)
		return report_errno(errno, "Cannot start a process");
	if (!pid) {
		setsid();
		_exit(-swap_at_once(device));
	}
	do {
		r = waitpid(pid, &status, 0);
	} while (r < 0 && errno == EINTR);
	if (r == pid && WIFEXITED(status))
		return -WEXITSTATUS(status);
	load_old_table(device);
	return report_fail(EIO, "The process that was to resume device %s was killed.",
			   device->name);
}

static int hold_layer(dev_t device)
{
	char *path = path_of_device(device);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	free(path);
	return fd;
}

/* Loop devices of the old table would clear themselves with it. */
static int *hold_layers(const struct device *device)
{
	int *held = NULL;
	unsigned int i;

	for (i = 0; i < device->count; i++) {
		held = grow_array(held, i, sizeof(*held));
		held[i] = hold_layer(device->layers[i].device);
	}
	return held;
}

static void release_layers(int *held, unsigned int count)
{
	while (count--) {
		if (held[count] >= 0)
			close(held[count]);
	}
	free(held);
}

int pivot_run(const struct device *device, const struct pivot *pivot)
{
	int *held = hold_layers(device);
	int r;

	r = load(device, pivot);
	if (!r && pivot->ready)
		r = pivot->ready(pivot->data);
	if (!r)
		r = swap_in_child(device);
	if (r < 0 && dm_query(device->name).loaded)
		dm_clear(device->name);
	release_layers(held, device->count);
	return r;
}
