// SPDX-License-Identifier: GPL-2.0-only
/*
 * The QEMU guest agent.
 */
#include "qga.h"

#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "progress.h"
#include "report.h"

/* An agent that runs answers a sync at once, and a freeze after all its hooks. */
#define SYNC_SECONDS	5
#define FREEZE_SECONDS	60

/* The agent sends this before the answer to a delimited sync. */
#define DELIMITER	0xff

/* Longest answer that is understood */
#define ANSWER_MAX	4096

static int connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	/* Also for connect(): who listens may not accept. */
	struct timeval most = { .tv_sec = SYNC_SECONDS };
	int fd, r;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof(most));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	r = -errno;
	close(fd);
	return r;
}

static int send_all(int fd, const char *data, size_t left)
{
	ssize_t n;

	while (left) {
		n = send(fd, data, left, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		left -= n;
	}
	return 0;
}

/* Return: the next byte, or a negative errno */
static int read_byte(int fd, double end)
{
	struct pollfd input = { .fd = fd, .events = POLLIN };
	double left = end - progress_now();
	unsigned char byte;
	ssize_t n;
	int r;

	r = left > 0 ? poll(&input, 1, left * 1000 + 1) : 0;
	if (r < 0 && errno == EINTR)
		return -EINTR;
	if (r <= 0)
		return r < 0 ? -errno : -ETIMEDOUT;
	n = read(fd, &byte, 1);
	if (n < 0)
		return -errno;
	return n ? byte : -EPIPE;
}

/* Reads a line; @delimited: one that begins with the delimiter */
static int read_line(int fd, double end, bool delimited, char buf[ANSWER_MAX])
{
	unsigned int len = 0;
	int byte;

	for (;;) {
		byte = read_byte(fd, end);
		if (byte == -EINTR)
			continue;
		if (byte < 0)
			return byte;
		if (byte == DELIMITER) {
			delimited = false;
			len = 0;
		} else if (byte == '\n' && len && !delimited) {
			break;
		} else if (byte != '\n' && len < ANSWER_MAX - 1) {
			buf[len++] = byte;
		}
	}
	buf[len] = '\0';
	return 0;
}

/* Return: the number that it answers; -EREMOTEIO: it refuses; or another error */
static int64_t answer_of(const char *line)
{
	struct json_object *answer = json_tokener_parse(line), *value;
	int64_t number = -EPROTO;

	if (json_object_is_type(answer, json_type_object)) {
		if (json_object_object_get_ex(answer, "return", &value))
			number = json_object_get_int64(value);
		else if (json_object_object_get_ex(answer, "error", NULL))
			number = -EREMOTEIO;
	}
	json_object_put(answer);
	return number;
}

/* What an earlier user left unread in the channel is skipped. */
static int sync_with(int fd)
{
	char message[128], line[ANSWER_MAX];
	double end = progress_now() + SYNC_SECONDS;
	uint32_t id = 0;
	int len, r;

	if (getrandom(&id, sizeof(id), 0) < 0)
		return -errno;
	len = snprintf(message, sizeof(message),
		       "%c{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%u}}\n",
		       DELIMITER, id);
	r = send_all(fd, message, len);
	while (!r) {
		r = read_line(fd, end, true, line);
		if (!r && answer_of(line) == id)
			return 0;
	}
	return r;
}

static int send_command(const char *path, const char *command)
{
	char line[ANSWER_MAX];
	int fd = connect_to(path), r;
	char *message;
	int64_t answer;

	if (fd < 0)
		return fd;
	r = sync_with(fd);
	if (!r && command) {
		message = text("{\"execute\":\"%s\"}\n", command);
		r = send_all(fd, message, strlen(message));
		free(message);
		if (!r)
			r = read_line(fd, progress_now() + FREEZE_SECONDS,
				      false, line);
		answer = r < 0 ? r : answer_of(line);
		r = answer < 0 ? answer : 0;
	}
	close(fd);
	return r;
}

int qga_ping(const char *path)
{
	return send_command(path, NULL);
}

int qga_freeze(const char *path)
{
	return send_command(path, "guest-fsfreeze-freeze");
}

int qga_thaw(const char *path)
{
	return send_command(path, "guest-fsfreeze-thaw");
}
