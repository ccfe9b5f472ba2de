/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Changes of an input that know how it is built, and what breaks programs that
 * read images: offsets at the edge of something, flags, sizes that overflow.
 */
#ifndef MUTATE_H
#define MUTATE_H

#include <stddef.h>
#include <stdint.h>

/**
 * mutate() - change an input
 * @input: changed in place; its size stays
 * @size: bytes
 * @seed: another one makes another change
 */
void mutate(uint8_t *input, size_t size, uint32_t seed);

#endif /* MUTATE_H */
