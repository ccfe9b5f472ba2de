/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Volume keys in the kernel's keyrings.
 *
 * They are of type "logon": the kernel uses them, and shows them to no process
 * (Documentation/security/keys/core.rst of Linux).  They are in the keyring of the
 * user, so that a later command finds them, as long as a device needs them.
 */
#ifndef KEYRING_H
#define KEYRING_H

#include <stdbool.h>
#include <stddef.h>

/* Keys of this type need a description with such a prefix. */
#define KEYRING_TYPE	"logon"
#define KEYRING_PREFIX	"qcow2setup:"

/**
 * keyring_add() - store a key, in place of one of the same name
 * @name: its description, beginning with KEYRING_PREFIX
 * @key: the key
 * @size: bytes
 *
 * Return: 0 or an error, reported.
 */
int keyring_add(const char *name, const void *key, size_t size);

/**
 * keyring_borrow() - have the kernel find a key when this thread makes it look
 * @name: its description
 *
 * The user's keyring need not be among those of the session.
 *
 * Return: a number for keyring_return(); -ENOKEY, or another negative errno,
 * unreported.
 */
int keyring_borrow(const char *name);

/** keyring_return() - end of keyring_borrow(); of errors as well */
void keyring_return(int key);

/**
 * keyring_prune() - drop the keys of ours that nothing needs
 * @used: tells whether something needs the key of this name
 */
void keyring_prune(bool (*used)(const char *name));

#endif /* KEYRING_H */
