// SPDX-License-Identifier: GPL-2.0-only
/*
 * rebase NAME|IMAGE -b NEW -F FORMAT: another backing file, the same contents;
 * with -u another backing file alone.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "layerword.h"
#include "link.h"
#include "rebase.h"
#include "recover.h"
#include "report.h"
#include "state.h"

/* What is written into the image: a layer of the chain itself, NAME[n], or a file */
static int name_layer(struct rebase *rebase, char **link)
{
	const struct live *live = rebase->live;
	const char *format;
	unsigned int index;
	int r;

	if (!layer_by_number(live->word, rebase->link, &index)) {
		*link = link_of_file(rebase->link);
		rebase->link = *link;
		return 0;
	}
	r = live_layer(live, rebase->link, &index);
	if (r < 0)
		return r;
	format = format_name(live->chain.layers[index].format);
	if (rebase->format && strcmp(rebase->format, format))
		return report_fail(EINVAL, "%s is %s, not %s.", rebase->link,
				   format, rebase->format);
	*link = live_link(live, 0, index);
	rebase->link = *link;
	rebase->format = format;
	return 0;
}

static int rebase_chain(struct rebase *rebase, const char *word)
{
	struct live live = { 0 };
	char *link = NULL;
	int r;

	rebase->live = &live;
	r = live_open(word, rebase->formats,
		      rebase->dry_run ? NULL : rebase->unlock, &live);
	if (!r)
		r = name_layer(rebase, &link);
	if (!r)
		r = rebase_run(rebase);
	live_close(&live);
	free(link);
	return r;
}

/* What is no file may be one some day, or something that QEMU knows. */
static int rebase_image(struct rebase *rebase, const char *word)
{
	char *path = absolute_path(word);
	char *file = link_beside(path, rebase->link), *link = NULL;
	int r;

	if (access(file, F_OK) == 0) {
		link = link_of_file(rebase->link);
		rebase->link = link;
	}
	r = rebase_link(rebase, word);
	free(link);
	free(file);
	free(path);
	return r;
}

static int check(const struct arguments *args)
{
	unsigned int index;

	if (!args->backing)
		return report_fail(EINVAL,
				   "The new backing file is missing: -b FILE, or -b \"\" for none.");
	if (args->unsafe &&
	    layer_by_number(args->words[0], args->backing, &index))
		return report_fail(EINVAL,
				   "-u does not look at the chain: name the file, not %s.",
				   args->backing);
	if (args->unsafe && !is_path(args->words[0]))
		return report_fail(EBUSY,
				   "-u is not for an open device: its contents would change.");
	if (!args->unsafe && (args->force || args->nsearch))
		return report_fail(EINVAL,
				   "--force and --search are for -u: without, the contents stay, and no overlay is harmed.");
	if (args->unsafe && (args->job.detach || args->job.bandwidth))
		return report_fail(EINVAL,
				   "--detach and --bandwidth are not for -u: nothing is copied.");
	if (args->unsafe && args->unlock.passphrases.file_count)
		return report_fail(EINVAL,
				   "--key-file is not for -u: nothing is decrypted.");
	return 0;
}

int cmd_rebase(struct arguments *args)
{
	struct rebase rebase = {
		.link = args->backing,
		.format = args->backing_format,
		.formats = &args->formats,
		.unlock = &args->unlock,
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
	r = args->unsafe ? rebase_image(&rebase, args->words[0]) :
		rebase_chain(&rebase, args->words[0]);
	end_change();
	state_unlock();
	return r;
}
