/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Asking somebody at a terminal.
 */
#ifndef TERMINAL_H
#define TERMINAL_H

#include <stddef.h>

/**
 * terminal_ask() - read a line that nobody is to see
 * @prompt: is shown before
 * @line: result, terminated, without the newline
 * @size: of @line
 *
 * On the terminal of the process, whatever its standard streams are.
 *
 * Return: its length; -EINTR after Ctrl-C, unreported; or an error, reported: there
 * is no terminal, or the line is too long.
 */
int terminal_ask(const char *prompt, char *line, size_t size);

#endif /* TERMINAL_H */
