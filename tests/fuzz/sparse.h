/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An image of which some pieces are given: what the fuzzer works with.  Metadata
 * of a few hundred bytes stands for an image of any length; the rest is zeroes.
 *
 *	8 bytes		length of the image
 *	then pieces:
 *	6 bytes		where: a sector of 512 bytes
 *	2 bytes		how long
 *	...		contents
 *
 * Numbers are big endian.  Any input means something: the last piece is as long as
 * the input, and where two overlap the later one counts.
 */
#ifndef SPARSE_H
#define SPARSE_H

#include <stddef.h>
#include <stdint.h>

#define SPARSE_HEAD	8U
#define PIECE_HEAD	8U
#define PIECES_MAX	64U

/**
 * struct piece - a part of the image
 * @offset: in the image, bytes
 * @len: bytes
 * @data: in the input
 */
struct piece {
	uint64_t offset;
	uint32_t len;
	const uint8_t *data;
};

/**
 * struct sparse - the image
 * @length: bytes
 * @count: of @pieces
 * @pieces: as they come
 */
struct sparse {
	uint64_t length;
	unsigned int count;
	struct piece pieces[PIECES_MAX];
};

/**
 * sparse_parse() - take an input apart
 * @input: the input; the result points into it
 * @size: bytes
 * @image: result
 */
void sparse_parse(const uint8_t *input, size_t size, struct sparse *image);

/**
 * sparse_read() - read from the image into new memory of just that size
 * @image: the image
 * @offset: bytes
 * @len: bytes
 *
 * Return: the memory; free() it.
 */
uint8_t *sparse_read(const struct sparse *image, uint64_t offset, uint32_t len);

#endif /* SPARSE_H */
