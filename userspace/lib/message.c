// SPDX-License-Identifier: GPL-2.0-only
/*
 * Messages to the kernel target.
 *
 * libdevmapper is not made for threads, and messages are to work beside each
 * other: the ioctl is called directly.
 */
#include "message.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dm-ioctl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "dm.h"
#include "report.h"

/* Room for a message or an answer; the longest has a backing file's name */
#define BUFFER_BYTES	4096

/* How long to wait for a device that is being suspended, each time */
#define AGAIN_USEC	10000

#define THREADS		8

/* Sectors of a range: few enough that the threads end together */
#define SWEEP_SECTORS	(16ULL << 11)

union buffer {
	struct dm_ioctl header;
	char bytes[BUFFER_BYTES];
};

static int fill(union buffer *buffer, const char *name, const char *message)
{
	struct dm_ioctl *header = &buffer->header;
	struct dm_target_msg *target;
	size_t room = sizeof(*buffer) - sizeof(*header) - sizeof(*target);

	memset(buffer, 0, sizeof(*buffer));
	header->version[0] = DM_VERSION_MAJOR;
	header->version[1] = 0;
	header->version[2] = 0;
	header->data_size = sizeof(*buffer);
	header->data_start = sizeof(*header);
	if (strlen(name) >= sizeof(header->name) || strlen(message) >= room)
		return -ENAMETOOLONG;
	memcpy(header->name, name, strlen(name));
	target = (void *)(buffer->bytes + sizeof(*header));
	memcpy(target->message, message, strlen(message));
	return 0;
}

static int send_once(int control, const char *name, const char *message,
		     char *reply, unsigned int size)
{
	union buffer buffer;
	int r;

	r = fill(&buffer, name, message);
	if (r < 0)
		return r;
	if (ioctl(control, DM_TARGET_MSG, &buffer) < 0)
		return -errno;
	if (reply)
		snprintf(reply, size, "%s",
			 buffer.header.flags & DM_DATA_OUT_FLAG ?
			 buffer.bytes + buffer.header.data_start : "");
	return 0;
}

static int open_control(void)
{
	char *path = text("%s/control", "/dev/mapper");
	int fd = open(path, O_RDWR | O_CLOEXEC);

	free(path);
	return fd < 0 ? -errno : fd;
}

int message_send(const char *name, const char *message, char *reply,
		 unsigned int size)
{
	int control = open_control(), r;

	if (control < 0)
		return control;
	while ((r = send_once(control, name, message, reply, size)) == -EAGAIN ||
	       r == -EINTR)
		usleep(AGAIN_USEC);
	close(control);
	return r;
}

static int send_reported(const char *name, const char *message,
			 const char *what)
{
	int r = message_send(name, message, NULL, 0);

	return r < 0 ? report_errno(-r, "Cannot %s of device %s", what, name) :
		0;
}

/*
 * A message is split at what isspace() is true of; a backslash takes the meaning
 * from what follows (dm_split_args() in the kernel).  For the kernel 0xa0 is a
 * blank as well (lib/ctype.c), which is a part of many characters of UTF-8: each
 * byte gets its backslash.
 */
static char *escape(const char *word)
{
	char *result = text("%s%s", word, word), *out = result;

	for (; *word; word++) {
		*out++ = '\\';
		*out++ = *word;
	}
	*out = '\0';
	return result;
}

int message_backing(const char *name, const char *link, const char *format)
{
	char *message, *word;
	int r;

	if (!link)
		return send_reported(name, "backing none",
				     "remove the backing link");
	word = escape(link);
	message = text("backing %s %s", format, word);
	r = send_reported(name, message, "change the backing link");
	free(message);
	free(word);
	return r;
}

int message_resize(const char *name)
{
	return send_reported(name, "resize", "grow the image");
}

int message_final(const char *name, bool keep)
{
	return send_reported(name, keep ? "final keep" : "final",
			     "rely on the mirror");
}

/**
 * struct sweeper - a sweep under way
 * @sweep: what
 * @lock: protects what follows
 * @next: sector where the next range begins
 * @error: the first one; negative errno
 */
struct sweeper {
	const struct sweep *sweep;
	pthread_mutex_t lock;
	uint64_t next;
	int error;
};

/* Return: false if there is none left. */
static bool take_range(struct sweeper *sweeper, uint64_t *start, uint64_t *end)
{
	uint64_t last = sweeper->sweep->end;
	bool more;

	pthread_mutex_lock(&sweeper->lock);
	*start = sweeper->next;
	*end = last - *start < SWEEP_SECTORS ? last :
		*start + SWEEP_SECTORS;
	sweeper->next = *end;
	more = !sweeper->error && *start < *end;
	pthread_mutex_unlock(&sweeper->lock);
	return more;
}

static int account(struct sweeper *sweeper, uint64_t swept, uint64_t copied)
{
	const struct sweep *sweep = sweeper->sweep;
	int r;

	pthread_mutex_lock(&sweeper->lock);
	if (!sweeper->error)
		sweeper->error = sweep->pace(sweep->data, swept, copied);
	r = sweeper->error;
	pthread_mutex_unlock(&sweeper->lock);
	return r;
}

/* Who is first reports. */
static void give_up(struct sweeper *sweeper, uint64_t sector, int error)
{
	pthread_mutex_lock(&sweeper->lock);
	if (!sweeper->error)
		sweeper->error = report_errno(-error,
					      "Device %s: %s at sector %llu",
					      sweeper->sweep->name,
					      sweeper->sweep->verb,
					      (unsigned long long)sector);
	pthread_mutex_unlock(&sweeper->lock);
}

/*
 * Return: sectors that are done, or a negative error, unreported. 0 where a suspend
 * began with the message at work: the next one waits for its end.
 */
static int64_t send_range(const struct sweep *sweep, uint64_t start,
			  uint64_t end, uint64_t *copied)
{
	char reply[64], *message;
	uint64_t done;
	int r;

	message = text("%s %" PRIu64 " %" PRIu64 " %s", sweep->verb, start,
		       end - start, sweep->tail);
	r = message_send(sweep->name, message, reply, sizeof(reply));
	free(message);
	if (r < 0)
		return r;
	if (sscanf(reply, "%" SCNu64 " %" SCNu64, &done, copied) != 2 ||
	    done > end - start)
		return -EPROTO;
	return done;
}

static void sweep_range(struct sweeper *sweeper, uint64_t start, uint64_t end)
{
	uint64_t copied;
	int64_t done;

	while (start < end) {
		done = send_range(sweeper->sweep, start, end, &copied);
		if (done < 0) {
			give_up(sweeper, start, done);
			return;
		}
		if (account(sweeper, done, copied) < 0)
			return;
		start += done;
	}
}

static void *sweep_thread(void *data)
{
	struct sweeper *sweeper = data;
	uint64_t start, end;

	while (take_range(sweeper, &start, &end))
		sweep_range(sweeper, start, end);
	return NULL;
}

int sweep_run(const struct sweep *sweep)
{
	struct sweeper sweeper = {
		.sweep = sweep,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.next = sweep->start,
	};
	pthread_t threads[THREADS];
	unsigned int count = 0;

	while (count < THREADS - 1 &&
	       count < (sweep->end - sweep->start) / SWEEP_SECTORS &&
	       pthread_create(&threads[count], NULL, sweep_thread,
			      &sweeper) == 0)
		count++;
	sweep_thread(&sweeper);
	while (count)
		pthread_join(threads[--count], NULL);
	return sweeper.error;
}
