/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sizes of images as qemu-img takes them.
 */
#ifndef SIZE_H
#define SIZE_H

#include <stdint.h>

/**
 * size_parse() - parse the size of an image
 * @word: a number, perhaps with a fraction, and b, k, K, M, G, T, P or E for
 *	bytes, KiB and so on; bytes without one; or bytes in hexadecimal, behind 0x
 * @bytes: result, whole sectors
 *
 * As qemu_strtosz() in util/cutils.c of QEMU 10 has it; 7.2 takes no fraction
 * without digits before its point, and units behind hexadecimal numbers.
 *
 * Return: 0, or -EINVAL, reported.
 */
int size_parse(const char *word, uint64_t *bytes);

/**
 * size_change() - parse a new size, or how much more or less
 * @word: as of size_parse(), perhaps with + or - before it
 * @old: size so far, bytes
 * @bytes: result
 *
 * Return: 0, or -EINVAL, reported.
 */
int size_change(const char *word, uint64_t old, uint64_t *bytes);

#endif /* SIZE_H */
