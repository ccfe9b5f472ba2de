// SPDX-License-Identifier: GPL-2.0-only
/*
 * A chain of images.
 */
#include "chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "link.h"
#include "report.h"

int formats_add(struct formats *formats, const char *argument)
{
	const char *equal = strrchr(argument, '=');
	struct format_given *given;
	enum image_format format;

	if (!equal || equal == argument)
		return report_fail(EINVAL,
				   "--backing-format needs IMAGE=FORMAT, not '%s'.",
				   argument);
	format = format_of_name(equal + 1);
	if (format == FORMAT_UNKNOWN)
		return report_fail(EINVAL,
				   "Format '%s' is not supported (qcow2 and raw are).",
				   equal + 1);
	formats->given = grow_array(formats->given, formats->count,
				    sizeof(*formats->given));
	given = &formats->given[formats->count++];
	given->path = text("%.*s", (int)(equal - argument), argument);
	given->format = format;
	given->used = false;
	return 0;
}

void formats_free(struct formats *formats)
{
	while (formats->count)
		free(formats->given[--formats->count].path);
	free(formats->given);
	formats->given = NULL;
}

static enum image_format format_given(struct formats *formats, const char *path)
{
	enum image_format format = FORMAT_UNKNOWN;
	struct image_id wanted, id;
	unsigned int i;

	if (!formats || !image_id_of_path(path, &wanted))
		return FORMAT_UNKNOWN;
	for (i = 0; i < formats->count; i++) {
		if (!image_id_of_path(formats->given[i].path, &id) ||
		    !image_id_equal(&id, &wanted))
			continue;
		format = formats->given[i].format;
		formats->given[i].used = true;
	}
	return format;
}

static int link_format(const struct image *image, const struct link *link,
		       const char *path, struct formats *formats,
		       enum image_format *format)
{
	const char *recorded = link->format ? link->format :
		image->backing_format;
	enum image_format given = format_given(formats, path);

	*format = given;
	if (!recorded && given == FORMAT_UNKNOWN)
		return report_fail(EMEDIUMTYPE,
				   "%s does not record the format of its backing file %s, and guessing it is not safe: give it with --backing-format '%s=FORMAT'.",
				   image->path, path, path);
	if (!recorded)
		return 0;
	*format = format_of_name(recorded);
	if (*format == FORMAT_UNKNOWN)
		*format = given;
	if (*format == FORMAT_UNKNOWN)
		return report_fail(EOPNOTSUPP,
				   "%s: backing format '%s' is not supported (qcow2 and raw are). Where %s has one of these after all, give it with --backing-format '%s=FORMAT'.",
				   image->path, recorded, path, path);
	if (given != FORMAT_UNKNOWN && given != *format)
		return report_fail(EINVAL,
				   "%s records that its backing file %s is %s: it cannot be opened as %s.",
				   image->path, path, recorded,
				   format_name(given));
	if (link->format && image->backing_format &&
	    strcmp(link->format, image->backing_format))
		return report_fail(EMEDIUMTYPE,
				   "%s records two formats of its backing file: %s and %s.",
				   image->path, link->format,
				   image->backing_format);
	return 0;
}

int backing_of(const struct image *image, struct formats *formats, char **path,
	       enum image_format *format)
{
	struct link link;
	int r;

	*path = NULL;
	r = link_parse(image->path, image->backing, &link);
	if (!r) {
		*path = link_beside(image->path, link.name);
		r = access(*path, F_OK) == 0 ? 0 :
			report_errno(errno, "Backing file %s of %s", *path,
				     image->path);
	}
	if (!r)
		r = link_format(image, &link, *path, formats, format);
	link_free(&link);
	if (r < 0) {
		free(*path);
		*path = NULL;
	}
	return r;
}

char *backing_name(const struct image *image)
{
	struct link link = { NULL, NULL };

	if (image->backing &&
	    link_parse(image->path, image->backing, &link) < 0) {
		free(link.name);
		link.name = NULL;
	}
	free(link.format);
	return link.name;
}

static int check_loop(const struct chain *chain)
{
	const struct image *last = &chain->layers[chain->count - 1];
	unsigned int i;

	for (i = 0; i + 1 < chain->count; i++) {
		if (image_id_equal(&chain->layers[i].id, &last->id))
			return report_fail(ELOOP,
					   "The backing chain is a loop: %s is its own backing file.",
					   last->path);
	}
	return 0;
}

static int add_layer(struct chain *chain, const char *path,
		     enum image_format format)
{
	int r;

	chain->layers = grow_array(chain->layers, chain->count,
				   sizeof(*chain->layers));
	r = image_open(path, format, &chain->layers[chain->count++]);
	return r < 0 ? r : check_loop(chain);
}

int chain_open(const char *path, struct formats *formats, struct chain *chain)
{
	enum image_format format = format_given(formats, path);
	const struct image *last;
	char *next;
	int r;

	memset(chain, 0, sizeof(*chain));
	r = add_layer(chain, path, format);
	while (!r) {
		last = &chain->layers[chain->count - 1];
		if (!last->backing)
			return 0;
		r = backing_of(last, formats, &next, &format);
		if (r < 0)
			return r;
		r = add_layer(chain, next, format);
		free(next);
	}
	return r;
}

void chain_close(struct chain *chain)
{
	while (chain->count)
		image_close(&chain->layers[--chain->count]);
	free(chain->layers);
	chain->layers = NULL;
}

static bool same_text(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

bool chain_same(const struct chain *a, const struct chain *b)
{
	unsigned int i;

	if (a->count != b->count)
		return false;
	for (i = 0; i < a->count; i++) {
		if (!image_id_equal(&a->layers[i].id, &b->layers[i].id) ||
		    a->layers[i].size != b->layers[i].size ||
		    a->layers[i].length != b->layers[i].length ||
		    a->layers[i].format != b->layers[i].format ||
		    !same_text(a->layers[i].data_file, b->layers[i].data_file))
			return false;
	}
	return true;
}

char *backing_link(const char *overlay, const char *backing)
{
	size_t directory = strrchr(overlay, '/') - overlay + 1;
	const char *name = backing + directory;

	if (strncmp(overlay, backing, directory) || strchr(name, '/') ||
	    !strncmp(overlay, "/dev/", 5))
		return text_copy(backing);
	return link_of_file(name);
}
