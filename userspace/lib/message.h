/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Messages to the kernel target, see Documentation/dm-qcow2.rst.
 */
#ifndef MESSAGE_H
#define MESSAGE_H

#include <stdbool.h>
#include <stdint.h>

/**
 * message_send() - send a message, and again as long as the device is suspended
 * @name: device
 * @message: the words
 * @reply: what the target answers, or NULL
 * @size: room in @reply
 *
 * Threads may call this beside each other.
 *
 * Return: 0, or a negative errno, unreported.
 */
int message_send(const char *name, const char *message, char *reply,
		 unsigned int size);

/**
 * message_backing() - rewrite the backing link of the top image
 * @name: device
 * @link: the name, NULL for none
 * @format: of the image it leads to
 *
 * Return: 0 or an error, reported.
 */
int message_backing(const char *name, const char *link, const char *format);

/**
 * message_resize() - make the size last that an image has by the feature grow
 * @name: device
 *
 * Return: 0 or an error, reported.
 */
int message_resize(const char *name);

/**
 * message_final() - the mirror is about to replace the device
 * @name: device
 * @keep: the top image stays what it is; else it becomes an empty overlay
 *
 * Return: 0, or an error, reported: the mirror has failed.
 */
int message_final(const char *name, bool keep);

/**
 * struct sweep - a message that works through a device, range by range
 * @name: device
 * @verb: "copy" or "populate"
 * @tail: words of the message behind the range
 * @start: first sector
 * @end: sector behind the last one
 * @pace: see struct copy; called by one thread at a time, for the sectors that
 *	were gone over, with the sectors that were copied of them
 * @data: for it
 */
struct sweep {
	const char *name;
	const char *verb;
	const char *tail;
	uint64_t start;
	uint64_t end;
	int (*pace)(void *data, uint64_t swept, uint64_t copied);
	void *data;
};

/**
 * sweep_run() - send the message for a range, a few beside each other
 * @sweep: what
 *
 * Return: 0 or an error, reported.
 */
int sweep_run(const struct sweep *sweep);

#endif /* MESSAGE_H */
