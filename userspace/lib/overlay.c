// SPDX-License-Identifier: GPL-2.0-only
/*
 * Overlays of images that nobody writes.
 */
#include "overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "lock.h"
#include "newimage.h"
#include "report.h"

static int give_format(struct formats *formats, const char *path,
		       const char *format)
{
	char *argument = text("%s=%s", path, format);
	int r = formats_add(formats, argument);

	free(argument);
	return r;
}

static int check_layer(const struct image *image, const struct devices *devices)
{
	struct image_user user;
	int r = image_check_usable(image, false);

	if (r < 0 || !devices_use(devices, &image->id, device_user_writes,
				  &user))
		return r;
	device_refuse(image->path, &user);
	return report_fail(EBUSY,
			   "To put an overlay on it, use 'qcow2setup snapshot %s OVERLAY'.",
			   user.name);
}

static int check_layers(const struct chain *chain)
{
	struct devices devices;
	unsigned int i;
	int r = 0;

	devices_load(&devices);
	for (i = 0; i < chain->count && !r; i++)
		r = check_layer(&chain->layers[i], &devices);
	devices_free(&devices);
	return r;
}

static int judge_lock(const struct image *image, int r)
{
	if (r == -EBUSY)
		return report_fail(EBUSY,
				   "%s is locked: another program (QEMU, qemu-img, qemu-nbd), or a job, has it open for writing.",
				   image->path);
	return r < 0 ? report_errno(-r, "Cannot lock %s", image->path) : 0;
}

/*
 * Into an image that somebody writes, what is above it may be merged: it reads right
 * for a while yet.
 */
static int lock_backing(struct overlay *overlay)
{
	const struct image *layers = overlay->chain.layers;
	unsigned int i;
	int r;

	overlay->lock = open(layers[0].path, O_RDONLY | O_CLOEXEC);
	if (overlay->lock < 0)
		return report_errno(errno, "Cannot open %s", layers[0].path);
	r = lock_acquire(overlay->lock, ROLE_READ, NULL);
	r = judge_lock(&layers[0], r);
	for (i = 1; i < overlay->chain.count && !r; i++)
		r = judge_lock(&layers[i],
			       lock_test(layers[i].fd, ROLE_READ, NULL));
	return r;
}

int overlay_backing_open(struct overlay *overlay, const char *path,
			 const char *format, struct formats *formats)
{
	int r = 0;

	memset(overlay, 0, sizeof(*overlay));
	overlay->lock = -1;
	if (format)
		r = give_format(formats, path, format);
	if (!r)
		r = chain_open(path, formats, &overlay->chain);
	if (!r)
		r = check_layers(&overlay->chain);
	if (!r)
		r = lock_backing(overlay);
	if (r < 0)
		overlay_backing_close(overlay);
	return r;
}

void overlay_backing_close(struct overlay *overlay)
{
	if (overlay->lock >= 0)
		close(overlay->lock);
	overlay->lock = -1;
	free(overlay->link);
	overlay->link = NULL;
	chain_close(&overlay->chain);
}

int overlay_make(struct json_object *journal, const struct overlay *overlay)
{
	const struct image *backing = &overlay->chain.layers[0];
	struct new_image image = {
		.path = overlay->path,
		.backing = overlay->link,
		.backing_format = format_name(backing->format),
		.options = overlay->options,
		.data = overlay->data,
		.passphrase = overlay->passphrase,
	};
	struct image_id id;
	char size[24];

	if (image_id_of_path(overlay->path, &id) &&
	    image_id_equal(&id, &backing->id))
		return report_fail(EINVAL, "%s cannot be its own overlay.",
				   overlay->path);
	snprintf(size, sizeof(size), "%llu", (unsigned long long)backing->size);
	image.size = overlay->size ? overlay->size : size;
	return new_image_make(journal, &image);
}

int overlay_check(const struct image *image, const struct image_id *top,
		  enum image_format top_format, uint64_t size,
		  struct formats *formats)
{
	enum image_format format;
	struct image_id id;
	char *path;
	int r;

	if (image->size < size)
		return report_fail(EMEDIUMTYPE,
				   "%s is too small: %llu bytes, and %llu are needed.",
				   image->path,
				   (unsigned long long)image->size,
				   (unsigned long long)size);
	if (!image->backing)
		return report_fail(EMEDIUMTYPE, "%s has no backing file.",
				   image->path);
	r = backing_of(image, formats, &path, &format);
	if (r < 0)
		return r;
	if (!image_id_of_path(path, &id) || !image_id_equal(&id, top))
		r = report_fail(EMEDIUMTYPE,
				"%s is an overlay of %s, not of the image that is open.",
				image->path, path);
	else if (format != top_format)
		r = report_fail(EMEDIUMTYPE,
				"%s takes its backing file for %s, but it is %s.",
				image->path, format_name(format),
				format_name(top_format));
	free(path);
	if (r < 0)
		return r;
	r = image_is_empty(image);
	if (r == 0)
		return report_fail(EMEDIUMTYPE, "%s is not empty.", image->path);
	return r < 0 ? r : 0;
}
