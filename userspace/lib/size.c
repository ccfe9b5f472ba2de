// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sizes of images.
 */
#include "size.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "report.h"

/* What the format can express; whole sectors, and room to calculate */
#define SIZE_MAX_BYTES	0x4000000000000000ULL

static int refuse(const char *word)
{
	return report_fail(EINVAL,
			   "'%s' is not a size (a number with k, M, G, T, P or E).",
			   word);
}

/* -1 where the suffix is none; as by qemu-img, capital or not */
static int shift_of(const char *suffix)
{
	static const char units[] = "BKMGTPE";
	const char *found;

	if (!*suffix)
		return 0;
	found = strchr(units, toupper((unsigned char)*suffix));
	return !found || suffix[1] ? -1 : 10 * (int)(found - units);
}

/* The fraction of a unit that the digits behind the point are */
static uint64_t fraction(const char *digits, size_t count, int shift)
{
	uint64_t numerator = 0, denominator = 1;

	/* More digits would not be whole bytes of any size there is. */
	for (; count && denominator < 1000000000; count--) {
		numerator = 10 * numerator + (*digits++ - '0');
		denominator *= 10;
	}
	return (double)numerator / denominator * (1ULL << shift);
}

int size_parse(const char *word, uint64_t *bytes)
{
	size_t whole = strspn(word, "0123456789"), part = 0;
	const char *end = word + whole;
	uint64_t number, more;
	int shift;

	if (*end == '.') {
		part = strspn(end + 1, "0123456789");
		end += 1 + part;
	}
	shift = shift_of(end);
	if (!whole || shift < 0 || (word[whole] == '.' && !part))
		return refuse(word);
	errno = 0;
	number = strtoull(word, NULL, 10);
	more = fraction(word + whole + 1, part, shift);
	if (errno || number > SIZE_MAX_BYTES >> shift ||
	    (number << shift) + more > SIZE_MAX_BYTES)
		return report_fail(EINVAL, "'%s' is too large for an image.",
				   word);
	*bytes = round_up((number << shift) + more, 512);
	return 0;
}

int size_change(const char *word, uint64_t old, uint64_t *bytes)
{
	bool more = *word == '+', less = *word == '-';
	uint64_t change;
	int r;

	r = size_parse(word + (more || less), &change);
	if (r < 0)
		return r;
	if (less && change > old)
		return report_fail(EINVAL,
				   "%s is more than the %llu bytes there are.",
				   word + 1, (unsigned long long)old);
	if (more && change > SIZE_MAX_BYTES - old)
		return report_fail(EINVAL, "'%s' is too large for an image.",
				   word);
	if (more)
		change += old;
	*bytes = less ? old - change : change;
	if (*bytes)
		return 0;
	return report_fail(EINVAL, "An image cannot have a size of 0.");
}
