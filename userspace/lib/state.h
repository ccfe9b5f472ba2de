/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is remembered between commands, in /run/qcow2setup (until the next
 * boot, as the devices are):
 *
 *   lock            held (flock) by the command that changes something
 *   journal         what that command is about to do; recover.h
 *   unfinished/N    the same of one that could not be recovered; unfinished.h
 *   device/NAME     an open device: names of its images, length at open
 *   loop/loopN      exists while loopN is ours, for the udev rules
 *   jobs/NAME       a job, its messages, and whether its result is waited for
 *
 * and in /var/lib/qcow2setup, which a reboot leaves:
 *
 *   NAME            what a job that collapses layers is to come to; finish.h
 *
 * The truth about devices, loops and locks is the kernel's, and is asked
 * there; a lost file here costs a file name in a message, or a truncation.
 */
#ifndef STATE_H
#define STATE_H

#include <json-c/json.h>
#include <stdbool.h>

/**
 * state_lock() - become the only command that changes something
 * @wait: wait for the others; else give up when there is one
 *
 * The lock ends with the process, and with the qemu-img it started.
 *
 * Return: 0, -EAGAIN (unreported) if @wait is false and the lock is held, or
 * another error, reported.
 */
int state_lock(bool wait);

/** state_unlock() - let the next one in.  The lock need not be held. */
void state_unlock(void);

/** state_lock_fd() - descriptor of the lock, -1 if it is not held */
int state_lock_fd(void);

/**
 * journal_write() - write down what comes next, or how far it got
 * @entry: see recover.c
 *
 * The file is replaced in one step: who reads it sees the old entry or the
 * new one.  Call it with the lock held.
 *
 * Return: 0 or an error, reported.
 */
int journal_write(struct json_object *entry);

/**
 * journal_whole() - entries that are written later are parts of this one
 * @whole: is written instead of them; NULL for no longer
 */
void journal_whole(struct json_object *whole);

/**
 * journal_read() - look for a command that did not finish
 * @entry: result: its entry, or NULL
 *
 * Return: 0; or an error, reported: it is not known whether there is one.
 */
int journal_read(struct json_object **entry);

/** journal_clear() - nothing is under way */
void journal_clear(void);

/**
 * journal_set_aside() - what the journal says cannot be recovered now
 *
 * Nothing is under way then, as after journal_clear().
 *
 * Return: 0 or an error, reported.
 */
int journal_set_aside(void);

/**
 * unfinished_each() - look through what was set aside
 * @visit: returns whether the entry was recovered, and is to be forgotten
 * @data: for @visit
 */
void unfinished_each(bool (*visit)(struct json_object *entry, void *data),
		     void *data);

/** device_state_save() - remember @state of the device @name; reports errors */
int device_state_save(const char *name, struct json_object *state);

/** device_state_load() - what is known of the device @name, or NULL */
struct json_object *device_state_load(const char *name);

/** device_state_remove() - forget the device @name */
void device_state_remove(const char *name);

/**
 * device_state_prune() - forget devices that are gone
 * @exists: tells whether there is a device of this name and UUID
 */
void device_state_prune(bool (*exists)(const char *name, const char *uuid));

/* Endings of the files of a job */
#define JOB_RECORD	".json"
#define JOB_LOG		".log"
#define JOB_WANTED	".wanted"

/**
 * job_state_check() - may this user read what jobs there are?
 *
 * Return: 0 or an error, reported.
 */
int job_state_check(void);

/** job_state_path() - path of a file of the job @name; free() it */
char *job_state_path(const char *name, const char *ending);

/** job_state_save() - replace the record of the job @name; reports errors */
int job_state_save(const char *name, struct json_object *record);

/** job_state_load() - the record of the job @name, or NULL */
struct json_object *job_state_load(const char *name);

/** job_state_remove() - remove all files of the job @name, also that which lasts */
void job_state_remove(const char *name);

/** job_state_each() - call @visit for each record until it returns true */
void job_state_each(bool (*visit)(const char *name, void *data), void *data);

/**
 * job_lasting_save() - have a record of the job @name after a reboot, too
 * @name: the job
 * @record: as for job_state_save(), as it is to be found then
 *
 * It is durable when this returns. Where that cannot be had there is none: it spares
 * work by hand, no image needs it.
 */
void job_lasting_save(const char *name, struct json_object *record);

/** job_lasting_remove() - do not */
void job_lasting_remove(const char *name);

/** job_lasting_adopt() - find the jobs again that a reboot has ended */
void job_lasting_adopt(void);

/** loop_mark() - tell udev, before it hears of it, that a loop is ours */
void loop_mark(int index);

/** loop_unmark() - it is not */
void loop_unmark(int index);

/** loop_marks_prune() - drop the marks of loops that are not ours (any more) */
void loop_marks_prune(bool (*ours)(int index));

#endif /* STATE_H */
