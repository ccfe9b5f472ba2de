/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Jobs that died when the chain was what it was to become, but not all was done
 * and said; by a reboot as well. The notes of a job have for that
 *
 *   chain      the layers of the chain to be
 *   gone       those of the old one that are not part of it
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

/**
 * finish_note() - note what the running job is to come to
 * @chain: the chain to be, of layers_json(); is taken over
 * @gone: layers that are not part of it; is taken over
 * @left: of leftover_layers(), or NULL; stays the caller's
 * @plan: what becomes of the images; stays the caller's
 *
 * Return: 0 or an error, reported.
 */
int finish_note(struct json_object *chain, struct json_object *gone,
		struct json_object *left, struct json_object *plan);

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
