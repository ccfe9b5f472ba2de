/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Waiting for the job of another process, and stopping it.
 */
#ifndef JOBWAIT_H
#define JOBWAIT_H

#include <stdbool.h>

/**
 * job_wait() - wait until a job is over
 * @word: name of a job, of its device, or path of its image
 * @cancel: tell it to stop first
 * @json: show progress as events
 *
 * Shows what the job had to say, and forgets it.
 *
 * Return: its result; or an error, reported, if there is no such job or its
 * process was killed.
 */
int job_wait(const char *word, bool cancel, bool json);

#endif /* JOBWAIT_H */
