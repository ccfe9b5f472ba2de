// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a power cut must not take back.
 */
#include "durable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "image.h"
#include "report.h"

int durable_try(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), r = 0;

	if (fd < 0 || fsync(fd) < 0)
		r = -errno;
	if (fd >= 0)
		close(fd);
	return r;
}

int durable_make(const char *path)
{
	int r = durable_try(path);

	return r < 0 ? report_errno(-r, "Cannot write %s", path) : 0;
}

int durable_name(const char *path)
{
	char *directory = directory_of(path);
	int r = durable_make(directory);

	free(directory);
	return r;
}
