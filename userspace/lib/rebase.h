/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Another backing chain for the top image.
 */
#ifndef REBASE_H
#define REBASE_H

#include "job.h"
#include "live.h"

/**
 * struct rebase - what is wanted
 * @live: the chain; not for rebase_link()
 * @link: the new backing link as it is to stand in the image; "" for none
 * @format: of the image it leads to, by name; may be NULL for none
 * @formats: formats that the images of the new chain do not record
 * @unlock: passphrases of the images
 * @force: other users do not matter, if they have the images not open; for
 *	rebase_link() alone
 * @json: print JSON
 * @dry_run: print the plan, and change nothing
 * @search: directories to look for other users in; for rebase_link() alone
 * @nsearch: number of @search
 * @job: what the command line says of the job
 */
struct rebase {
	struct live *live;
	const char *link;
	const char *format;
	struct formats *formats;
	struct unlock *unlock;
	bool force;
	bool json;
	bool dry_run;
	const char *const *search;
	unsigned int nsearch;
	struct job_options job;
};

/**
 * rebase_run() - change the link; the contents stay
 * @rebase: what; state lock held
 *
 * Return: 0; -ENOKEY, see unlock_image(); or an error, reported.
 */
int rebase_run(const struct rebase *rebase);

/**
 * rebase_link() - change the link alone
 * @rebase: what
 * @path: an image that nobody has open; its old backing file may be missing
 *
 * Return: 0 or an error, reported.
 */
int rebase_link(const struct rebase *rebase, const char *path);

#endif /* REBASE_H */
