// SPDX-License-Identifier: GPL-2.0-only
/*
 * Other programs.
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "report.h"
#include "state.h"

/* Return: the exit status, or an error */
static int wait_for(pid_t pid, const char *name)
{
	int status;

	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return report_errno(errno, "Cannot wait for %s", name);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -EINTR;
}

/* dup2 of a descriptor to itself clears its close-on-exec flag. */
static int add_descriptor(posix_spawn_file_actions_t *actions, int fd, int as)
{
	return fd < 0 ? 0 : posix_spawn_file_actions_adddup2(actions, fd, as);
}

static int add_nothing(posix_spawn_file_actions_t *actions, int as)
{
	return posix_spawn_file_actions_addopen(actions, as, "/dev/null",
						O_WRONLY, 0);
}

/* Whatever we block ourselves (swap.c) */
static int take_signals(posix_spawnattr_t *attributes)
{
	sigset_t none;
	int r;

	sigemptyset(&none);
	r = posix_spawnattr_setsigmask(attributes, &none);
	return r ? r : posix_spawnattr_setflags(attributes,
						POSIX_SPAWN_SETSIGMASK);
}

static int spawn(const char *const argv[], const struct run_files *files,
		 pid_t *pid)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	int lock = state_lock_fd();
	int r;

	posix_spawnattr_init(&attributes);
	r = posix_spawn_file_actions_init(&actions);
	if (!r)
		r = take_signals(&attributes);
	if (!r && files->output < 0)
		r = add_nothing(&actions, STDOUT_FILENO);
	if (!r && files->errors < 0 && report_muted())
		r = add_nothing(&actions, STDERR_FILENO);
	if (!r)
		r = add_descriptor(&actions, files->output, STDOUT_FILENO);
	if (!r)
		r = add_descriptor(&actions, files->errors, STDERR_FILENO);
	if (!r)
		r = add_descriptor(&actions, files->keep, files->keep);
	if (!r)
		r = add_descriptor(&actions, lock, lock);
	if (!r && files->directory)
		r = posix_spawn_file_actions_addchdir_np(&actions,
							 files->directory);
	if (!r)
		r = posix_spawnp(pid, argv[0], &actions, &attributes,
				 (char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	if (r == ENOENT)
		return -ENOENT;
	return r ? report_errno(r, "Cannot start %s", argv[0]) : 0;
}

static const struct run_files no_files = { -1, -1, -1, NULL };

int run_program(const char *const argv[], const struct run_files *files)
{
	pid_t pid;
	int r;

	r = spawn(argv, files ? files : &no_files, &pid);
	if (!r)
		r = wait_for(pid, argv[0]);
	return r > 0 ? -EIO : r;
}

static void read_all(int fd, char **output)
{
	size_t len = 0, room = 0;
	ssize_t n;

	do {
		if (room - len < 2)
			*output = grow_array(*output, room += 4096, 1);
		n = read(fd, *output + len, room - len);
		if (n > 0)
			len += n;
	} while (n > 0 || (n < 0 && errno == EINTR));
	(*output)[len] = '\0';
}

int run_output(const char *const argv[], char **output)
{
	struct run_files files = no_files;
	int ends[2], r;
	pid_t pid;

	*output = NULL;
	if (pipe2(ends, O_CLOEXEC) < 0)
		return report_errno(errno, "Cannot start %s", argv[0]);
	files.output = ends[1];
	r = spawn(argv, &files, &pid);
	close(ends[1]);
	if (!r) {
		read_all(ends[0], output);
		r = wait_for(pid, argv[0]);
	}
	close(ends[0]);
	return r;
}

int run_errors(void)
{
	int fd = memfd_create("errors", MFD_CLOEXEC);

	return fd < 0 ?
		report_errno(errno, "Cannot create a file in memory") : fd;
}

static void print_renamed(const char *said, const char *old, const char *name)
{
	const char *found;

	while (old && *old && (found = strstr(said, old))) {
		fprintf(stderr, "%.*s%s", (int)(found - said), said, name);
		said = found + strlen(old);
	}
	fputs(said, stderr);
}

void run_print_errors(int errors, const char *old, const char *name)
{
	struct stat st;
	ssize_t len;
	char *said;

	if (fstat(errors, &st) < 0 || !st.st_size)
		return;
	said = grow_array(NULL, st.st_size, 1);
	len = pread(errors, said, st.st_size, 0);
	said[len < 0 ? 0 : len] = '\0';
	print_renamed(said, old, name);
	free(said);
}

void load_module(const char *name)
{
	const char *const argv[] = { "modprobe", "-q", name, NULL };

	/* Whoever needs the module will say so if it is not there. */
	run_program(argv, NULL);
}
