// SPDX-License-Identifier: GPL-2.0-only
/*
 * How a command line names a layer of a chain.
 */
#include "layerword.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "report.h"

bool layer_by_number(const char *name, const char *word, unsigned int *index)
{
	size_t length = strlen(name);
	int end = 0;

	if (strncmp(word, name, length) || word[length] != '[' ||
	    !isdigit((unsigned char)word[length + 1]))
		return false;
	return sscanf(word + length, "[%u]%n", index, &end) == 1 && end &&
		!word[length + end];
}

int layer_find(const char *name, const char *word,
	       const struct image_id *layers, unsigned int count,
	       unsigned int *index)
{
	struct image_id id;

	if (layer_by_number(name, word, index)) {
		if (*index < count)
			return 0;
		return report_fail(ENOENT, "%s has %u layers: there is no %s.",
				   name, count, word);
	}
	if (!image_id_of_path(word, &id))
		return report_fail(ENOENT, "%s does not exist.", word);
	for (*index = 0; *index < count; (*index)++) {
		if (image_id_equal(&layers[*index], &id))
			return 0;
	}
	return report_fail(ENOENT, "%s is not a layer of %s.", word, name);
}
