/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Loop devices.  Ours carry their purpose in lo_file_name, so that the kernel
 * remembers it; all but those that hold locks for block devices clear
 * themselves with their last user.
 */
#ifndef LOOP_H
#define LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "identity.h"
#include "lock.h"

/**
 * enum loop_kind - purpose of a loop device
 * @LOOP_FOREIGN: not ours
 * @LOOP_READ: an image file with the locks of ROLE_READ
 * @LOOP_WRITE: an image file with the locks of ROLE_WRITE
 * @LOOP_TAIL: the last block of a file whose length is not a multiple of it
 * @LOOP_HOLD_READ: holds the locks of ROLE_READ on a block device; not read
 * @LOOP_HOLD_WRITE: the same with ROLE_WRITE
 */
enum loop_kind {
	LOOP_FOREIGN,
	LOOP_READ,
	LOOP_WRITE,
	LOOP_TAIL,
	LOOP_HOLD_READ,
	LOOP_HOLD_WRITE,
};

/**
 * struct loop - a loop device that is in use
 * @index: N of /dev/loopN
 * @fd: keeps it from clearing itself; -1 if that is up to others
 * @kind: purpose
 * @id: what is behind it
 * @whole: it shows its file from the start to the end
 * @path: name of what is behind it, as the kernel has it
 */
struct loop {
	int index;
	int fd;
	enum loop_kind kind;
	struct image_id id;
	bool whole;
	char *path;
};

/* Sets of kinds */
enum {
	LOOP_IMAGES = 1u << LOOP_READ | 1u << LOOP_WRITE,
	LOOP_HOLDERS = 1u << LOOP_HOLD_READ | 1u << LOOP_HOLD_WRITE,
};

/** loop_kind_of() - the kind that holds the locks for an image in a role */
enum loop_kind loop_kind_of(bool block, enum role role);

/** loop_device() - device number of a loop device that is held open */
dev_t loop_device(const struct loop *loop);

/**
 * loop_attach() - put a free loop device over a descriptor
 * @fd: what it shows; its open file description stays open with the loop
 * @path: for messages
 * @kind: purpose; LOOP_READ and LOOP_WRITE demand direct I/O
 * @block_size: logical block size, 0 for what the file's disk has
 * @loop: result; close it with loop_close()
 *
 * Return: 0 or an error, reported.
 */
int loop_attach(int fd, const char *path, enum loop_kind kind,
		unsigned int block_size, struct loop *loop);

/**
 * loop_find() - a loop device of ours over an image
 * @id: the image
 * @kind: purpose
 * @loop: result, held open; close it with loop_close()
 *
 * Return: true if there is one.
 */
bool loop_find(const struct image_id *id, enum loop_kind kind,
	       struct loop *loop);

/**
 * struct loop_note - what is known of a loop device of ours
 * @index: N of /dev/loopN
 * @kind: purpose
 * @id: what is behind it
 */
struct loop_note {
	int index;
	enum loop_kind kind;
	struct image_id id;
};

/**
 * struct loops - all loop devices of ours, for who asks about many images
 * @list: they
 * @count: of @list
 */
struct loops {
	struct loop_note *list;
	unsigned int count;
};

/**
 * loops_load() - look at all loop devices
 * @loops: result, as it is now; end it with loops_free()
 * @kinds: those to note, LOOP_IMAGES and such
 */
void loops_load(struct loops *loops, unsigned int kinds);

/** loops_add() - note one that was made since */
void loops_add(struct loops *loops, const struct loop *loop);

/** loops_free() - free what loops_load() filled */
void loops_free(struct loops *loops);

/** loop_reopen() - as loop_open(), one that was noted, if it is still that */
bool loop_reopen(const struct loop_note *note, struct loop *loop);

/**
 * loops_find() - as loop_find(), among those that were there
 * @loops: from loops_load()
 * @id: the image
 * @kind: purpose
 * @loop: result, held open; close it with loop_close()
 *
 * Return: true if there is one still.
 */
bool loops_find(const struct loops *loops, const struct image_id *id,
		enum loop_kind kind, struct loop *loop);

/**
 * loop_open() - a loop device by number
 * @index: N of /dev/loopN
 * @loop: result, held open; close it with loop_close()
 *
 * Return: true if there is one and something is behind it.
 */
bool loop_open(int index, struct loop *loop);

/** loop_open_device() - the same by device number; false for other devices, too */
bool loop_open_device(dev_t device, struct loop *loop);

/**
 * loop_each() - call @visit for each loop device of ours until it returns true
 *
 * The loop is open during the call only.
 *
 * Return: whether @visit returned true.
 */
bool loop_each(bool (*visit)(const struct loop *loop, void *data), void *data);

/** loop_mates() - count our loops that hold locks on an image */
struct lock_mates loop_mates(const struct image_id *id);

/** loop_refit() - make it as long as its file is now */
void loop_refit(const struct loop *loop);

/** loop_clear() - free it, at its last close at the latest */
void loop_clear(const struct loop *loop);

/** loop_close() - close and forget; one without users clears itself */
void loop_close(struct loop *loop);

/** block_size_of() - logical block size of an open block device */
unsigned int block_size_of(int fd);

#endif /* LOOP_H */
