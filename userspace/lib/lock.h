/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * QEMU's image locks: single bytes locked for reading by open file
 * descriptions (block/file-posix.c in QEMU).  Byte 100 + n says "I do n", byte
 * 200 + n says "nobody else may do n", where n is 0 read, 1 write, 3 resize.
 * The locks last as long as the open file description: that of a loop device
 * is held by the kernel, and no process of ours has to run.
 */
#ifndef LOCK_H
#define LOCK_H

#include "identity.h"

/* What an image is opened for: a top layer read-write, or anything else */
enum role { ROLE_READ, ROLE_WRITE };

/**
 * struct lock_mates - loop devices of ours that lock the same file
 * @readers: how many with ROLE_READ
 * @writers: how many with ROLE_WRITE
 *
 * In a change of roles, the old loop and the new one are there together.
 */
struct lock_mates {
	unsigned int readers;
	unsigned int writers;
};

/**
 * lock_acquire() - take the locks of a role, then test for those against it
 * @fd: the image
 * @role: the role
 * @mates: conflicts that are none, may be NULL
 *
 * Return: 0; -EBUSY (unreported, nothing is held) if somebody else's locks
 * forbid it; or another negative errno (unreported).
 */
int lock_acquire(int fd, enum role role, const struct lock_mates *mates);

/**
 * lock_test() - test alone, whatever @fd holds itself
 *
 * Arguments and result as for lock_acquire().
 */
int lock_test(int fd, enum role role, const struct lock_mates *mates);

#endif /* LOCK_H */
