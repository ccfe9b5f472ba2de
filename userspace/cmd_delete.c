// SPDX-License-Identifier: GPL-2.0-only
/*
 * delete NAME|IMAGE SNAPSHOT: takes an image out of the middle of a chain.
 */
#include <errno.h>

#include "chainjob.h"
#include "report.h"

static int check(const struct arguments *args, const struct live *live,
		 unsigned int index)
{
	const char *path = live->chain.layers[index].path;

	if (args->up && args->down)
		return report_fail(EINVAL, "Use either --up or --down.");
	if (!args->down && !index)
		return report_fail(EINVAL,
				   "%s is the top of the chain: it can be merged --down only.",
				   path);
	if (args->down && index + 1 == live->chain.count)
		return report_fail(EINVAL,
				   "%s has no backing file: it can be merged --up only.",
				   path);
	return 0;
}

/* Upwards the image below stays as it is, for others that stand on it. */
static int delete(const struct arguments *args, struct collapse *collapse)
{
	unsigned int index;
	int r;

	r = live_layer(collapse->live, args->words[1], &index);
	if (!r)
		r = check(args, collapse->live, index);
	if (r < 0)
		return r;
	collapse->up = !args->down;
	collapse->first = args->down ? index : index - 1;
	collapse->last = collapse->first + 1;
	collapse->remove = !args->keep;
	return collapse_run(collapse);
}

int cmd_delete(struct arguments *args)
{
	return chain_job(args, "delete", delete);
}
