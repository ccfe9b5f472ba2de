// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-crypt devices over encrypted images.
 */
#include "crypt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "device.h"
#include "dm.h"
#include "keyring.h"
#include "report.h"

void crypt_key_name(const struct image *image, const struct luks_header *header,
		    char name[CRYPT_KEY_MAX])
{
	char *end = name;
	unsigned int i;

	end += sprintf(end, KEYRING_PREFIX "%llx-%llx-",
		       (unsigned long long)image->id.dev,
		       (unsigned long long)image->id.ino);
	for (i = 0; i < LUKS_DIGEST; i++)
		end += sprintf(end, "%02x", header->mk_digest[i]);
}

/* The UUID tells what is below, see device.c, and which key it has. */
static void device_names(dev_t below, const char *key, char name[DM_NAME_MAX],
			 char uuid[DM_UUID_MAX])
{
	unsigned int big = major(below), small = minor(below);

	snprintf(name, DM_NAME_MAX, CRYPT_NAME "%u-%u", big, small);
	snprintf(uuid, DM_UUID_MAX, DM_UUID_CRYPT "%x-%x-%s", big, small,
		 key + strlen(KEYRING_PREFIX));
}

/* The name of the key that a device has; "" for what is none of ours */
static void key_of_uuid(const char *uuid, char name[CRYPT_KEY_MAX])
{
	unsigned int big, small;
	int end = 0;

	name[0] = '\0';
	if (sscanf(uuid, DM_UUID_CRYPT "%x-%x-%n", &big, &small, &end) == 2 &&
	    end)
		snprintf(name, CRYPT_KEY_MAX, KEYRING_PREFIX "%s", uuid + end);
}

static int hold(const char *name, const char *uuid, struct crypt *crypt)
{
	crypt->hold = dm_hold(name, uuid, &crypt->device);
	return crypt->hold < 0 ? crypt->hold : 0;
}

static int create(const struct image *image, const struct luks_header *header,
		  dev_t below, const char *key, const char *name,
		  const char *uuid)
{
	struct dm_segment segment = {
		.length = device_length(below),
		.target = "crypt",
	};
	char *cipher;
	int borrowed, r;

	r = luks_cipher(image, header, &cipher);
	if (r < 0)
		return r;
	/* Format: Documentation/admin-guide/device-mapper/dm-crypt.rst of Linux */
	segment.params = text("%s :%u:" KEYRING_TYPE ":%s 0 %u:%u 0", cipher,
			      __be32_to_cpu(header->key_bytes), key,
			      major(below), minor(below));
	free(cipher);
	borrowed = keyring_borrow(key);
	if (borrowed < 0)
		r = report_fail(ENOKEY,
				"%s is encrypted, and the kernel does not have its key (%s): open it with 'qcow2setup open'.",
				image->path, strerror(-borrowed));
	else
		r = dm_create(name, uuid, device_is_read_only(below), &segment,
			      1);
	keyring_return(borrowed);
	free(segment.params);
	return r;
}

/* The same table, as long as the device below it */
static int make_longer(const char *name, const struct dm_state *state,
		       uint64_t length)
{
	char key[CRYPT_KEY_MAX];
	struct dm_segment segment;
	int borrowed, r;

	if (!dm_table_of(name, "crypt", &segment))
		return 0;
	key_of_uuid(state->uuid, key);
	segment.length = length;
	borrowed = keyring_borrow(key);
	r = dm_load(name, state->read_only, &segment);
	keyring_return(borrowed);
	free(segment.params);
	return r < 0 ? r : dm_resume(name);
}

static int refit(const char *name)
{
	struct dm_state state = dm_query(name);
	uint64_t length;
	dev_t below;

	if (!state.exists || !device_is_crypt(state.device, &below))
		return 0;
	length = device_length(below);
	return length > device_length(state.device) ?
		make_longer(name, &state, length) : 0;
}

int crypt_attach(const struct image *image, dev_t below, struct crypt *crypt)
{
	char name[DM_NAME_MAX], uuid[DM_UUID_MAX], key[CRYPT_KEY_MAX];
	struct luks_header header;
	int r;

	r = luks_read(image, &header);
	if (r < 0)
		return r;
	crypt_key_name(image, &header, key);
	device_names(below, key, name, uuid);
	if (hold(name, uuid, crypt) == 0)
		return refit(name);
	r = create(image, &header, below, key, name, uuid);
	if (r < 0)
		return r;
	r = hold(name, uuid, crypt);
	return r < 0 ? report_errno(-r, "Cannot open device %s", name) : 0;
}

void crypt_release(struct crypt *crypt)
{
	if (crypt->hold >= 0)
		close(crypt->hold);
	crypt->hold = -1;
	crypt->device = 0;
}

static bool visit_refit(const char *name, void *data)
{
	(void)data;
	if (refit(name) < 0)
		report_warn("Device %s is not as long as what is below it.",
			    name);
	return false;
}

void crypt_refit(void)
{
	dm_each(visit_refit, NULL);
}

static bool has_key(const char *name, void *data)
{
	struct dm_state state = dm_query(name);
	char key[CRYPT_KEY_MAX];

	key_of_uuid(state.uuid, key);
	return !strcmp(key, data);
}

static bool is_used(const char *key)
{
	return dm_each(has_key, (void *)key);
}

void crypt_prune(void)
{
	keyring_prune(is_used);
}
