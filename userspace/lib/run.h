/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Other programs.
 */
#ifndef RUN_H
#define RUN_H

/**
 * run_program() - run a program and wait for it
 * @argv: its name, looked up in PATH, and arguments
 *
 * No shell is involved. Standard output is ours alone. The state lock goes
 * along: while the program runs, even if we were killed, no other command
 * starts.
 *
 * Return: 0; -ENOENT (unreported) if there is no such program; -EIO
 * (unreported) if it fails; other errors, reported.
 */
int run_program(const char *const argv[]);

/**
 * run_output() - as run_program(), and keep what the program prints
 * @argv: its name, looked up in PATH, and arguments
 * @output: result, terminated; free() it, after errors as well
 *
 * Return: its exit status; -ENOENT (unreported) if there is no such program; -EIO
 * (unreported) if a signal ended it; other errors, reported.
 */
int run_output(const char *const argv[], char **output);

/** load_module() - have the kernel load a module, if it can */
void load_module(const char *name);

#endif /* RUN_H */
