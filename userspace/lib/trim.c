// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cutting a file back that was made longer for writing.
 */
#include "trim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach.h"
#include "image.h"
#include "loop.h"
#include "report.h"

/* Return: a descriptor; or -1, if the path does not lead to that file any more */
static int open_file(const char *path, const struct image_id *id)
{
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	struct image_id found;
	struct stat st;

	if (fd < 0)
		return fd;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
		found = image_id_of(&st);
		if (image_id_equal(&found, id))
			return fd;
	}
	close(fd);
	return -1;
}

void trim_prepare(const char *path, const struct image_id *id, uint64_t floor,
		  struct trim *trim)
{
	struct lock_mates mates = loop_mates(id);
	int r;

	trim->fd = -1;
	trim->path = text_copy(path);
	trim->id = *id;
	trim->floor = floor;
	if (!id->block)
		trim->fd = open_file(path, id);
	if (trim->fd < 0)
		return;
	r = lock_acquire(trim->fd, ROLE_WRITE, &mates);
	if (r == 0)
		return;
	report_warn("%s is in use elsewhere: it is not cut to what is in use of it.",
		    path);
	close(trim->fd);
	trim->fd = -1;
}

/* Is all between two offsets zero? It is a cluster at most. */
static bool is_zero(int fd, uint64_t from, uint64_t to)
{
	char buf[4096];
	ssize_t len, i;

	while (from < to) {
		len = to - from < sizeof(buf) ? to - from : sizeof(buf);
		len = pread(fd, buf, len, from);
		if (len < 0)
			return false;
		if (!len)
			return true;
		for (i = 0; i < len; i++) {
			if (buf[i])
				return false;
		}
		from += len;
	}
	return true;
}

/*
 * The end of the last cluster in use. An image whose last cluster was not
 * whole when it was opened, and has nothing behind that point, goes back to
 * exactly that length, if no loop device would lose its last sector by it.
 */
static uint64_t wanted_length(const struct trim *trim, const struct image *image,
			      uint64_t used_end, bool read_by_loops)
{
	uint64_t floor = read_by_loops ? round_up(trim->floor, 4096) :
		trim->floor;

	if (used_end <= floor)
		return floor;
	if (used_end - floor < image->header.cluster_size &&
	    is_zero(trim->fd, floor, used_end))
		return floor;
	return used_end;
}

static int cut_file(const struct trim *trim, const struct image *image,
		    bool read_by_loops)
{
	uint64_t used_end, wanted;
	int r;

	r = image_used_end(image, &used_end);
	if (r < 0)
		return r;
	wanted = wanted_length(trim, image, used_end, read_by_loops);
	if (wanted >= image->length)
		return 0;
	if (ftruncate(trim->fd, wanted) < 0 || fsync(trim->fd) < 0)
		return report_errno(errno, "Cannot truncate %s", trim->path);
	return 0;
}

static int cut_image(const struct trim *trim, bool read_by_loops)
{
	struct image image;
	int r;

	r = image_open(trim->path, FORMAT_QCOW2, &image);
	if (!r && !image_id_equal(&image.id, &trim->id))
		r = -ESTALE;
	if (!r)
		r = image_check_usable(&image, true);
	if (!r)
		r = cut_file(trim, &image, read_by_loops);
	image_close(&image);
	return r;
}

static bool visit_reader(const struct loop *loop, void *data)
{
	const struct trim *trim = data;

	if (loop->kind == LOOP_READ && image_id_equal(&loop->id, &trim->id))
		loop_refit(loop);
	return false;
}

/* Under the locks; only readers of ours may be there besides. */
static void cut_locked(struct trim *trim)
{
	struct lock_mates mates;

	if (!attach_wait_gone(&trim->id, LOOP_WRITE)) {
		report_warn("A loop device still has %s: it is not cut to what is in use of it.",
			    trim->path);
		return;
	}
	mates = loop_mates(&trim->id);
	if (lock_test(trim->fd, ROLE_WRITE, &mates) < 0)
		report_warn("%s is in use elsewhere: it is not cut to what is in use of it.",
			    trim->path);
	else if (cut_image(trim, mates.readers) < 0)
		report_warn("%s is not cut to what is in use of it.",
			    trim->path);
	else if (mates.readers)
		loop_each(visit_reader, trim);
}

void trim_finish(struct trim *trim, bool cut)
{
	if (cut && trim->fd >= 0)
		cut_locked(trim);
	if (trim->fd >= 0)
		close(trim->fd);
	trim->fd = -1;
	free(trim->path);
	trim->path = NULL;
}
