/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Jobs: operations that take long.  Each has a record in /run/qcow2setup/jobs
 * by which other commands find it, shows how far it is, can be held to a rate,
 * and stops when it is told to.
 *
 * One job at a time, and one a process:
 *
 *	check everything, with the state lock held
 *	r = job_begin("vm", "commit", &options);
 *	if (r < 0)
 *		return r;
 *	...
 *	while (work is left && !job_cancelled()) {
 *		job_throttle(bytes);
 *		copy;
 *		job_progress(done, total);
 *	}
 *	undo or finish
 *	return job_end(job_cancelled() ? -ECANCELED : r);
 *
 * A job does not need the state lock while it copies.
 */
#ifndef JOB_H
#define JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "jobrecord.h"
#include "unlock.h"

/**
 * struct job_options - what the command line says of a job
 * @json: print events, one JSON object a line
 * @detach: go on in the background
 * @bandwidth: bytes a second, 0 without limit
 * @unlock: what the process holds that must not be written to swap space, or NULL
 */
struct job_options {
	bool json;
	bool detach;
	uint64_t bandwidth;
	const struct unlock *unlock;
};

/* The job of a temporary device is in its UUID: "QCOW2-JOB-<pid>-<start>-..." */
#define JOB_UUID_MAX	64

/**
 * job_bandwidth() - parse the value of --bandwidth
 * @word: bytes a second, with K, M, G or T behind it for KiB, MiB, GiB, TiB
 * @bandwidth: result
 *
 * Return: 0 or -EINVAL, reported.
 */
int job_bandwidth(const char *word, uint64_t *bandwidth);

/**
 * job_begin() - start a job
 * @subject: name of the device; for a closed chain the path of its top image
 * @operation: name of the command
 * @options: from the command line
 *
 * Call it with the state lock held, once everything is validated and before
 * anything is changed.  With @options->detach the caller returns in another
 * process, which has all descriptors and no terminal; the first one has printed
 * the name of the job and is gone.
 *
 * From here SIGINT, SIGTERM and SIGHUP cancel the job instead of killing it.
 *
 * Return: 0; -EBUSY, reported, if the subject has a job already; or another
 * error, reported.
 */
int job_begin(const char *subject, const char *operation,
	      const struct job_options *options);

/** job_command_line() - the words of this process, as records have them; free() it */
char *job_command_line(void);

/**
 * job_progress() - say how far it is
 * @done: bytes copied
 * @total: bytes to copy; it may turn out to be more or less as the job goes on
 *
 * May be called for every request: prints and writes the record now and then.
 */
void job_progress(uint64_t done, uint64_t total);

/**
 * job_throttle() - wait until more may be copied
 * @bytes: what is copied next
 *
 * Returns at once when the job is cancelled.
 */
void job_throttle(uint64_t bytes);

/**
 * job_note() - put into the record what others are to do should the job be killed
 * @note: its members go into the notes of the record, in place of those of the same
 *	name; is taken over
 *
 * Who finds the job dead looks there. When a job is over the notes are removed:
 * it has cleaned up behind itself.
 *
 * Return: 0 or an error, reported.
 */
int job_note(struct json_object *note);

/**
 * job_note_lasting() - job_note() that is found after a reboot as well
 * @note: as for job_note(); what was noted so before is forgotten
 *
 * Return: as for job_note().
 */
int job_note_lasting(struct json_object *note);

/** job_cancelled() - shall the job stop at the next point that is safe? */
bool job_cancelled(void);

/**
 * job_finishing() - it cannot be stopped any more
 *
 * To be called before what makes the job's result valid; from here
 * job_cancelled() keeps what it said.
 */
void job_finishing(void);

/**
 * job_stage() - a part is finished, and the chain is valid: it can be stopped again
 */
void job_stage(void);

/**
 * job_keep() - the job fails, and has changed the chain: keep what it has noted
 *
 * So that the same command finishes it, as that of a job that was killed.
 */
void job_keep(void);

/**
 * job_end() - the job is over, well or not
 * @result: 0 or a negative errno, -ECANCELED for a job that was stopped
 *
 * Return: @result; that a job was stopped is reported.
 */
int job_end(int result);

/**
 * job_uuid() - UUID for a device of the running job
 * @role: what the device is for, a letter or a word
 * @uuid: result
 */
void job_uuid(const char *role, char uuid[JOB_UUID_MAX]);

/** job_uuid_alive() - does the process of a job's UUID still run? */
bool job_uuid_alive(const char *uuid);

/** job_subject() - what the job of this process is at work on, or NULL */
const char *job_subject(void);

/**
 * job_check_none() - refuse a command on something that a job is at work on, or that
 * has something left to recover
 * @subject: as for job_begin()
 *
 * Return: 0, or -EBUSY, reported.
 */
int job_check_none(const char *subject);

#endif /* JOB_H */
