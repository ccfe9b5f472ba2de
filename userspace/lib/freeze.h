/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is frozen around a snapshot: file systems of this host, and guests by
 * their QEMU guest agent. Nothing here writes to a disk or prints, but for the
 * checks beforehand.
 */
#ifndef FREEZE_H
#define FREEZE_H

#include <json-c/json.h>

#include "identity.h"

/**
 * struct freeze - what is to be frozen
 * @mounts: mount points
 * @mount_count: of @mounts
 * @sockets: UNIX sockets of guest agents
 * @socket_count: of @sockets
 */
struct freeze {
	const char **mounts;
	unsigned int mount_count;
	const char **sockets;
	unsigned int socket_count;
};

/** freeze_any() - is there anything to freeze? */
bool freeze_any(const struct freeze *freeze);

/**
 * freeze_check() - are these mount points, and do the agents answer?
 *
 * Return: 0 or an error, reported.
 */
int freeze_check(const struct freeze *freeze);

/**
 * freeze_holds() - which file system is on this device, or has this file?
 * @freeze: the file systems
 * @id: a device or file
 *
 * Return: its mount point, or NULL.
 */
const char *freeze_holds(const struct freeze *freeze,
			 const struct image_id *id);

/**
 * freeze_begin() - freeze the guests, then the file systems
 * @freeze: what is to be frozen
 * @frozen: result: what of it is to be thawed, a part of the same lists; what others
 *	have frozen is not
 * @who: the one that failed
 *
 * Return: 0 or a negative errno, unreported; freeze_end() after errors, too.
 */
int freeze_begin(const struct freeze *freeze, struct freeze *frozen,
		 const char **who);

/**
 * freeze_end() - thaw all, in the reverse order
 * @frozen: what is to be thawed
 * @who: the first that failed
 *
 * What is not frozen does not matter.
 *
 * Return: 0 or a negative errno, unreported; the others are thawed.
 */
int freeze_end(const struct freeze *frozen, const char **who);

/** freeze_json() - for the journal */
struct json_object *freeze_json(const struct freeze *freeze);

/**
 * freeze_undo() - thaw what a journal names
 * @json: of freeze_json(); may be NULL
 *
 * Return: 0 or an error, reported.
 */
int freeze_undo(struct json_object *json);

/** freeze_free() - free the lists, not what is in them */
void freeze_free(struct freeze *freeze);

#endif /* FREEZE_H */
