// SPDX-License-Identifier: GPL-2.0-only
/*
 * pull NAME|IMAGE, flatten NAME|IMAGE: merges into an image what is below it.
 */
#include <errno.h>

#include "chainjob.h"
#include "report.h"

static int pull(const struct arguments *args, struct collapse *collapse)
{
	const struct live *live = collapse->live;
	unsigned int base = live->chain.count;
	int r = 0;

	if (args->into)
		r = live_layer(live, args->into, &collapse->first);
	if (!r && args->base)
		r = live_layer(live, args->base, &base);
	if (r < 0)
		return r;
	if (base <= collapse->first)
		return report_fail(EINVAL, "%s is not below %s.",
				   live->chain.layers[base].path,
				   live->chain.layers[collapse->first].path);
	if (base == collapse->first + 1)
		return report_fail(EINVAL,
				   "There is nothing between %s and its backing file.",
				   live->chain.layers[collapse->first].path);
	collapse->up = true;
	collapse->last = base - 1;
	return collapse_run(collapse);
}

static int flatten(const struct arguments *args, struct collapse *collapse)
{
	const struct live *live = collapse->live;
	int r = 0;

	if (args->into)
		r = live_layer(live, args->into, &collapse->first);
	if (r < 0)
		return r;
	if (collapse->first + 1 == live->chain.count)
		return report_fail(EINVAL, "%s has no backing file.",
				   live->chain.layers[collapse->first].path);
	collapse->up = true;
	collapse->last = live->chain.count - 1;
	return collapse_run(collapse);
}

int cmd_pull(struct arguments *args)
{
	return chain_job(args, "pull", args->base ? pull : flatten);
}

int cmd_flatten(struct arguments *args)
{
	return chain_job(args, "flatten", flatten);
}
