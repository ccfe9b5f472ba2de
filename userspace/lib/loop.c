// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loop devices.
 */
#include "loop.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <linux/major.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "report.h"
#include "run.h"
#include "state.h"

/* Others may take the free loop device that we were told of. */
#define ATTACH_TRIES	64

static const char * const kind_names[] = {
	[LOOP_FOREIGN] = "",
	[LOOP_READ] = "QCOW2-read",
	[LOOP_WRITE] = "QCOW2-write",
	[LOOP_TAIL] = "QCOW2-tail",
	[LOOP_HOLD_READ] = "QCOW2-hold-read",
	[LOOP_HOLD_WRITE] = "QCOW2-hold-write",
};

enum loop_kind loop_kind_of(bool block, enum role role)
{
	if (block)
		return role == ROLE_WRITE ? LOOP_HOLD_WRITE : LOOP_HOLD_READ;
	return role == ROLE_WRITE ? LOOP_WRITE : LOOP_READ;
}

dev_t loop_device(const struct loop *loop)
{
	struct stat st;

	return fstat(loop->fd, &st) < 0 ? 0 : st.st_rdev;
}

char *kernel_name_of_device(dev_t device)
{
	char link[64], target[256];
	ssize_t len;

	snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(device),
		 minor(device));
	len = readlink(link, target, sizeof(target) - 1);
	if (len < 0)
		return NULL;
	target[len] = '\0';
	return text_copy(strrchr(target, '/') + 1);
}

/*
 * N of /dev/loopN.  It is the minor number unless the module has max_part, which
 * leaves numbers for partitions.
 *
 * Return: -1 if it is no loop device, or a partition of one.
 */
static int index_of(dev_t device)
{
	char *name, rest;
	int index;

	if (major(device) != LOOP_MAJOR)
		return -1;
	name = kernel_name_of_device(device);
	if (!name || sscanf(name, "loop%d%c", &index, &rest) != 1)
		index = -1;
	free(name);
	return index;
}

static enum loop_kind kind_of_name(const __u8 *name)
{
	unsigned int kind;

	for (kind = LOOP_READ; kind <= LOOP_HOLD_WRITE; kind++) {
		if (!strncmp((const char *)name, kind_names[kind], LO_NAME_SIZE))
			return kind;
	}
	return LOOP_FOREIGN;
}

static int open_index(int index, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/loop%d", index);
	return open(path, flags | O_CLOEXEC);
}

static char *backing_path(int index)
{
	char path[64], *line = NULL;
	size_t size = 0;
	ssize_t len;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/block/loop%d/loop/backing_file",
		 index);
	file = fopen(path, "re");
	len = file ? getline(&line, &size, file) : -1;
	if (file)
		fclose(file);
	if (len <= 0) {
		free(line);
		return text_copy("?");
	}
	if (line[len - 1] == '\n')
		line[len - 1] = '\0';
	return line;
}

static void close_fd(struct loop *loop)
{
	if (loop->fd >= 0)
		close(loop->fd);
	loop->fd = -1;
}

bool loop_open(int index, struct loop *loop)
{
	struct loop_info64 info;
	struct stat st = { 0 };

	loop->index = index;
	loop->path = NULL;
	loop->fd = open_index(index, O_RDONLY);
	if (loop->fd < 0)
		return false;
	if (ioctl(loop->fd, LOOP_GET_STATUS64, &info) < 0) {
		close_fd(loop);
		return false;
	}
	st.st_mode = info.lo_rdevice ? S_IFBLK : S_IFREG;
	st.st_dev = info.lo_device;
	st.st_rdev = info.lo_rdevice;
	st.st_ino = info.lo_inode;
	loop->id = image_id_of(&st);
	loop->kind = kind_of_name(info.lo_file_name);
	loop->whole = !info.lo_offset && !info.lo_sizelimit;
	loop->path = backing_path(index);
	return true;
}

bool loop_open_device(dev_t device, struct loop *loop)
{
	int index = index_of(device);

	return index >= 0 && loop_open(index, loop);
}

void loop_close(struct loop *loop)
{
	close_fd(loop);
	free(loop->path);
	loop->path = NULL;
}

void loop_clear(const struct loop *loop)
{
	ioctl(loop->fd, LOOP_CLR_FD);
}

void loop_refit(const struct loop *loop)
{
	ioctl(loop->fd, LOOP_SET_CAPACITY, 0);
}

