/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Other programs.
 */
#ifndef RUN_H
#define RUN_H

/**
 * struct run_files - what another program gets; a descriptor of -1 stands for none
 * @output: its standard output; without one what it prints is dropped
 * @errors: its standard error; without one it has ours, or if that is muted
 *	(report.h) none
 * @keep: it has this one, too, under the same number
 * @directory: its working directory, or NULL for ours
 */
struct run_files {
	int output;
	int errors;
	int keep;
	const char *directory;
};

/**
 * run_program() - run a program and wait for it
 * @argv: its name, looked up in PATH, and arguments
 * @files: what it gets; NULL: none
 *
 * No shell is involved. Standard output is ours alone. The state lock goes
 * along: while the program runs, even if we were killed, no other command
 * starts.
 *
 * Return: 0; unreported: -ENOENT if there is no such program, -EIO if it fails,
 * -EINTR if a signal ended it; other errors, reported.
 */
int run_program(const char *const argv[], const struct run_files *files);

/**
 * run_output() - as run_program(), and keep what the program prints
 * @argv: its name, looked up in PATH, and arguments
 * @output: result, terminated; free() it, after errors as well
 *
 * Return: its exit status; unreported: -ENOENT if there is no such program,
 * -EINTR if a signal ended it; other errors, reported.
 */
int run_output(const char *const argv[], char **output);

/**
 * run_errors() - where a program's messages can wait
 *
 * For struct run_files.
 *
 * Return: a descriptor, to be closed; or an error, reported.
 */
int run_errors(void);

/**
 * run_print_errors() - print the messages that have waited
 * @errors: from run_errors()
 * @old: what they call a file, or NULL
 * @name: what its name is
 */
void run_print_errors(int errors, const char *old, const char *name);

/** load_module() - have the kernel load a module, if it can */
void load_module(const char *name);

#endif /* RUN_H */
