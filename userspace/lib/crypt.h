/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-crypt devices over what has the data of encrypted images: the image itself, or
 * its external data file.  The offset there is the IV, so that the one decrypts the
 * other in place.
 *
 * The volume key comes from the kernel's keyring, where unlock.h has put it; it is
 * in no table line.  There is one device over a block device, for all who use that:
 * the target takes no two.  It goes with its last user, as tail devices do.
 *
 * Call all of these with the state lock held.
 */
#ifndef CRYPT_H
#define CRYPT_H

#include "image.h"
#include "luks.h"

/* Names of these devices begin so */
#define CRYPT_NAME	"qcow2-crypt-"

/* Longest name of a key, with the final 0: two numbers and a digest in hex */
#define CRYPT_KEY_MAX	(12 + 2 * 17 + 2 * LUKS_DIGEST)

/**
 * crypt_key_name() - what the key of an image is called in the keyring
 * @image: image_encrypted()
 * @header: of luks_read()
 * @name: result
 *
 * It tells the image, and, by the digest in the header, the key: neither another
 * image with a copy of the header gets it, nor another key in the same place.
 */
void crypt_key_name(const struct image *image, const struct luks_header *header,
		    char name[CRYPT_KEY_MAX]);

/**
 * struct crypt - a dm-crypt device
 * @device: for the table line, or 0
 * @hold: descriptor that keeps it alive, or -1
 */
struct crypt {
	dev_t device;
	int hold;
};

/**
 * crypt_attach() - have the data of an image decrypted
 * @image: image_encrypted()
 * @below: block device that has its data
 * @crypt: result; end it with crypt_release(), after errors as well
 *
 * The device can be written to if @below can.
 *
 * Return: 0; -ENOKEY, reported, where the kernel does not have the key; or another
 * error, reported.
 */
int crypt_attach(const struct image *image, dev_t below, struct crypt *crypt);

/** crypt_release() - let go of it */
void crypt_release(struct crypt *crypt);

/** crypt_refit() - make all as long as what is below them is now */
void crypt_refit(void);

/** crypt_prune() - drop keys that no device has */
void crypt_prune(void);

#endif /* CRYPT_H */
