// SPDX-License-Identifier: GPL-2.0-only
/*
 * qemu-img.
 */
#include "qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "report.h"
#include "state.h"

#define MAX_ARGS	20

static int wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return report_errno(errno, "Cannot wait for qemu-img");
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	return report_fail(EIO, "qemu-img failed.");
}

/* Standard output is ours alone; the state lock goes along. */
static int spawn(char *const argv[])
{
	posix_spawn_file_actions_t actions;
	int lock = state_lock_fd();
	pid_t pid;
	int r;

	r = posix_spawn_file_actions_init(&actions);
	if (!r)
		r = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO,
						     "/dev/null", O_WRONLY, 0);
	/* dup2 of a descriptor to itself clears its close-on-exec flag. */
	if (!r && lock >= 0)
		r = posix_spawn_file_actions_adddup2(&actions, lock, lock);
	if (r)
		return report_errno(r, "Cannot start qemu-img");
	r = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (r == ENOENT)
		return report_fail(ENOENT,
				   "Cannot find qemu-img (package qemu-utils).");
	if (r)
		return report_errno(r, "Cannot start qemu-img");
	return wait_for(pid);
}

static int sync_path(const char *path, int flags)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | flags), r = 0;

	if (fd < 0 || fsync(fd) < 0)
		r = report_errno(errno, "Cannot write %s", path);
	if (fd >= 0)
		close(fd);
	return r;
}

/* The file, and its name */
static int make_durable(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *directory;
	int r;

	r = sync_path(path, 0);
	if (r < 0)
		return r;
	directory = text("%.*s", slash == path ? 1 : (int)(slash - path), path);
	r = sync_path(directory, O_DIRECTORY);
	free(directory);
	return r;
}

int qemu_create(const struct new_image *image)
{
	const char *argv[MAX_ARGS] = { "qemu-img", "create", "-q", "-f", "qcow2" };
	unsigned int n = 5;
	int r;

	if (image->options) {
		argv[n++] = "-o";
		argv[n++] = image->options;
	}
	if (image->backing) {
		argv[n++] = "-u";
		argv[n++] = "-b";
		argv[n++] = image->backing;
		argv[n++] = "-F";
		argv[n++] = image->backing_format;
	}
	argv[n++] = "--";
	argv[n++] = image->path;
	if (image->size)
		argv[n++] = image->size;
	r = spawn((char *const *)argv);
	return r < 0 ? r : make_durable(image->path);
}
