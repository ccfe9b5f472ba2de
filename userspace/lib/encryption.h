/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How an image is encrypted.
 */
#ifndef ENCRYPTION_H
#define ENCRYPTION_H

#include <json-c/json.h>

#include "image.h"

/**
 * encryption_describe() - describe how the image is encrypted
 * @image: a qcow2 image
 * @object: result, an ImageInfoSpecificQCow2Encryption of QEMU's
 *	qapi/block-core.json, to be put; NULL if it is not
 *
 * No key is needed.
 *
 * Return: 0 or an error, reported: the LUKS header is missing or wrong.
 */
int encryption_describe(const struct image *image, struct json_object **object);

#endif /* ENCRYPTION_H */
