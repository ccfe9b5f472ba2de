/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The commands, one file each.
 */
#ifndef COMMANDS_H
#define COMMANDS_H

#include <stdbool.h>

#include "chain.h"

/**
 * struct arguments - a command line, taken apart
 * @words: what is no option, NULL where there are fewer
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
 */
struct arguments {
	const char *words[2];
	bool json;
	bool read_only;
	bool partitions;
	bool no_grow;
	bool backing_chain;
	bool existing;
	struct formats formats;
	const char *backing;
	const char *backing_format;
	const char *options;
};

/* All return 0 or a negative errno, reported. */
int cmd_open(struct arguments *args);
int cmd_close(struct arguments *args);
int cmd_list(struct arguments *args);
int cmd_status(struct arguments *args);
int cmd_info(struct arguments *args);
int cmd_create(struct arguments *args);
int cmd_snapshot(struct arguments *args);
int cmd_jobs(struct arguments *args);
int cmd_wait(struct arguments *args);
int cmd_cancel(struct arguments *args);
int cmd_tree(struct arguments *args);

/** is_path() - is a word a path, or else the name of a device? */
bool is_path(const char *word);

#endif /* COMMANDS_H */
