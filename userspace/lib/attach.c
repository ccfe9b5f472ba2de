// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attaching images.
 */
#include "attach.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libdevmapper.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "device.h"
#include "dm.h"
#include "report.h"
#include "state.h"
#include "unfinished.h"

/* How long the kernel may take to clear what has no user any more */
#define GONE_TRIES	100
#define GONE_MSEC	20

/* Names of tail devices begin so */
#define TAIL_NAME	"qcow2-tail-"

struct attachment attach_empty(void)
{
	struct attachment attachment = {
		.file = -1,
		.hold = -1,
		.loop = { .fd = -1 },
		.crypt = { .hold = -1 },
	};

	return attachment;
}

static int refuse_locked(const struct image *image, int error, enum role role)
{
	struct image_user user;

	if (error != EBUSY)
		return report_errno(error, "Cannot lock %s", image->path);
	if (device_uses(&image->id, role == ROLE_READ, &user))
		return device_refuse(image->path, &user);
	return report_fail(EBUSY,
			   "%s is locked: another program (QEMU, qemu-img, qemu-nbd) has it open%s.",
			   image->path,
			   role == ROLE_READ ? " for writing" : "");
}

static int lock_image(const struct image *image, int fd, enum role role,
		      bool change)
{
	struct lock_mates mates = { 0, 0 };
	int r = unfinished_check_image(image, role == ROLE_WRITE);

	if (r < 0)
		return r;
	/* Readers share anyway. A writer's own device is the only exception. */
	if (change)
		mates = loop_mates(&image->id);
	r = lock_acquire(fd, role, &mates);
	return r < 0 ? refuse_locked(image, -r, role) : 0;
}

/* Block devices: the device itself, and a loop device that holds the locks */
static int attach_device(const struct image *image, int fd, enum role role,
			 struct attachment *attachment)
{
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return report_errno(errno, "Cannot stat %s", image->path);
	attachment->device = st.st_rdev;
	r = loop_attach(fd, image->path, loop_kind_of(true, role), 0,
			&attachment->loop);
	attachment->holder = !r;
	return r;
}

/**
 * struct how - what there is to know of an attachment to be made
 * @change: as in attach_read()
 * @loops: loop devices that there are, those made here as well, or NULL: they
 *	have to be looked for
 */
struct how {
	bool change;
	struct loops *loops;
};

/* Another image may have it as its data file. */
static void note_loop(const struct how *how, const struct loop *loop)
{
	if (how->loops)
		loops_add(how->loops, loop);
}

static bool find_loop(const struct how *how, const struct image_id *id,
		      enum loop_kind kind, struct loop *loop)
{
	return how->loops ? loops_find(how->loops, id, kind, loop) :
		loop_find(id, kind, loop);
}

static int attach_read_device(const struct image *image, const struct how *how,
			      struct attachment *attachment)
{
	struct stat st;
	int fd, r;

	if (find_loop(how, &image->id, LOOP_HOLD_READ, &attachment->loop)) {
		if (fstat(image->fd, &st) < 0)
			return report_errno(errno, "Cannot stat %s", image->path);
		attachment->device = st.st_rdev;
		return 0;
	}
	fd = image_reopen(image, O_RDONLY);
	if (fd < 0)
		return fd;
	r = lock_image(image, fd, ROLE_READ, how->change);
	if (!r)
		r = attach_device(image, fd, ROLE_READ, attachment);
	if (!r)
		note_loop(how, &attachment->loop);
	close(fd);
	return r;
}

/* The last block of a file, filled up with zeroes, in memory */
static int tail_memory(const struct image *image, uint64_t start,
		       unsigned int block)
{
	char buf[65536] = { 0 };
	int fd;

	if (block > sizeof(buf) ||
	    pread(image->fd, buf, image->length - start, start) !=
	    (ssize_t)(image->length - start))
		return report_errno(EIO, "Cannot read the end of %s",
				    image->path);
	fd = memfd_create("qcow2setup-tail", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return report_errno(errno, "Cannot create a file in memory");
	if (pwrite(fd, buf, block, 0) != (ssize_t)block ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE |
		  F_SEAL_SEAL) < 0) {
		close(fd);
		return report_errno(EIO, "Cannot write a file in memory");
	}
	return fd;
}

