// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's side of the crash test; runs in the virtual machine.
 *
 *   workload make FILE SECTORS PERCENT guest|backing
 *	make a raw disk that holds data in PERCENT of its sectors
 *   workload sum FILE SECTORS
 *	print the checksum that "run" is told to expect of the disk
 *   workload fill DEVICE IMAGE pattern|zero
 *	put IMAGE at the start of DEVICE, and what a device could have held
 *	before on the rest of it
 *   workload run OPTION...
 *	write, zero, discard, flush and read from many threads at once, check
 *	what is read, keep a journal (journal.h) and mark the log
 *   workload flush DEVICE
 *   workload extract DEVICE FILE
 *	copy the log of dm-log-writes as far as it is used
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/aio_abi.h>
#include <linux/dm-ioctl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "journal.h"
#include "log.h"
#include "sector.h"

#define ALIGNMENT	4096
#define MAX_SECTORS	320		/* of one request */
#define CHUNK		0x100000

static void die(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "workload: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

static void *aligned(size_t bytes)
{
	void *buf = aligned_alloc(ALIGNMENT, bytes);

	if (!buf)
		die("out of memory");
	return buf;
}

static void read_all(int fd, void *buf, size_t bytes, uint64_t offset)
{
	ssize_t n;

	for (; bytes; bytes -= n, buf += n, offset += n) {
		n = pread(fd, buf, bytes, offset);
		if (n <= 0)
			die("read at %llu: %s", (unsigned long long)offset,
			    n ? strerror(errno) : "end of file");
	}
}

static void write_all(int fd, const void *buf, size_t bytes, uint64_t offset)
{
	ssize_t n;

	for (; bytes; bytes -= n, buf += n, offset += n) {
		n = pwrite(fd, buf, bytes, offset);
		if (n <= 0)
			die("write at %llu: %s", (unsigned long long)offset,
			    strerror(errno));
	}
}

static void flush_device(const char *path)
{
	int fd = open_or_die(path, O_RDWR);

	if (fdatasync(fd))
		die("flush of %s: %s", path, strerror(errno));
	close(fd);
}

/* ---- make ---- */

/* Data in runs of 1 to 600 sectors, holes between them. */
static void make(const char *path, uint64_t sectors, unsigned int percent,
		 uint64_t magic)
{
	int fd = open_or_die(path, O_WRONLY | O_CREAT | O_TRUNC);
	struct sector_tag tag = { .magic = magic };
	uint64_t random = sector_mix(sectors), end = 0;
	uint8_t buf[SECTOR_BYTES];
	int data = 0;

	if (ftruncate(fd, sectors * SECTOR_BYTES))
		die("%s: %s", path, strerror(errno));
	for (; tag.number < sectors; tag.number++) {
		if (tag.number == end) {
			random = random * 6364136223846793005ULL + 1;
			end += 1 + (random >> 40) % 600;
			data = (random >> 20) % 100 < percent;
		}
		if (!data)
			continue;
		sector_make(buf, &tag);
		write_all(fd, buf, sizeof(buf), tag.number * SECTOR_BYTES);
	}
	close(fd);
}

/* ---- sum ---- */

/* Reads a disk to memory, or just its checksum if @buf is NULL. */
static uint64_t read_disk(int fd, uint64_t sectors, uint8_t *buf)
{
	uint64_t sum = 0, offset, bytes, i, word;
	uint8_t *chunk = aligned(CHUNK);

	for (offset = 0; offset < sectors * SECTOR_BYTES; offset += bytes) {
		bytes = sectors * SECTOR_BYTES - offset;
		if (bytes > CHUNK)
			bytes = CHUNK;
		read_all(fd, chunk, bytes, offset);
		for (i = 0; i < bytes; i += sizeof(word)) {
			memcpy(&word, chunk + i, sizeof(word));
			sum = sum * 31 + word;
		}
		if (buf)
			memcpy(buf + offset, chunk, bytes);
	}
	free(chunk);
	return sum;
}

static void print_sum(const char *path, uint64_t sectors)
{
	int fd = open_or_die(path, O_RDONLY);

	printf("%llu\n", (unsigned long long)read_disk(fd, sectors, NULL));
	close(fd);
}

/* ---- fill ---- */

static void fill(const char *device, const char *image, int pattern)
{
	int dev = open_or_die(device, O_RDWR | O_DIRECT);
	int img = open_or_die(image, O_RDONLY);
	struct sector_tag tag = { .magic = SECTOR_VIRGIN };
	uint64_t size = lseek(dev, 0, SEEK_END);
	uint8_t *buf = aligned(CHUNK);
	uint64_t offset, i;
	ssize_t got, bytes;

	for (offset = 0; offset < size; offset += bytes) {
		bytes = size - offset < CHUNK ? size - offset : CHUNK;
		memset(buf, 0, bytes);
		for (i = 0; pattern && i < (uint64_t)bytes; i += SECTOR_BYTES) {
			tag.number = (offset + i) / SECTOR_BYTES;
			sector_make(buf + i, &tag);
		}
		got = pread(img, buf, bytes, offset);
		if (got < 0)
			die("%s: %s", image, strerror(errno));
		write_all(dev, buf, bytes, offset);
	}
	if (fsync(dev))
		die("%s: %s", device, strerror(errno));
	close(img);
	close(dev);
	free(buf);
}

/* ---- extract ---- */

/* One buffer's worth of the log at a time, so that a header costs no read. */
struct window {
	int fd;
	uint64_t size, start, end;
	uint8_t *buf;
};

static const uint8_t *window_at(struct window *w, uint64_t offset)
{
	if (offset < w->start || offset + SECTOR_BYTES > w->end) {
		w->start = offset / ALIGNMENT * ALIGNMENT;
		w->end = w->start + CHUNK < w->size ? w->start + CHUNK : w->size;
		read_all(w->fd, w->buf, w->end - w->start, w->start);
	}
	return w->buf + (offset - w->start);
}

static uint64_t log_length(struct window *w)
{
	struct log_super super;
	struct log_entry entry;
	uint64_t offset = SECTOR_BYTES, n;

	memcpy(&super, window_at(w, 0), sizeof(super));
	if (le64toh(super.magic) != LOG_MAGIC ||
	    le32toh(super.sectorsize) != SECTOR_BYTES)
		die("no log, or not in sectors of %d bytes", SECTOR_BYTES);
	for (n = le64toh(super.nr_entries); n; n--) {
		memcpy(&entry, window_at(w, offset), sizeof(entry));
		offset += SECTOR_BYTES;
		if (!(le64toh(entry.flags) & LOG_DISCARD))
			offset += le64toh(entry.nr_sectors) * SECTOR_BYTES;
	}
	return offset;
}

static void extract(const char *device, const char *file)
{
	struct window w = { .fd = open_or_die(device, O_RDONLY) };
	int out = open_or_die(file, O_WRONLY | O_CREAT | O_TRUNC);
	uint64_t length, offset, bytes;

	w.buf = aligned(CHUNK);
	w.size = lseek(w.fd, 0, SEEK_END);
	length = log_length(&w);
	for (offset = 0; offset < length; offset += bytes) {
		bytes = length - offset < CHUNK ? length - offset : CHUNK;
		read_all(w.fd, w.buf, bytes, offset);
		write_all(out, w.buf, bytes, offset);
	}
	close(out);
	close(w.fd);
}

/* ---- device-mapper ---- */

static int dm_control;

static int dm_ioctl_named(unsigned long request, const char *name,
			  uint32_t flags, const char *message)
{
	union {
		struct dm_ioctl io;
		char bytes[sizeof(struct dm_ioctl) +
			   sizeof(struct dm_target_msg) + 256];
	} u;
	struct dm_target_msg *msg = (void *)(u.bytes + sizeof(u.io));

	memset(&u, 0, sizeof(u));
	u.io.version[0] = DM_VERSION_MAJOR;
	u.io.data_size = sizeof(u);
	u.io.data_start = sizeof(u.io);
	u.io.flags = flags;
	snprintf(u.io.name, sizeof(u.io.name), "%s", name);
	if (message)
		snprintf(msg->message, 256, "%s", message);
	return ioctl(dm_control, request, &u);
}

/* ---- run ---- */

enum content { INITIAL, DATA, ZERO };

/* What a sector must read as; after a discard it may be zero all the same. */
struct expect {
	uint32_t op;
	uint8_t content;
	uint8_t or_zero;
};

static struct {
	/* options */
	const char *device, *log, *dm, *journal, *edits, *command;
	uint64_t initial_sum;
	uint32_t seed, cluster;
	unsigned int ops, threads, flush_permille;
	uint64_t sectors;

	int fd;
	uint8_t *first;			/* what every sector held at the start */
	pthread_mutex_t lock;		/* all below */
	pthread_cond_t change;
	struct journal_record *records;
	uint64_t nr_records, max_records;
	uint32_t last_op;
	unsigned int started;
	uint8_t *busy;
	struct expect *expect;
	int failed;
	pthread_mutex_t mark_lock;
} run = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.change = PTHREAD_COND_INITIALIZER,
	.mark_lock = PTHREAD_MUTEX_INITIALIZER,
};

