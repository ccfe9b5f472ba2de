// SPDX-License-Identifier: GPL-2.0-only
/*
 * Asking somebody at a terminal.
 */
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "report.h"

static const int ending[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };

#define ENDING	(sizeof(ending) / sizeof(ending[0]))

static atomic_int caught;

static void catch(int signal)
{
	caught = signal;
}

/* Without SA_RESTART: the read ends. */
static void catch_signals(struct sigaction before[ENDING])
{
	struct sigaction action = { .sa_handler = catch };
	unsigned int i;

	caught = 0;
	for (i = 0; i < ENDING; i++)
		sigaction(ending[i], &action, &before[i]);
}

static void release_signals(const struct sigaction before[ENDING])
{
	unsigned int i;

	for (i = 0; i < ENDING; i++)
		sigaction(ending[i], &before[i], NULL);
}

/* Up to a newline, which is eaten. Return: length, or a negative errno */
static int read_line(int fd, char *line, size_t size)
{
	size_t length = 0;
	ssize_t n;

	while ((n = read(fd, line + length, 1)) == 1 && line[length] != '\n') {
		if (++length == size)
			return -E2BIG;
	}
	if (n < 0)
		return -errno;
	line[length] = '\0';
	return length;
}

static int ask(int fd, const char *prompt, char *line, size_t size)
{
	struct termios before, silent;
	bool changed;
	int r;

	changed = tcgetattr(fd, &before) == 0;
	if (changed) {
		silent = before;
		silent.c_lflag &= ~(ECHO | ECHOE | ECHOK | ECHONL);
		silent.c_lflag |= ICANON | ISIG;
		tcsetattr(fd, TCSAFLUSH, &silent);
	}
	dprintf(fd, "%s", prompt);
	r = read_line(fd, line, size);
	dprintf(fd, "\n");
	if (changed)
		tcsetattr(fd, TCSAFLUSH, &before);
	return r;
}

int terminal_ask(const char *prompt, char *line, size_t size)
{
	struct sigaction before[ENDING];
	int fd, r;

	fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return report_errno(errno, "Cannot ask at the terminal");
	catch_signals(before);
	r = ask(fd, prompt, line, size);
	release_signals(before);
	close(fd);
	/* Now that the terminal is as it was */
	if (caught)
		raise(caught);
	if (r < 0 && r != -EINTR)
		return report_errno(-r, "Cannot read from the terminal");
	return r;
}
