// SPDX-License-Identifier: GPL-2.0-only
/*
 * internal list|create|apply|delete: snapshots within an image, open or not.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "commands.h"
#include "details.h"
#include "internal.h"
#include "look.h"
#include "recover.h"
#include "report.h"
#include "state.h"

static void print_snapshot(const struct snapshot *snapshot)
{
	char size[SIZE_TEXT], state[SIZE_TEXT], date[32] = "?";
	char *id = text_printable(snapshot->id);
	char *name = text_printable(snapshot->name);
	time_t seconds = snapshot->entry.date_sec;
	struct tm tm;

	if (localtime_r(&seconds, &tm))
		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	printf("%-4s %-24s %10s %10s  %s\n", id, name,
	       size_text(snapshot->size, size),
	       size_text(snapshot->entry.vm_state_size, state), date);
	free(name);
	free(id);
}

static void print_table(const struct snaptable *table)
{
	unsigned int i;

	printf("%-4s %-24s %10s %10s  %s\n", "ID", "NAME", "SIZE", "VM STATE",
	       "DATE");
	for (i = 0; i < table->count; i++)
		print_snapshot(&table->list[i]);
}

static void print_json(const struct snaptable *table)
{
	struct json_object *all = json_object_new_array(), *one;
	unsigned int i;

	for (i = 0; i < table->count; i++) {
		one = details_snapshot(&table->list[i]);
		/* qemu-img does not tell. */
		json_set_number(one, "virtual-size", table->list[i].size);
		json_object_array_add(all, one);
	}
	report_json(all);
}

static int list(struct arguments *args)
{
	struct snaptable table = { 0 };
	struct chain chain = { 0 };
	const char *word = args->words[1];
	struct image *image;
	int r;

	/* A device may have been left in the middle of a change. */
	r = is_path(word) ? 0 : begin_look();
	if (!r)
		r = look_open(word, &args->formats, false, &chain);
	image = chain.layers;
	if (!r && image->format != FORMAT_QCOW2)
		r = report_fail(EMEDIUMTYPE,
				"%s is raw: it has no internal snapshots.",
				image->path);
	if (!r)
		r = snaptable_read(image, &table);
	if (!r && args->json)
		print_json(&table);
	else if (!r)
		print_table(&table);
	snaptable_free(&table);
	chain_close(&chain);
	return r;
}

/* The journal has a device, or the path of an image that is not open. */
static int begin(struct internal *in, const char *word)
{
	int r;

	if (is_path(word)) {
		in->entry = journal_entry("internal", "", "");
		return internal_closed(in, word);
	}
	r = internal_device(in, word);
	if (!r)
		in->entry = journal_entry("internal", word, in->device.dm.uuid);
	return r;
}

static int change(struct arguments *args, enum internal_action action)
{
	bool closed = is_path(args->words[1]);
	struct internal in = {
		.action = action,
		.word = args->words[2],
		.freeze = &args->freeze,
		.users = {
			.search = args->search,
			.nsearch = args->nsearch,
			.force = args->force,
		},
		.unlock = &args->unlock,
	};
	int r;

	r = begin_change(!closed);
	if (r < 0)
		return r;
	r = begin(&in, args->words[1]);
	if (!r)
		r = internal_run(&in);
	internal_close(&in);
	/* Clears the journal, and resumes a device that is still suspended. */
	recover();
	state_unlock();
	return r;
}

/* Options that would do nothing are refused. */
static int check_options(const struct arguments *args)
{
	bool closed = is_path(args->words[1]);
	const char *word = args->words[0];

	if (freeze_any(&args->freeze) && (closed || strcmp(word, "create")))
		return report_fail(EINVAL,
				   "Only 'internal create NAME SNAPSHOT' has something to freeze.");
	if (args->unlock.passphrases.file_count && !strcmp(word, "list"))
		return report_fail(EINVAL,
				   "'internal list' needs no passphrase.");
	if ((args->force || args->nsearch) && (!closed || strcmp(word, "apply")))
		return report_fail(EINVAL,
				   "Only 'internal apply IMAGE SNAPSHOT' looks for overlays.");
	return 0;
}

int cmd_internal(struct arguments *args)
{
	static const char * const actions[] = {
		[INTERNAL_CREATE] = "create",
		[INTERNAL_APPLY] = "apply",
		[INTERNAL_DELETE] = "delete",
	};
	const char *word = args->words[0];
	unsigned int i;
	int r;

	r = check_options(args);
	if (r < 0)
		return r;
	if (!strcmp(word, "list"))
		return args->words[2] ?
			report_fail(EINVAL, "Wrong number of arguments: internal list NAME|IMAGE") :
			list(args);
	for (i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
		if (strcmp(word, actions[i]))
			continue;
		return args->words[2] ? change(args, i) :
			report_fail(EINVAL,
				    "Wrong number of arguments: internal %s NAME|IMAGE SNAPSHOT",
				    word);
	}
	return report_fail(EINVAL,
			   "Cannot '%s' internal snapshots: list, create, apply or delete.",
			   word);
}