static int tail_loop(const struct image *image, uint64_t start,
		     unsigned int block, struct loop *loop)
{
	char *path;
	int fd, readonly, r;

	fd = tail_memory(image, start, block);
	if (fd < 0)
		return fd;
	path = text("/proc/self/fd/%d", fd);
	readonly = open(path, O_RDONLY | O_CLOEXEC);
	r = readonly < 0 ? report_errno(errno, "Cannot open %s", path) :
		loop_attach(readonly, "the end of a file", LOOP_TAIL, block, loop);
	if (readonly >= 0)
		close(readonly);
	close(fd);
	free(path);
	return r;
}

static void tail_names(const struct image *image, char name[DM_NAME_MAX],
		       char uuid[DM_UUID_MAX])
{
	unsigned long long dev = image->id.dev, ino = image->id.ino;

	snprintf(name, DM_NAME_MAX, TAIL_NAME "%llx-%llx", dev, ino);
	snprintf(uuid, DM_UUID_MAX, DM_UUID_TAIL "%llx-%llx-%llx", dev, ino,
		 (unsigned long long)image->length);
}

static int tail_hold(const char *name, const char *uuid,
		     struct attachment *attachment)
{
	attachment->hold = dm_hold(name, uuid, &attachment->device);
	return attachment->hold < 0 ? attachment->hold : 0;
}

static char *linear_params(dev_t device)
{
	return text("%u:%u 0", major(device), minor(device));
}

static int tail_create(const char *name, const char *uuid,
		       const struct loop *file, const struct loop *tail,
		       uint64_t sectors, unsigned int block)
{
	struct dm_segment segments[2] = {
		{ 0, sectors, "linear", NULL },
		{ sectors, block / 512, "linear", NULL },
	};
	struct dm_segment *used = segments;
	unsigned int count = 2;
	int r;

	segments[0].params = linear_params(loop_device(file));
	segments[1].params = linear_params(loop_device(tail));
	if (!sectors) {
		used++;
		count--;
	}
	r = dm_create(name, uuid, true, used, count);
	free(segments[0].params);
	free(segments[1].params);
	return r;
}

static int attach_tail(const struct image *image, unsigned int block,
		       struct attachment *attachment)
{
	uint64_t start = image->length / block * block;
	char name[DM_NAME_MAX], uuid[DM_UUID_MAX];
	struct loop tail;
	int r;

	tail_names(image, name, uuid);
	if (tail_hold(name, uuid, attachment) == 0)
		return 0;
	r = tail_loop(image, start, block, &tail);
	if (r < 0)
		return r;
	r = tail_create(name, uuid, &attachment->loop, &tail, start / 512,
			block);
	loop_close(&tail);
	if (r < 0)
		return r;
	r = tail_hold(name, uuid, attachment);
	return r < 0 ? report_errno(-r, "Cannot open device %s", name) : 0;
}

static int attach_read_file(const struct image *image, const struct how *how,
			    struct attachment *attachment)
{
	unsigned int block;
	int fd, r;

	if (find_loop(how, &image->id, LOOP_READ, &attachment->loop)) {
		/* The file may have grown beside one that shows a snapshot. */
		loop_refit(&attachment->loop);
	} else {
		fd = image_reopen(image, O_RDONLY);
		if (fd < 0)
			return fd;
		r = lock_image(image, fd, ROLE_READ, how->change);
		if (!r)
			r = loop_attach(fd, image->path, LOOP_READ, 0,
					&attachment->loop);
		close(fd);
		if (r < 0)
			return r;
		note_loop(how, &attachment->loop);
	}
	attachment->device = loop_device(&attachment->loop);
	block = block_size_of(attachment->loop.fd);
	if (image->length % block)
		return attach_tail(image, block, attachment);
	return 0;
}

static int attach_read_one(const struct image *image, const struct how *how,
			   struct attachment *attachment)
{
	*attachment = attach_empty();
	attachment->length = image->length;
	return image->is_device ?
		attach_read_device(image, how, attachment) :
		attach_read_file(image, how, attachment);
}

/* What is to be done to an image and to its external data file */
typedef int (*attach_fn)(const struct image *image, const struct how *how,
			 struct attachment *attachment);

static int attach_data(const struct image *image, const struct how *how,
		       attach_fn fn, struct attachment *attachment)
{
	struct image data;
	int r;

	if (!image_external(image))
		return 0;
	attachment->data = grow_array(NULL, 0, sizeof(*attachment->data));
	*attachment->data = attach_empty();
	r = image_open_data(image, &data);
	if (!r)
		r = fn(&data, how, attachment->data);
	image_close(&data);
	return r;
}

