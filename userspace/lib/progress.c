// SPDX-License-Identifier: GPL-2.0-only
/*
 * How far is it?
 */
#include "progress.h"

#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "report.h"

/* Seconds between two looks of the user */
#define BAR_SECONDS	0.2
#define EVENT_SECONDS	1.0
#define LINE_SECONDS	10.0

/* The rate is taken once in this time, and forgets what is older than that. */
#define RATE_SECONDS	0.5
#define RATE_MEMORY	5.0

#define BAR_WIDTH	24

double progress_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

unsigned int progress_percent(uint64_t done, uint64_t total)
{
	if (done >= total)
		return 100;
	return (double)done * 100 / (double)total;
}

static void time_text(double seconds, char *buf, size_t size)
{
	unsigned long long s = seconds;

	if (s >= 3600)
		snprintf(buf, size, "%llu:%02llu:%02llu", s / 3600,
			 s / 60 % 60, s % 60);
	else
		snprintf(buf, size, "%llu:%02llu", s / 60, s % 60);
}

char *progress_text(uint64_t done, uint64_t total, double rate,
		    char buf[PROGRESS_TEXT])
{
	char a[SIZE_TEXT], b[SIZE_TEXT], c[SIZE_TEXT], left[32];
	int len;

	len = snprintf(buf, PROGRESS_TEXT, "%3u%%, %s of %s",
		       progress_percent(done, total), size_text(done, a),
		       size_text(total, b));
	if (rate < 1)
		return buf;
	len += snprintf(buf + len, PROGRESS_TEXT - len, ", %s/s",
			size_text(rate, c));
	if (done < total) {
		time_text((total - done) / rate, left, sizeof(left));
		snprintf(buf + len, PROGRESS_TEXT - len, ", %s left", left);
	}
	return buf;
}

static enum progress_mode mode_of(bool json)
{
	if (json)
		return PROGRESS_JSON;
	return isatty(STDOUT_FILENO) ? PROGRESS_BAR : PROGRESS_LINES;
}

static void print_event(const struct progress *progress, const char *event,
			const char *state)
{
	struct json_object *object = json_object_new_object();

	json_set_string(object, "event", event);
	json_set_string(object, "name", progress->name);
	json_set_string(object, "operation", progress->operation);
	if (state)
		json_set_string(object, "state", state);
	json_set_number(object, "done", progress->done);
	json_set_number(object, "total", progress->total);
	json_set_number(object, "rate", progress->rate);
	if (progress->rate >= 1 && progress->done < progress->total)
		json_set_number(object, "seconds-left",
				(progress->total - progress->done) /
				progress->rate);
	json_print(object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	fflush(stdout);
	json_object_put(object);
}

void progress_begin(struct progress *progress, const char *name,
		    const char *operation, bool json)
{
	memset(progress, 0, sizeof(*progress));
	progress->name = name;
	progress->operation = operation;
	progress->mode = mode_of(json);
	progress->start = progress_now();
	progress->shown = progress->start;
	progress->measured = progress->start;
	if (json)
		print_event(progress, "start", NULL);
}

static void print_bar(struct progress *progress)
{
	char line[PROGRESS_TEXT], bar[BAR_WIDTH + 1];
	unsigned int percent = progress_percent(progress->done,
						progress->total);
	unsigned int full = percent * BAR_WIDTH / 100;

	memset(bar, ' ', BAR_WIDTH);
	memset(bar, '#', full);
	bar[BAR_WIDTH] = '\0';
	printf("\r%s %s [%s] %s\033[K", progress->operation, progress->name,
	       bar, progress_text(progress->done, progress->total,
				  progress->rate, line));
	fflush(stdout);
	progress->on_line = true;
}

static void print_line(const struct progress *progress)
{
	char line[PROGRESS_TEXT];

	printf("%s %s: %s\n", progress->operation, progress->name,
	       progress_text(progress->done, progress->total, progress->rate,
			     line));
	fflush(stdout);
}

static void show(struct progress *progress)
{
	switch (progress->mode) {
	case PROGRESS_BAR:
		print_bar(progress);
		break;
	case PROGRESS_LINES:
		print_line(progress);
		break;
	case PROGRESS_JSON:
		print_event(progress, "progress", NULL);
		break;
	case PROGRESS_NONE:
		break;
	}
}

static double interval_of(enum progress_mode mode)
{
	switch (mode) {
	case PROGRESS_BAR:
		return BAR_SECONDS;
	case PROGRESS_LINES:
		return LINE_SECONDS;
	default:
		return EVENT_SECONDS;
	}
}

static void measure(struct progress *progress, double now)
{
	double passed = now - progress->measured, rate, weight;

	if (passed < RATE_SECONDS)
		return;
	rate = progress->done > progress->measured_done ?
		(progress->done - progress->measured_done) / passed : 0;
	weight = passed / (passed + RATE_MEMORY);
	if (progress->rate < 1)
		weight = 1;
	progress->rate += weight * (rate - progress->rate);
	progress->measured = now;
	progress->measured_done = progress->done;
}

void progress_update(struct progress *progress, uint64_t done, uint64_t total)
{
	double now = progress_now();

	progress->done = done;
	progress->total = total;
	measure(progress, now);
	if (now - progress->shown < interval_of(progress->mode))
		return;
	show(progress);
	progress->shown = now;
}

/* The last word has the rate of the whole. */
void progress_end(struct progress *progress, const char *state)
{
	double passed = progress_now() - progress->start;

	progress->rate = passed > 0.01 ? progress->done / passed : 0;
	if (progress->mode == PROGRESS_JSON) {
		print_event(progress, "end", state);
	} else if (progress->mode == PROGRESS_BAR) {
		if (!strcmp(state, "done") && progress->total)
			print_bar(progress);
		if (progress->on_line)
			putchar('\n');
	} else if (progress->total && !strcmp(state, "done")) {
		show(progress);
	}
	fflush(stdout);
	progress->on_line = false;
}
