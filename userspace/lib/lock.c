// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU's image locks.
 */
#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

static const short hold_read[] = { 100, 201, 203, 0 };
static const short test_read[] = { 200, 101, 103, 0 };
static const short hold_write[] = { 100, 101, 103, 201, 203, 0 };
static const short test_write[] = { 200, 201, 203, 101, 103, 0 };

static const short *held_by(enum role role)
{
	return role == ROLE_WRITE ? hold_write : hold_read;
}

static bool holds(enum role role, short byte)
{
	const short *p;

	for (p = held_by(role); *p; p++) {
		if (*p == byte)
			return true;
	}
	return false;
}

static int set_lock(int fd, short type, short byte)
{
	struct flock lock = {
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = byte,
		.l_len = 1,
	};

	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

static void release(int fd, enum role role)
{
	const short *p;

	for (p = held_by(role); *p; p++)
		set_lock(fd, F_UNLCK, *p);
}

/* Would a write lock be granted, that is, does nobody else hold this byte? */
static int byte_is_free(int fd, short byte)
{
	struct flock lock = {
		.l_type = F_WRLCK,
		.l_whence = SEEK_SET,
		.l_start = byte,
		.l_len = 1,
	};

	if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
		return -errno;
	return lock.l_type == F_UNLCK;
}

/*
 * /proc/locks has the device number of the superblock.  Where stat() has one
 * of its own (btrfs), the mount table still tells.
 */
static dev_t superblock_device(int fd, const struct stat *st)
{
	unsigned int major, minor;
	dev_t device = st->st_dev;
	unsigned long id;
	struct statx stx;
	char *line = NULL;
	size_t size = 0;
	FILE *file;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &stx) < 0 ||
	    !(stx.stx_mask & STATX_MNT_ID))
		return device;
	file = fopen("/proc/self/mountinfo", "re");
	while (file && getline(&line, &size, file) > 0) {
		if (sscanf(line, "%lu %*u %u:%u", &id, &major, &minor) == 3 &&
		    id == stx.stx_mnt_id)
			device = makedev(major, minor);
	}
	if (file)
		fclose(file);
	free(line);
	return device;
}

/* A line of /proc/locks: "1: OFDLCK ADVISORY  READ -1 fe:00:1234 100 101" */
static bool line_covers(const char *line, dev_t device, ino_t inode, short byte)
{
	unsigned int major, minor;
	unsigned long ino;
	long long start;
	char end[24];

	if (sscanf(line, "%*d: %*[A-Z] %*s %*s %*d %x:%x:%lu %lld %23s",
		   &major, &minor, &ino, &start, end) != 5)
		return false;
	return makedev(major, minor) == device && ino == inode &&
		start <= byte && (!strcmp(end, "EOF") || atoll(end) >= byte);
}

/* How many lock this byte of the file, @fd included? */
static int count_holders(int fd, short byte)
{
	char *line = NULL;
	size_t size = 0;
	struct stat st;
	dev_t device;
	int count = 0;
	FILE *file;

	if (fstat(fd, &st) < 0)
		return -errno;
	device = superblock_device(fd, &st);
	file = fopen("/proc/locks", "re");
	if (!file)
		return -errno;
	while (getline(&line, &size, file) > 0)
		count += line_covers(line, device, st.st_ino, byte);
	free(line);
	fclose(file);
	return count;
}

static unsigned int count_mates(const struct lock_mates *mates, short byte)
{
	return (holds(ROLE_READ, byte) ? mates->readers : 0) +
		(holds(ROLE_WRITE, byte) ? mates->writers : 0);
}

/* Are all locks on this byte our loops', and @fd's own? */
static int byte_is_ours(int fd, enum role role, const struct lock_mates *mates,
			short byte)
{
	unsigned int expected;
	int count;

	if (!mates || !count_mates(mates, byte))
		return false;
	expected = count_mates(mates, byte) + holds(role, byte);
	count = count_holders(fd, byte);
	/* Somebody holds it: who finds nobody has looked for another file. */
	return count < 0 ? count : count && (unsigned int)count <= expected;
}

int lock_test(int fd, enum role role, const struct lock_mates *mates)
{
	const short *p;
	int r;

	for (p = role == ROLE_WRITE ? test_write : test_read; *p; p++) {
		r = byte_is_free(fd, *p);
		if (!r)
			r = byte_is_ours(fd, role, mates, *p);
		if (r < 0)
			return r;
		if (!r)
			return -EBUSY;
	}
	return 0;
}

int lock_acquire(int fd, enum role role, const struct lock_mates *mates)
{
	const short *p;
	int r = 0;

	for (p = held_by(role); *p && !r; p++)
		r = set_lock(fd, F_RDLCK, *p);
	if (!r)
		r = lock_test(fd, role, mates);
	if (r)
		release(fd, role);
	return r;
}
