/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Differences between kernel versions, all of them here.
 */
#ifndef DM_QCOW2_COMPAT_H
#define DM_QCOW2_COMPAT_H

#include <linux/blkdev.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/version.h>

/* 6.5 (05bdb9965305) gave block devices an open mode type of their own. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define qc_mode_t	fmode_t
#define QC_MODE_READ	FMODE_READ
#define QC_MODE_WRITE	FMODE_WRITE
#else
#define qc_mode_t	blk_mode_t
#define QC_MODE_READ	BLK_OPEN_READ
#define QC_MODE_WRITE	BLK_OPEN_WRITE
#endif

/*
 * 6.9 (4f563a64732d) separates what the hardware can discard from what the
 * administrator allows.
 */
static inline void qc_limits_set_discard(struct queue_limits *limits,
					 unsigned int max_sectors,
					 unsigned int granularity)
{
	limits->discard_granularity = granularity;
	limits->max_hw_discard_sectors = max_sectors;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 9, 0)
	limits->max_discard_sectors = max_sectors;
#endif
}

/* 6.17 (0c40d7cb5ef3) adds a limit for zeroing that frees the space below. */
static inline void qc_limits_set_write_zeroes(struct queue_limits *limits,
					      unsigned int max_sectors)
{
	limits->max_write_zeroes_sectors = max_sectors;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
	limits->max_hw_wzeroes_unmap_sectors = max_sectors;
	limits->max_wzeroes_unmap_sectors = max_sectors;
#endif
}

/*
 * The same of a queue in use, whose device is suspended.  6.9 (d690cb8ae14b) gave
 * limits a lock, and checks them.
 */
static inline int qc_queue_set_write_zeroes(struct request_queue *q,
					    unsigned int max_sectors)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 9, 0)
	blk_queue_max_write_zeroes_sectors(q, max_sectors);
	return 0;
#else
	struct queue_limits limits = queue_limits_start_update(q);

	qc_limits_set_write_zeroes(&limits, max_sectors);
	return queue_limits_commit_update(q, &limits);
#endif
}

/* 6.7 (c42d50aefd17) allocates shrinkers dynamically. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
static inline struct shrinker *
qc_shrinker_register(const char *name,
		     unsigned long (*count)(struct shrinker *,
					    struct shrink_control *),
		     unsigned long (*scan)(struct shrinker *,
					   struct shrink_control *))
{
	struct shrinker *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return NULL;
	s->count_objects = count;
	s->scan_objects = scan;
	s->seeks = DEFAULT_SEEKS;
	if (register_shrinker(s, "%s", name)) {
		kfree(s);
		return NULL;
	}
	return s;
}

static inline void qc_shrinker_free(struct shrinker *s)
{
	unregister_shrinker(s);
	kfree(s);
}
#else
static inline struct shrinker *
qc_shrinker_register(const char *name,
		     unsigned long (*count)(struct shrinker *,
					    struct shrink_control *),
		     unsigned long (*scan)(struct shrinker *,
					   struct shrink_control *))
{
	struct shrinker *s = shrinker_alloc(0, "%s", name);

	if (!s)
		return NULL;
	s->count_objects = count;
	s->scan_objects = scan;
	s->seeks = DEFAULT_SEEKS;
	shrinker_register(s);
	return s;
}

static inline void qc_shrinker_free(struct shrinker *s)
{
	shrinker_free(s);
}
#endif

#endif /* DM_QCOW2_COMPAT_H */
