// SPDX-License-Identifier: GPL-2.0-only
/*
 * LUKS headers of images.
 */
#include "luks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

/* Eight slots of 4000 stripes of the longest key take 2 MiB. */
#define AREA_MAX	(16U << 20)

/* The extension tells where the header is: offset and length, 8 bytes each. */
static int find_area(const struct image *image, uint64_t *offset,
		     uint64_t *length)
{
	struct qcow2_ext ext;
	__be64 pointer[2] = { 0 };
	uint8_t *data;

	data = image_extension(image, QCOW2_EXT_CRYPTO, &ext);
	if (data && ext.len == sizeof(pointer))
		memcpy(pointer, data, sizeof(pointer));
	free(data);
	*offset = __be64_to_cpu(pointer[0]);
	*length = __be64_to_cpu(pointer[1]);
	if (*length < sizeof(struct luks_header))
		return report_fail(EUCLEAN,
				   "%s has no pointer to its LUKS header.",
				   image->path);
	return 0;
}

static int check_magic(const struct image *image,
		       const struct luks_header *header, uint64_t offset)
{
	static const uint8_t magic[] = { 'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 1 };

	if (!memcmp(header, magic, sizeof(magic)))
		return 0;
	return report_fail(EUCLEAN,
			   "%s: there is no LUKS header at offset %llu.",
			   image->path, (unsigned long long)offset);
}

int luks_read(const struct image *image, struct luks_header *header)
{
	uint64_t offset, length;
	void *area;
	int r;

	r = find_area(image, &offset, &length);
	if (r < 0)
		return r;
	area = image_read(image, sizeof(*header), offset);
	if (!area)
		return -EIO;
	memcpy(header, area, sizeof(*header));
	free(area);
	return check_magic(image, header, offset);
}

void *luks_area(const struct image *image, size_t *length)
{
	uint64_t offset, bytes;
	void *area;

	if (find_area(image, &offset, &bytes) < 0)
		return NULL;
	if (bytes > AREA_MAX) {
		report_fail(EUCLEAN,
			    "%s: a LUKS header of %llu bytes is none.",
			    image->path, (unsigned long long)bytes);
		return NULL;
	}
	*length = bytes;
	area = image_read(image, bytes, offset);
	if (area && check_magic(image, area, offset) < 0) {
		free(area);
		area = NULL;
	}
	return area;
}

/* Names that are not ended by a zero do not match. */
static bool is_name(const char field[32], const char *allowed)
{
	size_t length = strnlen(field, 32);

	return length && length < 32 && strspn(field, allowed) == length;
}

/*
 * The header comes with the image, from anywhere, and these words go into a table
 * line: dm-crypt knows ways to spell them that QEMU does not.
 */
int luks_cipher(const struct image *image, const struct luks_header *header,
		char **cipher)
{
	static const char * const names[] = {
		"aes", "serpent", "twofish", "cast5",
	};
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789-:";
	unsigned int i;

	*cipher = NULL;
	for (i = 0; i < sizeof(names) / sizeof(names[0]) && !*cipher; i++) {
		if (!strncmp(header->cipher_name, names[i], 32) &&
		    is_name(header->cipher_mode, letters))
			*cipher = text("%s-%s", names[i], header->cipher_mode);
	}
	if (*cipher)
		return 0;
	return report_fail(EOPNOTSUPP,
			   "%s is encrypted with '%.32s-%.32s', which QEMU does not know.",
			   image->path, header->cipher_name,
			   header->cipher_mode);
}
