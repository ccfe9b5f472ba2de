// SPDX-License-Identifier: GPL-2.0-only
/*
 * The libFuzzer target: any input through format.c.
 */
#include "libfuzzer.h"
#include "mutate.h"
#include "sparse.h"
#include "walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	walk(input, size);
	return 0;
}

/* What libFuzzer does to bytes, within one piece */
static void mutate_piece(uint8_t *input, size_t size, unsigned int seed)
{
	const struct piece *piece;
	struct sparse image;

	sparse_parse(input, size, &image);
	if (!image.count)
		return;
	piece = &image.pieces[seed % image.count];
	if (piece->len)
		LLVMFuzzerMutate(input + (piece->data - input), piece->len,
				 piece->len);
}

size_t LLVMFuzzerCustomMutator(uint8_t *input, size_t size, size_t max,
			       unsigned int seed)
{
	switch (seed % 4) {
	case 0:
		return LLVMFuzzerMutate(input, size, max);
	case 1:
		mutate_piece(input, size, seed / 4);
		return size;
	default:
		mutate(input, size, seed);
		return size;
	}
}
