// SPDX-License-Identifier: GPL-2.0-only
/*
 * How an image is encrypted.
 */
#include "encryption.h"

#include <stdlib.h>
#include <string.h>

#include "luks.h"
#include "report.h"

static void set_sectors(struct json_object *object, const char *key,
			__be32 sectors)
{
	json_set_number(object, key,
			(uint64_t)__be32_to_cpu(sectors) * LUKS_SECTOR);
}

static struct json_object *slots_json(const struct luks_header *luks)
{
	struct json_object *list = json_object_new_array(), *object;
	const struct luks_slot *slot;
	unsigned int i;
	bool active;

	for (i = 0; i < LUKS_SLOTS; i++) {
		slot = &luks->slots[i];
		active = __be32_to_cpu(slot->active) == LUKS_SLOT_ACTIVE;
		object = json_object_new_object();
		json_set_bool(object, "active", active);
		if (active)
			json_set_number(object, "iters",
					__be32_to_cpu(slot->iterations));
		set_sectors(object, "key-offset", slot->key_material_offset);
		if (active)
			json_set_number(object, "stripes",
					__be32_to_cpu(slot->stripes));
		json_object_array_add(list, object);
	}
	return list;
}

/* A cipher's mode is "xts-plain64" or "cbc-essiv:sha256". */
static void set_ivgen(struct json_object *object, char *mode)
{
	char *ivgen = strchr(mode, '-'), *hash;

	if (!ivgen)
		return;
	*ivgen++ = '\0';
	hash = strchr(ivgen, ':');
	if (hash)
		*hash++ = '\0';
	json_set_string(object, "ivgen-alg", ivgen);
	if (hash)
		json_set_string(object, "ivgen-hash-alg", hash);
}

/* Half of the key of XTS is for the tweak. */
static void set_cipher(struct json_object *object,
		       const struct luks_header *luks, const char *mode)
{
	unsigned int bits = __be32_to_cpu(luks->key_bytes) * 8;
	char *cipher;

	if (!strcmp(mode, "xts"))
		bits /= 2;
	cipher = text("%.32s-%u", luks->cipher_name, bits);
	json_set_string(object, "cipher-alg", cipher);
	free(cipher);
}

static struct json_object *luks_json(const struct luks_header *luks)
{
	struct json_object *object = json_object_new_object();
	char *mode = text("%.32s", luks->cipher_mode);
	char *hash = text("%.32s", luks->hash_spec);
	char *uuid = text("%.40s", luks->uuid);

	set_ivgen(object, mode);
	json_set_bool(object, "detached-header", false);
	json_set_string(object, "hash-alg", hash);
	set_cipher(object, luks, mode);
	json_set_string(object, "uuid", uuid);
	json_set_string(object, "format", "luks");
	json_set_string(object, "cipher-mode", mode);
	json_object_object_add(object, "slots", slots_json(luks));
	set_sectors(object, "payload-offset", luks->payload_offset);
	json_set_number(object, "master-key-iters",
			__be32_to_cpu(luks->mk_iterations));
	free(mode);
	free(hash);
	free(uuid);
	return object;
}

static int read_luks(const struct image *image, struct json_object **object)
{
	struct luks_header luks;
	int r = luks_read(image, &luks);

	if (!r)
		*object = luks_json(&luks);
	return r;
}

int encryption_describe(const struct image *image, struct json_object **object)
{
	*object = NULL;
	switch (image->header.crypt_method) {
	case QCOW2_CRYPT_LUKS:
		return read_luks(image, object);
	case QCOW2_CRYPT_AES:
		*object = json_object_new_object();
		json_set_string(*object, "format", "aes");
	}
	return 0;
}
