// SPDX-License-Identifier: GPL-2.0-only
/*
 * qemu-img.
 */
#include "qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report.h"
#include "run.h"

#define MAX_ARGS	20

static int run_qemu_img(const char *const argv[])
{
	switch (run_program(argv)) {
	case 0:
		return 0;
	case -ENOENT:
		return report_fail(ENOENT,
				   "Cannot find qemu-img (package qemu-utils).");
	default:
		return report_fail(EIO, "qemu-img failed.");
	}
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
	r = run_qemu_img(argv);
	return r < 0 ? r : make_durable(image->path);
}
