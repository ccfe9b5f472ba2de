// SPDX-License-Identifier: GPL-2.0-only
/*
 * What has to be copied when layers are merged.
 */
#include "walk.h"

#include <stdlib.h>
#include <string.h>

#include "map.h"
#include "report.h"

/**
 * struct walk - a walk
 * @pos: where it is, bytes
 * @end: where it ends
 * @step: looks at @pos, moves on, and fills a piece or none
 * @range: down: the layers to be merged
 * @no_zeroes: down: zeroes are there already
 * @cluster: up: cluster size of the top
 * @top: up: the layer to be written
 * @old_own: up: the layers that only the old chain has
 * @old_all: up: the old chain
 * @new_own: up: the layers that only the new chain has
 * @new_all: up: the new chain
 */
struct walk {
	uint64_t pos;
	uint64_t end;
	int (*step)(struct walk *walk, struct copy_piece *piece);
	struct map *range;
	bool no_zeroes;
	uint64_t cluster;
	struct map *top;
	struct map *old_own;
	struct map *old_all;
	struct map *new_own;
	struct map *new_all;
};

static uint64_t bytes_of(const struct image *image)
{
	return round_up(image->size, 512);
}

static void piece_set(struct copy_piece *piece, uint64_t start,
		      uint64_t length, bool zero)
{
	piece->start = start;
	piece->length = length;
	piece->zero = zero;
	piece->compare = false;
}

static int step_down(struct walk *walk, struct copy_piece *piece)
{
	struct map_extent extent;
	int r;

	r = map_at(walk->range, walk->pos, walk->end - walk->pos, &extent);
	if (r < 0)
		return r;
	if (extent.kind == MAP_DATA ||
	    (extent.kind == MAP_ZERO && !walk->no_zeroes))
		piece_set(piece, walk->pos, extent.length,
			  extent.kind == MAP_ZERO);
	walk->pos += extent.length;
	return 0;
}

int walk_down(const struct image *layers, unsigned int count,
	      struct walk **walk)
{
	uint64_t end = bytes_of(&layers[count - 1]);

	*walk = calloc(1, sizeof(**walk));
	if (!*walk)
		return report_memory();
	if (end < bytes_of(&layers[0]))
		end = bytes_of(&layers[0]);
	(*walk)->end = end;
	(*walk)->step = step_down;
	return map_open(layers, count - 1, &(*walk)->range);
}

int walk_owned(const struct image *layers, unsigned int count, bool zeroes,
	       struct walk **walk)
{
	*walk = calloc(1, sizeof(**walk));
	if (!*walk)
		return report_memory();
	(*walk)->end = bytes_of(&layers[0]);
	(*walk)->step = step_down;
	(*walk)->no_zeroes = !zeroes;
	return map_open(layers, count, &(*walk)->range);
}

/**
 * struct verdict - what is known of a range of the top's clusters
 * @length: bytes
 * @touched: a layer that is not common to both chains has something there
 * @old_data: the old chain has data there
 * @new_data: the new chain has
 */
struct verdict {
	uint64_t length;
	bool touched;
	bool old_data;
	bool new_data;
};

/* Narrows the range to where one map has one kind. */
static int narrow(struct map *map, uint64_t start, struct verdict *verdict,
		  enum map_kind *kind)
{
	struct map_extent extent = { 0 };
	int r = map_at(map, start, verdict->length, &extent);

	verdict->length = extent.length;
	*kind = extent.kind;
	return r;
}

static int judge_alike(struct walk *walk, uint64_t start,
		       struct verdict *verdict)
{
	enum map_kind old_own = MAP_NONE, new_own = MAP_NONE;
	enum map_kind old_all = MAP_NONE, new_all = MAP_NONE;
	int r;

	r = narrow(walk->old_own, start, verdict, &old_own);
	if (!r)
		r = narrow(walk->new_own, start, verdict, &new_own);
	if (!r)
		r = narrow(walk->old_all, start, verdict, &old_all);
	if (!r)
		r = narrow(walk->new_all, start, verdict, &new_all);
	if (r < 0)
		return r;
	verdict->touched = old_own != MAP_NONE || new_own != MAP_NONE;
	verdict->old_data = old_all == MAP_DATA;
	verdict->new_data = new_all == MAP_DATA;
	return 0;
}

