// SPDX-License-Identifier: GPL-2.0-only
/*
 * How far a job is.
 */
#include "tally.h"

#include <errno.h>

#include "job.h"

/* A process has one job. */
static uint64_t done, total;

void tally_expect(uint64_t bytes)
{
	total += bytes;
}

static int go_on(uint64_t bytes)
{
	if (job_cancelled())
		return -ECANCELED;
	done += bytes;
	job_progress(done, total);
	return 0;
}

int tally_copy(void *unused, uint64_t bytes)
{
	(void)unused;
	job_throttle(bytes);
	return go_on(bytes);
}

int tally_sweep(void *unused, uint64_t swept, uint64_t copied)
{
	(void)unused;
	job_throttle(copied * 512);
	return go_on(swept * 512);
}
