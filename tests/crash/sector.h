/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sectors that say what they are.
 *
 * Every sector that a crash test writes anywhere carries where it belongs and
 * who wrote it, and fills the rest with noise that follows from that: a sector
 * read back is known for what it is, and half a sector for what it is not.
 */
#ifndef CRASH_SECTOR_H
#define CRASH_SECTOR_H

#include <stdint.h>
#include <string.h>

#define SECTOR_BYTES	512
#define SECTOR_WORDS	(SECTOR_BYTES / 8)

/* Who wrote it */
#define SECTOR_GUEST	0x5453455547514d44ULL	/* the workload's write, by op */
#define SECTOR_BACKING	0x4b43414251514d44ULL	/* the backing file's maker */
#define SECTOR_VIRGIN	0x4e49475251514d44ULL	/* on the device before the image */
#define SECTOR_DISCARD	0x4443534951514d44ULL	/* what a discard left behind */

struct sector_tag {
	uint64_t magic;
	uint64_t number;	/* guest's number; the device's where not guest data */
	uint32_t op;		/* which write */
	uint32_t seed;		/* which run */
};

static inline uint64_t sector_mix(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x9e3779b97f4a7c15ULL;
	x ^= x >> 29;
	return x;
}

static inline void sector_make(void *buf, const struct sector_tag *tag)
{
	uint64_t *word = buf;
	uint64_t x = sector_mix(tag->magic + tag->number * 0xd6e8feb86659fd93ULL +
				((uint64_t)tag->op << 32 | tag->seed));
	int i;

	memcpy(word, tag, sizeof(*tag));
	for (i = sizeof(*tag) / 8; i < SECTOR_WORDS; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		word[i] = x;
	}
}

static inline int sector_is_zero(const void *buf)
{
	const uint64_t *word = buf;
	uint64_t any = 0;
	int i;

	for (i = 0; i < SECTOR_WORDS; i++)
		any |= word[i];
	return !any;
}

/* Is it a whole sector that sector_make() made? Then its tag is in @tag. */
static inline int sector_read(const void *buf, struct sector_tag *tag)
{
	uint64_t made[SECTOR_WORDS];

	memcpy(tag, buf, sizeof(*tag));
	if (tag->magic != SECTOR_GUEST && tag->magic != SECTOR_BACKING &&
	    tag->magic != SECTOR_VIRGIN && tag->magic != SECTOR_DISCARD)
		return 0;
	sector_make(made, tag);
	return !memcmp(buf, made, SECTOR_BYTES);
}

#endif /* CRASH_SECTOR_H */