static int attach_crypt(const struct image *image,
			struct attachment *attachment)
{
	if (!image_encrypted(image))
		return 0;
	return crypt_attach(image, attachment->data ? attachment->data->device :
			    attachment->device, &attachment->crypt);
}

static int attach_read_so(const struct image *image, const struct how *how,
			  struct attachment *attachment)
{
	int r = attach_read_one(image, how, attachment);

	if (!r)
		r = attach_data(image, how, attach_read_one, attachment);
	return r < 0 ? r : attach_crypt(image, attachment);
}

int attach_read(const struct image *image, bool change,
		struct attachment *attachment)
{
	struct how how = { change, NULL };

	return attach_read_so(image, &how, attachment);
}

int attach_read_layers(const struct image *layers, unsigned int count,
		       struct attachment *attachments)
{
	struct loops loops;
	struct how how = { false, &loops };
	int r = 0;

	if (!count)
		return 0;
	loops_load(&loops, 1u << LOOP_READ | 1u << LOOP_HOLD_READ);
	while (count-- && !r)
		r = attach_read_so(&layers[count], &how, &attachments[count]);
	loops_free(&loops);
	return r;
}

void attach_show(const struct attachment *attachment,
		 struct device_layer *layer)
{
	layer->device = attachment->device;
	layer->data = attachment->data ? attachment->data->device : 0;
	if (attachment->crypt.device)
		layer->data = attachment->crypt.device;
}

/* A device that is mounted or part of something else is not ours to write. */
static int check_exclusive(const struct image *image)
{
	int fd = open(image->path, O_RDWR | O_EXCL | O_CLOEXEC);

	if (fd < 0 && errno == EBUSY)
		return report_fail(EBUSY, "%s is in use.", image->path);
	if (fd < 0)
		return report_errno(errno, "Cannot open %s for writing",
				    image->path);
	close(fd);
	return 0;
}

static int lock_one(const struct image *image, const struct how *how,
		    struct attachment *attachment)
{
	struct stat st;
	int r = 0;

	*attachment = attach_empty();
	if (image->is_device && !how->change)
		r = check_exclusive(image);
	if (r < 0)
		return r;
	attachment->file = image_reopen(image, O_RDWR);
	if (attachment->file < 0)
		return attachment->file;
	r = lock_image(image, attachment->file, ROLE_WRITE, how->change);
	if (r < 0)
		return r;
	if (fstat(attachment->file, &st) < 0)
		return report_errno(errno, "Cannot stat %s", image->path);
	attachment->length = image->is_device ? image->length :
		(uint64_t)st.st_size;
	return 0;
}

int attach_write_lock(const struct image *image, bool change,
		      struct attachment *attachment)
{
	struct how how = { change, NULL };
	int r = lock_one(image, &how, attachment);

	return r < 0 ? r : attach_data(image, &how, lock_one, attachment);
}

static int test_read_lock(const struct image *image)
{
	int fd = image_reopen(image, O_RDONLY), r;

	if (fd < 0)
		return fd;
	r = lock_image(image, fd, ROLE_READ, false);
	close(fd);
	return r;
}

static int check_unused(const struct image *image, enum role role)
{
	struct how how = { false, NULL };
	struct attachment attachment;
	struct image_user user;
	int r;

	if (device_uses(&image->id, false, &user))
		return device_refuse(image->path, &user);
	if (role == ROLE_READ)
		return test_read_lock(image);
	r = lock_one(image, &how, &attachment);
	attach_release(&attachment, false);
	return r;
}

int attach_check_unused(const struct image *image, enum role role)
{
	int r = check_unused(image, role);
	struct image data;

	if (r < 0 || !image_external(image))
		return r;
	r = image_open_data(image, &data);
	if (!r)
		r = check_unused(&data, role);
	image_close(&data);
	return r;
}

/* As long as the file system allows, between @length and @wanted */
static uint64_t extend_far(int fd, uint64_t length, uint64_t wanted)
{
	uint64_t good = length, bad = wanted, middle;

	if (ftruncate(fd, wanted) == 0)
		return wanted;
	while (bad - good > 1 << 20) {
		middle = good + round_up((bad - good) / 2, 1 << 20);
		if (middle >= bad)
			break;
		if (ftruncate(fd, middle) == 0)
			good = middle;
		else
			bad = middle;
	}
	return good;
}

static uint64_t blocks_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) < 0 ? 0 : st.st_blocks;
}

