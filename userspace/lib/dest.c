// SPDX-License-Identifier: GPL-2.0-only
/*
 * The layer that a job writes to.
 */
#include "dest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "copy.h"
#include "job.h"
#include "jobdev.h"
#include "message.h"
#include "pivot.h"
#include "recover.h"
#include "report.h"
#include "state.h"
#include "tally.h"
#include "trim.h"

static struct image *image_of(const struct dest *dest)
{
	return &dest->live->chain.layers[dest->index];
}

void dest_init(struct dest *dest, struct live *live, unsigned int index)
{
	memset(dest, 0, sizeof(*dest));
	dest->live = live;
	dest->index = index;
	dest->writes = attach_empty();
}

void dest_free(struct dest *dest)
{
	attach_release(&dest->writes, dest->attached);
	free(dest->path);
	free(dest->file);
	dest->path = NULL;
	dest->file = NULL;
}

int dest_check(const struct live *live, unsigned int index, uint64_t size)
{
	const struct image *image = &live->chain.layers[index];
	int r = image_check_grow(image, size);

	if (r < 0)
		return r;
	if (access(image->path, W_OK) < 0)
		return report_errno(errno, "Cannot write %s", image->path);
	return image_check_usable(image, true);
}

static int grow_raw(struct dest *dest, uint64_t size)
{
	const struct image *image = image_of(dest);

	if (image->format != FORMAT_RAW || image->is_device ||
	    image->size >= size)
		return 0;
	if (ftruncate(dest->writes.file, size) < 0 ||
	    fsync(dest->writes.file) < 0)
		return report_errno(errno, "Cannot make %s longer",
				    image->path);
	return live_reread(dest->live, dest->index);
}

/* Should this process be killed, recover() cuts the file back. */
static int note_length(const struct dest *dest)
{
	const struct chain one = { image_of(dest), 1 };
	struct json_object *note;

	if (!dest->file)
		return 0;
	note = json_object_new_object();
	json_object_object_add(note, "grown",
			       state_json("", "", layers_json(&one),
					  dest->floor));
	return job_note(note);
}

/* As long as the image is to be; attach_write() makes it as long as it is. */
static int grow_data(struct dest *dest, uint64_t size)
{
	const struct attachment *data = dest->writes.data;
	struct image file;
	int r;

	if (!data || data->length >= size)
		return 0;
	r = image_open_data(image_of(dest), &file);
	if (!r && file.is_device)
		r = report_fail(ENOSPC,
				"%s is too small: it has %llu bytes, and %llu are needed.",
				file.path, (unsigned long long)file.length,
				(unsigned long long)size);
	else if (!r && ftruncate(data->file, round_up(size, 512)) < 0)
		r = report_errno(errno, "Cannot make %s longer", file.path);
	image_close(&file);
	return r;
}

static int attach(struct dest *dest, uint64_t size)
{
	int r;

	r = attach_write_lock(image_of(dest), true, &dest->writes);
	if (!r)
		r = live_reread(dest->live, dest->index);
	if (!r)
		r = dest_check(dest->live, dest->index, size);
	if (!r)
		r = grow_raw(dest, size);
	if (!r)
		r = grow_data(dest, size);
	if (r < 0)
		return r;
	dest->floor = dest->writes.length;
	dest->attached = true;
	if (!image_of(dest)->is_device && image_of(dest)->format == FORMAT_QCOW2)
		dest->file = text_copy(image_of(dest)->path);
	dest->id = image_of(dest)->id;
	r = note_length(dest);
	if (!r)
		r = attach_write(image_of(dest), true, &dest->writes);
	return r < 0 ? r : live_reread(dest->live, dest->index);
}

