/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Copying between two block devices, past the page cache, with many large
 * requests in flight.
 */
#ifndef COPY_H
#define COPY_H

#include <stdbool.h>
#include <stdint.h>

/* Longest piece of zeroes that is a good unit of progress */
#define COPY_MAX_ZERO	(64ULL << 20)

/**
 * struct copy_piece - what is to be made equal
 * @start: bytes, the same on both devices; whole logical blocks, as @length is
 * @length: bytes, 0 at the end
 * @zero: write zeroes; else copy
 * @compare: it may be equal already; to the engine that is all the same
 */
struct copy_piece {
	uint64_t start;
	uint64_t length;
	bool zero;
	bool compare;
};

/**
 * struct copy - a copy
 * @from: path of the source
 * @to: path of the destination
 * @next: gives the next piece, of any length; pieces do not overlap.  Returns 0
 *	or an error, reported.
 * @pace: asked before each request, for its bytes if it is data, for none if it
 *	is zeroes; may wait.  Returns 0, or an error, reported, or -ECANCELED,
 *	unreported, that ends the copy.  May be NULL.
 * @walk: for @next
 * @data: for @pace
 */
struct copy {
	const char *from;
	const char *to;
	int (*next)(void *walk, struct copy_piece *piece);
	int (*pace)(void *data, uint64_t bytes);
	void *walk;
	void *data;
};

/**
 * copy_run() - copy all pieces, in any order
 * @copy: what to copy
 *
 * All requests have ended when it returns.
 *
 * Return: 0 or an error, reported.
 */
int copy_run(const struct copy *copy);

/**
 * copy_zero() - write zeroes to a range
 * @path: a block device
 * @start: bytes, a whole sector
 * @end: bytes; where the range ends, a whole sector
 * @pace: told after each piece how many sectors have become zeroes, and how many
 *	of them were written where the device has no command for zeroes; may wait.
 *	Returns 0, or an error, reported, or -ECANCELED, unreported, that ends it.
 * @data: for @pace
 *
 * Return: 0, or an error, reported, or what @pace returned.
 */
int copy_zero(const char *path, uint64_t start, uint64_t end,
	      int (*pace)(void *data, uint64_t done, uint64_t written),
	      void *data);

/**
 * copy_flush() - make durable what was written to a block device
 * @path: the device
 *
 * Return: 0 or an error, reported.
 */
int copy_flush(const char *path);

#endif /* COPY_H */
