// SPDX-License-Identifier: GPL-2.0-only
/*
 * Other programs.
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "report.h"
#include "state.h"

static int wait_for(pid_t pid, const char *name)
{
	int status;

	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return report_errno(errno, "Cannot wait for %s", name);
	}
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

int run_program(const char *const argv[])
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
	if (!r)
		r = posix_spawnp(&pid, argv[0], &actions, NULL,
				 (char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (r == ENOENT)
		return -ENOENT;
	if (r)
		return report_errno(r, "Cannot start %s", argv[0]);
	return wait_for(pid, argv[0]);
}

void load_module(const char *name)
{
	const char *const argv[] = { "modprobe", "-q", name, NULL };

	/* Whoever needs the module will say so if it is not there. */
	run_program(argv);
}
