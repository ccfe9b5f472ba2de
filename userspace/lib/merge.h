/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Collapsing adjacent layers into the lowest or the highest of them, where the
 * device does not write to any. What the active image of a device owns, the
 * kernel copies: active.h
 */
#ifndef MERGE_H
#define MERGE_H

#include "dest.h"
#include "live.h"
#include "walk.h"

/**
 * struct merge - a merge
 * @live: the chain
 * @first: highest layer of the range
 * @last: the lowest one
 * @up: into the highest one, else into the lowest
 * @operation: name of the command
 * @force: other users of the images do not matter, if they have them not open
 * @remove: the files that are not needed any more go
 * @search: directories to look for other users in, besides those of the images
 * @nsearch: number of @search
 * @linked: on disk it is done, by a job that died then: the table is left
 * @walk: what is to be copied
 * @data: bytes of data, by @walk
 * @zeroes: bytes of zeroes, by @walk
 */
struct merge {
	struct live *live;
	unsigned int first;
	unsigned int last;
	bool up;
	const char *operation;
	bool force;
	bool remove;
	const char *const *search;
	unsigned int nsearch;

	bool linked;
	struct walk *walk;
	uint64_t data;
	uint64_t zeroes;
};

/**
 * merge_check_backing() - may an image lose its backing file?
 *
 * Return: 0; or an error, reported: it has internal snapshots.
 */
int merge_check_backing(const struct image *image);

/**
 * merge_check_lost() - may images stop to read right, or go?
 * @images: images of a chain, one below the other
 * @count: of @images
 *
 * Return: 0; or an error, reported: one of them has internal snapshots.
 */
int merge_check_lost(const struct image *images, unsigned int count);

/** merge_dest() - index of the layer that is written */
unsigned int merge_dest(const struct merge *merge);

/**
 * merge_plan() - check everything, and see what there is to do
 * @merge: what is wanted; merge_free() it
 *
 * Return: 0 or an error, reported.
 */
int merge_plan(struct merge *merge);

/**
 * merge_describe() - the plan
 * @merge: planned
 *
 * Return: an object, see fate.h
 */
struct json_object *merge_describe(const struct merge *merge);

/**
 * merge_run() - do it
 * @merge: planned; @merge->live is what the chain is then
 *
 * Within a job, after live_begin(). The state lock is held, and is again when it
 * returns, but not meanwhile.
 *
 * Return: 0 or an error, reported; the chain is as before then, or merged.
 */
int merge_run(struct merge *merge);

/** merge_free() - free what merge_plan() made */
void merge_free(struct merge *merge);

#endif /* MERGE_H */
