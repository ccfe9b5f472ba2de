/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How far is it?  A bar on a terminal, a line now and then elsewhere, or JSON
 * events; on standard output.
 */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* How it is shown */
enum progress_mode {
	PROGRESS_NONE,
	PROGRESS_BAR,
	PROGRESS_LINES,
	PROGRESS_JSON,
};

/**
 * struct progress - the progress of a job
 * @name: of the job
 * @operation: name of the command
 * @mode: how it is shown
 * @start: when it began, in seconds of the monotonic clock
 * @shown: when it was shown last
 * @measured: when the rate was taken last
 * @measured_done: bytes at that time
 * @done: bytes
 * @total: bytes
 * @rate: bytes a second, of the last seconds
 * @on_line: a bar stands on the terminal's line
 */
struct progress {
	const char *name;
	const char *operation;
	enum progress_mode mode;
	double start;
	double shown;
	double measured;
	uint64_t measured_done;
	uint64_t done;
	uint64_t total;
	double rate;
	bool on_line;
};

/** progress_now() - seconds of the monotonic clock */
double progress_now(void);

/**
 * progress_begin() - begin to show
 * @progress: what is filled
 * @name: of the job
 * @operation: name of the command
 * @json: events
 */
void progress_begin(struct progress *progress, const char *name,
		    const char *operation, bool json);

/**
 * progress_update() - it is as far as this
 * @progress: of progress_begin()
 * @done: bytes
 * @total: bytes
 */
void progress_update(struct progress *progress, uint64_t done, uint64_t total);

/**
 * progress_end() - stop showing
 * @progress: of progress_begin()
 * @state: "done", "failed" or "cancelled"
 */
void progress_end(struct progress *progress, const char *state);

/** progress_percent() - share that is done, 0 to 100 */
unsigned int progress_percent(uint64_t done, uint64_t total);

/* Room for what progress_text() writes */
#define PROGRESS_TEXT	160

/**
 * progress_text() - "45%, 4.5 GiB of 10 GiB, 120 MiB/s, 1:23 left"
 * @done: bytes
 * @total: bytes
 * @rate: bytes a second, 0 if it is not known
 * @buf: result
 *
 * Return: @buf
 */
char *progress_text(uint64_t done, uint64_t total, double rate,
		    char buf[PROGRESS_TEXT]);

#endif /* PROGRESS_H */
