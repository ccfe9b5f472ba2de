// SPDX-License-Identifier: GPL-2.0-only
/*
 * The rest of the last cluster.
 */
#include "tail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "lock.h"
#include "report.h"

/**
 * struct tail - the rest of the cluster that an image ends in
 * @image: the image
 * @start: guest offset, bytes; a device has whole sectors
 * @length: bytes
 */
struct tail {
	const struct image *image;
	uint64_t start;
	size_t length;
};

static bool has_data(const struct tail *tail, const struct image_entry *entry)
{
	const struct qcow2_header *h = &tail->image->header;
	uint32_t first, i;

	if (h->l2_entry_bytes == 8)
		return qcow2_l2_kind(entry->l2) == QCOW2_NORMAL ||
			qcow2_l2_kind(entry->l2) == QCOW2_COMPRESSED;
	if (entry->l2 & QCOW2_OFLAG_COMPRESSED)
		return true;
	first = (tail->start & (h->cluster_size - 1)) >> h->sub_bits;
	for (i = first; i < h->cluster_size >> h->sub_bits; i++) {
		if (qcow2_sub_kind(entry->l2, entry->bitmap, i) == QCOW2_NORMAL)
			return true;
	}
	return false;
}

/* Return: 1 if all reads as zero, 0, or an error, reported */
static int is_zero(const struct image *file, size_t length, uint64_t offset)
{
	char *data = image_read(file, length, offset);
	size_t i;

	if (!data)
		return -EIO;
	for (i = 0; i < length && !data[i]; i++)
		;
	free(data);
	return i == length;
}

static int write_zeroes(int fd, size_t length, uint64_t offset)
{
	char *zeroes = calloc(1, length);
	ssize_t done = 0;
	size_t pos;

	if (!zeroes)
		return -ENOMEM;
	for (pos = 0; pos < length && done >= 0; pos += done) {
		do {
			done = pwrite(fd, zeroes + pos, length - pos,
				      offset + pos);
		} while (done < 0 && errno == EINTR);
		if (!done)
			errno = ENOSPC;
		done = done ? done : -1;
	}
	free(zeroes);
	return done < 0 || fsync(fd) < 0 ? -errno : 0;
}

/*
 * Not by direct I/O, which takes whole blocks of the disk.  The cache of a block
 * device is that of now, see image_open().
 *
 * Return: a descriptor that holds the locks; or an error, reported.
 */
static int open_locked(const struct image *file)
{
	int fd = image_reopen(file, O_RDWR), flags, r;

	if (fd < 0)
		return fd;
	r = lock_acquire(fd, ROLE_WRITE, NULL);
	flags = fcntl(fd, F_GETFL);
	if (!r && (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0))
		r = -errno;
	if (!r)
		return fd;
	close(fd);
	return r == -EBUSY ?
		report_fail(EBUSY, "%s is locked by another program.",
			    file->path) :
		report_errno(-r, "Cannot open %s", file->path);
}

static int zero_file(const struct image *file, size_t length, uint64_t offset,
		     int fd)
{
	int r;

	if (file->is_device && offset + length > file->length)
		return report_fail(EUCLEAN,
				   "%s: the last cluster, at offset %llu, is behind the end.",
				   file->path, (unsigned long long)offset);
	r = write_zeroes(fd, length, offset);
	return r < 0 ? report_errno(-r, "Cannot write to %s", file->path) : 0;
}

/* @fd: of the image, with its locks */
static int zero_where_it_is(const struct tail *tail, const struct image *file,
			    uint64_t offset, int fd)
{
	int data_fd = -1, r;

	if (file != tail->image) {
		data_fd = open_locked(file);
		if (data_fd < 0)
			return data_fd;
	}
	r = zero_file(file, tail->length, offset, data_fd < 0 ? fd : data_fd);
	if (data_fd >= 0)
		close(data_fd);
	return r;
}

/* @file: what has the guest's data */
static int zero_plain(const struct tail *tail, const struct image_entry *entry,
		      const struct image *file, int fd)
{
	uint64_t offset = (entry->l2 & QCOW2_OFFSET_MASK) +
		(tail->start & (tail->image->header.cluster_size - 1));
	int r = is_zero(file, tail->length, offset);

	if (r)
		return r < 0 ? r : 0;
	if (!(entry->l1 & entry->l2 & QCOW2_OFLAG_COPIED))
		return 1;
	return zero_where_it_is(tail, file, offset, fd);
}

static int zero_data(const struct tail *tail, const struct image_entry *entry,
		     int fd)
{
	struct image data;
	int r;

	if (image_encrypted(tail->image) ||
	    (entry->l2 & QCOW2_OFLAG_COMPRESSED))
		return 1;
	if (!image_external(tail->image))
		return zero_plain(tail, entry, tail->image, fd);
	r = image_open_data(tail->image, &data);
	if (!r)
		r = zero_plain(tail, entry, &data, fd);
	image_close(&data);
	return r;
}

/* @image: read under the locks that @fd has */
static int zero_tail(const struct image *image, int fd)
{
	struct tail tail = {
		.image = image,
		.start = round_up(image->size, 512),
	};
	struct image_entry entry;
	int r;

	tail.length = tail_end(image) - tail.start;
	if (!tail.length)
		return 0;
	r = image_entry_at(image, tail.start, &entry);
	if (r < 0 || !has_data(&tail, &entry))
		return r;
	return zero_data(&tail, &entry, fd);
}

int tail_zero(const struct image *image)
{
	int fd = open_locked(image), r;
	struct image now;

	if (fd < 0)
		return fd;
	r = image_open(image->path, image->format, &now);
	if (!r && (!image_id_equal(&now.id, &image->id) ||
		   now.size != image->size))
		r = report_fail(EBUSY, "%s has changed meanwhile.",
				image->path);
	if (!r)
		r = zero_tail(&now, fd);
	image_close(&now);
	close(fd);
	return r;
}
