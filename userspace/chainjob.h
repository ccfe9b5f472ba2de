/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the commands have in common that collapse layers of a chain.
 */
#ifndef CHAINJOB_H
#define CHAINJOB_H

#include "collapse.h"
#include "commands.h"

/**
 * chain_job() - carry out such a command
 * @args: command line; its first word is the chain
 * @operation: name of the command
 * @run: says which layers, and runs; returns 0 or an error, reported
 *
 * Return: 0 or an error, reported.
 */
int chain_job(struct arguments *args, const char *operation,
	      int (*run)(const struct arguments *args,
			 struct collapse *collapse));

#endif /* CHAINJOB_H */
