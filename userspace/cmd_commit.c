// SPDX-License-Identifier: GPL-2.0-only
/*
 * commit NAME|IMAGE: merges images down into one of those below.
 */
#include <errno.h>

#include "chainjob.h"
#include "report.h"

/* Without options the top image goes into the one below. */
static int commit(const struct arguments *args, struct collapse *collapse)
{
	const struct live *live = collapse->live;
	int r = 0;

	if (args->top)
		r = live_layer(live, args->top, &collapse->first);
	collapse->last = collapse->first + 1;
	if (!r && args->base)
		r = live_layer(live, args->base, &collapse->last);
	if (r < 0)
		return r;
	if (collapse->first + 1 == live->chain.count)
		return report_fail(EINVAL, "%s has no backing file.",
				   live->chain.layers[collapse->first].path);
	if (collapse->last <= collapse->first)
		return report_fail(EINVAL, "%s is not below %s.",
				   live->chain.layers[collapse->last].path,
				   live->chain.layers[collapse->first].path);
	return collapse_run(collapse);
}

int cmd_commit(struct arguments *args)
{
	return chain_job(args, "commit", commit);
}
