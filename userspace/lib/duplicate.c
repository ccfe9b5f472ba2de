// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copying a chain to other storage.
 */
#include "duplicate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "attach.h"
#include "copy.h"
#include "durable.h"
#include "fate.h"
#include "finish.h"
#include "jobdev.h"
#include "mirror.h"
#include "newimage.h"
#include "recover.h"
#include "report.h"
#include "stack.h"
#include "state.h"
#include "tally.h"
#include "trim.h"
#include "walk.h"

/* A file system that has no more than that left is full. */
#define FULL_BYTES	(1024 * 1024)

/**
 * struct work - a copy under way
 * @what: what was asked for
 * @path: where the copy is to be, absolute
 * @made: where it is being made: the same for a block device
 * @is_file: a file is made, which gets its name when it is complete
 * @id: of that file; nothing before it is there
 * @there: of the empty file that was at @path; or nothing
 * @passphrase: of the copy, or NULL: it is not encrypted
 * @image: the copy
 * @attached: the copy
 * @to: path of the block device to write to
 * @walk: what there is to copy, if the device does not write
 * @plan: what becomes of the images
 */
struct work {
	const struct duplicate *what;
	char *path;
	char *made;
	bool is_file;
	struct image_id id;
	struct image_id there;
	const struct passphrase *passphrase;
	struct image image;
	struct attachment attached;
	char *to;
	struct walk *walk;
	struct json_object *plan;
};

/* How many layers go into the copy */
static unsigned int depth(const struct duplicate *what)
{
	return what->shallow ? 1 : what->live->chain.count;
}

/* The image may be longer than the device, which is what is copied. */
static uint64_t size_of(const struct work *work)
{
	const struct live *live = work->what->live;
	uint64_t size = live->chain.layers[0].size;
	uint64_t shown = live->device.sectors * 512;

	return !live->closed && shown < size ? shown : size;
}

static int check(const struct duplicate *what)
{
	const struct live *live = what->live;

	if (what->shallow && live->chain.count < 2)
		return report_fail(EINVAL, "%s has no backing file.",
				   live->chain.layers[0].path);
	if (what->shallow && what->format != FORMAT_QCOW2)
		return report_fail(EINVAL,
				   "A raw image has no backing file: --shallow needs --format qcow2.");
	if (what->pivot && !live->writes)
		return report_fail(EINVAL,
				   "--pivot is for devices that write; %s does not.",
				   live->word);
	return 0;
}

/* What is written to the device would be written to the copy, and so on. */
static int check_place(const struct work *work)
{
	const struct live *live = work->what->live;

	if (live->closed ||
	    !stack_has(stack_place(work->path), live->device.dm.device))
		return 0;
	return report_fail(EINVAL,
			   "%s is on device %s itself: put the copy elsewhere.",
			   work->path, live->device.name);
}

static int find_place(struct work *work)
{
	char *real;
	int r;

	r = new_image_path(work->what->word, &work->path);
	if (!r)
		r = check_place(work);
	if (r < 0)
		return r;
	work->is_file = !image_id_of_path(work->path, &work->there) ||
		!work->there.block;
	/* The file that a link names is replaced, not the link. */
	real = work->is_file ? realpath(work->path, NULL) : NULL;
	if (real) {
		free(work->path);
		work->path = real;
	}
	work->made = work->is_file ? text("%s" NEW_PARTIAL, work->path) :
		text_copy(work->path);
	return 0;
}

/* A copy of what is encrypted is encrypted. */
static int find_passphrase(struct work *work)
{
	const struct duplicate *what = work->what;
	const struct image *layers = what->live->chain.layers;
	unsigned int i;

	if (what->plain)
		return 0;
	for (i = 0; i < depth(what) && what->format == FORMAT_RAW; i++) {
		if (image_encrypted(&layers[i]))
			return report_fail(EINVAL,
					   "A raw image is not encrypted, as %s is: to have it so, say --plain.",
					   layers[i].path);
	}
	return what->dry_run ? 0 :
		unlock_like(what->unlock, layers, depth(what), work->path,
			    &work->passphrase);
}

/* Should this process be killed, jobs --clean deletes what was made. */
static int note_made(struct work *work)
{
	struct json_object *note = json_object_new_object();

	image_id_of_path(work->made, &work->id);
	new_image_note(note, work->made, &work->id);
	return job_note(note);
}

