/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What has to be copied when layers are merged.
 */
#ifndef WALK_H
#define WALK_H

#include "chain.h"
#include "copy.h"

struct walk;

/**
 * walk_down() - merging layers into the one below them
 * @layers: those to be merged, top first, and the destination last; must stay
 * @count: of @layers, 2 at least
 * @walk: result; walk_close() it, after errors as well
 *
 * What the layers own: data is to be copied, zeroes are to be written; to the
 * end of the longer one of the topmost and the destination.
 *
 * Return: 0 or an error, reported.
 */
int walk_down(const struct image *layers, unsigned int count,
	      struct walk **walk);

/**
 * walk_owned() - copying what layers own
 * @layers: top first; must stay
 * @count: of @layers
 * @zeroes: their zeroes, too, as there is something else at the destination
 * @walk: result; walk_close() it, after errors as well
 *
 * To the end of the topmost one.
 *
 * Return: 0 or an error, reported.
 */
int walk_owned(const struct image *layers, unsigned int count, bool zeroes,
	       struct walk **walk);

/**
 * struct walk_chains - a layer whose backing chain is replaced
 * @top: the layer; of what it owns nothing is needed, unless @live
 * @live: it is being written: what it owns is not looked at
 * @old: the chain below it, top first
 * @old_count: of @old
 * @new: the chain that is to be below it
 * @new_count: of @new
 * @common: how many layers, the lowest ones, both have
 */
struct walk_chains {
	const struct image *top;
	bool live;
	const struct image *old;
	unsigned int old_count;
	const struct image *new;
	unsigned int new_count;
	unsigned int common;
};

/**
 * walk_up() - merging into a layer what its new backing chain has not
 * @chains: the layer, and what is below it; must stay
 * @walk: result; walk_close() it, after errors as well
 *
 * Whole clusters of the layer that it does not own, and that the layers not
 * common to both chains have something in: data where the old chain has data,
 * zeroes where it has none but the new one has.
 *
 * Return: 0 or an error, reported.
 */
int walk_up(const struct walk_chains *chains, struct walk **walk);

/** walk_close() - free it; NULL is fine */
void walk_close(struct walk *walk);

/**
 * walk_next() - the next piece, see struct copy
 * @walk: a struct walk
 * @piece: result
 *
 * Return: 0 or an error, reported.
 */
int walk_next(void *walk, struct copy_piece *piece);

/**
 * walk_total() - how much it is
 * @walk: at its start; is there again afterwards
 * @data: result, bytes to copy
 * @zeroes: result, bytes of zeroes
 *
 * Return: 0 or an error, reported.
 */
int walk_total(struct walk *walk, uint64_t *data, uint64_t *zeroes);

#endif /* WALK_H */
