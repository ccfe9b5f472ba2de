/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Collapsing layers, whatever they are: what commit, pull, flatten and delete
 * have in common.
 */
#ifndef COLLAPSE_H
#define COLLAPSE_H

#include "job.h"
#include "live.h"

/**
 * struct collapse - what is to be collapsed
 * @live: the chain
 * @operation: name of the command
 * @first: highest layer of the range
 * @last: the lowest one
 * @up: into the highest one, else into the lowest
 * @force: other users of the images do not matter, if they have them not open
 * @remove: the files that are not needed any more go
 * @dry_run: print the plan, and change nothing
 * @json: print JSON
 * @search: directories to look for other users in
 * @nsearch: number of @search
 * @job: what the command line says of the job
 */
struct collapse {
	struct live *live;
	const char *operation;
	unsigned int first;
	unsigned int last;
	bool up;
	bool force;
	bool remove;
	bool dry_run;
	bool json;
	const char *const *search;
	unsigned int nsearch;
	struct job_options job;
};

/**
 * collapse_run() - check it, do it, and say what became of the images
 * @collapse: what
 *
 * Call it with the state lock held.
 *
 * Return: 0 or an error, reported.
 */
int collapse_run(const struct collapse *collapse);

#endif /* COLLAPSE_H */
