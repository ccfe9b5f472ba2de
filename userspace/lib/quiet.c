// SPDX-License-Identifier: GPL-2.0-only
/*
 * Have qemu-img write nothing to an image but what it repairs.
 */
#include "quiet.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach.h"
#include "report.h"

static bool has_extension(const struct image *image, struct qcow2_ext *ext)
{
	void *data = image_extension(image, QCOW2_EXT_BITMAPS, ext);
	bool has = data;

	free(data);
	return has;
}

/* A bitmaps extension without its autoclear bit, which says nothing (spec) */
static bool has_relic(const struct image *image, struct qcow2_ext *ext)
{
	return !(image->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) &&
		has_extension(image, ext);
}

/* That of bitmaps is an error where there is no extension (spec). */
static uint64_t good_autoclear(const struct image *image)
{
	uint64_t good = image->header.autoclear & QCOW2_AUTOCLEAR_KNOWN;
	struct qcow2_ext ext;

	if (good & QCOW2_AUTOCLEAR_BITMAPS && !has_extension(image, &ext))
		good &= ~QCOW2_AUTOCLEAR_BITMAPS;
	return good;
}

/* Return: 1 if there is a bitmap that was not marked; 0, or an error, reported */
static int mark(const struct image *image, const struct qcow2_bitmaps *bitmaps,
		uint8_t *directory)
{
	struct qcow2_bitmap bitmap;
	int marked = 0, r;
	uint64_t pos = 0;
	uint8_t *entry;
	uint32_t i;

	for (i = 0; i < bitmaps->nb; i++) {
		entry = directory + pos;
		r = image_bitmap_next(image, bitmaps, directory, &pos, &bitmap);
		if (r < 0)
			return r;
		if (!(bitmap.flags & QCOW2_BITMAP_IN_USE)) {
			/* Big endian: the lowest bits are in the last byte. */
			entry[bitmap.flags_offset + 3] |= QCOW2_BITMAP_IN_USE;
			marked = 1;
		}
	}
	return marked;
}

/* Return: 1 with both directories of @quiet, 0 if no bitmap is to be marked, or an error */
static int read_bitmaps(const struct image *image, struct quiet *quiet)
{
	uint64_t size;
	int r;

	r = image_bitmaps(image, &quiet->bitmaps, &quiet->before);
	if (r < 0 || !quiet->before)
		return r;
	size = quiet->bitmaps.directory_size;
	quiet->marked = malloc(size);
	if (!quiet->marked)
		return report_memory();
	memcpy(quiet->marked, quiet->before, size);
	return mark(image, &quiet->bitmaps, quiet->marked);
}

static void forget(struct quiet *quiet)
{
	free(quiet->before);
	free(quiet->marked);
	quiet->before = NULL;
	quiet->marked = NULL;
}

int quiet_needed(const struct image *image)
{
	struct quiet quiet = { 0 };
	struct qcow2_ext ext;
	int r;

	if (good_autoclear(image) != image->header.autoclear ||
	    has_relic(image, &ext))
		return 1;
	r = read_bitmaps(image, &quiet);
	forget(&quiet);
	return r;
}

static int write_at(const struct image *image, int fd, const void *data,
		    size_t length, uint64_t offset)
{
	ssize_t n;

	while (length) {
		n = pwrite(fd, data, length, offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return report_errno(n ? errno : ENOSPC,
					    "Cannot write %s", image->path);
		data = (const char *)data + n;
		offset += n;
		length -= n;
	}
	return 0;
}

/* Not by direct I/O, which takes whole blocks of the disk. */
static int lock(const struct image *image, struct attachment *attachment)
{
	int r = attach_write_lock(image, true, attachment), flags;

	if (r < 0)
		return r;
	flags = fcntl(attachment->file, F_GETFL);
	if (flags < 0 ||
	    fcntl(attachment->file, F_SETFL, flags & ~O_DIRECT) < 0)
		r = report_errno(errno, "Cannot open %s", image->path);
	return r;
}

/* Others take room that nothing uses for an extension that they do not know. */
static int drop_relics(const struct image *image, int fd)
{
	__be32 type = __cpu_to_be32(QCOW2_EXT_PADDING);
	struct qcow2_ext ext;
	int r = 0;

	while (!r && has_relic(image, &ext))
		r = write_at(image, fd, &type, sizeof(type),
			     ext.data_offset - 8);
	return r;
}

static int clear_features(const struct image *image, int fd)
{
	uint64_t good = good_autoclear(image);
	__be64 bits = __cpu_to_be64(good);

	if (good == image->header.autoclear)
		return 0;
	return write_at(image, fd, &bits, sizeof(bits),
			offsetof(struct qcow2_disk_header, autoclear_features));
}

static int write_directory(const struct image *image, int fd,
			   const struct quiet *quiet, const uint8_t *directory)
{
	int r = write_at(image, fd, directory, quiet->bitmaps.directory_size,
			 quiet->bitmaps.directory_offset);

	if (!r && fsync(fd) < 0)
		r = report_errno(errno, "Cannot write %s", image->path);
	return r;
}

int quiet_begin(const struct image *image, struct quiet *quiet)
{
	struct attachment attachment;
	int r;

	memset(quiet, 0, sizeof(*quiet));
	r = lock(image, &attachment);
	if (!r)
		r = drop_relics(image, attachment.file);
	if (!r)
		r = clear_features(image, attachment.file);
	if (!r)
		r = read_bitmaps(image, quiet);
	if (r > 0)
		r = write_directory(image, attachment.file, quiet, quiet->marked);
	else
		forget(quiet);
	attach_release(&attachment, false);
	return r;
}

/* Of the image as it is now */
static bool is_marked(const struct image *image, const struct quiet *quiet)
{
	uint64_t size = quiet->bitmaps.directory_size;
	struct qcow2_bitmaps bitmaps;
	uint8_t *directory;
	bool same;

	same = !image_bitmaps(image, &bitmaps, &directory) && directory &&
		bitmaps.directory_size == size &&
		bitmaps.directory_offset == quiet->bitmaps.directory_offset &&
		!memcmp(directory, quiet->marked, size);
	free(directory);
	return same;
}

static int take_marks_off(const struct image *image, const struct quiet *quiet)
{
	struct attachment attachment;
	struct image now;
	int r;

	r = lock(image, &attachment);
	if (!r) {
		r = image_open_damaged(image->path, &now);
		if (!r && image_id_equal(&now.id, &image->id) &&
		    is_marked(&now, quiet))
			r = write_directory(image, attachment.file, quiet,
					    quiet->before);
		else if (!r)
			report_warn("%s: its bitmaps stay marked as in use, so that nobody uses them.",
				    image->path);
		image_close(&now);
	}
	attach_release(&attachment, false);
	return r;
}

int quiet_end(const struct image *image, struct quiet *quiet)
{
	int r = 0;

	if (quiet->before)
		r = take_marks_off(image, quiet);
	forget(quiet);
	return r;
}