/*
 * A page of metadata may come with it; megabytes of zeroes may not.  Of a device that is
 * open, a guest writes meanwhile: zeroes would have been written everywhere.
 */
static uint64_t most_blocks(uint64_t more)
{
	return more / 1024 < 2048 ? 2048 : more / 1024;
}

/* Makes the file longer without giving it disk space. */
static void grow_file(const struct image *image, int fd, uint64_t length)
{
	uint64_t before = blocks_of(fd), wanted = image_need(image), got;

	if (wanted <= length)
		return;
	got = extend_far(fd, length, wanted);
	if (blocks_of(fd) > before + most_blocks(got - length)) {
		report_warn("No sparse files where %s is: it is not extended, and is full at its present length.",
			    image->path);
		if (ftruncate(fd, length) < 0)
			report_warn("Cannot truncate %s.", image->path);
		return;
	}
	if (got < wanted)
		report_warn("The file system ends %s at %llu bytes; a write that needs more will find no space.",
			    image->path, (unsigned long long)got);
}

/* A loop device rounds down to a block, so the file must be rounded up. */
static int pad_file(const struct image *image, int fd, unsigned int block)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return report_errno(errno, "Cannot stat %s", image->path);
	if (st.st_size % block == 0)
		return 0;
	if (ftruncate(fd, round_up(st.st_size, block)) < 0)
		return report_errno(errno, "Cannot extend %s", image->path);
	return 0;
}

static int write_one(const struct image *image, bool grow,
		     struct attachment *attachment)
{
	struct loop *loop = &attachment->loop;
	int fd = attachment->file, r;
	unsigned int block;

	if (image->is_device)
		return attach_device(image, fd, ROLE_WRITE, attachment);
	r = pad_file(image, fd, 512);
	if (r < 0)
		return r;
	if (grow && image->format == FORMAT_QCOW2)
		grow_file(image, fd, round_up(attachment->length, 512));
	r = loop_attach(fd, image->path, LOOP_WRITE, 0, loop);
	if (r < 0)
		return r;
	attachment->device = loop_device(loop);
	block = block_size_of(loop->fd);
	if (block > 512) {
		r = pad_file(image, fd, block);
		loop_refit(loop);
	}
	if (!r && fsync(fd) < 0)
		r = report_errno(errno, "Cannot write %s", image->path);
	return r;
}

int attach_hold_again(const struct image *image, struct attachment *attachment)
{
	if (!attachment->holder)
		return 0;
	loop_clear(&attachment->loop);
	loop_close(&attachment->loop);
	attachment->holder = false;
	return attach_device(image, attachment->file, ROLE_WRITE, attachment);
}

/* Without disk space: what the data file lacks reads as zeroes. */
static int write_data(const struct image *image, struct attachment *attachment)
{
	struct image data;
	int r;

	r = image_open_data(image, &data);
	if (!r && !data.is_device && data.length < image->size &&
	    ftruncate(attachment->file, round_up(image->size, 512)) < 0)
		r = report_errno(errno, "Cannot make %s longer", data.path);
	if (!r)
		r = write_one(&data, false, attachment);
	image_close(&data);
	return r;
}

int attach_write(const struct image *image, bool grow,
		 struct attachment *attachment)
{
	int r = write_one(image, grow, attachment);

	if (!r && attachment->data)
		r = write_data(image, attachment->data);
	return r < 0 ? r : attach_crypt(image, attachment);
}

void attach_refit(const struct image_id *id)
{
	struct loop loop;

	if (!loop_find(id, LOOP_WRITE, &loop))
		return;
	loop_refit(&loop);
	loop_close(&loop);
	crypt_refit();
}

int attach_extend(const struct image *image, uint64_t length)
{
	struct image before = *image;
	int fd, r = 0;

	if (image->is_device)
		return 0;
	fd = image_reopen(image, O_RDWR);
	if (fd < 0)
		return fd;
	/* What was allocated since it was opened is counted as new. */
	before.length = length;
	grow_file(&before, fd, image->length);
	if (fsync(fd) < 0)
		r = report_errno(errno, "Cannot write %s", image->path);
	close(fd);
	if (!r)
		attach_refit(&image->id);
	return r;
}

typedef bool (*user_fn)(const struct image_user *user);

/* Who needs a loop device of this kind? */
static user_fn users_of(enum loop_kind kind)
{
	if (kind == LOOP_HOLD_WRITE)
		return device_user_writes;
	return kind == LOOP_HOLD_READ ? device_user_reads : device_user_any;
}