static int make_qcow2(struct work *work)
{
	struct json_object *entry = journal_entry("create", "", "");
	const struct chain *chain = &work->what->live->chain;
	struct new_image image = {
		.path = work->made,
		.passphrase = work->passphrase,
		.unnamed = true,
	};
	char size[24], *link = NULL;
	int r;

	snprintf(size, sizeof(size), "%llu",
		 (unsigned long long)size_of(work));
	image.size = size;
	if (work->what->shallow) {
		link = backing_link(work->path, chain->layers[1].path);
		image.backing = link;
		image.backing_format = format_name(chain->layers[1].format);
	}
	r = new_image_make(entry, &image);
	if (!r && work->is_file)
		r = note_made(work);
	if (r < 0)
		new_image_undo(entry);
	journal_clear();
	json_object_put(entry);
	free(link);
	return r;
}

static int make_raw(struct work *work)
{
	int fd, r = 0;

	if (!work->is_file)
		return 0;
	r = note_made(work);
	if (r < 0)
		return r;
	fd = open(work->made, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		return report_errno(errno, "Cannot create %s", work->made);
	r = note_made(work);
	if (!r && (ftruncate(fd, size_of(work)) < 0 || fsync(fd) < 0))
		r = report_errno(errno, "Cannot make %s as long as the image",
				 work->made);
	close(fd);
	return r;
}

/* An empty file that was there says who may read the copy. */
static int keep_owner(const struct work *work)
{
	struct stat st;

	if (!work->is_file || stat(work->path, &st) < 0)
		return 0;
	if (chown(work->made, st.st_uid, st.st_gid) < 0 ||
	    chmod(work->made, st.st_mode & 07777) < 0)
		return report_errno(errno, "Cannot give %s the owner of %s",
				    work->made, work->path);
	return 0;
}

static int make(struct work *work)
{
	int r = work->is_file ? new_image_drop(work->made) : 0;

	if (!r)
		r = work->what->format == FORMAT_RAW ? make_raw(work) :
			make_qcow2(work);
	return r < 0 ? r : keep_owner(work);
}

/* On a block device there can be anything, and zeroes are not copied. */
static bool is_cleared(const struct work *work)
{
	return work->what->format == FORMAT_RAW && !work->is_file;
}

/*
 * Other commands run meanwhile: what holds the locks for a device comes later, as
 * they would clear it. Until then it is the descriptor.
 */
static int clear_device(const struct work *work)
{
	uint64_t size = round_up(size_of(work), 512);
	int r, locked;

	if (!is_cleared(work))
		return 0;
	tally_expect(size);
	state_unlock();
	r = copy_zero(work->made, 0, size, tally_sweep, NULL);
	locked = begin_change(true);
	return r < 0 ? r : locked;
}

static int attach(struct work *work)
{
	uint64_t size = size_of(work);
	int r;

	r = image_open(work->made, work->what->format, &work->image);
	if (!r)
		r = unlock_made(work->what->unlock, &work->image,
				work->passphrase);
	if (!r)
		r = attach_write_lock(&work->image, false, &work->attached);
	if (!r && work->image.size < size)
		r = report_fail(ENOSPC,
				"%s is too small: it has %llu bytes, and %llu are needed.",
				work->made,
				(unsigned long long)work->image.size,
				(unsigned long long)size);
	if (!r)
		r = clear_device(work);
	return r < 0 ? r : attach_write(&work->image, true, &work->attached);
}

/* The table that the copy has, and its device's when it is the copy's */
static struct device_layer *new_layers(const struct work *work,
				       unsigned int *count)
{
	const struct device *device = &work->what->live->device;
	struct device_layer *layers;

	layers = grow_array(NULL, device->count, sizeof(*layers));
	layers[0].format = work->what->format;
	attach_show(&work->attached, &layers[0]);
	*count = 1;
	if (work->what->shallow) {
		memcpy(layers + 1, device->layers + 1,
		       (device->count - 1) * sizeof(*layers));
		*count = device->count;
	}
	return layers;
}

static int create_device(struct work *work)
{
	uint64_t zero_from = work->image.is_device ? ZERO_FROM_NONE :
		device_sectors_of(work->attached.length);
	struct device_layer *layers;
	unsigned int count;
	int r;

	if (work->what->format == FORMAT_RAW) {
		work->to = path_of_device(work->attached.device);
		return 0;
	}
	work->to = jobdev_path("to");
	layers = new_layers(work, &count);
	r = jobdev_create("to", layers, count,
			  device_sectors_of(work->image.size), false, zero_from,
			  " " FEATURE_NO_SPACE_ERROR " yield", 2);
	free(layers);
	return r;
}

static int open_walk(struct work *work)
{
	const struct duplicate *what = work->what;

	return walk_owned(what->live->chain.layers, depth(what), what->shallow,
			  &work->walk);
}

/* Nobody writes meanwhile. */
static int copy_still(struct work *work)
{
	char *from = path_of_device(work->what->live->device.dm.device);
	struct copy copy = {
		.from = from,
		.to = work->to,
		.next = walk_next,
		.pace = tally_copy,
	};
	uint64_t data, zeroes;
	int r, locked;

	r = open_walk(work);
	if (!r)
		r = walk_total(work->walk, &data, &zeroes);
	if (!r) {
		tally_expect(data);
		copy.walk = work->walk;
		state_unlock();
		r = copy_run(&copy);
		locked = begin_change(true);
		r = r < 0 ? r : locked;
	}
	if (!r)
		r = copy_flush(work->to);
	free(from);
	return r;
}

/* Somebody made a file of that name while the copy was made. */
static bool is_taken(const struct work *work)
{
	struct image_id id;
	struct stat st;

	return stat(work->path, &st) == 0 &&
		(st.st_size || !image_id_of_path(work->path, &id) ||
		 !image_id_equal(&id, &work->there));
}

/* It is complete: it gets its name. */
static int give_name(void *data)
{
	struct work *work = data;

	if (!work->is_file)
		return 0;
	if (is_taken(work))
		return report_fail(EEXIST,
				   "%s was made by somebody else meanwhile.",
				   work->path);
	if (rename(work->made, work->path) < 0)
		return report_errno(errno, "Cannot rename %s to %s", work->made,
				    work->path);
	free(work->made);
	work->made = text_copy(work->path);
	return durable_name(work->path);
}

static void trim_copy(struct work *work)
{
	struct trim trim;

	if (work->image.is_device || work->what->format != FORMAT_QCOW2)
		return;
	attach_release(&work->attached, true);
	trim_prepare(work->made, &work->image.id, work->attached.length, &trim);
	trim_finish(&trim, true);
}

/* The device is left alone; what it had at this instant is the copy. */
static int finish(struct work *work, const struct mirror *mirror)
{
	struct live *live = work->what->live;
	uint64_t length = work->attached.length;
	int r = 0;

	job_finishing();
	if (live->writes)
		r = mirror_replace(mirror, live->device.layers,
				   live->device.count);
	if (!r && work->what->format == FORMAT_QCOW2)
		r = jobdev_finish("to");
	if (!r)
		r = jobdev_remove("to");
	if (r < 0)
		return r;
	attach_release(&work->attached, true);
	work->attached.length = length;
	trim_copy(work);
	return give_name(work);
}

/* The chain is that of the copy from now on. */
static int note_copy(struct work *work)
{
	struct live *live = work->what->live;
	struct chain *chain = &live->chain;
	bool cut = !work->image.is_device && work->image.format == FORMAT_QCOW2;

	live_forget(live, 0, depth(work->what));
	chain->layers = grow_array(chain->layers, chain->count,
				   sizeof(*chain->layers));
	memmove(chain->layers + 1, chain->layers,
		chain->count * sizeof(*chain->layers));
	chain->count++;
	chain->layers[0] = work->image;
	chain->layers[0].path = text_copy(work->path);
	free(work->image.path);
	memset(&work->image, 0, sizeof(work->image));
	work->image.fd = -1;
	return live_save(live, cut ? work->attached.length : NO_LENGTH);
}

static int note_result(const struct work *work)
{
	const struct chain *old = &work->what->live->chain;
	unsigned int below = old->count - depth(work->what);
	struct chain new = { .count = below + 1 };
	int r;

	new.layers = grow_array(NULL, below, sizeof(*new.layers));
	new.layers[0] = work->image;
	memcpy(new.layers + 1, old->layers + depth(work->what),
	       below * sizeof(*new.layers));
	r = job_note_lasting(finish_notes(layers_json(&new),
					  json_object_new_array(), NULL,
					  work->plan));
	free(new.layers);
	return r;
}

/* Should this process be killed when the device goes on in the copy */
static int note_grown(const struct work *work)
{
	struct image image = work->image;
	const struct chain one = { &image, 1 };
	struct json_object *note;

	if (image.is_device || image.format != FORMAT_QCOW2)
		return 0;
	image.path = work->path;
	note = json_object_new_object();
	json_object_object_add(note, "grown",
			       state_json("", "", layers_json(&one),
					  work->attached.length));
	return job_note(note);
}

static int replace(struct work *work, struct mirror *mirror)
{
	struct live *live = work->what->live;
	struct device_layer *layers;
	struct json_object *old;
	unsigned int count;
	int r;

	r = note_result(work);
	if (!r)
		r = note_grown(work);
	if (!r)
		r = live_note_top(live);
	if (r < 0)
		return r;
	job_finishing();
	if (work->is_file) {
		mirror->made = work->path;
		mirror->made_id = work->image.id;
		mirror->name_made = give_name;
		mirror->data = work;
	}
	layers = new_layers(work, &count);
	r = mirror_replace(mirror, layers, count);
	free(layers);
	if (r < 0)
		return r;
	old = device_state_load(live->device.name);
	r = note_copy(work);
	if (!r)
		r = jobdev_remove("to");
	if (!r && old)
		trim_top_of(old);
	json_object_put(old);
	return r;
}

static int copy_live(struct work *work)
{
	struct mirror mirror = {
		.live = work->what->live,
		.path = work->to,
		.layers = depth(work->what),
		.keep = true,
	};
	int r;

	tally_expect(work->what->live->device.sectors * 512);
	r = mirror_run(&mirror);
	if (r < 0)
		return r;
	return work->what->pivot ? replace(work, &mirror) :
		finish(work, &mirror);
}

static int copy_all(struct work *work)
{
	int r;

	if (work->what->live->writes)
		return copy_live(work);
	r = copy_still(work);
	return r < 0 ? r : finish(work, NULL);
}

/* The device may have changed to it, and something else have failed then. */
static void drop_made(const struct work *work)
{
	struct image_user user;
	struct image_id id;

	if (work->is_file && image_id_of_path(work->made, &id) &&
	    image_id_equal(&id, &work->id) && !device_uses(&id, false, &user))
		unlink(work->made);
}

/* It was written through a loop device, which may say EIO, and has another name. */
static int explain(const struct work *work, int r)
{
	struct statvfs fs;

	if ((r != -EIO && r != -ENOSPC) || !work->is_file ||
	    statvfs(work->made, &fs) < 0 ||
	    (uint64_t)fs.f_bavail * fs.f_frsize > FULL_BYTES)
		return r;
	return report_fail(ENOSPC, "The file system of %s is full.", work->path);
}

static int run(struct work *work)
{
	int r;

	r = live_begin(work->what->live);
	if (!r)
		r = make(work);
	if (!r)
		r = attach(work);
	if (!r)
		r = create_device(work);
	if (!r)
		r = explain(work, copy_all(work));
	if (r < 0)
		jobdev_clean(work->what->live->subject);
	else if (work->what->live->closed)
		r = jobdev_remove("chain");
	attach_release(&work->attached, !r);
	if (r < 0)
		drop_made(work);
	return r;
}

static struct json_object *describe(const struct work *work)
{
	const struct chain *chain = &work->what->live->chain;
	struct json_object *plan = fate_new("copy");
	unsigned int i;

	for (i = 0; i < depth(work->what); i++) {
		fate_add(plan, FATE_READ, chain->layers[i].path);
		if (work->what->pivot)
			fate_add_image(plan, FATE_UNNEEDED, &chain->layers[i]);
	}
	fate_add(plan, FATE_WRITTEN, work->path);
	return plan;
}

/* What the kernel has in memory is not in the active image yet. */
static int flush_active(const struct work *work)
{
	struct live *live = work->what->live;
	char *path;
	int r;

	if (!live->writes)
		return 0;
	path = path_of_device(live->device.dm.device);
	r = copy_flush(path);
	free(path);
	return r < 0 ? r : live_reread(live, 0);
}

static int describe_bytes(struct work *work, struct json_object *plan)
{
	uint64_t data, zeroes;
	int r;

	r = flush_active(work);
	if (!r)
		r = open_walk(work);
	if (!r)
		r = walk_total(work->walk, &data, &zeroes);
	if (r < 0)
		return r;
	if (is_cleared(work))
		zeroes = size_of(work);
	json_set_number(plan, "data-bytes", data);
	json_set_number(plan, "zero-bytes", zeroes);
	return 0;
}

static int tell_plan(struct work *work)
{
	struct json_object *plan = describe(work);
	int r = describe_bytes(work, plan);

	if (!r)
		fate_plan(plan, work->what->json);
	else
		json_object_put(plan);
	return r;
}

static int run_job(struct work *work, struct json_object *plan)
{
	int r;

	work->plan = plan;
	r = job_begin(work->what->live->subject, "copy", &work->what->job);
	if (r < 0) {
		json_object_put(plan);
		return r;
	}
	r = run(work);
	if (!r)
		fate_tell(plan, work->what->json);
	else
		json_object_put(plan);
	return job_end(r);
}

int duplicate_run(const struct duplicate *duplicate)
{
	struct work work = {
		.what = duplicate,
		.attached = attach_empty(),
	};
	int r;

	work.image.fd = -1;
	r = check(duplicate);
	if (!r)
		r = find_place(&work);
	if (!r)
		r = find_passphrase(&work);
	if (!r)
		r = duplicate->dry_run ? tell_plan(&work) :
			run_job(&work, describe(&work));
	image_close(&work.image);
	walk_close(work.walk);
	free(work.path);
	free(work.made);
	free(work.to);
	return r;
}
