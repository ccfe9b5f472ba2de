/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Device-mapper, as far as it is needed: thin wrappers around libdevmapper.
 * With udev running they wait for it; the rules of the host (LVM, blkid) are
 * told to leave the contents of our devices alone.
 */
#ifndef DM_H
#define DM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* All our UUIDs begin with this */
#define DM_UUID_OURS	"QCOW2-"
/* A device with a target of ours; the rest is random */
#define DM_UUID_DISK	"QCOW2-DISK-"
/* A partition: its number and the rest of the disk's UUID follow */
#define DM_UUID_PART	"QCOW2-PART-"
/* A file with its last, partial block: device, inode, length follow */
#define DM_UUID_TAIL	"QCOW2-TAIL-"
/* dm-crypt over an image: device below, image, key follow; see crypt.h */
#define DM_UUID_CRYPT	"QCOW2-CRYPT-"
/* A device that a job made for itself; see job_uuid() */
#define DM_UUID_JOB	"QCOW2-JOB-"
/* Its name: this and the rest of its UUID */
#define DM_NAME_JOB	"qcow2-job-"

/* Longest name and UUID of a device, with the final 0 */
#define DM_NAME_MAX	128
#define DM_UUID_MAX	129

/**
 * struct dm_state - what the kernel says of a device
 * @exists: there is one
 * @device: its number
 * @open_count: how often it is open
 * @read_only: it is read-only
 * @suspended: it is
 * @live: it has an active table
 * @loaded: it has an inactive table
 * @deferred: it goes with its last user
 * @uuid: its UUID
 */
struct dm_state {
	bool exists;
	dev_t device;
	int open_count;
	bool read_only;
	bool suspended;
	bool live;
	bool loaded;
	bool deferred;
	char uuid[DM_UUID_MAX];
};

/**
 * struct dm_segment - one line of a table
 * @start: first sector
 * @length: sectors
 * @target: name of the target
 * @params: its arguments
 */
struct dm_segment {
	uint64_t start;
	uint64_t length;
	const char *target;
	char *params;
};

/** dm_init() - call it once before all others */
void dm_init(void);

/**
 * dm_available() - is there a device-mapper, and may we use it?
 *
 * Return: 0 or an error, reported.
 */
int dm_available(void);

/** dm_query() - state of a device; unreported errors look like no device */
struct dm_state dm_query(const char *name);

/**
 * dm_create() - make a device, load its table, and start it
 * @name: its name
 * @uuid: its UUID
 * @read_only: make it read-only
 * @segments: its table
 * @count: of @segments
 *
 * Return: 0 or an error, reported; nothing is left then.
 */
int dm_create(const char *name, const char *uuid, bool read_only,
	      const struct dm_segment *segments, unsigned int count);

/**
 * dm_load() - load a table as the inactive one
 *
 * Return: 0 or an error, reported.
 */
int dm_load(const char *name, bool read_only, const struct dm_segment *segment);

/**
 * dm_resume() - one resume ioctl
 *
 * With an inactive table: suspends the device, file systems on it frozen, makes
 * that table the active one, destroys the other, and resumes.
 *
 * Return: 0 or an error, reported.
 */
int dm_resume(const char *name);

/** dm_suspend() - suspend.  Return: 0 or an error, reported. */
int dm_suspend(const char *name);

/**
 * dm_suspend_now() - suspend, without a word
 * @name: device
 * @lockfs: freeze a file system on it
 *
 * Return: 0 or a negative errno, unreported.
 */
int dm_suspend_now(const char *name, bool lockfs);

/**
 * dm_resume_now() - resume as dm_resume(), without a word, not waiting for udev
 * @name: device
 * @lockfs: freeze a file system on it where that needs a suspend
 * @cookie: 0 at first, for dm_settle() when all is resumed
 *
 * Return: 0 or a negative errno, unreported.
 */
int dm_resume_now(const char *name, bool lockfs, uint32_t *cookie);

/** dm_settle() - wait for udev */
void dm_settle(uint32_t cookie);

/** dm_clear() - drop the inactive table.  Return: 0 or an error, reported. */
int dm_clear(const char *name);

/**
 * dm_remove() - remove a device
 * @name: its name
 * @deferred: if it is in use, let it go with its last user
 *
 * Return: 0; -EBUSY (unreported) if it is in use; other errors, reported.
 */
int dm_remove(const char *name, bool deferred);

/**
 * dm_hold() - keep a device; from then on it goes with its last user
 * @name: its name
 * @uuid: the UUID it must have
 * @device: result, its number
 *
 * Return: a descriptor; or a negative errno, unreported: there is none.
 */
int dm_hold(const char *name, const char *uuid, dev_t *device);

/**
 * dm_table_of() - the active table, if it has one line with a target
 * @name: device
 * @target: the target
 * @segment: result; free() its params
 *
 * Return: whether there is one.
 */
bool dm_table_of(const char *name, const char *target,
		 struct dm_segment *segment);

/** dm_table() - as dm_table_of(), with our target */
bool dm_table(const char *name, struct dm_segment *segment);

/** dm_status() - the status of such a table; NULL if there is none; free() it */
char *dm_status(const char *name);

/**
 * dm_each() - call @visit for each device until it returns true
 *
 * Return: whether @visit returned true.
 */
bool dm_each(bool (*visit)(const char *name, void *data), void *data);

/** dm_uuid_is() - does a UUID begin with one of DM_UUID_*? */
bool dm_uuid_is(const struct dm_state *state, const char *prefix);

/** dm_is_helper() - is it a device below others that goes with its last user? */
bool dm_is_helper(const struct dm_state *state);

/**
 * dm_drop_node() - remove the node of a device that is gone
 * @name: device; where one of that name exists, nothing happens
 *
 * Without udev libdevmapper makes nodes itself: that of a device that goes on
 * its own, or whose remover was killed, would stay.
 */
void dm_drop_node(const char *name);

#endif /* DM_H */
