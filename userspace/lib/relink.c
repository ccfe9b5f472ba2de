// SPDX-License-Identifier: GPL-2.0-only
/*
 * Rewriting the backing link of an image.
 */
#include "relink.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach.h"
#include "device.h"
#include "report.h"

/* What qcow2_relink() wants to see, and the largest logical block */
#define AREA_BYTES	65536
#define BLOCK_MAX	4096

/**
 * struct relink - a rewrite under way
 * @image: the image
 * @fd: open for writing, past the page cache
 * @area: the first bytes of the image
 * @len: how many of @area were read, whole blocks
 * @block: what is written in one piece
 */
struct relink {
	const struct image *image;
	int fd;
	uint8_t *area;
	uint32_t len;
	uint32_t block;
};

/*
 * The smallest piece that direct I/O takes is the block of the disk below, or
 * less. Without direct I/O, in memory, any will do.
 */
static uint32_t block_of(const struct relink *relink)
{
	if (relink->image->is_device)
		return block_size_of(relink->fd);
	return pread(relink->fd, relink->area, 512, 0) < 0 && errno == EINVAL ?
		BLOCK_MAX : 512;
}

static int read_area(struct relink *relink)
{
	uint32_t cluster = relink->image->header.cluster_size;
	ssize_t n;

	relink->block = block_of(relink);
	if (relink->block > BLOCK_MAX)
		return report_fail(EOPNOTSUPP,
				   "%s has blocks of more than %d bytes.",
				   relink->image->path, BLOCK_MAX);
	relink->len = cluster < AREA_BYTES ? cluster : AREA_BYTES;
	if (relink->len < relink->block)
		relink->len = relink->block;
	memset(relink->area, 0, AREA_BYTES);
	n = pread(relink->fd, relink->area, relink->len, 0);
	if (n < 0)
		return report_errno(errno, "Cannot read %s",
				    relink->image->path);
	if (n < QCOW2_HEADER_V3_BYTES)
		return report_fail(EIO, "Cannot read the header of %s.",
				   relink->image->path);
	return 0;
}

/* Writes the blocks that a range lies in, and waits until they are durable. */
static int write_blocks(const struct relink *relink, uint32_t start,
			uint32_t bytes)
{
	uint32_t mask = relink->block - 1;
	uint32_t end = (start + bytes + mask) & ~mask;
	ssize_t n;

	start &= ~mask;
	do {
		n = pwrite(relink->fd, relink->area + start, end - start, start);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return report_errno(errno, "Cannot write %s",
				    relink->image->path);
	if (n != (ssize_t)(end - start))
		return report_fail(EIO, "Cannot write all of the header of %s.",
				   relink->image->path);
	if (fsync(relink->fd) < 0)
		return report_errno(errno, "Cannot write %s",
				    relink->image->path);
	return 0;
}

static int refuse(const struct relink *relink, const struct qcow2_fault *fault)
{
	return report_fail(EMEDIUMTYPE,
			   "%s: the backing link cannot be changed: %s at offset %llu (%llu): %s.",
			   relink->image->path, fault->field,
			   (unsigned long long)fault->where,
			   (unsigned long long)fault->value, fault->why);
}

static int refuse_raw_data(const struct image *image)
{
	return report_fail(EOPNOTSUPP,
			   "%s has an external data file that is to be readable as a raw image (data_file_raw): it cannot have a backing file.",
			   image->path);
}

/* In memory; @first is what has to be on disk before the header is. */
static int change(const struct relink *relink, const char *name,
		  enum image_format format, struct qcow2_relink *first)
{
	uint32_t cluster = relink->image->header.cluster_size;
	struct qcow2_header header;
	struct qcow2_fault fault;
	uint32_t len;

	len = cluster < relink->len ? cluster : relink->len;
	if (qcow2_header_decode(relink->area, relink->len, &header, &fault) < 0 ||
	    header.cluster_size != cluster)
		return report_fail(EBUSY, "%s changed meanwhile.",
				   relink->image->path);
	if (name && qcow2_raw_data(&header))
		return refuse_raw_data(relink->image);
	if (qcow2_relink(relink->area, len, &header, relink->block, name,
			 name ? strlen(name) : 0, format_name(format), first,
			 &fault) < 0)
		return refuse(relink, &fault);
	return 0;
}

static int write_out(const struct relink *relink,
		     const struct qcow2_relink *first)
{
	int r = 0;

	if (first->name_len)
		r = write_blocks(relink, first->name_offset, first->name_len);
	return r < 0 ? r : write_blocks(relink, 0, relink->block);
}

static int relink_fd(const struct image *image, int fd, const char *name,
		     enum image_format format, bool write)
{
	struct qcow2_relink first;
	struct relink relink = { .image = image, .fd = fd };
	void *area;
	int r;

	if (posix_memalign(&area, BLOCK_MAX, AREA_BYTES))
		return report_memory();
	relink.area = area;
	r = read_area(&relink);
	if (!r)
		r = change(&relink, name, format, &first);
	if (!r && write)
		r = write_out(&relink, &first);
	free(area);
	return r;
}

int relink_check(const struct image *image, const char *name,
		 enum image_format format)
{
	int fd = image_reopen(image, O_RDONLY), r;

	if (fd < 0)
		return fd;
	r = relink_fd(image, fd, name, format, false);
	close(fd);
	return r;
}

int relink_image(const struct image *image, const char *name,
		 enum image_format format)
{
	struct attachment attachment;
	struct image_user user;
	int r;

	if (device_uses(&image->id, true, &user))
		return device_refuse(image->path, &user);
	/* Readers of ours do not mind. */
	r = attach_write_lock(image, true, &attachment);
	if (!r)
		r = relink_fd(image, attachment.file, name, format, true);
	attach_release(&attachment, false);
	return r;
}