/* Is there anything in a range that a map has not left to those below? */
static int has_any(struct map *map, uint64_t start, uint64_t length)
{
	int r = map_has(map, start, length, MAP_DATA);

	return r ? r : map_has(map, start, length, MAP_ZERO);
}

/* One cluster in which not all is alike */
static int judge_mixed(struct walk *walk, uint64_t start,
		       struct verdict *verdict)
{
	uint64_t length = verdict->length;
	int r;

	r = has_any(walk->old_own, start, length);
	if (!r)
		r = has_any(walk->new_own, start, length);
	verdict->touched = r > 0;
	if (r >= 0)
		r = map_has(walk->old_all, start, length, MAP_DATA);
	verdict->old_data = r > 0;
	if (r >= 0)
		r = map_has(walk->new_all, start, length, MAP_DATA);
	verdict->new_data = r > 0;
	return r < 0 ? r : 0;
}

/* Clusters that are alike together, one alone if it is not alike in itself. */
static int judge(struct walk *walk, uint64_t start, uint64_t length,
		 struct verdict *verdict)
{
	uint64_t cluster_end, whole;
	int r;

	verdict->length = length;
	r = judge_alike(walk, start, verdict);
	if (r < 0 || verdict->length == length)
		return r;
	whole = (start + verdict->length) & ~(walk->cluster - 1);
	if (whole > start) {
		verdict->length = whole - start;
		return 0;
	}
	cluster_end = (start & ~(walk->cluster - 1)) + walk->cluster;
	verdict->length = length < cluster_end - start ? length :
		cluster_end - start;
	return judge_mixed(walk, start, verdict);
}

static int step_up(struct walk *walk, struct copy_piece *piece)
{
	struct map_extent extent;
	struct verdict verdict;
	int r;

	r = map_at(walk->top, walk->pos, walk->end - walk->pos, &extent);
	if (r < 0)
		return r;
	if (extent.kind != MAP_NONE) {
		walk->pos += extent.length;
		return 0;
	}
	r = judge(walk, walk->pos, extent.length, &verdict);
	if (r < 0)
		return r;
	if (verdict.touched && (verdict.old_data || verdict.new_data)) {
		piece_set(piece, walk->pos, verdict.length, !verdict.old_data);
		piece->compare = verdict.old_data && verdict.new_data;
	}
	walk->pos += verdict.length;
	return 0;
}

int walk_up(const struct walk_chains *chains, struct walk **result)
{
	struct walk *walk = calloc(1, sizeof(*walk));
	int r;

	*result = walk;
	if (!walk)
		return report_memory();
	walk->end = bytes_of(chains->top);
	walk->cluster = 1ULL << chains->top->header.sub_bits;
	walk->step = step_up;
	r = map_open(chains->top, !chains->live, &walk->top);
	if (!r)
		r = map_open(chains->old, chains->old_count - chains->common,
			     &walk->old_own);
	if (!r)
		r = map_open(chains->old, chains->old_count, &walk->old_all);
	if (!r)
		r = map_open(chains->new, chains->new_count - chains->common,
			     &walk->new_own);
	if (!r)
		r = map_open(chains->new, chains->new_count, &walk->new_all);
	return r;
}

void walk_close(struct walk *walk)
{
	if (!walk)
		return;
	map_close(walk->range);
	map_close(walk->top);
	map_close(walk->old_own);
	map_close(walk->old_all);
	map_close(walk->new_own);
	map_close(walk->new_all);
	free(walk);
}

int walk_next(void *data, struct copy_piece *piece)
{
	struct walk *walk = data;
	int r = 0;

	piece->length = 0;
	while (!r && !piece->length && walk->pos < walk->end)
		r = walk->step(walk, piece);
	return r;
}

int walk_total(struct walk *walk, uint64_t *data, uint64_t *zeroes)
{
	struct copy_piece piece = { 0 };
	int r;

	*data = 0;
	*zeroes = 0;
	do {
		r = walk_next(walk, &piece);
		if (r < 0)
			return r;
		if (piece.zero)
			*zeroes += piece.length;
		else
			*data += piece.length;
	} while (piece.length);
	walk->pos = 0;
	return 0;
}
