// SPDX-License-Identifier: GPL-2.0-only
/*
 * Of what may be equal on two devices, only what differs.
 */
#include "differ.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report.h"

/* What is read at a time: not less than the largest cluster */
#define CHUNK_BYTES	(2U * 1024 * 1024)

/**
 * struct side - one of the devices
 * @path: its name
 * @fd: open for direct reads
 * @buf: of CHUNK_BYTES
 */
struct side {
	const char *path;
	int fd;
	char *buf;
};

/**
 * struct differ - a closer look
 * @walk: what may differ
 * @unit: see differ_open()
 * @sides: old and new
 * @piece: what is left of the piece that is being compared
 */
struct differ {
	struct walk *walk;
	uint64_t unit;
	struct side sides[2];
	struct copy_piece piece;
};

static int side_open(const char *path, struct side *side)
{
	void *buf;

	side->path = path;
	side->fd = -1;
	if (!path)
		return 0;
	if (posix_memalign(&buf, 4096, CHUNK_BYTES))
		return report_memory();
	side->buf = buf;
	side->fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	return side->fd < 0 ? report_errno(errno, "Cannot open %s", path) : 0;
}

int differ_open(struct walk *walk, const char *old, const char *new,
		uint64_t unit, struct differ **result)
{
	struct differ *differ = calloc(1, sizeof(*differ));
	int r;

	*result = differ;
	if (!differ)
		return report_memory();
	differ->walk = walk;
	differ->unit = unit;
	differ->sides[1].fd = -1;
	r = side_open(old, &differ->sides[0]);
	return r < 0 ? r : side_open(new, &differ->sides[1]);
}

void differ_close(struct differ *differ)
{
	unsigned int i;

	for (i = 0; differ && i < 2; i++) {
		if (differ->sides[i].fd >= 0)
			close(differ->sides[i].fd);
		free(differ->sides[i].buf);
	}
	free(differ);
}

/* Behind the end of a device there are zeroes. */
static int side_read(struct side *side, uint64_t start, size_t length)
{
	size_t done = 0;
	ssize_t n;

	memset(side->buf, 0, length);
	while (done < length) {
		n = pread(side->fd, side->buf + done, length - done,
			  start + done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return report_errno(errno, "Cannot read %s",
					    side->path);
		if (!n)
			break;
		done += n;
	}
	return 0;
}

/* To the end of the unit, or of the piece */
static size_t unit_at(const struct differ *differ, uint64_t start, size_t left)
{
	uint64_t length = differ->unit - (start & (differ->unit - 1));

	return length < left ? length : left;
}

static bool is_equal(const struct differ *differ, size_t offset, size_t length)
{
	return !memcmp(differ->sides[0].buf + offset,
		       differ->sides[1].buf + offset, length);
}

/* Takes equal units off the front, then those that are not: the result. */
static void split(struct differ *differ, size_t chunk, struct copy_piece *piece)
{
	struct copy_piece *rest = &differ->piece;
	size_t offset = 0, length = 0;

	while (offset < chunk &&
	       is_equal(differ, offset,
			unit_at(differ, rest->start + offset, chunk - offset)))
		offset += unit_at(differ, rest->start + offset, chunk - offset);
	while (offset + length < chunk &&
	       !is_equal(differ, offset + length,
			 unit_at(differ, rest->start + offset + length,
				 chunk - offset - length)))
		length += unit_at(differ, rest->start + offset + length,
				  chunk - offset - length);
	*piece = *rest;
	piece->start += offset;
	piece->length = length;
	rest->start += offset + length;
	rest->length -= offset + length;
}

static int compare(struct differ *differ, struct copy_piece *piece)
{
	const struct copy_piece *rest = &differ->piece;
	size_t chunk = CHUNK_BYTES - (rest->start & (CHUNK_BYTES - 1));
	int r;

	if (chunk > rest->length)
		chunk = rest->length;
	r = side_read(&differ->sides[0], rest->start, chunk);
	if (!r)
		r = side_read(&differ->sides[1], rest->start, chunk);
	if (!r)
		split(differ, chunk, piece);
	return r;
}

int differ_next(void *data, struct copy_piece *piece)
{
	struct differ *differ = data;
	int r = 0;

	piece->length = 0;
	while (!r && !piece->length) {
		if (!differ->piece.length)
			r = walk_next(differ->walk, &differ->piece);
		if (r < 0 || !differ->piece.length)
			return r;
		if (differ->piece.compare && differ->sides[1].fd >= 0) {
			r = compare(differ, piece);
		} else {
			*piece = differ->piece;
			differ->piece.length = 0;
		}
	}
	return r;
}
