/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What dm-log-writes leaves on its log device: a sector with the super, then
 * for every entry a sector with its header (and the text of a mark), followed
 * by the data unless it is a discard. All fields are little endian.
 */
#ifndef CRASH_LOG_H
#define CRASH_LOG_H

#include <stdint.h>

#define LOG_MESSAGE	"mark"		/* makes an entry with LOG_MARK */

#define LOG_MAGIC	0x6a736677736872ULL

#define LOG_FLUSH	0x01
#define LOG_FUA		0x02
#define LOG_DISCARD	0x04
#define LOG_MARK	0x08
#define LOG_METADATA	0x10

struct log_super {
	uint64_t magic;
	uint64_t version;
	uint64_t nr_entries;
	uint32_t sectorsize;
};

struct log_entry {
	uint64_t sector;
	uint64_t nr_sectors;
	uint64_t flags;
	uint64_t data_len;
};

#endif /* CRASH_LOG_H */
