/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An image from its header down to the table entries, as the module and the
 * command go through it, with whatever the fuzzer put there.
 */
#ifndef WALK_H
#define WALK_H

#include <stddef.h>
#include <stdint.h>

/**
 * walk() - look at all that an input has
 * @input: an image, see sparse.h
 * @size: bytes
 *
 * Ends the program where oracle.h finds what must not be.
 *
 * Return: how much in it was refused; 0 for a sound image.
 */
unsigned int walk(const uint8_t *input, size_t size);

#endif /* WALK_H */
