/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The LUKS header that an encrypted image has in some of its clusters (qcow2
 * specification, "Full disk encryption header pointer").
 *
 * All but the guest's data is in plain text.  That is encrypted as a LUKS volume's
 * is, with the sector in the file as IV, so that dm-crypt over the file decrypts it
 * in place, see crypt.h.
 */
#ifndef LUKS_H
#define LUKS_H

#include <linux/types.h>

#include "image.h"

#define LUKS_SLOTS		8
#define LUKS_SLOT_ACTIVE	0x00ac71f3
#define LUKS_SECTOR		512
#define LUKS_DIGEST		20

/* LUKS On-Disk Format Specification, version 1.2.3, figures 2 and 4 */
struct luks_slot {
	__be32 active;
	__be32 iterations;
	uint8_t salt[32];
	__be32 key_material_offset;
	__be32 stripes;
} __attribute__((packed));

struct luks_header {
	uint8_t magic[6];
	__be16 version;
	char cipher_name[32];
	char cipher_mode[32];
	char hash_spec[32];
	__be32 payload_offset;
	__be32 key_bytes;
	uint8_t mk_digest[LUKS_DIGEST];
	uint8_t mk_salt[32];
	__be32 mk_iterations;
	char uuid[40];
	struct luks_slot slots[LUKS_SLOTS];
} __attribute__((packed));

/**
 * luks_read() - read the LUKS header of an image
 * @image: image_encrypted()
 * @header: result, as it stands there: nothing but its magic is checked
 *
 * Return: 0 or an error, reported: it is missing, or none of version 1, which is
 * the only one there is in images.
 */
int luks_read(const struct image *image, struct luks_header *header);

/**
 * luks_area() - read the LUKS header with all key slots
 * @image: image_encrypted()
 * @length: result, bytes
 *
 * Return: memory, free() it; or NULL, reported.
 */
void *luks_area(const struct image *image, size_t *length);

/**
 * luks_cipher() - the cipher of an image, as dm-crypt spells it
 * @image: image_encrypted()
 * @header: of luks_read()
 * @cipher: result, free() it
 *
 * Return: 0; -EOPNOTSUPP, reported, for none that QEMU knows.
 */
int luks_cipher(const struct image *image, const struct luks_header *header,
		char **cipher);

#endif /* LUKS_H */
