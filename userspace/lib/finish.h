/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Jobs that died when the chain was what it was to become, but not all was done
 * and said; by a reboot as well. The notes of a job have for that
 *
 *   chain      the layers of the chain to be
 *   gone       those of the old one that are not part of it
 *   emptied    the first of these was the top image: it is empty then
 *   left       those that another such job had taken out before
 *   plan       what becomes of the images (fate.h)
 *   finished   the files that were to be deleted are
 *
 * Whether the chain is the result is read from the chain, not from the record:
 * there is no moment in which the record is behind.
 */
#ifndef FINISH_H
#define FINISH_H

#include <json-c/json.h>
#include <stdbool.h>

struct live;
struct users;

/**
 * finish_notes() - what a job is to come to, for job_note_lasting()
 * @chain: the chain to be, of layers_json(); is taken over
 * @gone: layers that are not part of it; is taken over
 * @left: of leftover_layers(), or NULL; stays the caller's
 * @plan: what becomes of the images; stays the caller's
 *
 * Return: the notes, to be put.
 */
struct json_object *finish_notes(struct json_object *chain,
				 struct json_object *gone,
				 struct json_object *left,
				 struct json_object *plan);

/**
 * finish_delete() - delete the files that a job was to delete
 * @notes: of the job
 * @users: where to look for users; the chain is what the job has made
 *
 * Not what stands elsewhere by now, or has users: somebody may have built on it while
 * the job ran.  That is warned of, and the plan in @notes says so.
 */
void finish_delete(struct json_object *notes, const struct users *users);

/**
 * finish_dead() - delete the files that dead jobs were to delete
 *
 * A file that has another user meanwhile stays. Call it with the state lock
 * held; part of recover().
 */
void finish_dead(void);

/**
 * finish_again() - was this command killed when its work was done?
 * @live: the chain
 * @json: print JSON
 *
 * If so, says what became of the images, as it would have, and forgets the job.
 * The same words mean something else on the new chain: a layer by its number, or
 * the default.
 *
 * Return: whether it was; nothing is left to be done then.
 */
bool finish_again(const struct live *live, bool json);

#endif /* FINISH_H */
