// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copying between two block devices.
 */
#include "copy.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "report.h"

#define DEPTH		16
#define REQUEST_BYTES	(1024 * 1024)

enum step { STEP_IDLE, STEP_READ, STEP_WRITE, STEP_PUNCH, STEP_ZERO };

/**
 * struct slot - a request in flight
 * @step: what is being done
 * @start: bytes
 * @length: bytes
 * @done: bytes of this step that are
 * @waits: to be done by a thread of io_uring's that may wait
 * @buf: of REQUEST_BYTES
 */
struct slot {
	enum step step;
	uint64_t start;
	uint64_t length;
	uint64_t done;
	bool waits;
	void *buf;
};

/**
 * struct engine - a copy under way
 * @copy: what
 * @from: source
 * @to: destination
 * @ring: the requests
 * @slots: one for each request
 * @busy: how many are in flight
 * @piece: what is left of the present piece
 * @ended: there are no more pieces
 * @error: the first one; nothing is begun any more
 */
struct engine {
	const struct copy *copy;
	int from;
	int to;
	struct io_uring ring;
	struct slot slots[DEPTH];
	unsigned int busy;
	struct copy_piece piece;
	bool ended;
	int error;
};

static void prepare(const struct engine *engine, struct slot *slot,
		    struct io_uring_sqe *sqe)
{
	unsigned int length = slot->length - slot->done;
	uint64_t start = slot->start + slot->done;
	void *buf = (char *)slot->buf + slot->done;

	switch (slot->step) {
	case STEP_READ:
		io_uring_prep_read(sqe, engine->from, buf, length, start);
		break;
	case STEP_WRITE:
		io_uring_prep_write(sqe, engine->to, buf, length, start);
		break;
	case STEP_PUNCH:
		io_uring_prep_fallocate(sqe, engine->to,
					FALLOC_FL_PUNCH_HOLE |
					FALLOC_FL_KEEP_SIZE,
					slot->start, slot->length);
		break;
	default:
		io_uring_prep_fallocate(sqe, engine->to,
					FALLOC_FL_ZERO_RANGE |
					FALLOC_FL_KEEP_SIZE,
					slot->start, slot->length);
	}
}

/* There are as many entries as slots: one is always free. */
static void begin(struct engine *engine, struct slot *slot, enum step step)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&engine->ring);

	if (slot->step != step)
		slot->done = 0;
	slot->step = step;
	prepare(engine, slot, sqe);
	if (slot->waits)
		io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
	io_uring_sqe_set_data(sqe, slot);
}

static int fail_request(const struct engine *engine, const struct slot *slot,
			int error)
{
	bool read = slot->step == STEP_READ;

	/* What else was in flight fails for the same reason, most likely. */
	if (engine->error)
		return -error;
	return report_errno(error, "Cannot %s %s at offset %llu",
			    read ? "read" : "write",
			    read ? engine->copy->from : engine->copy->to,
			    (unsigned long long)(slot->start + slot->done));
}

/* Return: the step that comes next, or a negative error, reported. */
static int step_after(struct engine *engine, struct slot *slot, int result)
{
	/*
	 * io_uring goes on by itself after EAGAIN, but not if that comes late, of
	 * one part of several; sent the same way, it may come each time.
	 */
	slot->waits = result == -EAGAIN;
	if (result == -EINTR || result == -EAGAIN)
		return slot->step;
	/* Not every device unmaps; zeroes are written there. */
	if (slot->step == STEP_PUNCH && result == -EOPNOTSUPP)
		return STEP_ZERO;
	if (result < 0)
		return fail_request(engine, slot, -result);
	if (slot->step == STEP_PUNCH || slot->step == STEP_ZERO)
		return STEP_IDLE;
	if (!result)
		return fail_request(engine, slot, EIO);
	slot->done += result;
	if (slot->done < slot->length)
		return slot->step;
	return slot->step == STEP_READ ? STEP_WRITE : STEP_IDLE;
}

static void finish_request(struct engine *engine, struct slot *slot, int result)
{
	int next = step_after(engine, slot, result);

	if (next < 0) {
		if (!engine->error)
			engine->error = next;
		next = STEP_IDLE;
	}
	if (next == STEP_IDLE || engine->error) {
		slot->step = STEP_IDLE;
		engine->busy--;
		return;
	}
	begin(engine, slot, next);
}

static int reap(struct engine *engine)
{
	struct io_uring_cqe *cqe;
	int r;

	do {
		r = io_uring_submit_and_wait(&engine->ring, 1);
	} while (r == -EINTR);
	if (r < 0)
		return report_errno(-r, "Cannot wait for the copy");
	while (io_uring_peek_cqe(&engine->ring, &cqe) == 0) {
		struct slot *slot = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&engine->ring, cqe);
		finish_request(engine, slot, result);
	}
	return 0;
}

