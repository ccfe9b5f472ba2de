/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a power cut must not take back.
 */
#ifndef DURABLE_H
#define DURABLE_H

/**
 * durable_try() - make a file, or the names in a directory, durable
 * @path: of either
 *
 * Return: 0 or an error, not reported.
 */
int durable_try(const char *path);

/**
 * durable_make() - the same
 * @path: of either
 *
 * Return: 0 or an error, reported.
 */
int durable_make(const char *path);

/**
 * durable_name() - make durable that a path is there, or not
 * @path: whose directory it is
 *
 * Return: 0 or an error, reported.
 */
int durable_name(const char *path);

#endif /* DURABLE_H */
