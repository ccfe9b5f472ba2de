// SPDX-License-Identifier: GPL-2.0-only
/*
 * rebase NAME|IMAGE -b NEW -F FORMAT: another backing file, the same contents;
 * with -u another backing file alone.
 */
#include <errno.h>

#include "commands.h"
#include "rebase.h"
#include "recover.h"
#include "report.h"
#include "state.h"

static int rebase_chain(struct rebase *rebase, const char *word)
{
	struct live live = { 0 };
	int r;

	rebase->live = &live;
	r = live_open(word, rebase->formats, &live);
	if (!r)
		r = rebase_run(rebase);
	live_close(&live);
	return r;
}

static int check(const struct arguments *args)
{
	if (!args->backing)
		return report_fail(EINVAL,
				   "The new backing file is missing: -b FILE, or -b \"\" for none.");
	if (args->unsafe && !is_path(args->words[0]))
		return report_fail(EBUSY,
				   "-u is not for an open device: its contents would change.");
	if (!args->unsafe && (args->force || args->nsearch))
		return report_fail(EINVAL,
				   "--force and --search are for -u: without, the contents stay, and no overlay is harmed.");
	if (args->unsafe && (args->job.detach || args->job.bandwidth))
		return report_fail(EINVAL,
				   "--detach and --bandwidth are not for -u: nothing is copied.");
	return 0;
}

int cmd_rebase(struct arguments *args)
{
	struct rebase rebase = {
		.link = args->backing,
		.format = args->backing_format,
		.formats = &args->formats,
		.force = args->force,
		.json = args->json,
		.dry_run = args->dry_run,
		.search = args->search,
		.nsearch = args->nsearch,
		.job = args->job,
	};
	int r;

	r = check(args);
	if (!r)
		r = begin_change(!args->unsafe);
	if (r < 0)
		return r;
	r = args->unsafe ? rebase_link(&rebase, args->words[0]) :
		rebase_chain(&rebase, args->words[0]);
	end_change();
	state_unlock();
	return r;
}