static struct slot *idle_slot(struct engine *engine)
{
	struct slot *slot = engine->slots;

	while (slot->step != STEP_IDLE)
		slot++;
	return slot;
}

static uint64_t request_length(const struct copy_piece *piece)
{
	uint64_t most = piece->zero ? COPY_MAX_ZERO : REQUEST_BYTES;

	return piece->length < most ? piece->length : most;
}

static int begin_next(struct engine *engine)
{
	struct copy_piece *piece = &engine->piece;
	const struct copy *copy = engine->copy;
	struct slot *slot;
	int r = 0;

	if (!piece->length) {
		r = copy->next(copy->walk, piece);
		engine->ended = !piece->length;
	}
	if (r < 0 || engine->ended)
		return r;
	if (copy->pace)
		r = copy->pace(copy->data,
			       piece->zero ? 0 : request_length(piece));
	if (r < 0)
		return r;
	slot = idle_slot(engine);
	slot->start = piece->start;
	slot->length = request_length(piece);
	piece->start += slot->length;
	piece->length -= slot->length;
	begin(engine, slot, piece->zero ? STEP_PUNCH : STEP_READ);
	engine->busy++;
	return 0;
}

static void pump(struct engine *engine)
{
	int r = 0;

	while (!r) {
		while (!engine->error && !engine->ended &&
		       engine->busy < DEPTH)
			engine->error = begin_next(engine);
		if (!engine->busy)
			return;
		/* A slow pace must not hold back what was begun. */
		r = reap(engine);
	}
	engine->error = r;
}

static int run_ring(struct engine *engine)
{
	int r;

	r = io_uring_queue_init(DEPTH, &engine->ring, 0);
	if (r < 0)
		return report_errno(-r, "Cannot set up io_uring");
	pump(engine);
	/* Waits for what is in flight if reaping failed. */
	io_uring_queue_exit(&engine->ring);
	return engine->error;
}

static int make_buffers(struct engine *engine)
{
	unsigned int i;

	for (i = 0; i < DEPTH; i++) {
		if (posix_memalign(&engine->slots[i].buf, 4096, REQUEST_BYTES)) {
			engine->slots[i].buf = NULL;
			return report_memory();
		}
	}
	return 0;
}

static int open_device(const char *path, int flags, int *fd)
{
	*fd = open(path, flags | O_DIRECT | O_CLOEXEC);
	return *fd < 0 ? report_errno(errno, "Cannot open %s", path) : 0;
}

int copy_run(const struct copy *copy)
{
	struct engine engine = { .copy = copy, .from = -1, .to = -1 };
	unsigned int i;
	int r;

	r = make_buffers(&engine);
	if (!r)
		r = open_device(copy->from, O_RDONLY, &engine.from);
	if (!r)
		r = open_device(copy->to, O_RDWR, &engine.to);
	if (!r)
		r = run_ring(&engine);
	if (engine.from >= 0)
		close(engine.from);
	if (engine.to >= 0)
		close(engine.to);
	for (i = 0; i < DEPTH; i++)
		free(engine.slots[i].buf);
	return r;
}

static int zero_piece(int fd, const char *path, uint64_t start, uint64_t length)
{
	uint64_t range[2] = { start, length };

	return ioctl(fd, BLKZEROOUT, range) < 0 ?
		report_errno(errno, "Cannot write zeroes to %s at offset %llu",
			     path, (unsigned long long)start) : 0;
}

int copy_zero(const char *path, uint64_t start, uint64_t end,
	      int (*pace)(void *data, uint64_t done, uint64_t written),
	      void *data)
{
	uint64_t most, length;
	bool written = true;
	struct stat st;
	int fd, r = 0;

	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return report_errno(errno, "Cannot open %s", path);
	if (fstat(fd, &st) == 0)
		written = !device_zeroes_itself(st.st_rdev);
	most = written ? REQUEST_BYTES : COPY_MAX_ZERO;
	for (; !r && start < end; start += length) {
		length = end - start < most ? end - start : most;
		r = zero_piece(fd, path, start, length);
		if (!r)
			r = pace(data, length / 512, written ? length / 512 : 0);
	}
	close(fd);
	return r;
}

int copy_flush(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), r = 0;

	if (fd < 0)
		return report_errno(errno, "Cannot open %s", path);
	if (fsync(fd) < 0)
		r = report_errno(errno, "Cannot flush %s", path);
	close(fd);
	return r;
}
