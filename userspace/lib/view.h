/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An internal snapshot as the top of a chain that is only read.
 */
#ifndef VIEW_H
#define VIEW_H

#include "image.h"

/**
 * view_choose() - make an image be what one of its internal snapshots is
 * @image: a qcow2 image; gets the size of the snapshot
 * @word: ID or name of the snapshot
 * @id: result, its ID; free() it
 *
 * Refuses what the kernel would refuse, or take for another snapshot.
 *
 * Return: 0 or an error, reported.
 */
int view_choose(struct image *image, const char *word, char **id);

/** view_feature() - the words of the table line for it; free() it */
char *view_feature(const char *id);

/* How many words these are */
#define VIEW_WORDS	2

#endif /* VIEW_H */
