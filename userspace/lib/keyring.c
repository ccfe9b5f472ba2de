// SPDX-License-Identifier: GPL-2.0-only
/*
 * Volume keys in the kernel's keyrings.
 */
#include "keyring.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "report.h"

/* Enough for "logon;0;0;3f010000;" and a description */
#define DESCRIPTION_MAX	512

static long keyctl(int operation, long a, long b, long c, long d)
{
	return syscall(SYS_keyctl, operation, a, b, c, d);
}

int keyring_add(const char *name, const void *key, size_t size)
{
	if (syscall(SYS_add_key, KEYRING_TYPE, name, key, size,
		    KEY_SPEC_USER_KEYRING) >= 0)
		return 0;
	return report_errno(errno, "Cannot give the kernel a key");
}

int keyring_borrow(const char *name)
{
	long key = keyctl(KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING,
			  (long)KEYRING_TYPE, (long)name,
			  KEY_SPEC_THREAD_KEYRING);

	return key < 0 ? -errno : (int)key;
}

void keyring_return(int key)
{
	if (key > 0)
		keyctl(KEYCTL_UNLINK, key, KEY_SPEC_THREAD_KEYRING, 0, 0);
}

/* The keys in the user's keyring. Return: how many; free() them */
static size_t list_keys(int32_t **keys)
{
	long size = 0, got;

	*keys = NULL;
	got = keyctl(KEYCTL_READ, KEY_SPEC_USER_KEYRING, 0, 0, 0);
	/* There may be more by now. */
	while (got > size) {
		size = got;
		free(*keys);
		*keys = malloc(size);
		got = *keys ? keyctl(KEYCTL_READ, KEY_SPEC_USER_KEYRING,
				     (long)*keys, size, 0) : -1;
	}
	return got < 0 ? 0 : got / sizeof(**keys);
}

/* The name of a key, if it is ours; it is behind the last semicolon. */
static const char *name_of(int32_t key, char description[DESCRIPTION_MAX])
{
	long size = keyctl(KEYCTL_DESCRIBE, key, (long)description,
			   DESCRIPTION_MAX, 0);
	const char *name;

	if (size < 0 || size > DESCRIPTION_MAX)
		return NULL;
	name = strrchr(description, ';');
	if (!name || strncmp(description, KEYRING_TYPE ";",
			     strlen(KEYRING_TYPE ";")))
		return NULL;
	name++;
	return strncmp(name, KEYRING_PREFIX, strlen(KEYRING_PREFIX)) ? NULL :
		name;
}

void keyring_prune(bool (*used)(const char *name))
{
	char description[DESCRIPTION_MAX];
	const char *name;
	size_t i, count;
	int32_t *keys;

	count = list_keys(&keys);
	for (i = 0; i < count; i++) {
		name = name_of(keys[i], description);
		if (name && !used(name))
			keyctl(KEYCTL_UNLINK, keys[i], KEY_SPEC_USER_KEYRING, 0,
			       0);
	}
	free(keys);
}
