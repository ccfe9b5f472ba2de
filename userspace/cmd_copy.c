// SPDX-License-Identifier: GPL-2.0-only
/*
 * copy NAME|IMAGE DEST: a copy on other storage, of a device that goes on being
 * used, and may go on in it.
 */
#include <errno.h>

#include "commands.h"
#include "duplicate.h"
#include "finish.h"
#include "recover.h"
#include "report.h"
#include "state.h"

static int copy(struct arguments *args, struct live *live)
{
	struct duplicate duplicate = {
		.live = live,
		.word = args->words[1],
		.format = FORMAT_QCOW2,
		.shallow = args->shallow,
		.pivot = args->pivot,
		.plain = args->plain,
		.unlock = &args->unlock,
		.json = args->json,
		.dry_run = args->dry_run,
		.job = args->job,
	};

	if (args->pivot && args->finish)
		return report_fail(EINVAL, "Use either --pivot or --finish.");
	if (args->image_format)
		duplicate.format = format_of_name(args->image_format);
	if (duplicate.format == FORMAT_UNKNOWN)
		return report_fail(EINVAL,
				   "Format '%s' is not supported (qcow2 and raw are).",
				   args->image_format);
	return duplicate_run(&duplicate);
}

int cmd_copy(struct arguments *args)
{
	struct live live = { 0 };
	int r;

	r = begin_change(true);
	if (r < 0)
		return r;
	r = live_open(args->words[0], &args->formats,
		      args->dry_run ? NULL : &args->unlock, &live);
	if (!r && !finish_again(&live, args->json))
		r = copy(args, &live);
	live_close(&live);
	end_change();
	state_unlock();
	return r;
}
