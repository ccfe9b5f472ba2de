/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What libFuzzer calls, and what it has for us; it comes without a header for C
 * (https://llvm.org/docs/LibFuzzer.html).
 */
#ifndef LIBFUZZER_H
#define LIBFUZZER_H

#include <stddef.h>
#include <stdint.h>

/** LLVMFuzzerTestOneInput() - try one input.  Return: 0 */
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

/**
 * LLVMFuzzerCustomMutator() - change an input
 * @input: changed in place
 * @size: bytes
 * @max: bytes that it may become
 * @seed: another one makes another change
 *
 * Return: the new size.
 */
size_t LLVMFuzzerCustomMutator(uint8_t *input, size_t size, size_t max,
			       unsigned int seed);

/** LLVMFuzzerMutate() - libFuzzer's own changes, of any bytes */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

#endif /* LIBFUZZER_H */