static bool is_bound(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%.20s/loop/backing_file",
		 name);
	return access(path, F_OK) == 0;
}

/* Calls @visit for each loop device in use; it may keep the loop: fd = -1. */
static bool each_loop(bool (*visit)(struct loop *loop, void *data), void *data)
{
	struct dirent *entry;
	struct loop loop;
	bool done = false;
	int index;
	DIR *dir;

	dir = opendir("/sys/block");
	while (dir && !done && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, "loop%d", &index) != 1 ||
		    !is_bound(entry->d_name) || !loop_open(index, &loop))
			continue;
		done = visit(&loop, data);
		loop_close(&loop);
	}
	if (dir)
		closedir(dir);
	return done;
}

struct visit_ours {
	bool (*visit)(const struct loop *loop, void *data);
	void *data;
};

static bool visit_ours(struct loop *loop, void *data)
{
	const struct visit_ours *ours = data;

	return loop->kind != LOOP_FOREIGN && ours->visit(loop, ours->data);
}

bool loop_each(bool (*visit)(const struct loop *loop, void *data), void *data)
{
	struct visit_ours ours = { visit, data };

	return each_loop(visit_ours, &ours);
}

struct search {
	const struct image_id *id;
	enum loop_kind kind;
	struct loop *found;
};

static bool visit_find(struct loop *loop, void *data)
{
	const struct search *search = data;

	if (loop->kind != search->kind || !image_id_equal(&loop->id, search->id))
		return false;
	*search->found = *loop;
	loop->fd = -1;
	loop->path = NULL;
	return true;
}

bool loop_find(const struct image_id *id, enum loop_kind kind,
	       struct loop *loop)
{
	struct search search = { id, kind, loop };

	return each_loop(visit_find, &search);
}

void loops_add(struct loops *loops, const struct loop *loop)
{
	loops->list = grow_array(loops->list, loops->count,
				 sizeof(*loops->list));
	loops->list[loops->count++] = (struct loop_note) {
		loop->index, loop->kind, loop->id
	};
}

struct noting {
	struct loops *loops;
	unsigned int kinds;
};

static bool visit_note(const struct loop *loop, void *data)
{
	const struct noting *noting = data;

	if (noting->kinds & 1u << loop->kind)
		loops_add(noting->loops, loop);
	return false;
}

void loops_load(struct loops *loops, unsigned int kinds)
{
	struct noting noting = { loops, kinds };

	loops->list = NULL;
	loops->count = 0;
	loop_each(visit_note, &noting);
}

void loops_free(struct loops *loops)
{
	free(loops->list);
	loops->list = NULL;
	loops->count = 0;
}

bool loop_reopen(const struct loop_note *note, struct loop *loop)
{
	if (!loop_open(note->index, loop))
		return false;
	/* It may have cleared itself, and be another's by now. */
	if (loop->kind == note->kind && image_id_equal(&loop->id, &note->id))
		return true;
	loop_close(loop);
	return false;
}

bool loops_find(const struct loops *loops, const struct image_id *id,
		enum loop_kind kind, struct loop *loop)
{
	const struct loop_note *note;
	unsigned int i;

	for (i = 0; i < loops->count; i++) {
		note = &loops->list[i];
		if (note->kind == kind && image_id_equal(&note->id, id) &&
		    loop_reopen(note, loop))
			return true;
	}
	return false;
}

struct count {
	const struct image_id *id;
	struct lock_mates mates;
};

static bool visit_count(const struct loop *loop, void *data)
{
	struct count *count = data;

	if (!image_id_equal(&loop->id, count->id))
		return false;
	if (loop->kind == LOOP_READ || loop->kind == LOOP_HOLD_READ)
		count->mates.readers++;
	if (loop->kind == LOOP_WRITE || loop->kind == LOOP_HOLD_WRITE)
		count->mates.writers++;
	return false;
}

struct lock_mates loop_mates(const struct image_id *id)
{
	struct count count = { id, { 0, 0 } };

	loop_each(visit_count, &count);
	return count.mates;
}

unsigned int block_size_of(int fd)
{
	int size;

	return ioctl(fd, BLKSSZGET, &size) < 0 ? 512 : size;
}

static int free_index(void)
{
	int control, index;

	if (access("/dev/loop-control", F_OK) < 0)
		load_module("loop");
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return report_errno(errno, "Cannot open /dev/loop-control");
	index = ioctl(control, LOOP_CTL_GET_FREE);
	if (index < 0)
		index = report_errno(errno, "Cannot get a free loop device");
	close(control);
	return index;
}

