// SPDX-License-Identifier: GPL-2.0-only
/*
 * check IMAGE: is an image consistent?
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "check.h"
#include "commands.h"
#include "recover.h"
#include "report.h"
#include "state.h"

static void print_fixed(uint64_t leaks, uint64_t corruptions)
{
	if (leaks || corruptions)
		printf("The following inconsistencies were found and repaired: %" PRIu64
		       " leaked clusters, %" PRIu64 " corruptions.\n", leaks,
		       corruptions);
}

static void print_found(uint64_t leaks, uint64_t corruptions)
{
	if (corruptions)
		printf("%" PRIu64 " errors were found on the image.\n"
		       "Data may be corrupted, or further writes to the image may corrupt it.\n",
		       corruptions);
	if (leaks)
		printf("%" PRIu64 " leaked clusters were found on the image.\n"
		       "This means waste of disk space, but no harm to data.\n",
		       leaks);
	if (!leaks && !corruptions)
		puts("No errors were found on the image.");
}

static void print_clusters(struct json_object *report)
{
	uint64_t total = json_number(report, "total-clusters");
	uint64_t allocated = json_number(report, "allocated-clusters");
	uint64_t whole = allocated ? allocated : 1;

	if (!total)
		return;
	printf("%" PRIu64 "/%" PRIu64
	       " = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n",
	       allocated, total, allocated * 100.0 / total,
	       json_number(report, "fragmented-clusters") * 100.0 / whole,
	       json_number(report, "compressed-clusters") * 100.0 / whole);
}

static void print_tail(const struct check_result *result)
{
	char size[SIZE_TEXT];

	if (result->cut)
		printf("Cut off %s behind the last cluster in use.\n",
		       size_text(result->cut, size));
	if (result->tail)
		printf("The file has %s behind the last cluster in use, which --repair cuts off.\n",
		       size_text(result->tail, size));
}

static void print_text(const struct check_result *result)
{
	struct json_object *report = result->report;
	uint64_t end = json_number(report, "image-end-offset");

	print_fixed(json_number(report, "leaks-fixed"),
		    json_number(report, "corruptions-fixed"));
	print_found(json_number(report, "leaks"),
		    json_number(report, "corruptions"));
	print_clusters(report);
	if (end)
		printf("Image end offset: %" PRIu64 "\n", end);
	print_tail(result);
}

static void print_result(struct check_result *result, bool json)
{
	if (!json) {
		print_text(result);
		json_object_put(result->report);
		return;
	}
	json_set_number(result->report, "tail", result->tail);
	json_set_number(result->report, "tail-cut", result->cut);
	report_json(result->report);
}

int cmd_check(struct arguments *args)
{
	struct check_result result = { .outcome = CHECK_FAILED };
	int r;

	r = begin_change(false);
	if (!r)
		r = check_image(args->words[0], &args->unlock, args->repair,
				&result);
	state_unlock();
	if (!r)
		print_result(&result, args->json);
	/* A passphrase is missing: the next run may have it. */
	return r == -ENOKEY ? r : (int)result.outcome;
}
