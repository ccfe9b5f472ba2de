// SPDX-License-Identifier: GPL-2.0-only
/*
 * Making an open device longer.
 */
#include "extend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "attach.h"
#include "kernel_status.h"
#include "pivot.h"
#include "recover.h"
#include "report.h"
#include "state.h"

/*
 * The kernel would refuse as well, but only when the device stands still. What
 * a longer layer has behind the end of the image would have to be hidden, one
 * cluster after the other.
 */
static int check_qcow2(const struct live *live, uint64_t size)
{
	const struct chain *chain = &live->chain;
	const struct image *top = &chain->layers[0];

	if (size <= top->size)
		return 0;
	if (chain->count > 1 && chain->layers[1].size > round_up(top->size, 512))
		return report_fail(EOPNOTSUPP,
				   "%s is longer than %s, and would show through: close the device, and resize the image.",
				   chain->layers[1].path, top->path);
	return image_check_grow(top, size);
}

static int check(const struct live *live, uint64_t size)
{
	const struct device *device = &live->device;
	const struct image *top = &live->chain.layers[0];

	if (device->dm.read_only)
		return report_fail(EROFS, "Device %s is read-only.",
				   device->name);
	if (top->format == FORMAT_QCOW2)
		return check_qcow2(live, size);
	return image_check_grow(top, size);
}

/* With what qemu-img writes for one more snapshot, or one less */
static uint64_t kept_bytes(const char *name, const struct qcow2_header *h)
{
	struct kernel_status status;

	if (!kernel_status_read(name, &status) || !status.has_space)
		return 0;
	return (status.used_clusters + 1) * h->cluster_size +
		(uint64_t)h->l1_size * 8 + QCOW2_MAX_SNAPSHOT_TABLE_BYTES;
}

int extend_file(const char *name, const struct image *image, bool kept)
{
	struct json_object *state = device_state_load(name);
	uint64_t bytes = kept ? kept_bytes(name, &image->header) : 0;
	uint64_t length;
	bool grown = state_length(state, &image->id, &length);

	json_object_put(state);
	if (!grown)
		return 0;
	return attach_extend(image, bytes > length ? bytes : length);
}

/* What the file may need for the clusters of a larger image */
static int extend_qcow2(const struct live *live, uint64_t size)
{
	struct image image = live->chain.layers[0];

	if (size <= image.size)
		return 0;
	image.size = size;
	image.header.size = size;
	return extend_file(live->device.name, &image,
			   image.header.nb_snapshots);
}

static int set_length(const struct image *image, uint64_t length)
{
	int fd = image_reopen(image, O_RDWR), r = 0;

	if (fd < 0)
		return fd;
	if (ftruncate(fd, length) < 0 || fsync(fd) < 0)
		r = report_errno(errno, "Cannot make %s longer", image->path);
	close(fd);
	if (!r)
		attach_refit(&image->id);
	return r;
}

/* What would have to be zeroed while the device stands still */
static int refuse_slow(const struct image *top)
{
	if (top->format == FORMAT_QCOW2 && qcow2_raw_data(&top->header))
		return report_fail(EOPNOTSUPP,
				   "The external data file of %s is to be readable as a raw image, and is on a device that cannot be zeroed at once: close the device, and resize the image.",
				   top->path);
	return report_fail(EOPNOTSUPP,
			   "%s ends within a cluster that is compressed, or shared with an internal snapshot, or has the state of a virtual machine behind its end: close the device, and resize the image.",
			   top->path);
}

static int swap_table(const struct live *live, uint64_t size)
{
	const struct device *device = &live->device;
	const struct image *top = &live->chain.layers[0];
	struct pivot pivot = pivot_same(device);
	char *features = NULL;
	int r;

	pivot.sectors = device_sectors_of(size);
	if (top->format == FORMAT_QCOW2 && size > top->size) {
		features = text("%s extend", device->features);
		pivot.features = features;
		pivot.feature_words++;
	}
	r = pivot_run(device, &pivot);
	free(features);
	return r == -EOPNOTSUPP ? refuse_slow(top) : r;
}

/* @file has the guest's data at the guest's offsets. */
static int extend_with(const struct live *live, const struct image *file,
		       uint64_t size)
{
	bool longer = !file->is_device && size > file->length;
	int r = 0;

	if (longer)
		r = set_length(file, size);
	if (!r)
		r = swap_table(live, size);
	if (r < 0 && longer)
		set_length(file, file->length);
	return r;
}

static int extend_external(const struct live *live, uint64_t size)
{
	struct image data;
	int r;

	r = image_open_data(&live->chain.layers[0], &data);
	if (!r && !image_id_equal(&data.id, &live->device.layers[0].data_id))
		r = report_fail(EBUSY,
				"%s is not the external data file that device %s has.",
				data.path, live->device.name);
	if (!r)
		r = extend_with(live, &data, size);
	image_close(&data);
	return r;
}

static int extend_image(const struct live *live, uint64_t size)
{
	const struct image *top = &live->chain.layers[0];

	if (top->format == FORMAT_RAW)
		return extend_with(live, top, size);
	return image_external(top) ? extend_external(live, size) :
		swap_table(live, size);
}

int extend_device(struct live *live, uint64_t size, bool no_grow)
{
	int r = check(live, size);

	if (!r && !no_grow && live->chain.layers[0].format == FORMAT_QCOW2)
		r = extend_qcow2(live, size);
	if (!r)
		r = extend_image(live, size);
	return r < 0 ? r : live_refresh(live);
}
