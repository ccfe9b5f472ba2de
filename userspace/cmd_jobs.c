// SPDX-License-Identifier: GPL-2.0-only
/*
 * jobs [--clean]: the jobs under way, and those whose result nobody has asked for.
 */
#include <stdio.h>
#include <string.h>

#include "attach.h"
#include "commands.h"
#include "job.h"
#include "newimage.h"
#include "progress.h"
#include "recover.h"
#include "report.h"
#include "state.h"

static struct json_object *describe(const struct job_record *record)
{
	struct json_object *object = json_object_new_object();

	json_set_string(object, "name", record->name);
	json_set_string(object, "subject", record->subject);
	json_set_string(object, "operation", record->operation);
	json_set_string(object, "state", job_state(record));
	json_set_string(object, "command", record->command);
	json_set_number(object, "pid", record->pid);
	json_set_number(object, "done", record->done);
	json_set_number(object, "total", record->total);
	if (job_running(record))
		json_set_number(object, "rate", record->rate);
	return object;
}

static void print_line(const struct job_record *record)
{
	char text[PROGRESS_TEXT];

	printf("%-20s %-10s %-10s %7d  %s\n", record->name, record->operation,
	       job_state(record), (int)record->pid,
	       record->total ? progress_text(record->done, record->total,
					     job_running(record) ?
					     record->rate : 0, text) : "-");
}

static bool visit(const struct job_record *record, void *data)
{
	struct json_object *all = data;

	if (all)
		json_object_array_add(all, describe(record));
	else
		print_line(record);
	return false;
}

/*
 * What a copy had made so far. Another one may be at work on a file of that name,
 * even with the same inode: it has a loop device.
 */
static void drop_made(const struct job_record *record)
{
	struct json_object *made;
	struct image_id id = { 0 };

	if (!json_object_object_get_ex(job_notes(record), "new", &made))
		return;
	id.dev = json_number(made, "dev");
	id.ino = json_number(made, "ino");
	if (!id.ino || attach_wait_gone(&id, LOOP_WRITE))
		new_image_undo(job_notes(record));
}

/* What a dead process left in the kernel goes with recover(). */
static bool forget_over(const struct job_record *record, void *data)
{
	(void)data;
	if (job_dead(record))
		drop_made(record);
	if (!job_running(record))
		job_forget(record);
	return false;
}

static int clean(void)
{
	int r = begin_change(true);

	if (r < 0)
		return r;
	job_each(forget_over, NULL);
	end_change();
	state_unlock();
	return 0;
}

int cmd_jobs(struct arguments *args)
{
	struct json_object *all = NULL;
	int r;

	if (args->clean)
		return clean();
	r = job_state_check();
	if (r < 0)
		return r;

	if (args->json)
		all = json_object_new_array();
	else
		printf("%-20s %-10s %-10s %7s  %s\n", "NAME", "OPERATION",
		       "STATE", "PROCESS", "PROGRESS");
	job_each(visit, all);
	if (all)
		report_json(all);
	return 0;
}
