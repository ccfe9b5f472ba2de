/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The journal, and what to do when a command did not come to its end.
 *
 * A command writes down what it is about to do before it does it, and clears
 * the journal as its last step. If it fails it calls recover() itself; if it is
 * killed the next command does. There is one way to undo, therefore, and every
 * failure goes it.
 *
 * Most needs no undoing: loop devices clear themselves with their last user,
 * and so do tail and dm-crypt devices.
 */
#ifndef RECOVER_H
#define RECOVER_H

#include "chain.h"
#include "device.h"
#include "layerlist.h"

/**
 * state_json() - state of a device
 * @name: its name
 * @uuid: its UUID
 * @layers: of layers_json(); is taken over
 * @length: of the top image's file at open, or NO_LENGTH if it is not made longer
 */
#define NO_LENGTH	UINT64_MAX
struct json_object *state_json(const char *name, const char *uuid,
			       struct json_object *layers, uint64_t length);

/**
 * state_length() - the length at open that a state notes
 * @state: state of a device, may be NULL
 * @top: the image that the device writes to
 * @length: result
 *
 * Return: false if there is none: the file was not made longer, or the state is that of
 * another image, as a job that was killed left it.
 */
bool state_length(struct json_object *state, const struct image_id *top,
		  uint64_t *length);

/**
 * journal_entry() - a new journal entry
 * @operation: "open", "close", "snapshot", "revert", "group", "create" or
 *	"internal"
 * @name: device
 * @uuid: its UUID
 */
struct json_object *journal_entry(const char *operation, const char *name,
				  const char *uuid);

/**
 * recover() - finish or undo what the journal says, and clear what is stray
 *
 * Call it with the state lock held, and without attachments.  What cannot be done is
 * set aside, see unfinished.h.
 *
 * Return: 0 or an error, reported; the journal stays then: it cannot be read, or set
 * aside.
 */
int recover(void);

/**
 * begin_change() - start of a command that changes something
 *
 * @needs_dm: without device-mapper there is nothing to do; else there are just
 *	no devices to mind
 *
 * Takes the state lock and recovers.
 *
 * Return: 0 or an error, reported.
 */
int begin_change(bool needs_dm);

/**
 * end_change() - clear what is stray, and wait until it is gone
 *
 * The end of a command that took devices apart; the lock is still held.
 */
void end_change(void);

/**
 * begin_look() - start of a command that only looks
 *
 * Recovers too, unless another command is at work for longer. The lock is not
 * held after.
 *
 * Return: 0, or an error, reported, if there is no device-mapper.
 */
int begin_look(void);

/**
 * trim_top_of() - cut a file back that no device writes any more
 * @state: state of a device, whose top it was
 */
void trim_top_of(struct json_object *state);

/** wait_helpers_gone() - wait a little until no helper device is without users */
void wait_helpers_gone(void);

#endif /* RECOVER_H */
