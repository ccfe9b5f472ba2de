// SPDX-License-Identifier: GPL-2.0-only
/*
 * cancel NAME: stop a job where the chain is valid.
 */
#include <errno.h>

#include "commands.h"
#include "jobwait.h"
#include "report.h"

int cmd_cancel(struct arguments *args)
{
	int r = job_wait(args->words[0], true, args->json);

	if (r == -ECANCELED)
		return 0;
	if (!r)
		r = report_fail(EALREADY,
				"Job %s was done before it could be stopped.",
				args->words[0]);
	return r;
}
