/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Copying a chain, or its active image, to other storage.
 */
#ifndef DUPLICATE_H
#define DUPLICATE_H

#include "job.h"
#include "live.h"

/**
 * struct duplicate - a copy of a chain
 * @live: the chain
 * @word: where to, as it was given
 * @format: of the copy
 * @shallow: the active image alone, with the backing file of that
 * @pivot: the device goes on in the copy
 * @plain: it is not encrypted, whatever the images are
 * @unlock: passphrases
 * @json: print JSON
 * @dry_run: print the plan, and change nothing
 * @job: what the command line says of the job
 */
struct duplicate {
	struct live *live;
	const char *word;
	enum image_format format;
	bool shallow;
	bool pivot;
	bool plain;
	struct unlock *unlock;
	bool json;
	bool dry_run;
	struct job_options job;
};

/**
 * duplicate_run() - copy it
 * @duplicate: what
 *
 * A new file has another name until it is complete. Call it with the state lock
 * held.
 *
 * Return: 0; -ENOKEY, see unlock_image(); or an error, reported.
 */
int duplicate_run(const struct duplicate *duplicate);

#endif /* DUPLICATE_H */
