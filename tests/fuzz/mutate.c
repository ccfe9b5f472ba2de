// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changes of an input that know how it is built.
 */
#include "mutate.h"

#include "bytes.h"
#include "sparse.h"

/* The splitmix64 generator: neighbouring seeds have nothing in common. */
static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static uint32_t below(uint64_t *state, uint32_t limit)
{
	return next(state) % limit;
}

/* Where something is in this image, or where it ends */
static uint64_t place(uint64_t *state, const struct sparse *image)
{
	const struct piece *piece;
	uint64_t offset = image->length;

	if (image->count && below(state, 4)) {
		piece = &image->pieces[below(state, image->count)];
		offset = piece->offset;
		if (!below(state, 3))
			offset += piece->len;
	}
	switch (below(state, 6)) {
	case 0:
		return offset - 1;
	case 1:
		return offset - 512;
	case 2:
		return offset + (1ULL << (9 + below(state, 13)));
	default:
		return offset;
	}
}

static uint64_t value(uint64_t *state, const struct sparse *image)
{
	static const uint64_t flags[] = {
		0, 1ULL << 63, 1ULL << 62, 3ULL << 62, 1, 1ULL << 63 | 1,
		1ULL << 56, 1ULL << 61,
	};

	switch (below(state, 5)) {
	case 0:
		return next(state) >> below(state, 64);
	case 1:
		return (1ULL << below(state, 64)) - below(state, 2);
	case 2:
		return -(1ULL << below(state, 64));
	default:
		return place(state, image) | flags[below(state, 8)];
	}
}

static uint64_t small(uint64_t *state)
{
	return below(state, 2) ? below(state, 70) :
		(1ULL << below(state, 33)) - below(state, 3);
}

/* A field or an entry: they stand at multiples of their size. */
static void change_data(uint64_t *state, const struct sparse *image,
			uint8_t *data, uint32_t len)
{
	uint32_t at = below(state, len);

	switch (below(state, 4)) {
	case 0:
		data[at] ^= 1U << below(state, 8);
		break;
	case 1:
		at &= ~3U;
		if (len - at >= 4)
			put(data + at, 4, small(state));
		break;
	default:
		at &= ~7U;
		if (len - at >= 8)
			put(data + at, 8, value(state, image));
	}
}

void mutate(uint8_t *input, size_t size, uint32_t seed)
{
	uint64_t state = seed;
	const struct piece *piece;
	struct sparse image;
	uint8_t *data;

	sparse_parse(input, size, &image);
	if (!image.count)
		return;
	piece = &image.pieces[below(&state, image.count)];
	data = input + (piece->data - input);
	switch (below(&state, 16)) {
	case 0:
		put(input, SPARSE_HEAD, place(&state, &image));
		break;
	case 1:
		put(data - PIECE_HEAD, 6, place(&state, &image) / 512);
		break;
	case 2:
		put(data - 2, 2, piece->len - below(&state, 16));
		break;
	default:
		if (piece->len)
			change_data(&state, &image, data, piece->len);
	}
}
