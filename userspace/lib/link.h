/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Backing links as images record them, which QEMU takes for names of files, or of
 * protocols, or for JSON.
 */
#ifndef LINK_H
#define LINK_H

#include <stdbool.h>

/**
 * struct link - a backing link, taken apart
 * @name: of a file, as it stands there; free() it
 * @format: format that a json: name gives, or NULL; free() it
 */
struct link {
	char *name;
	char *format;
};

/**
 * link_parse() - take a backing link apart
 * @image: path of the image, for messages
 * @name: the link
 * @link: result; link_free() it, after errors as well
 *
 * Return: 0, or an error, reported, for what is no file.
 */
int link_parse(const char *image, const char *name, struct link *link);

/** link_free() - free what link_parse() filled */
void link_free(struct link *link);

/**
 * link_beside() - path of a file that an image names; free() it
 * @image: absolute path of the image
 * @name: relative to it, or absolute
 */
char *link_beside(const char *image, const char *name);

/**
 * link_of_file() - how to write the name of a file into an image
 * @name: the name, relative or absolute
 *
 * Return: never what QEMU would take for a protocol; free() it.
 */
char *link_of_file(const char *name);

/**
 * link_any_file() - the first file that a backing link has in it
 * @name: the link, which link_parse() does not take
 *
 * Return: its name, or NULL; free() it.
 */
char *link_any_file(const char *name);

/** link_has_protocol() - would QEMU take the start of a name for a protocol? */
bool link_has_protocol(const char *name);

#endif /* LINK_H */
