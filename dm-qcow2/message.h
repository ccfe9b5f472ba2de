/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Target messages: what the copying jobs of qcow2setup ask of a device in use.
 */
#ifndef DM_QCOW2_MESSAGE_H
#define DM_QCOW2_MESSAGE_H

struct dm_target;

/**
 * qc_message() - handle a message
 * @ti: the target
 * @argc: words
 * @argv: the words
 * @result: for the answer
 * @maxlen: bytes of @result
 *
 * Documented in Documentation/dm-qcow2.rst.  Messages may run beside each
 * other, and hold t->jobs for reading: a suspend waits for them before
 * anything else, and they stop early for it.
 *
 * Context: may sleep.
 * Return: 1 with an answer, 0, or a negative error; -EAGAIN where the device is
 * suspended, or about to be, or there is no memory now.
 */
int qc_message(struct dm_target *ti, unsigned int argc, char **argv,
	       char *result, unsigned int maxlen);

#endif /* DM_QCOW2_MESSAGE_H */
