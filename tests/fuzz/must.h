/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What does not hold ends the program, as a memory error does: the fuzzer keeps
 * the input.
 */
#ifndef MUST_H
#define MUST_H

#include <stdio.h>
#include <stdlib.h>

#define must(condition)							\
	((condition) ? (void)0 : must_fail(#condition, __FILE__, __LINE__))

static inline void must_fail(const char *condition, const char *file,
			     int line)
{
	fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
	abort();
}

#endif /* MUST_H */