static void configure(struct loop_config *config, int fd, enum loop_kind kind,
		      unsigned int block_size)
{
	memset(config, 0, sizeof(*config));
	config->fd = fd;
	config->block_size = block_size;
	snprintf((char *)config->info.lo_file_name, LO_NAME_SIZE, "%s",
		 kind_names[kind]);
	if (kind != LOOP_WRITE)
		config->info.lo_flags |= LO_FLAGS_READ_ONLY;
	if (kind == LOOP_READ || kind == LOOP_WRITE)
		config->info.lo_flags |= LO_FLAGS_DIRECT_IO;
	if (kind != LOOP_HOLD_READ && kind != LOOP_HOLD_WRITE)
		config->info.lo_flags |= LO_FLAGS_AUTOCLEAR;
}

/* Return: 0; -EBUSY (unreported) if somebody else was faster; other errors. */
static int configure_free(const struct loop_config *config, const char *path,
			  struct loop *loop)
{
	int r;

	loop->index = free_index();
	if (loop->index < 0)
		return loop->index;
	loop_mark(loop->index);
	loop->fd = open_index(loop->index, O_RDWR);
	if (loop->fd < 0) {
		r = report_errno(errno, "Cannot open /dev/loop%d", loop->index);
		loop_unmark(loop->index);
		return r;
	}
	if (ioctl(loop->fd, LOOP_CONFIGURE, config) == 0)
		return 0;
	r = errno;
	close_fd(loop);
	loop_unmark(loop->index);
	if (r == EBUSY)
		return -EBUSY;
	return report_errno(r, "Cannot put a loop device over %s", path);
}

/* In memory there is no cache to bypass, and old kernels do not pretend. */
static bool is_in_memory(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 &&
		(fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

static int check_direct_io(const struct loop *loop, int fd, const char *path)
{
	struct loop_info64 info;

	if (ioctl(loop->fd, LOOP_GET_STATUS64, &info) < 0)
		return report_errno(errno, "Cannot check /dev/loop%d",
				    loop->index);
	if (info.lo_flags & LO_FLAGS_DIRECT_IO || is_in_memory(fd))
		return 0;
	return report_fail(EOPNOTSUPP,
			   "The file system of %s does not let a loop device do direct I/O.",
			   path);
}

int loop_attach(int fd, const char *path, enum loop_kind kind,
		unsigned int block_size, struct loop *loop)
{
	struct loop_config config;
	int tries, r = -EBUSY;
	struct stat st;

	configure(&config, fd, kind, block_size);
	for (tries = 0; tries < ATTACH_TRIES && r == -EBUSY; tries++)
		r = configure_free(&config, path, loop);
	if (r == -EBUSY)
		return report_fail(EBUSY, "Cannot get a free loop device.");
	if (r < 0)
		return r;
	if (kind == LOOP_READ || kind == LOOP_WRITE)
		r = check_direct_io(loop, fd, path);
	if (!r && fstat(fd, &st) < 0)
		r = report_errno(errno, "Cannot stat %s", path);
	if (r < 0) {
		loop_clear(loop);
		close_fd(loop);
		loop_unmark(loop->index);
		return r;
	}
	loop->kind = kind;
	loop->id = image_id_of(&st);
	loop->whole = true;
	loop->path = text_copy(path);
	return 0;
}

struct image_id image_id_of_device(dev_t device)
{
	struct image_id id = { true, device, 0 };
	struct loop_info64 info;
	int index = index_of(device), fd;

	if (index < 0)
		return id;
	fd = open_index(index, O_RDONLY);
	if (fd < 0)
		return id;
	if (ioctl(fd, LOOP_GET_STATUS64, &info) == 0 && !info.lo_offset) {
		id.block = info.lo_rdevice;
		id.dev = id.block ? info.lo_rdevice : info.lo_device;
		id.ino = id.block ? 0 : info.lo_inode;
	}
	close(fd);
	return id;
}

struct image_id image_id_of(const struct stat *st)
{
	struct image_id id = { false, st->st_dev, st->st_ino };

	return S_ISBLK(st->st_mode) ? image_id_of_device(st->st_rdev) : id;
}

bool image_id_of_path(const char *path, struct image_id *id)
{
	struct stat st;

	if (stat(path, &st) < 0 ||
	    (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
		return false;
	*id = image_id_of(&st);
	return true;
}
