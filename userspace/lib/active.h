/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Merging the image that a device writes to, with the guest at work on it.
 */
#ifndef ACTIVE_H
#define ACTIVE_H

#include "live.h"

/**
 * active_commit() - merge the active image into the one below
 * @live: the chain; its top is that one, then
 * @remove: the old top is to be deleted
 *
 * The old top becomes an empty overlay of it, and its file is cut accordingly.
 *
 * Within a job. The state lock is held, and is again when it returns, but not
 * meanwhile.
 *
 * Return: 0, or an error, reported; -ECANCELED, unreported.
 */
int active_commit(struct live *live, bool remove);

/**
 * active_pull() - merge layers into the active image
 * @live: the chain; without them, then
 * @last: the lowest of them
 *
 * As active_commit().
 */
int active_pull(struct live *live, unsigned int last);

#endif /* ACTIVE_H */
