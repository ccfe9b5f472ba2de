/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The commands, one file each.
 */
#ifndef COMMANDS_H
#define COMMANDS_H

#include <stdbool.h>

#include "chain.h"
#include "freeze.h"
#include "job.h"
#include "unlock.h"

/* As many words have a meaning each, by their place. */
#define WORDS_MAX	3

/**
 * struct arguments - a command line, taken apart
 * @words: what is no option, NULL where there are fewer
 * @all_words: all of them
 * @word_count: how many there are
 * @json: --json
 * @read_only: --read-only
 * @partitions: --partitions
 * @no_grow: --no-grow
 * @backing_chain: --backing-chain
 * @existing: --existing
 * @formats: --backing-format
 * @backing: -b
 * @backing_format: -F
 * @options: -o
 * @top: --top
 * @base: --base
 * @into: --into
 * @image_format: --format
 * @dry_run: --dry-run
 * @delete_files: --delete
 * @keep: --keep
 * @down: --down
 * @up: --up
 * @unsafe: -u
 * @shallow: --shallow
 * @pivot: --pivot
 * @finish: --finish
 * @force: --force
 * @search: --search, each
 * @nsearch: number of @search
 * @job: --json, --detach, --bandwidth, @unlock
 * @freeze: --fsfreeze, --qga, each
 * @together: words are NAME=OVERLAY
 * @clean: --clean
 * @repair: --repair
 * @shrink: --shrink
 * @no_space_error: --no-space=error
 * @snapshot: --snapshot
 * @plain: --plain
 * @unlock: --key-file, each, and what they have unlocked
 */
struct arguments {
	const char *words[WORDS_MAX];
	char **all_words;
	unsigned int word_count;
	bool json;
	bool read_only;
	bool partitions;
	bool no_grow;
	bool backing_chain;
	bool existing;
	struct formats formats;
	const char *backing;
	const char *backing_format;
	char *options;
	const char *top;
	const char *base;
	const char *into;
	const char *image_format;
	bool dry_run;
	bool delete_files;
	bool keep;
	bool down;
	bool up;
	bool unsafe;
	bool shallow;
	bool pivot;
	bool finish;
	bool force;
	const char **search;
	unsigned int nsearch;
	struct job_options job;
	struct freeze freeze;
	bool together;
	bool clean;
	bool repair;
	bool shrink;
	bool no_space_error;
	const char *snapshot;
	bool plain;
	struct unlock unlock;
};

/*
 * All return 0 or a negative errno, reported; or, if they have exit codes of their
 * own, one of these.  One that needs passphrases that are not known returns -ENOKEY
 * with nothing changed, see unlock.h, and is run again when they are.
 */
int cmd_check(struct arguments *args);
int cmd_open(struct arguments *args);
int cmd_close(struct arguments *args);
int cmd_list(struct arguments *args);
int cmd_status(struct arguments *args);
int cmd_info(struct arguments *args);
int cmd_map(struct arguments *args);
int cmd_create(struct arguments *args);
int cmd_resize(struct arguments *args);
int cmd_snapshot(struct arguments *args);
int cmd_commit(struct arguments *args);
int cmd_pull(struct arguments *args);
int cmd_flatten(struct arguments *args);
int cmd_delete(struct arguments *args);
int cmd_copy(struct arguments *args);
int cmd_rebase(struct arguments *args);
int cmd_jobs(struct arguments *args);
int cmd_wait(struct arguments *args);
int cmd_cancel(struct arguments *args);
int cmd_tree(struct arguments *args);
int cmd_revert(struct arguments *args);
int cmd_internal(struct arguments *args);

/**
 * check_overlay_options() - do the options of snapshot and revert go together?
 *
 * Return: 0 or -EINVAL, reported.
 */
int check_overlay_options(const struct arguments *args);

/** is_path() - is a word a path, or else the name of a device? */
bool is_path(const char *word);

#endif /* COMMANDS_H */