struct op {
	enum op_kind kind;
	uint32_t number, flags;
	uint64_t sector;
	uint32_t count;
	int how;		/* of several calls that do the same */
};

struct worker {
	pthread_t thread;
	uint64_t random;
	aio_context_t aio;
	uint8_t *buf;
};

static uint64_t randoms(struct worker *w)
{
	w->random = w->random * 6364136223846793005ULL + 1442695040888963407ULL;
	return sector_mix(w->random) >> 16;
}

static uint64_t below(struct worker *w, uint64_t limit)
{
	return randoms(w) % limit;
}

static void fail(const char *format, ...)
{
	va_list args;

	pthread_mutex_lock(&run.lock);
	run.failed = 1;
	fprintf(stderr, "workload: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	pthread_mutex_unlock(&run.lock);
}

/* With run.lock held. */
static void record(uint32_t type, const struct op *op)
{
	if (run.nr_records == run.max_records) {
		run.max_records = run.max_records * 2 + 4096;
		run.records = realloc(run.records, run.max_records *
						   sizeof(*run.records));
		if (!run.records)
			die("out of memory");
	}
	run.records[run.nr_records++] = (struct journal_record) {
		.type = type, .op = op->number, .sector = op->sector,
		.count = op->count, .kind = op->kind, .flags = op->flags,
	};
}

static uint64_t journal_length(void)
{
	uint64_t length;

	pthread_mutex_lock(&run.lock);
	length = run.nr_records;
	pthread_mutex_unlock(&run.lock);
	return length;
}

/* @what is the mark but for the length of the journal, which ends it. */
static void mark(const char *what)
{
	char text[128];

	pthread_mutex_lock(&run.mark_lock);
	snprintf(text, sizeof(text), LOG_MESSAGE " %s:%llu", what,
		 (unsigned long long)journal_length());
	if (dm_ioctl_named(DM_TARGET_MSG, run.log, 0, text))
		fail("%s: %s", text, strerror(errno));
	pthread_mutex_unlock(&run.mark_lock);
}

static void pick_kind(struct worker *w, struct op *op)
{
	unsigned int dice = below(w, 1000);

	op->how = below(w, 3);
	op->flags = 0;
	if (dice < run.flush_permille) {
		op->kind = OP_FLUSH;
		return;
	}
	dice = below(w, 100);
	if (dice < 54) {
		op->kind = OP_WRITE;
	} else if (dice < 62) {
		op->kind = OP_WRITE;
		op->flags = OP_FUA;
	} else if (dice < 72) {
		op->kind = OP_ZERO;
	} else if (dice < 88) {
		op->kind = OP_DISCARD;
	} else {
		op->kind = OP_READ;
	}
}

/*
 * Small and unaligned, whole clusters, both ends torn, large: all of them
 * often.
 */
static void pick_range(struct worker *w, struct op *op)
{
	uint64_t window = run.sectors / 8, start;
	unsigned int dice = below(w, 100);
	uint32_t cluster = run.cluster;
	int whole;

	if (op->kind == OP_DISCARD || op->kind == OP_ZERO)
		dice = dice / 2 + 50;
	whole = dice >= 50 && dice < 78;
	if (dice < 50)
		op->count = 1 + below(w, 8);
	else if (whole)
		op->count = cluster * (1 + below(w, dice < 72 ? 3 : 16));
	else if (dice < 91)
		op->count = 1 + below(w, 5 * cluster / 2 + 1);
	else
		op->count = 1 + below(w, 256);
	if (op->count > MAX_SECTORS)
		op->count = MAX_SECTORS;

	/* A place that wanders, most of the time. */
	if (below(w, 100) < 60)
		start = (uint64_t)(run.started / 256 * 0x9e3779b1U) %
			(run.sectors - window) + below(w, window);
	else
		start = below(w, run.sectors);
	if (whole)
		start -= start % cluster;
	op->sector = start;
	if (op->sector + op->count > run.sectors)
		op->count = run.sectors - op->sector;
}

/* With run.lock held. */
static int range_free(const struct op *op)
{
	return !memchr(run.busy + op->sector, 1, op->count);
}

static int writes(const struct op *op)
{
	return op->kind == OP_WRITE || op->kind == OP_ZERO ||
	       op->kind == OP_DISCARD;
}

/* Takes the next operation; false when there are none left. */
static int op_begin(struct worker *w, struct op *op)
{
	pthread_mutex_lock(&run.lock);
	if (run.failed || run.started >= run.ops) {
		pthread_mutex_unlock(&run.lock);
		return 0;
	}
	run.started++;
	pthread_cond_broadcast(&run.change);
	pick_kind(w, op);
	if (op->kind != OP_FLUSH) {
		do {
			pick_range(w, op);
		} while (!range_free(op));
		memset(run.busy + op->sector, 1, op->count);
	}
	if (writes(op)) {
		op->number = ++run.last_op;
		record(J_SUBMIT, op);
	}
	pthread_mutex_unlock(&run.lock);
	return 1;
}

static void expect_after(struct expect *e, const struct op *op)
{
	switch (op->kind) {
	case OP_WRITE:
		*e = (struct expect) { .content = DATA, .op = op->number };
		break;
	case OP_ZERO:
		*e = (struct expect) { .content = ZERO };
		break;
	default:
		e->or_zero = 1;
	}
}

static void op_end(const struct op *op)
{
	uint32_t i;

	pthread_mutex_lock(&run.lock);
	if (writes(op)) {
		record(J_COMPLETE, op);
		for (i = 0; i < op->count; i++)
			expect_after(&run.expect[op->sector + i], op);
	}
	if (op->kind != OP_FLUSH)
		memset(run.busy + op->sector, 0, op->count);
	pthread_mutex_unlock(&run.lock);
}

static int as_expected(const uint8_t *got, uint64_t sector)
{
	const struct expect *e = &run.expect[sector];
	struct sector_tag tag = {
		.magic = SECTOR_GUEST, .number = sector, .op = e->op,
		.seed = run.seed,
	};
	uint8_t want[SECTOR_BYTES];

	if (sector_is_zero(got) && (e->or_zero || e->content == ZERO))
		return 1;
	if (e->content == ZERO)
		return 0;
	if (e->content == INITIAL)
		return !memcmp(got, run.first + sector * SECTOR_BYTES,
			       SECTOR_BYTES);
	sector_make(want, &tag);
	return !memcmp(got, want, SECTOR_BYTES);
}

static void check_read(const struct op *op, const uint8_t *buf)
{
	struct sector_tag tag;
	uint32_t i;

	for (i = 0; i < op->count; i++) {
		const struct expect *e = &run.expect[op->sector + i];

		if (as_expected(buf + i * SECTOR_BYTES, op->sector + i))
			continue;
		memcpy(&tag, buf + i * SECTOR_BYTES, sizeof(tag));
		fail("sector %llu reads %llx %llu op %u, not %s %u%s",
		     (unsigned long long)op->sector + i,
		     (unsigned long long)tag.magic,
		     (unsigned long long)tag.number, tag.op,
		     e->content == DATA ? "op" : e->content == ZERO ?
		     "zeroes" : "the initial", e->op,
		     e->or_zero ? " or zeroes" : "");
		return;
	}
}

/*
 * By aio, since a FUA write that is waited for at once is followed by a flush
 * of the kernel's own making.
 */
static int aio_write(struct worker *w, const struct op *op)
{
	struct iocb cb = {
		.aio_lio_opcode = IOCB_CMD_PWRITE,
		.aio_fildes = run.fd,
		.aio_buf = (uintptr_t)w->buf,
		.aio_nbytes = op->count * SECTOR_BYTES,
		.aio_offset = op->sector * SECTOR_BYTES,
		.aio_rw_flags = op->flags & OP_FUA ? RWF_DSYNC : 0,
	};
	struct iocb *list = &cb;
	struct io_event event;
	int n;

	if (syscall(SYS_io_submit, w->aio, 1, &list) != 1)
		return -1;
	do {
		n = syscall(SYS_io_getevents, w->aio, 1, 1, &event, NULL);
	} while (n < 0 && errno == EINTR);
	if (n == 1 && event.res == (int64_t)cb.aio_nbytes)
		return 0;
	errno = n == 1 && event.res < 0 ? -event.res : EIO;
	return -1;
}

static int do_write(struct worker *w, const struct op *op)
{
	struct sector_tag tag = {
		.magic = SECTOR_GUEST, .op = op->number, .seed = run.seed,
	};
	uint32_t i;

	for (i = 0; i < op->count; i++) {
		tag.number = op->sector + i;
		sector_make(w->buf + i * SECTOR_BYTES, &tag);
	}
	return aio_write(w, op);
}

static int do_zero(const struct op *op)
{
	uint64_t range[2] = { op->sector * SECTOR_BYTES,
			      (uint64_t)op->count * SECTOR_BYTES };

	if (op->how == 0 && !fallocate(run.fd, FALLOC_FL_PUNCH_HOLE |
				       FALLOC_FL_KEEP_SIZE, range[0], range[1]))
		return 0;
	if (op->how == 1 && !fallocate(run.fd, FALLOC_FL_ZERO_RANGE |
				       FALLOC_FL_KEEP_SIZE, range[0], range[1]))
		return 0;
	if (op->how != 2 && errno != EOPNOTSUPP)
		return -1;
	return ioctl(run.fd, BLKZEROOUT, range);
}

static int do_flush(void)
{
	uint64_t durable = journal_length();
	char text[64];

	if (fdatasync(run.fd))
		return -1;
	snprintf(text, sizeof(text), "D:%llu", (unsigned long long)durable);
	mark(text);
	return 0;
}

static int op_do(struct worker *w, const struct op *op)
{
	uint64_t range[2] = { op->sector * SECTOR_BYTES,
			      (uint64_t)op->count * SECTOR_BYTES };

	switch (op->kind) {
	case OP_WRITE:
		return do_write(w, op);
	case OP_ZERO:
		return do_zero(op);
	case OP_DISCARD:
		return ioctl(run.fd, BLKDISCARD, range);
	case OP_READ:
		if (pread(run.fd, w->buf, range[1], range[0]) !=
		    (ssize_t)range[1])
			return -1;
		check_read(op, w->buf);
		return 0;
	case OP_FLUSH:
		return do_flush();
	}
	return -1;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	char text[32];
	struct op op;

	while (op_begin(w, &op)) {
		if (op_do(w, &op))
			fail("operation of kind %d at %llu+%u: %s", op.kind,
			     (unsigned long long)op.sector, op.count,
			     strerror(errno));
		if (op.kind == OP_WRITE && op.flags & OP_FUA) {
			snprintf(text, sizeof(text), "U:%u", op.number);
			mark(text);
		}
		op_end(&op);
	}
	return NULL;
}

/* Edits the internal snapshots from outside, while the workload knocks. */
static void edit(char action, uint32_t number)
{
	struct op op = { .number = number };
	char log[64], command[1024], text[64];

	pthread_mutex_lock(&run.lock);
	snprintf(text, sizeof(text), "E:%llu",
		 (unsigned long long)run.nr_records);
	record(action == 'c' ? J_SNAPSHOT_BEGIN : J_DELETE_BEGIN, &op);
	pthread_mutex_unlock(&run.lock);

	if (dm_ioctl_named(DM_DEV_SUSPEND, run.dm, DM_SUSPEND_FLAG, NULL)) {
		fail("suspend: %s", strerror(errno));
		return;
	}
	mark("S");
	snprintf(command, sizeof(command), "%s -%c s%u", run.command, action,
		 number);
	if (system(command))
		fail("%s failed", command);
	snprintf(log, sizeof(log), "/dev/mapper/%s", run.log);
	flush_device(log);

	/* Nothing reaches the image until it is resumed. */
	pthread_mutex_lock(&run.lock);
	record(action == 'c' ? J_SNAPSHOT_END : J_DELETE_END, &op);
	pthread_mutex_unlock(&run.lock);
	mark(text);
	if (dm_ioctl_named(DM_DEV_SUSPEND, run.dm, 0, NULL))
		fail("resume: %s", strerror(errno));
}

/* The edits, evenly over the run: "c1,c2,d1" makes s1 and s2, removes s1. */
static void edit_all(void)
{
	const char *text = run.edits;
	unsigned int n = 1, i;
	const char *c;
	int stop;

	for (c = text; *c; c++)
		n += *c == ',';
	for (i = 1; *text; i++) {
		pthread_mutex_lock(&run.lock);
		while (!run.failed && run.started < run.ops / (n + 1) * i)
			pthread_cond_wait(&run.change, &run.lock);
		stop = run.failed;
		pthread_mutex_unlock(&run.lock);
		if (stop)
			return;
		edit(text[0], strtoul(text + 1, NULL, 10));
		text += strcspn(text, ",");
		text += *text == ',';
	}
}

static void run_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "device", 1, NULL, 'd' },	/* what to write to */
		{ "dm", 1, NULL, 'm' },		/* its name, to suspend it */
		{ "log", 1, NULL, 'l' },	/* name of the log-writes device */
		{ "journal", 1, NULL, 'j' },	/* file to write */
		{ "initial-sum", 1, NULL, 'i' },	/* of the disk */
		{ "seed", 1, NULL, 's' },
		{ "ops", 1, NULL, 'o' },
		{ "threads", 1, NULL, 't' },
		{ "cluster", 1, NULL, 'c' },	/* sectors */
		{ "flushes", 1, NULL, 'f' },	/* of 1000 operations */
		{ "edits", 1, NULL, 'e' },
		{ "edit-command", 1, NULL, 'x' },
		{ }
	};
	int c;

	run.ops = 1000;
	run.threads = 6;
	run.cluster = 128;
	run.flush_permille = 80;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'd':
			run.device = optarg;
			break;
		case 'm':
			run.dm = optarg;
			break;
		case 'l':
			run.log = optarg;
			break;
		case 'j':
			run.journal = optarg;
			break;
		case 'i':
			run.initial_sum = strtoull(optarg, NULL, 0);
			break;
		case 's':
			run.seed = strtoul(optarg, NULL, 0);
			break;
		case 'o':
			run.ops = strtoul(optarg, NULL, 0);
			break;
		case 't':
			run.threads = strtoul(optarg, NULL, 0);
			break;
		case 'c':
			run.cluster = strtoul(optarg, NULL, 0);
			break;
		case 'f':
			run.flush_permille = strtoul(optarg, NULL, 0);
			break;
		case 'e':
			run.edits = optarg;
			break;
		case 'x':
			run.command = optarg;
			break;
		default:
			die("wrong option");
		}
	}
	if (!run.device || !run.log || !run.journal)
		die("--device, --log and --journal are needed");
}

