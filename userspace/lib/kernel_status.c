// SPDX-License-Identifier: GPL-2.0-only
/*
 * The status line of the kernel target.
 */
#include "kernel_status.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dm.h"

bool kernel_status_read(const char *name, struct kernel_status *status)
{
	char space[64], *line = dm_status(name);
	int words;

	memset(status, 0, sizeof(*status));
	if (!line)
		return false;
	words = sscanf(line, "%31s %" SCNu64 " %63s %" SCNu64 " %" SCNu64 "/%"
		       SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
		       " %63s %31s", status->mode, &status->cluster_sectors, space,
		       &status->dirty, &status->memory_kib,
		       &status->memory_limit_kib, &status->commits,
		       &status->allocated, &status->copied, &status->layers,
		       status->reason, status->mirror);
	free(line);
	if (words != 12)
		return false;
	status->has_space = sscanf(space, "%" SCNu64 "/%" SCNu64,
				   &status->used_clusters,
				   &status->total_clusters) == 2;
	return true;
}

bool kernel_status_clean(const struct kernel_status *status)
{
	return (!strcmp(status->mode, "rw") ||
		!strcmp(status->mode, "no_space")) && !status->dirty;
}
