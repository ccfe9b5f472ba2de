// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commands that collapse layers of a chain.
 */
#include "chainjob.h"

#include "finish.h"
#include "recover.h"
#include "state.h"

int chain_job(struct arguments *args, const char *operation,
	      int (*run)(const struct arguments *args,
			 struct collapse *collapse))
{
	struct live live = { 0 };
	struct collapse collapse = {
		.live = &live,
		.operation = operation,
		.force = args->force,
		.remove = args->delete_files,
		.dry_run = args->dry_run,
		.json = args->json,
		.search = args->search,
		.nsearch = args->nsearch,
		.job = args->job,
	};
	int r;

	r = begin_change(true);
	if (r < 0)
		return r;
	r = live_open(args->words[0], &args->formats,
		      args->dry_run ? NULL : &args->unlock, &live);
	if (!r && !finish_again(&live, args->json))
		r = run(args, &collapse);
	live_close(&live);
	end_change();
	state_unlock();
	return r;
}