/* The chain's device is to read what is written from now on. */
static int read_through(struct dest *dest)
{
	struct device *device = &dest->live->device;
	const struct device_layer *old = &device->layers[dest->index];
	struct pivot pivot = pivot_same(device);
	struct device_layer new = *old, *layers;
	int r;

	attach_show(&dest->writes, &new);
	/* Block devices are what they were. */
	if (new.device == old->device && new.data == old->data)
		return 0;
	layers = grow_array(NULL, device->count, sizeof(*layers));
	memcpy(layers, device->layers, device->count * sizeof(*layers));
	layers[dest->index] = new;
	pivot.layers = layers;
	r = pivot_run(device, &pivot);
	free(layers);
	return r < 0 ? r : live_refresh(dest->live);
}

int dest_attach(struct dest *dest, uint64_t size)
{
	int r = attach(dest, size);

	return r < 0 ? r : read_through(dest);
}

static uint64_t zero_from(const struct dest *dest)
{
	return image_of(dest)->is_device ? ZERO_FROM_NONE :
		device_sectors_of(dest->floor);
}

/* Where nothing can be zeroed by its mapping alone this takes long. */
static int zero(struct dest *dest, uint64_t start, uint64_t end)
{
	int r, locked;

	tally_expect(end - start);
	state_unlock();
	r = copy_zero(dest->path, start, end, tally_sweep, NULL);
	locked = begin_change(true);
	if (!r && !locked)
		r = live_refresh(dest->live);
	return r < 0 ? r : locked;
}

/* What is behind its end is zeroed before it is part of the image. */
static int grow_qcow2(struct dest *dest, uint64_t size)
{
	char name[DM_NAME_MAX];
	int r;

	r = zero(dest, round_up(image_of(dest)->size, 512),
		 device_sectors_of(size) * 512);
	if (r < 0)
		return r;
	jobdev_name("to", name);
	return message_resize(name);
}

static unsigned int count_words(const char *features)
{
	unsigned int words = 0;

	for (; *features; features++)
		words += *features == ' ';
	return words;
}

static int create_device(struct dest *dest, const struct device_layer *below,
			 unsigned int count, uint64_t size,
			 const char *features)
{
	struct device_layer *layers = grow_array(NULL, count, sizeof(*layers));
	int r;

	layers[0].format = FORMAT_QCOW2;
	attach_show(&dest->writes, &layers[0]);
	if (count)
		memcpy(layers + 1, below, count * sizeof(*layers));
	r = jobdev_create("to", layers, count + 1, device_sectors_of(size),
			  false, zero_from(dest), features,
			  count_words(features));
	free(layers);
	return r;
}

int dest_create(struct dest *dest, const struct device_layer *below,
		unsigned int count, uint64_t size, const char *features)
{
	const struct image *image = image_of(dest);
	bool grows = image->size < size;
	char *all;
	int r;

	if (image->format == FORMAT_RAW) {
		dest->path = path_of_device(dest->writes.device);
		return 0;
	}
	dest->path = jobdev_path("to");
	all = text(" " FEATURE_NO_SPACE_ERROR "%s%s", grows ? " grow" : "",
		   features);
	r = create_device(dest, below, count, grows ? size : image->size, all);
	free(all);
	return r < 0 || !grows ? r : grow_qcow2(dest, size);
}

int dest_zero_behind(struct dest *dest, uint64_t size)
{
	uint64_t start = round_up(size, 512);
	uint64_t end = round_up(image_of(dest)->size, 512);

	int r = start < end ? zero(dest, start, end) : 0;

	/* No device of the job's writes to a raw one. */
	if (!r && image_of(dest)->format == FORMAT_RAW)
		r = attach_hold_again(image_of(dest), &dest->writes);
	return r;
}

int dest_finish(struct dest *dest)
{
	int r;

	r = copy_flush(dest->path);
	if (r < 0 || image_of(dest)->format == FORMAT_RAW)
		return r;
	r = jobdev_finish("to");
	return r < 0 ? r : jobdev_remove("to");
}

void dest_trim(struct dest *dest)
{
	struct trim trim;

	if (!dest->file)
		return;
	attach_release(&dest->writes, true);
	trim_prepare(dest->file, &dest->id, dest->floor, &trim);
	trim_finish(&trim, true);
}
