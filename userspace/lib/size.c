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
			   "'%s' is not a size (a number with k, M, G, T, P or E, or 0x and a hexadecimal one).",
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

/* The fraction of a unit that the digits behind the point are, rounded */
static uint64_t fraction(const char *point, size_t count, int shift)
{
	char digits[64] = "0";

	if (count > sizeof(digits) - 2)
		count = sizeof(digits) - 2;
	memcpy(digits + 1, point, count);
	digits[1 + count] = '\0';
	return strtod(digits, NULL) * (1ULL << shift) + 0.5;
}

static bool is_zero(const char *digits, size_t count)
{
	return strspn(digits, "0") >= count;
}

/* What does not fit becomes the largest one, which is too large as well. */
static uint64_t number_of(const char *word, int base)
{
	uint64_t number;

	errno = 0;
	number = strtoull(word, NULL, base);
	return errno ? ~0ULL : number;
}

/* Bytes in hexadecimal: neither a fraction nor a unit goes with them. */
static int parse_hexadecimal(const char *digits, uint64_t *bytes)
{
	size_t count = strspn(digits, "0123456789abcdefABCDEF");

	if (!count || digits[count])
		return -EINVAL;
	*bytes = number_of(digits, 16);
	return 0;
}

static int parse_decimal(const char *word, uint64_t *bytes)
{
	size_t whole = strspn(word, "0123456789"), part = 0;
	const char *point = word + whole, *end = point;
	uint64_t number;
	int shift;

	if (*point == '.') {
		part = strspn(point + 1, "0123456789");
		end += 1 + part;
	}
	shift = shift_of(end);
	if (!(whole + part) || shift < 0)
		return -EINVAL;
	/* There are no parts of a byte. */
	if (!shift && part && !is_zero(point + 1, part))
		return -EINVAL;
	number = whole ? number_of(word, 10) : 0;
	if (number > SIZE_MAX_BYTES >> shift)
		number = ~0ULL;
	else
		number <<= shift;
	*bytes = number;
	if (part && number <= SIZE_MAX_BYTES)
		*bytes += fraction(point, 1 + part, shift);
	return 0;
}

static int parse_bytes(const char *word, uint64_t *bytes)
{
	bool hexadecimal = word[0] == '0' && toupper(word[1]) == 'X';
	int r = hexadecimal ? parse_hexadecimal(word + 2, bytes) :
		parse_decimal(word, bytes);

	if (r < 0)
		return refuse(word);
	if (*bytes > SIZE_MAX_BYTES)
		return report_fail(EINVAL, "'%s' is too large for an image.",
				   word);
	return 0;
}

int size_parse(const char *word, uint64_t *bytes)
{
	int r = parse_bytes(word, bytes);

	if (!r)
		*bytes = round_up(*bytes, 512);
	return r;
}

int size_change(const char *word, uint64_t old, uint64_t *bytes)
{
	bool more = *word == '+', less = *word == '-';
	uint64_t change;
	int r;

	old = round_up(old, 512);
	r = parse_bytes(word + (more || less), &change);
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
	/* The size counts as the next one: no more is lost than was asked for. */
	*bytes = round_up(less ? old - change : change, 512);
	if (*bytes)
		return 0;
	return report_fail(EINVAL, "An image cannot have a size of 0.");
}
