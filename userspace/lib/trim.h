/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Cutting a file back that was made longer for writing: down to the last
 * cluster in use, under the locks of a writer, and never below the length it
 * had when it was opened.
 */
#ifndef TRIM_H
#define TRIM_H

#include "identity.h"

/**
 * struct trim - a file to be cut
 * @fd: descriptor with the locks of ROLE_WRITE, or -1
 * @path: the file
 * @id: its identity
 * @floor: its length at open
 */
struct trim {
	int fd;
	char *path;
	struct image_id id;
	uint64_t floor;
};

/**
 * trim_prepare() - lock the file while our loop device still has it
 * @path: the file
 * @id: what it must be
 * @floor: its length at open
 * @trim: result; end it with trim_finish()
 *
 * From here to trim_finish() no other program can open the image for writing.
 * What cannot be locked is left as long as it is: no error, but said.
 */
void trim_prepare(const char *path, const struct image_id *id, uint64_t floor,
		  struct trim *trim);

/**
 * trim_finish() - cut the file if that is safe, and unlock it
 * @trim: of trim_prepare()
 * @cut: false leaves it as it is
 *
 * Loop devices of ours that read the file may be there, and are told of the
 * new length; one that writes must be gone. The new length is durable when
 * this returns.
 */
void trim_finish(struct trim *trim, bool cut);

#endif /* TRIM_H */
