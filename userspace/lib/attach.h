/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Attaching images: from an image and a role to the block device that a table
 * line names, with QEMU's locks held by a loop device.
 *
 *   file, ROLE_READ    a loop device; where the file's length is no multiple
 *                      of the block size, a dm device that joins it with the
 *                      file's last block (out of a memfd). Shared by all who
 *                      read the file.
 *   file, ROLE_WRITE   a loop device of its own; the file is made longer
 *   block device       itself, and a loop device that only holds the locks
 *
 * An external data file is attached with its image, in the same role and in the
 * same ways; to be written it becomes at least as long as the image's disk.  Over
 * the data of an encrypted image there is a dm-crypt device besides, for which the
 * kernel must have the key, see unlock.h.
 *
 * Until a table uses it, an attachment lives by a descriptor of this process:
 * if the process dies, the kernel clears it. Only the loop devices that hold
 * locks of block devices stay, and keys of encrypted images: the next command
 * (recover.h) or attach_prune() clears them.
 *
 * Call all of these with the state lock held.
 */
#ifndef ATTACH_H
#define ATTACH_H

#include "crypt.h"
#include "device.h"
#include "image.h"
#include "lock.h"
#include "loop.h"

/**
 * struct attachment - an image and the block device that shows it
 * @device: for the table line
 * @file: descriptor that holds the locks, until the loop device has it; or -1
 * @hold: descriptor that keeps @device alive; or -1
 * @holder: a new loop device holds the locks of a block device
 * @loop: that one
 * @length: of the file before it was made longer
 * @data: of the external data file, or NULL
 * @crypt: decrypts the data, where the image is encrypted
 */
struct attachment {
	dev_t device;
	int file;
	int hold;
	bool holder;
	struct loop loop;
	uint64_t length;
	struct attachment *data;
	struct crypt crypt;
};

/**
 * attach_read() - attach an image that is read only
 * @image: the image
 * @change: the device that wrote the image turns to reading it, or only an
 *	internal snapshot is read: its loop device is no conflict
 * @attachment: result; end it with attach_release(), after errors as well
 *
 * Return: 0 or an error, reported.
 */
int attach_read(const struct image *image, bool change,
		struct attachment *attachment);

/**
 * attach_read_layers() - attach images that are read only
 * @layers: the images, which stay what they are: see @change of attach_read()
 * @count: how many
 * @attachments: results, one for each; empty before.  End them with
 *	attach_release(), all of them after errors as well.
 *
 * With the state lock held.  The last image first.
 *
 * Return: 0 or an error, reported.
 */
int attach_read_layers(const struct image *layers, unsigned int count,
		       struct attachment *attachments);

/**
 * attach_check_unused() - is nobody in the way of a tool that opens an image?
 * @image: the image
 * @role: what the tool does with it
 *
 * Neither a device of ours nor another program that has locked it, which would
 * be in its way.  With the state lock held nobody opens it here; other programs
 * are kept out by the locks that the tool takes itself, for which ours are free
 * again when this returns.
 *
 * Return: 0; -EBUSY, reported; or another error, reported.
 */
int attach_check_unused(const struct image *image, enum role role);

/**
 * attach_write_lock() - first step for an image to be written: its locks
 * @image: the image
 * @change: a device that read the image turns back to writing it, or all that
 *	read it show internal snapshots
 * @attachment: result; end it with attach_release(), after errors as well
 *
 * After this the image cannot change. @attachment->length is filled; nothing
 * is changed yet.
 *
 * Return: 0 or an error, reported.
 */
int attach_write_lock(const struct image *image, bool change,
		      struct attachment *attachment);

/**
 * attach_write() - second step: make the file longer, and a loop device
 * @image: the image, its header read after attach_write_lock()
 * @grow: as long as it can get; else only to a whole block
 * @attachment: of attach_write_lock()
 *
 * The file's length is durable when this returns.
 *
 * Return: 0 or an error, reported.
 */
int attach_write(const struct image *image, bool grow,
		 struct attachment *attachment);

/**
 * attach_extend() - make the file of an image that is open for writing longer, as
 * far as a larger image needs it
 * @image: the image, with its new virtual size
 * @length: of the file before it was opened
 *
 * What cannot be had is warned of.
 *
 * Return: 0 or an error, reported.
 */
int attach_extend(const struct image *image, uint64_t length);

/**
 * attach_refit() - what shows a file that is open for writing gets its length
 * @id: the image, or an external data file
 */
void attach_refit(const struct image_id *id);

/**
 * attach_hold_again() - a new loop device that holds the locks of a block device
 * @image: the image
 * @attachment: of attach_write(), not released yet
 *
 * While other commands ran, one that no table needed was told to go when it is let go
 * of.  Call it before a table needs it, with the state lock held since.
 *
 * Return: 0 or an error, reported.
 */
int attach_hold_again(const struct image *image,
		      struct attachment *attachment);

/** attach_show() - name what was attached in a layer of a table line */
void attach_show(const struct attachment *attachment,
		 struct device_layer *layer);

/** attach_empty() - an attachment of nothing, for attach_release() */
struct attachment attach_empty(void);

/**
 * attach_release() - let go of it
 * @attachment: the attachment
 * @used: a table uses it; else it goes
 */
void attach_release(struct attachment *attachment, bool used);

/**
 * attach_prune() - clear what nothing uses: loop devices that hold locks for
 * no table, tail and dm-crypt devices, keys, marks for udev
 */
void attach_prune(void);

/**
 * attach_settle() - wait a little until loop devices that no device uses are
 * gone, and prune
 */
void attach_settle(void);

/**
 * attach_wait_gone() - wait a little until no loop of a kind is over an image
 * @id: the image
 * @kind: purpose of the loop; one that is made meanwhile does not count
 *
 * Return: whether none is left.
 */
bool attach_wait_gone(const struct image_id *id, enum loop_kind kind);

/** attach_wait_left() - as attach_wait_gone(), with a look at all loops before */
bool attach_wait_left(const struct loops *loops, const struct image_id *id,
		      enum loop_kind kind);

#endif /* ATTACH_H */
