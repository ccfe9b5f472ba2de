// SPDX-License-Identifier: GPL-2.0-only
/*
 * An image of which some pieces are given.
 */
#include "sparse.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "must.h"

void sparse_parse(const uint8_t *input, size_t size, struct sparse *image)
{
	size_t pos = SPARSE_HEAD;
	struct piece *piece;

	image->length = size < pos ? 0 : get(input, SPARSE_HEAD);
	image->count = 0;
	while (pos + PIECE_HEAD <= size && image->count < PIECES_MAX) {
		piece = &image->pieces[image->count++];
		piece->offset = get(input + pos, 6) * 512;
		piece->len = get(input + pos + 6, 2);
		pos += PIECE_HEAD;
		piece->data = input + pos;
		if (piece->len > size - pos)
			piece->len = size - pos;
		pos += piece->len;
	}
}

static void overlay(const struct piece *piece, uint64_t offset, uint32_t len,
		    uint8_t *buf)
{
	uint64_t end = piece->offset + piece->len;
	uint64_t from = piece->offset > offset ? piece->offset : offset;
	uint64_t to = end < offset + len ? end : offset + len;

	if (from < to)
		memcpy(buf + (from - offset), piece->data +
		       (from - piece->offset), to - from);
}

uint8_t *sparse_read(const struct sparse *image, uint64_t offset, uint32_t len)
{
	uint8_t *buf = calloc(1, len ? len : 1);
	unsigned int i;

	must(buf);
	for (i = 0; i < image->count; i++)
		overlay(&image->pieces[i], offset, len, buf);
	return buf;
}