/* A table may have become active, and what came then have failed. */
static bool is_held(const struct loop *loop)
{
	struct image_user user;

	return device_uses_so(&loop->id, users_of(loop->kind), &user);
}

void attach_release(struct attachment *attachment, bool used)
{
	crypt_release(&attachment->crypt);
	if (attachment->data)
		attach_release(attachment->data, used);
	free(attachment->data);
	if (attachment->holder && !used && !is_held(&attachment->loop))
		loop_clear(&attachment->loop);
	if (attachment->hold >= 0)
		close(attachment->hold);
	loop_close(&attachment->loop);
	if (attachment->file >= 0)
		close(attachment->file);
	*attachment = attach_empty();
}

static bool is_used(const struct loop_note *note, const struct devices *devices)
{
	struct image_user user;

	return devices_use(devices, &note->id, users_of(note->kind), &user);
}

/* Those of some kinds that no device uses; the devices are looked at last. */
static void load_unused(struct loops *unused, unsigned int kinds)
{
	struct devices devices;
	unsigned int i, kept = 0;

	loops_load(unused, kinds);
	/* A look at all devices takes long where they are many. */
	if (!unused->count)
		return;
	devices_load(&devices);
	for (i = 0; i < unused->count; i++) {
		if (!is_used(&unused->list[i], &devices) &&
		    !unfinished_has(&unused->list[i].id))
			unused->list[kept++] = unused->list[i];
	}
	unused->count = kept;
	devices_free(&devices);
}

/* A loop device that holds locks is needed while a table names its device. */
static void prune_holders(void)
{
	struct loops unused;
	struct loop loop;
	unsigned int i;

	load_unused(&unused, LOOP_HOLDERS);
	for (i = 0; i < unused.count; i++) {
		if (!loop_reopen(&unused.list[i], &loop))
			continue;
		loop_clear(&loop);
		loop_close(&loop);
	}
	loops_free(&unused);
}

static bool prune_helper(const char *name, void *data)
{
	struct dm_state state = dm_query(name);

	(void)data;
	if (state.exists && dm_is_helper(&state) && !state.open_count)
		dm_remove(name, false);
	return false;
}

static bool is_temporary_name(const char *name)
{
	return !strncmp(name, TAIL_NAME, strlen(TAIL_NAME)) ||
		!strncmp(name, CRYPT_NAME, strlen(CRYPT_NAME)) ||
		!strncmp(name, DM_NAME_JOB, strlen(DM_NAME_JOB));
}

/*
 * libdevmapper removes a node when it is told to remove the device, and does
 * not if it is killed at that moment.
 */
static void prune_nodes(void)
{
	struct dirent *entry;
	DIR *dir;

	dir = opendir(dm_dir());
	while (dir && (entry = readdir(dir))) {
		if (is_temporary_name(entry->d_name))
			dm_drop_node(entry->d_name);
	}
	if (dir)
		closedir(dir);
}

static bool loop_is_ours(int index)
{
	struct loop loop;
	bool ours;

	if (!loop_open(index, &loop))
		return false;
	ours = loop.kind != LOOP_FOREIGN;
	loop_close(&loop);
	return ours;
}

void attach_prune(void)
{
	prune_holders();
	dm_each(prune_helper, NULL);
	prune_nodes();
	crypt_prune();
	loop_marks_prune(loop_is_ours);
}

static bool any_leaving(void)
{
	struct loops unused;
	bool any;

	load_unused(&unused, LOOP_IMAGES);
	any = unused.count;
	loops_free(&unused);
	return any;
}

void attach_settle(void)
{
	int tries;

	for (tries = 0; tries < GONE_TRIES && any_leaving(); tries++)
		usleep(GONE_MSEC * 1000);
	attach_prune();
}

bool attach_wait_left(const struct loops *loops, const struct image_id *id,
		      enum loop_kind kind)
{
	struct loop loop;
	int tries;

	for (tries = 0; tries < GONE_TRIES; tries++) {
		if (!loops_find(loops, id, kind, &loop))
			return true;
		loop_close(&loop);
		usleep(GONE_MSEC * 1000);
	}
	return false;
}

bool attach_wait_gone(const struct image_id *id, enum loop_kind kind)
{
	struct loops loops;
	bool gone;

	loops_load(&loops, 1u << kind);
	gone = attach_wait_left(&loops, id, kind);
	loops_free(&loops);
	return gone;
}
