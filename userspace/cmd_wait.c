// SPDX-License-Identifier: GPL-2.0-only
/*
 * wait NAME: until a job is over.
 */
#include "commands.h"
#include "jobwait.h"

int cmd_wait(struct arguments *args)
{
	return job_wait(args->words[0], false, args->json);
}
