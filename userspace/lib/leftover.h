/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a job that was killed, or failed (job_keep()), had taken out of its chain
 * already: images that stand on those of the chain, and that nobody needs any more.
 */
#ifndef LEFTOVER_H
#define LEFTOVER_H

#include <json-c/json.h>
#include <stdbool.h>

#include "chain.h"
#include "jobrecord.h"

/**
 * leftover_notes() - what a job noted of its chain (finish.h)
 * @record: the job
 *
 * Return: the notes, which belong to the record; NULL if the job runs or has ended
 * well, or had not come so far.
 */
struct json_object *leftover_notes(const struct job_record *record);

/**
 * leftover_has_left() - has the chain left its top image by what the job did?
 * @notes: of the job
 * @chain: its layers now
 *
 * No link on disk tells: who opens the image below by the same name has the same
 * chain, and the job perhaps had copied next to nothing.  But the image that was left
 * is empty.
 *
 * Return: false if it is still there and has data; true for all other jobs.
 */
bool leftover_has_left(struct json_object *notes, const struct chain *chain);

/**
 * leftover_layers() - layers that the last job of a chain has taken out of it
 * @subject: the chain, as for job_begin()
 * @chain: its layers now
 * @again: result: that job was this very command
 *
 * None, if the chain has become something else since: an image may be the top of
 * another chain then.
 *
 * Return: an array as of layers_json(), to be put; or NULL.
 */
struct json_object *leftover_layers(const char *subject,
				    const struct chain *chain, bool *again);

#endif /* LEFTOVER_H */
