/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A snapshot of an open device, up to the moment in which tables change: the
 * overlay is made, all is attached, and the new table is loaded. Nobody has
 * noticed so far, and recover() undoes it.
 */
#ifndef LIVESNAP_H
#define LIVESNAP_H

#include <json-c/json.h>

#include "attach.h"
#include "chain.h"
#include "device.h"
#include "unlock.h"

/**
 * struct livesnap - a snapshot of an open device
 * @existing: the overlay was made before; set by the caller
 * @no_grow: its file is not made longer; set by the caller
 * @formats: formats given; set by the caller
 * @unlock: passphrases; set by the caller
 * @plain: the overlay is not encrypted, whatever is below; set by the caller
 * @image: image that the overlay is to stand on, as the command line has it;
 *	NULL for the top; set by the caller
 * @device: as it was before
 * @below: index of the layer that the overlay is to stand on
 * @overlay_path: absolute
 * @passphrase: of the overlay that is to be made, or NULL
 * @top: that image
 * @overlay: the new one
 * @entry: in the journal
 * @held: keeps the old table's devices while tables change
 * @reads: the old top in its new role, if it stays in the chain
 * @writes: the overlay
 */
struct livesnap {
	bool existing;
	bool no_grow;
	struct formats *formats;
	struct unlock *unlock;
	bool plain;
	const char *image;
	struct device device;
	unsigned int below;
	char *overlay_path;
	const struct passphrase *passphrase;
	struct image top;
	struct image overlay;
	struct json_object *entry;
	int *held;
	struct attachment reads;
	struct attachment writes;
};

/**
 * livesnap_path() - where an overlay is to be, or is
 * @word: from the command line
 * @existing: it is there
 * @path: result, absolute; free() it, after errors as well
 *
 * Return: 0 or an error, reported.
 */
int livesnap_path(const char *word, bool existing, char **path);

/**
 * livesnap_open() - check what can be checked beforehand
 * @snap: with the members that the caller sets, others 0; livesnap_close() it,
 *	after errors as well
 * @name: the device
 * @overlay: from the command line
 *
 * Call it with the state lock held.
 *
 * Return: 0 or an error, reported.
 */
int livesnap_open(struct livesnap *snap, const char *name, const char *overlay);

/**
 * livesnap_unlock() - have the passphrase of the overlay
 * @snap: of livesnap_open()
 *
 * A plan needs none.  Anything else calls it before it does anything: somebody may
 * have to be asked.
 *
 * Return: 0; -ENOKEY, see unlock_image(); or an error, reported.
 */
int livesnap_unlock(struct livesnap *snap);

/**
 * livesnap_plan() - what is going to be done, see fate.h
 * @snap: of livesnap_open()
 * @plan: result, of no errors only
 *
 * Also checks what livesnap_prepare() would: an overlay that was made before.
 *
 * Return: 0 or an error, reported.
 */
int livesnap_plan(struct livesnap *snap, struct json_object **plan);

/**
 * livesnap_journal() - make the journal entry
 * @snap: of livesnap_open()
 *
 * It is not written yet.
 */
void livesnap_journal(struct livesnap *snap);

/**
 * livesnap_prepare() - make and attach the overlay, load the new table
 * @snap: with its journal entry
 *
 * Return: 0 or an error, reported; recover() after livesnap_release() then.
 */
int livesnap_prepare(struct livesnap *snap);

/**
 * livesnap_phase() - note in the journal how far it is
 * @snap: with its journal entry
 * @phase: "prepare", or "swap" right before tables change
 *
 * Return: 0 or an error, reported.
 */
int livesnap_phase(const struct livesnap *snap, const char *phase);

/**
 * livesnap_release() - let go of what was attached
 * @snap: of livesnap_prepare()
 * @used: the new table uses it
 */
void livesnap_release(struct livesnap *snap, bool used);

/** livesnap_close() - free what is left */
void livesnap_close(struct livesnap *snap);

#endif /* LIVESNAP_H */
