/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How far a job is, over all of its steps.
 */
#ifndef TALLY_H
#define TALLY_H

#include <stdint.h>

/** tally_expect() - bytes that a step of the job is going to go over */
void tally_expect(uint64_t bytes);

/**
 * tally_copy() - so many bytes come next, see struct copy
 *
 * Return: 0; -ECANCELED, unreported, if the job was cancelled.
 */
int tally_copy(void *unused, uint64_t bytes);

/**
 * tally_sweep() - a range was gone over, see struct sweep and copy_zero()
 * @unused: nothing
 * @swept: sectors
 * @copied: how many of them count for --bandwidth
 *
 * Return: 0; -ECANCELED, unreported, if the job was cancelled.
 */
int tally_sweep(void *unused, uint64_t swept, uint64_t copied);

#endif /* TALLY_H */
