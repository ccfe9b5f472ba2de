// SPDX-License-Identifier: GPL-2.0-only
/*
 * A set of host clusters, see metaset.h.
 */
#include <linux/errno.h>
#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "block.h"
#include "metaset.h"

#define MIN_BITS	6
/*
 * 12 million clusters, 128 MiB: 4 million L2 tables and a million refcount blocks
 * are all that a header allows for, the rest is for tables of snapshots.  65,536 of
 * these, 32 MiB each, would be 4 billion clusters in a file that is sparse.
 */
#define MAX_BITS	24

static unsigned int slot_of(const struct qc_metaset *set, u64 cluster)
{
	return hash_64(cluster, set->bits);
}

static unsigned int next_slot(const struct qc_metaset *set, unsigned int i)
{
	return (i + 1) & ((1U << set->bits) - 1);
}

/* The slot that holds @cluster, or the free one where it would go. */
static unsigned int find_slot(const struct qc_metaset *set, u64 cluster)
{
	unsigned int i = slot_of(set, cluster);

	while (set->slot[i] && set->slot[i] != cluster + 1)
		i = next_slot(set, i);
	return i;
}

static int resize(struct qc_metaset *set, unsigned int bits)
{
	struct qc_metaset bigger = { .bits = bits };
	unsigned int noio;
	unsigned int i;

	if (bits > MAX_BITS)
		return -EFBIG;
	noio = memalloc_noio_save();
	bigger.slot = kvcalloc(1U << bits, sizeof(u64), GFP_KERNEL | __GFP_NOWARN);
	memalloc_noio_restore(noio);
	if (!bigger.slot)
		return -ENOMEM;
	for (i = 0; set->slot && i < 1U << set->bits; i++)
		if (set->slot[i])
			bigger.slot[find_slot(&bigger, set->slot[i] - 1)] =
				set->slot[i];
	bigger.used = set->used;
	if (set->slot)
		qc_cache_account(-(long)(sizeof(u64) << set->bits));
	qc_cache_account(sizeof(u64) << bits);
	kvfree(set->slot);
	*set = bigger;
	return 0;
}

int qc_metaset_add(struct qc_metaset *set, u64 cluster)
{
	unsigned int i;
	int err;

	/* At most three quarters full, so that searches stay short. */
	if (!set->slot || set->used >= 3U << (set->bits - 2)) {
		err = resize(set, set->slot ? set->bits + 1 : MIN_BITS);
		if (err)
			return err;
	}
	i = find_slot(set, cluster);
	if (set->slot[i])
		return -EEXIST;
	set->slot[i] = cluster + 1;
	set->used++;
	return 0;
}

void qc_metaset_del(struct qc_metaset *set, u64 cluster)
{
	unsigned int i, hole;

	if (!qc_metaset_has(set, cluster))
		return;
	hole = find_slot(set, cluster);
	set->slot[hole] = 0;
	set->used--;
	/* Put what follows without a gap where a search now finds it. */
	for (i = next_slot(set, hole); set->slot[i]; i = next_slot(set, i)) {
		u64 member = set->slot[i] - 1;

		set->slot[i] = 0;
		set->slot[find_slot(set, member)] = member + 1;
	}
}

bool qc_metaset_has(const struct qc_metaset *set, u64 cluster)
{
	return set->slot && set->slot[find_slot(set, cluster)];
}

void qc_metaset_clear(struct qc_metaset *set)
{
	if (set->slot)
		qc_cache_account(-(long)(sizeof(u64) << set->bits));
	kvfree(set->slot);
	*set = (struct qc_metaset){};
}
