/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Of what may be equal on two devices, only what differs.
 */
#ifndef DIFFER_H
#define DIFFER_H

#include "copy.h"
#include "walk.h"

struct differ;

/**
 * differ_open() - look closer at a walk
 * @walk: the walk
 * @old: path of the device that the pieces are from
 * @new: path of the device to compare with; NULL if there is none
 * @unit: bytes that are written together; a power of two
 * @differ: result; differ_close() it, after errors as well
 *
 * Return: 0 or an error, reported.
 */
int differ_open(struct walk *walk, const char *old, const char *new,
		uint64_t unit, struct differ **differ);

/** differ_close() - free it; NULL is fine */
void differ_close(struct differ *differ);

/** differ_next() - as walk_next() */
int differ_next(void *differ, struct copy_piece *piece);

#endif /* DIFFER_H */