static void run_setup(void)
{
	uint64_t bytes;

	dm_control = open_or_die("/dev/mapper/control", O_RDWR);
	run.fd = open_or_die(run.device, O_RDWR | O_DIRECT);
	if (ioctl(run.fd, BLKGETSIZE64, &bytes))
		die("%s: %s", run.device, strerror(errno));
	run.sectors = bytes / SECTOR_BYTES;
	run.first = aligned(bytes);
	if (read_disk(run.fd, run.sectors, run.first) != run.initial_sum)
		die("%s does not show what is in the image", run.device);
	run.busy = calloc(run.sectors, 1);
	run.expect = calloc(run.sectors, sizeof(*run.expect));
	if (!run.busy || !run.expect)
		die("out of memory");
}

static void run_threads(void)
{
	struct worker *workers = calloc(run.threads, sizeof(*workers));
	unsigned int i;

	for (i = 0; i < run.threads; i++) {
		workers[i].random = sector_mix(run.seed) + i * 7919;
		workers[i].buf = aligned(MAX_SECTORS * SECTOR_BYTES);
		if (syscall(SYS_io_setup, 4, &workers[i].aio) ||
		    pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("cannot start a thread");
	}
	if (run.edits)
		edit_all();
	for (i = 0; i < run.threads; i++)
		pthread_join(workers[i].thread, NULL);
	free(workers);
}

static void check_all(void)
{
	struct op op = { .kind = OP_READ };
	uint8_t *buf = aligned(MAX_SECTORS * SECTOR_BYTES);

	for (; op.sector < run.sectors && !run.failed; op.sector += op.count) {
		op.count = run.sectors - op.sector < MAX_SECTORS ?
			   run.sectors - op.sector : MAX_SECTORS;
		read_all(run.fd, buf, op.count * SECTOR_BYTES,
			 op.sector * SECTOR_BYTES);
		check_read(&op, buf);
	}
	free(buf);
}

static int run_workload(int argc, char **argv)
{
	int out;

	run_options(argc, argv);
	run_setup();
	run_threads();
	if (do_flush())
		fail("last flush: %s", strerror(errno));
	check_all();

	out = open_or_die(run.journal, O_WRONLY | O_CREAT | O_TRUNC);
	write_all(out, run.records, run.nr_records * sizeof(*run.records), 0);
	close(out);
	return run.failed;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int status = 0;

	if (argc == 6 && !strcmp(what, "make"))
		make(argv[2], strtoull(argv[3], NULL, 0),
		     strtoul(argv[4], NULL, 0), !strcmp(argv[5], "guest") ?
		     SECTOR_GUEST : SECTOR_BACKING);
	else if (argc == 4 && !strcmp(what, "sum"))
		print_sum(argv[2], strtoull(argv[3], NULL, 0));
	else if (argc == 5 && !strcmp(what, "fill"))
		fill(argv[2], argv[3], !strcmp(argv[4], "pattern"));
	else if (argc == 3 && !strcmp(what, "flush"))
		flush_device(argv[2]);
	else if (argc == 4 && !strcmp(what, "extract"))
		extract(argv[2], argv[3]);
	else if (argc > 2 && !strcmp(what, "run"))
		status = run_workload(argc - 1, argv + 1);
	else
		die("make, sum, fill, run, flush or extract?");
	return status;
}
