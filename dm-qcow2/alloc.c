// SPDX-License-Identifier: GPL-2.0-only
/*
 * Refcounts and free space, see alloc.h.
 *
 * alloc_lock serialises everything here; a refcount block is changed under
 * alloc_lock and meta_lock.  The refcount table is in memory as a whole, refcount
 * blocks come and go with the cache.
 */
#include <linux/device-mapper.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "alloc.h"
#include "commit.h"
#include "image.h"
#include "snapshot.h"
#include "zero.h"

/* A dm event is raised when less than an eighth of the device is untouched. */
#define LOW_WATER_SHIFT	3
/* What one discard gives back to the device. */
#define MAX_DROP_BYTES	SZ_1G

static u64 rt_read(struct qc_image *img, u32 index)
{
	struct qc_block *b = xa_load(&img->tables[QC_RT],
				     index >> img->block_entry_bits);

	if (!b)
		return 0;
	return be64_to_cpu(b->data[index & ((1U << img->block_entry_bits) - 1)]);
}

static u32 refs_per_block(const struct qc_image *img)
{
	return 1U << img->block_ref_bits;
}

static u32 ref_index(const struct qc_image *img, u64 cluster)
{
	return cluster & (refs_per_block(img) - 1);
}

static u64 ref_get(const struct qc_image *img, const struct qc_block *b,
		   u64 cluster)
{
	return qcow2_refcount_get(b->data, ref_index(img, cluster),
				  img->h.refcount_order);
}

static void ref_set(const struct qc_image *img, struct qc_block *b,
		    u64 cluster, u64 value)
{
	qcow2_refcount_set(b->data, ref_index(img, cluster),
			   img->h.refcount_order, value);
}

/* Read a part of a refcount block into the cache. */
static int rb_load(struct qc_image *img, u64 cluster)
{
	u64 table_index = cluster >> img->h.refblock_bits;
	u32 in_block = cluster & ((1U << img->h.refblock_bits) - 1);
	struct qc_block *b;
	u64 host;
	int err;

	host = table_index < img->reftable_blocks ?
		rt_read(img, table_index) : 0;
	if (!host)
		return -ENOENT;
	host += (u64)(in_block >> img->block_ref_bits) * img->block_bytes;
	qc_cache_trim(img);
	b = qc_block_new(img, QC_RB, cluster >> img->block_ref_bits, host);
	err = qc_image_rw(img, REQ_OP_READ, host, b->data, img->block_bytes);
	if (err) {
		DMERR_LIMIT("%pg: cannot read the refcount block at %llu: %d",
			    img->bdev, host, err);
		qc_block_free(b);
		return err;
	}
	mutex_lock(&img->meta_lock);
	qc_block_insert(b);
	mutex_unlock(&img->meta_lock);
	return 0;
}

/*
 * Find the block with a cluster's refcount and return it with meta_lock held,
 * ready to be changed if @change.  Needs alloc_lock.
 */
static int rb_lock(struct qc_image *img, u64 cluster, bool change,
		   struct qc_block **found)
{
	for (;;) {
		struct qc_block *b;
		int err;

		mutex_lock(&img->meta_lock);
		b = qc_block_find(img, QC_RB, cluster >> img->block_ref_bits);
		if (b && (!change || !qc_block_prepare(b))) {
			*found = b;
			return 0;
		}
		mutex_unlock(&img->meta_lock);
		if (b) {
			qc_block_wait_copied(img);
			continue;
		}
		err = rb_load(img, cluster);
		if (err)
			return err;
	}
}

int qc_alloc_zero_host(struct qc_image *img, u64 host, u64 len)
{
	return qc_device_zero(img->bdev, host, len, false);
}

/* Was nothing ever stored at or above this cluster, and is it known zero? */
static bool is_virgin(const struct qc_image *img, u64 cluster)
{
	return cluster >= img->hwm &&
		cluster << img->h.cluster_bits >= img->zero_from;
}

bool qc_alloc_next_virgin(const struct qc_image *img)
{
	u64 cursor = READ_ONCE(img->cursor);

	/* Zeroes of the device are none through dm-crypt. */
	return img->data_bdev == img->bdev && cursor >= READ_ONCE(img->hwm) &&
		is_virgin(img, cursor);
}

static void note_used(struct qc_image *img, u64 end)
{
	if (end > img->hwm)
		WRITE_ONCE(img->hwm, end);
}

static void check_low_water(struct qc_image *img)
{
	u64 total = qc_image_clusters(img);
	bool low = total - min(img->hwm, total) < total >> LOW_WATER_SHIFT;

	if (low && !img->low_water_told) {
		DMWARN("%pg: less than 1/%u of the device is left",
		       img->bdev, 1 << LOW_WATER_SHIFT);
		qc_image_event(img);
	}
	img->low_water_told = low;
}

/*
 * Refcounts say that clusters are free: is metadata there all the same?  Then
 * the image contradicts itself, and nothing may be written to it any more.
 */
static bool holds_metadata(struct qc_image *img, u64 start, u64 count)
{
	u64 c;

	mutex_lock(&img->meta_lock);
	for (c = start; c < start + count; c++)
		if (qc_metaset_has(&img->metaset, c))
			break;
	mutex_unlock(&img->meta_lock);
	if (c == start + count)
		return false;
	qc_image_corrupt(img, "cluster %llu holds metadata, but its refcount is 0",
			 c);
	return true;
}

/*
 * Make the refcount block of a region, in a cluster that nothing uses.  Whoever
 * asks for a cluster outside of the region counts it.
 */
static int new_refblock(struct qc_image *img, u32 table_index, u64 cluster)
{
	u64 first = (u64)table_index << img->h.refblock_bits;
	u64 host = cluster << img->h.cluster_bits;
	struct qc_block *b, *rt;
	u32 slot = table_index & ((1U << img->block_entry_bits) - 1);
	int err;

	if (cluster >= qc_image_clusters(img))
		return -ENOSPC;
	if (holds_metadata(img, cluster, 1))
		return -EIO;
	if (!is_virgin(img, cluster)) {
		err = qc_alloc_zero_host(img, host, img->h.cluster_size);
		if (err)
			return err;
	}
	note_used(img, cluster + 1);
	b = qc_block_new(img, QC_RB, first >> img->block_ref_bits, host);
	memset(b->data, 0, img->block_bytes);
	if (cluster == first)
		ref_set(img, b, first, 1);
	for (;;) {
		mutex_lock(&img->meta_lock);
		rt = qc_block_find(img, QC_RT,
				   table_index >> img->block_entry_bits);
		if (!qc_block_prepare(rt))
			break;
		mutex_unlock(&img->meta_lock);
		qc_block_wait_copied(img);
	}
	qc_block_insert(b);
	qc_block_prepare(b);	/* new: cannot be frozen */
	rt->data[slot] = cpu_to_be64(host);
	qc_metaset_add(&img->metaset, cluster);
	mutex_unlock(&img->meta_lock);
	return 0;
}

/**
 * struct rt_plan - a refcount table to move to
 * @first: first cluster of the area, the first one not covered so far
 * @refblocks: new refcount blocks, at the start of the area
 * @clusters: clusters of the new table, behind them
 * @old_rt: blocks that the table has now
 * @nr_rt: blocks that are added to it
 * @nr_rb: parts of refcount blocks that count the area
 * @rt: the blocks added, from key @old_rt on
 * @rb: the parts
 */
struct rt_plan {
	u64 first;
	u32 refblocks;
	u32 clusters;
	u32 old_rt;
	u32 nr_rt;
	u32 nr_rb;
	struct qc_block **rt;
	struct qc_block **rb;
};

/* Choose size and place.  Returns false where it does not fit. */
static bool rt_plan_size(struct qc_image *img, struct rt_plan *p, u32 clusters)
{
	u32 per_block = 1U << img->h.refblock_bits;
	u32 need = 0;

	if ((u64)clusters << img->h.cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
		return false;
	p->first = (u64)img->reftable_blocks << img->h.refblock_bits;
	p->clusters = clusters;
	do {
		p->refblocks = need;
		need = DIV_ROUND_UP(p->refblocks + clusters, per_block);
	} while (need != p->refblocks);
	/* The new table has to name its own refcount blocks, too. */
	if (img->reftable_blocks + p->refblocks >
	    ((u64)clusters << img->h.cluster_bits) / 8)
		return false;
	return p->first + p->refblocks + clusters <= qc_image_clusters(img);
}

static void rt_plan_free(struct rt_plan *p)
{
	u32 i;

	for (i = 0; p->rt && i < p->nr_rt; i++)
		qc_block_free(p->rt[i]);
	for (i = 0; p->rb && i < p->nr_rb; i++)
		qc_block_free(p->rb[i]);
	kvfree(p->rt);
	kvfree(p->rb);
}

/* Make the blocks that count the area; all are new, as the area is. */
static void rt_plan_refcounts(struct qc_image *img, struct rt_plan *p)
{
	u64 end = p->first + p->refblocks + p->clusters;
	u64 c = p->first;
	u32 i;

	for (i = 0; i < p->nr_rb; i++) {
		u64 rel = c - p->first;
		u64 block = rel >> img->h.refblock_bits;
		u32 part = (rel & ((1U << img->h.refblock_bits) - 1)) >>
			img->block_ref_bits;
		u64 host = ((p->first + block) << img->h.cluster_bits) +
			(u64)part * img->block_bytes;
		u32 j;

		p->rb[i] = qc_block_new(img, QC_RB, c >> img->block_ref_bits,
					host);
		memset(p->rb[i]->data, 0, img->block_bytes);
		for (j = 0; j < refs_per_block(img) && c < end; j++, c++)
			ref_set(img, p->rb[i], c, 1);
	}
}

static int rt_plan_blocks(struct qc_image *img, struct rt_plan *p)
{
	u32 rt_blocks = ((u64)p->clusters << img->h.cluster_bits) /
		img->block_bytes;
	u64 table = (p->first + p->refblocks) << img->h.cluster_bits;
	gfp_t gfp = GFP_NOIO | __GFP_ZERO;
	u32 i;

	p->old_rt = ((u64)img->h.refcount_table_clusters <<
		     img->h.cluster_bits) / img->block_bytes;
	p->nr_rt = rt_blocks - p->old_rt;
	p->nr_rb = DIV_ROUND_UP(p->refblocks + p->clusters,
				refs_per_block(img));
	p->rt = kvmalloc_array(p->nr_rt, sizeof(*p->rt), gfp);
	p->rb = kvmalloc_array(p->nr_rb, sizeof(*p->rb), gfp);
	if (!p->rt || !p->rb)
		return -ENOMEM;
	for (i = 0; i < p->nr_rt; i++) {
		u32 key = p->old_rt + i;

		p->rt[i] = qc_block_new(img, QC_RT, key,
					table + (u64)key * img->block_bytes);
		memset(p->rt[i]->data, 0, img->block_bytes);
	}
	rt_plan_refcounts(img, p);
	return 0;
}

/* meta_lock is taken; held when it returns, no block of the table is frozen. */
static void lock_thawed_table(struct qc_image *img)
{
	for (;;) {
		struct qc_block *b;
		unsigned long key;
		bool again = false;

		mutex_lock(&img->meta_lock);
		xa_for_each(&img->tables[QC_RT], key, b)
			if (qc_block_prepare(b))
				again = true;
		if (!again)
			return;
		mutex_unlock(&img->meta_lock);
		qc_block_wait_copied(img);
	}
}

/*
 * The switch to the new table, in one section of meta_lock: a commit sees all
 * of it or nothing.
 */
static void rt_switch(struct qc_image *img, struct rt_plan *p,
		      struct qc_free *rec)
{
	u64 table = p->first + p->refblocks;
	u64 old = img->h.refcount_table_offset >> img->h.cluster_bits;
	struct qc_block *b;
	unsigned long key;
	u32 i;

	xa_for_each(&img->tables[QC_RT], key, b)
		b->host = (table << img->h.cluster_bits) +
			(u64)key * img->block_bytes;
	for (i = 0; i < p->nr_rt; i++) {
		qc_block_insert(p->rt[i]);
		qc_block_prepare(p->rt[i]);	/* new: cannot be frozen */
		p->rt[i] = NULL;
	}
	for (i = 0; i < p->nr_rb; i++) {
		qc_block_insert(p->rb[i]);
		qc_block_prepare(p->rb[i]);
		p->rb[i] = NULL;
	}
	for (i = 0; i < p->refblocks; i++) {
		u32 index = img->reftable_blocks + i;

		b = xa_load(&img->tables[QC_RT], index >> img->block_entry_bits);
		b->data[index & ((1U << img->block_entry_bits) - 1)] =
			cpu_to_be64((p->first + i) << img->h.cluster_bits);
	}
	for (i = 0; i < p->refblocks + p->clusters; i++)
		qc_metaset_add(&img->metaset, p->first + i);
	qc_free_add(img, rec, old, img->h.refcount_table_clusters);
	qc_free_end(img, rec);
	img->h.refcount_table_offset = table << img->h.cluster_bits;
	img->h.refcount_table_clusters = p->clusters;
	img->header_dirty = true;
	img->reftable_blocks = ((u64)p->clusters << img->h.cluster_bits) / 8;
	note_used(img, table + p->clusters);
}

/*
 * The refcount table is full: move it to where its coverage ends, half as large
 * again, with the refcount blocks that the new place needs.  The commit writes
 * them, flushes, and then switches the header over (phase 1b).
 */
static int grow_reftable(struct qc_image *img)
{
	u32 old = img->h.refcount_table_clusters;
	struct rt_plan p = {};
	struct qc_free *rec;
	int err;

	if (!rt_plan_size(img, &p, old + old / 2 + 1) &&
	    !rt_plan_size(img, &p, old + 1))
		return -ENOSPC;
	if (holds_metadata(img, p.first, p.refblocks + p.clusters))
		return -EIO;
	/* The parts of refcount blocks that stay all zero are not in memory. */
	if (!is_virgin(img, p.first)) {
		err = qc_alloc_zero_host(img, p.first << img->h.cluster_bits,
					 (u64)p.refblocks <<
					 img->h.cluster_bits);
		if (err)
			return err;
	}
	err = rt_plan_blocks(img, &p);
	if (!err) {
		/* Under alloc_lock reap cannot run: it must not be waited for. */
		rec = mempool_alloc(img->free_pool, GFP_NOWAIT);
		err = rec ? 0 : -ENOMEM;
	}
	if (err) {
		rt_plan_free(&p);
		return err;
	}
	rec->count = 0;
	lock_thawed_table(img);
	rt_switch(img, &p, rec);
	mutex_unlock(&img->meta_lock);
	rt_plan_free(&p);
	return 0;
}

/* Take free clusters at or behind @cluster from one block, meta_lock held. */
static bool take_run(struct qc_image *img, struct qc_block *b, u64 cluster,
		     u32 want, struct qc_run *run)
{
	u64 end = min((cluster | (refs_per_block(img) - 1)) + 1,
		      qc_image_clusters(img));

	while (cluster < end && ref_get(img, b, cluster))
		cluster++;
	if (cluster >= end)
		return false;
	run->start = cluster;
	run->count = 0;
	if (qc_block_prepare(b))
		return true;
	run->virgin = is_virgin(img, cluster);
	while (run->count < want && cluster < end &&
	       !ref_get(img, b, cluster) &&
	       !qc_metaset_has(&img->metaset, cluster)) {
		ref_set(img, b, cluster++, 1);
		run->count++;
	}
	return true;
}

/* Where to look next when the block of @cluster has no free cluster. */
static u64 next_block(const struct qc_image *img, u64 cluster)
{
	return (cluster | (refs_per_block(img) - 1)) + 1;
}

static int cover(struct qc_image *img, u64 cluster)
{
	u64 index = cluster >> img->h.refblock_bits;

	if (index >= img->reftable_blocks)
		return grow_reftable(img);
	/* The region is free as a whole: its first cluster counts itself. */
	if (!rt_read(img, index))
		return new_refblock(img, index, index << img->h.refblock_bits);
	return 0;
}

static int alloc_locked(struct qc_image *img, u32 want, struct qc_run *run)
{
	u64 c = img->cursor;

	while (c < qc_image_clusters(img)) {
		struct qc_block *b;
		bool found;
		int err = cover(img, c);

		if (!err)
			err = rb_lock(img, c, false, &b);
		if (err)
			return err == -ENOENT ? -EIO : err;
		found = take_run(img, b, c, want, run);
		if (found && !run->count && !b->frozen &&
		    qc_metaset_has(&img->metaset, run->start)) {
			mutex_unlock(&img->meta_lock);
			holds_metadata(img, run->start, 1);
			return -EIO;
		}
		mutex_unlock(&img->meta_lock);
		if (found && run->count) {
			WRITE_ONCE(img->cursor, run->start + run->count);
			note_used(img, img->cursor);
			return 0;
		}
		if (found)
			qc_block_wait_copied(img);
		else
			c = next_block(img, c);
	}
	return -ENOSPC;
}

int qc_alloc(struct qc_image *img, u32 want, struct qc_run *run)
{
	int err;

	for (;;) {
		mutex_lock(&img->alloc_lock);
		err = qc_image_writable(img) ? alloc_locked(img, want, run)
					     : -EIO;
		if (err == -ENOSPC && qc_image_refresh_size(img))
			err = alloc_locked(img, want, run);
		if (!err) {
			img->nr_allocated += run->count;
			if (READ_ONCE(img->mode) == QC_NO_SPACE)
				qc_image_set_mode(img, QC_RW);
			check_low_water(img);
		}
		mutex_unlock(&img->alloc_lock);
		if (err != -ENOMEM)
			return err;
		qc_commit_kick(img);
		schedule_timeout_uninterruptible(1);
	}
}

/*
 * The next free clusters if they are in a block that is in memory, and as asked for;
 * meta_lock and alloc_lock held.
 */
static bool try_block(struct qc_image *img, u32 count, bool virgin,
		      struct qc_run *run)
{
	u64 c = img->cursor;
	u64 end = min(next_block(img, c), qc_image_clusters(img));
	struct qc_block *b;
	u32 i;

	b = qc_block_find(img, QC_RB, c >> img->block_ref_bits);
	if (!b)
		return false;
	while (c < end && ref_get(img, b, c))
		c++;
	if (c + count > end || (virgin && !is_virgin(img, c)))
		return false;
	for (i = 0; i < count; i++)
		if (ref_get(img, b, c + i) ||
		    qc_metaset_has(&img->metaset, c + i))
			return false;
	/* None where the block cannot be copied for the commit at work. */
	return take_run(img, b, c, count, run) && run->count == count;
}

bool qc_alloc_try(struct qc_image *img, u32 count, bool virgin,
		  struct qc_run *run)
{
	bool found;

	if (!mutex_trylock(&img->alloc_lock))
		return false;
	mutex_lock(&img->meta_lock);
	found = READ_ONCE(img->mode) == QC_RW &&
		try_block(img, count, virgin, run);
	mutex_unlock(&img->meta_lock);
	if (found) {
		WRITE_ONCE(img->cursor, run->start + run->count);
		note_used(img, img->cursor);
		img->nr_allocated += run->count;
		check_low_water(img);
	}
	mutex_unlock(&img->alloc_lock);
	return found;
}

int qc_alloc_reaches(struct qc_image *img, u64 end)
{
	if (end <= READ_ONCE(img->dev_bytes))
		return 0;
	mutex_lock(&img->alloc_lock);
	if (qc_image_refresh_size(img) && READ_ONCE(img->mode) == QC_NO_SPACE)
		qc_image_set_mode(img, QC_RW);
	mutex_unlock(&img->alloc_lock);
	return end <= READ_ONCE(img->dev_bytes) ? 0 : -ENOSPC;
}

/* Change refcounts of adjacent clusters by -1; alloc_lock held. */
static int ref_drop(struct qc_image *img, u64 start, u64 count)
{
	while (count) {
		u64 n = min(count, next_block(img, start) - start);
		struct qc_block *b;
		u64 i;
		int err = rb_lock(img, start, true, &b);

		if (err)
			return err;
		for (i = 0; i < n; i++) {
			u64 refs = ref_get(img, b, start + i);

			if (!refs) {
				mutex_unlock(&img->meta_lock);
				return -ERANGE;
			}
			ref_set(img, b, start + i, refs - 1);
			if (refs > 1)
				continue;
			qc_metaset_del(&img->metaset, start + i);
			if (start + i < img->cursor)
				WRITE_ONCE(img->cursor, start + i);
		}
		mutex_unlock(&img->meta_lock);
		start += n;
		count -= n;
	}
	return 0;
}

/* Count clusters that nothing uses; alloc_lock held. */
static int ref_area(struct qc_image *img, u64 start, u64 count)
{
	while (count) {
		u64 n = min(count, next_block(img, start) - start);
		struct qc_block *b;
		u64 i;
		int err = rb_lock(img, start, true, &b);

		if (err)
			return err;
		for (i = 0; i < n && !ref_get(img, b, start + i); i++)
			ref_set(img, b, start + i, 1);
		mutex_unlock(&img->meta_lock);
		/* Counted before the device was long enough for it */
		if (i < n)
			return -EIO;
		start += n;
		count -= n;
	}
	return 0;
}

/* Behind all clusters in use, where one refcount block counts them all. */
static bool area_in_block(struct qc_image *img, u64 count, u64 *start)
{
	u64 last = img->hwm + count - 1;
	u64 index = img->hwm >> img->h.refblock_bits;

	*start = img->hwm;
	return last < qc_image_clusters(img) && index < img->reftable_blocks &&
		last >> img->h.refblock_bits == index && rt_read(img, index);
}

/*
 * A commit may come as soon as the table names the block: by then that is counted.
 * The first cluster of a region counts itself.
 */
static int counted_refblock(struct qc_image *img, u32 table_index, u64 cluster)
{
	bool first = cluster == (u64)table_index << img->h.refblock_bits;
	int err = first ? 0 : ref_area(img, cluster, 1);

	if (err)
		return err;
	err = new_refblock(img, table_index, cluster);
	if (err && !first)
		ref_drop(img, cluster, 1);
	return err;
}

/* How many regions from @index on have no refcount block? */
static u64 missing_refblocks(struct qc_image *img, u64 index, u64 blocks)
{
	u64 missing = 0;

	while (blocks--)
		missing += !rt_read(img, index + blocks);
	return missing;
}

/*
 * The area begins where another refcount block begins to count, and with those of
 * the refcount blocks that it needs and that do not exist: they do not break it up
 * then.
 */
static int area_with_blocks(struct qc_image *img, u64 count, u64 *start)
{
	u64 per_block = 1ULL << img->h.refblock_bits;
	u64 blocks = 0, index, i;
	int err;

	while (blocks * per_block < blocks + count)
		blocks++;
	/* Growing the table takes clusters, and may move the end. */
	for (;;) {
		index = DIV_ROUND_UP_ULL(img->hwm, per_block);
		if (index + blocks <= img->reftable_blocks)
			break;
		err = grow_reftable(img);
		if (err)
			return err;
	}
	*start = index * per_block;
	if (*start + missing_refblocks(img, index, blocks) + count >
	    qc_image_clusters(img))
		return -ENOSPC;
	for (i = 0; i < blocks; i++) {
		/* Of clusters that are all free again */
		if (rt_read(img, index + i))
			continue;
		err = counted_refblock(img, index + i, *start);
		if (err)
			return err;
		++*start;
	}
	return 0;
}

static int alloc_area(struct qc_image *img, u64 count, u64 *start)
{
	struct qc_run run;
	int err;

	/* It may be anywhere: the end may be that of the device. */
	if (count == 1) {
		err = alloc_locked(img, 1, &run);
		if (!err)
			*start = run.start;
		return err;
	}
	if (!area_in_block(img, count, start)) {
		err = area_with_blocks(img, count, start);
		if (err)
			return err;
	}
	if (holds_metadata(img, *start, count))
		return -EIO;
	note_used(img, *start + count);
	return ref_area(img, *start, count);
}

int qc_alloc_area(struct qc_image *img, u64 count, u64 *start)
{
	int err;

	for (;;) {
		mutex_lock(&img->alloc_lock);
		qc_image_refresh_size(img);
		err = qc_image_writable(img) ? alloc_area(img, count, start)
					     : -EIO;
		mutex_unlock(&img->alloc_lock);
		if (err != -ENOMEM)
			return err;
		qc_commit_kick(img);
		schedule_timeout_uninterruptible(1);
	}
}

static void ref_drop_or_fail(struct qc_image *img, u64 start, u64 count)
{
	int err;

	mutex_lock(&img->alloc_lock);
	err = ref_drop(img, start, count);
	mutex_unlock(&img->alloc_lock);
	if (err == -ERANGE || err == -ENOENT)
		qc_image_corrupt(img, "a cluster of %llu to %llu is in use, but its refcount is 0",
				 start, start + count - 1);
	else if (err)
		DMWARN_LIMIT("%pg: clusters %llu to %llu leak, their refcounts cannot be read: %d",
			     img->bdev, start, start + count - 1, err);
}

void qc_alloc_undo(struct qc_image *img, const struct qc_run *run)
{
	ref_drop_or_fail(img, run->start, run->count);
}

struct qc_free *qc_free_begin(struct qc_image *img)
{
	struct qc_free *rec = mempool_alloc(img->free_pool,
					    GFP_NOWAIT | __GFP_NOWARN);

	if (!rec) {
		/* Records come back when a commit and its reap are through. */
		qc_commit_kick(img);
		rec = mempool_alloc(img->free_pool, GFP_NOIO);
	}
	rec->count = 0;
	return rec;
}

bool qc_free_add(struct qc_image *img, struct qc_free *rec, u64 first,
		 u32 count)
{
	lockdep_assert_held(&img->meta_lock);
	if (!rec->count)
		rec->start = first;
	else if (first != rec->start + rec->count)
		return false;
	rec->count += count;
	return true;
}

void qc_free_end(struct qc_image *img, struct qc_free *rec)
{
	lockdep_assert_held(&img->meta_lock);
	if (!rec->count) {
		mempool_free(rec, img->free_pool);
		return;
	}
	list_add_tail(&rec->node, &img->frees);
	img->nr_frees++;
	qc_commit_schedule(img);
}

/*
 * How many clusters from @start on are alike: about to be unused, or not.
 * Refcounts of clusters that wait to be freed change nowhere else.
 */
static int reap_alike(struct qc_image *img, u64 start, u64 count, bool *last)
{
	struct qc_block *b;
	int err, n = 1;

	mutex_lock(&img->alloc_lock);
	err = rb_lock(img, start, false, &b);
	if (!err) {
		count = min(count, next_block(img, start) - start);
		*last = ref_get(img, b, start) == 1;
		while (n < count &&
		       (ref_get(img, b, start + n) == 1) == *last)
			n++;
		mutex_unlock(&img->meta_lock);
	}
	mutex_unlock(&img->alloc_lock);
	return err ? err : n;
}

static void punch(struct qc_image *img, u64 start, u64 count)
{
	u64 bytes = READ_ONCE(img->dev_bytes);
	u64 host = start << img->h.cluster_bits;
	u64 len = count << img->h.cluster_bits;

	if (img->no_discard || !bdev_max_discard_sectors(img->bdev) ||
	    host >= bytes)
		return;
	/* The device may end in the last one. */
	len = min(len, bytes - host);
	while (len) {
		u64 n = min_t(u64, len, MAX_DROP_BYTES);

		/* A hint: what the device does not do costs space, not data. */
		qc_device_drop(img->bdev, REQ_OP_DISCARD, host, n);
		host += n;
		len -= n;
	}
}

static void reap_one(struct qc_image *img, struct qc_free *rec)
{
	u64 start = rec->start;
	u64 count = rec->count;

	while (count && qc_image_writable(img)) {
		bool last = false;
		int n = reap_alike(img, start, count, &last);

		if (n < 0) {
			ref_drop_or_fail(img, start, 1);
			n = 1;
		} else {
			if (last)
				punch(img, start, n);
			ref_drop_or_fail(img, start, n);
		}
		start += n;
		count -= n;
	}
}

void qc_alloc_reap(struct work_struct *work)
{
	struct qc_image *img = container_of(work, struct qc_image, reap_work);
	struct qc_free *rec, *next;
	LIST_HEAD(list);

	mutex_lock(&img->meta_lock);
	list_splice_init(&img->reapable, &list);
	mutex_unlock(&img->meta_lock);
	if (list_empty(&list))
		return;
	qc_epoch_drain(img);
	list_for_each_entry_safe(rec, next, &list, node) {
		reap_one(img, rec);
		mempool_free(rec, img->free_pool);
		mutex_lock(&img->meta_lock);
		img->nr_frees--;
		mutex_unlock(&img->meta_lock);
	}
	wake_up_all(&img->commit_wait);
}

/* Cluster ranges of tables that never move. */
static int metaset_add_range(struct qc_image *img, const char *what, u64 host,
			     u64 bytes)
{
	u64 c = host >> img->h.cluster_bits;
	u64 end = DIV_ROUND_UP_ULL(host + bytes, img->h.cluster_size);

	for (; c < end; c++) {
		int err = qc_metaset_add(&img->new_metaset, c);

		cond_resched();
		if (err == -EEXIST)
			DMERR("%pg: the %s at %llu overlaps metadata at %llu; run qemu-img check",
			      img->bdev, what, host,
			      c << img->h.cluster_bits);
		else if (err == -EFBIG)
			DMERR("%pg: more clusters of metadata than are kept track of",
			      img->bdev);
		if (err)
			return err;
	}
	return 0;
}

static int open_reftable(struct qc_image *img)
{
	u64 bytes = (u64)img->h.refcount_table_clusters << img->h.cluster_bits;
	u32 i, n = bytes / img->block_bytes;

	img->reftable_blocks = bytes / 8;
	for (i = 0; i < n; i++) {
		u64 host = img->h.refcount_table_offset +
			(u64)i * img->block_bytes;
		struct qc_block *b = qc_block_new(img, QC_RT, i, host);
		int err = qc_image_rw(img, REQ_OP_READ, host, b->data,
				      img->block_bytes);

		if (err) {
			DMERR("%pg: cannot read the refcount table at %llu: %d",
			      img->bdev, host, err);
			qc_block_free(b);
			return err;
		}
		mutex_lock(&img->meta_lock);
		qc_block_insert(b);
		mutex_unlock(&img->meta_lock);
	}
	return 0;
}

static int open_refblocks(struct qc_image *img)
{
	u32 i;

	for (i = 0; i < img->reftable_blocks; i++) {
		u64 entry = rt_read(img, i);
		const char *why;
		int err;

		cond_resched();
		why = qcow2_reftable_entry_check(&img->h, entry,
						 img->dev_bytes);
		if (why) {
			DMERR("%pg: refcount table entry %u (%#llx) at %llu %s; run qemu-img check",
			      img->bdev, i, entry,
			      img->h.refcount_table_offset + (u64)i * 8, why);
			return -EINVAL;
		}
		if (!entry)
			continue;
		err = metaset_add_range(img, "refcount block", entry,
					img->h.cluster_size);
		if (err)
			return err;
	}
	return 0;
}

static int open_l2_tables(struct qc_image *img)
{
	u32 mask = (1U << img->block_entry_bits) - 1;
	u32 i;

	for (i = 0; i < img->h.l1_size; i++) {
		struct qc_block *b = xa_load(&img->tables[QC_L1],
					     i >> img->block_entry_bits);
		const char *why;
		u64 entry;
		int err;

		if (!b) {
			i |= mask;
			continue;
		}
		entry = be64_to_cpu(b->data[i & mask]);
		why = qcow2_l1_entry_check(&img->h, entry, img->dev_bytes);
		if (why) {
			DMERR("%pg: L1 entry %u (%#llx) at %llu %s; run qemu-img check",
			      img->bdev, i, entry,
			      img->h.l1_table_offset + (u64)i * 8, why);
			return -EINVAL;
		}
		if (!(entry & QCOW2_OFFSET_MASK))
			continue;
		err = metaset_add_range(img, "L2 table",
					entry & QCOW2_OFFSET_MASK,
					img->h.cluster_size);
		if (err)
			return err;
	}
	return 0;
}

static int open_snapshot_l1(struct qc_image *img,
			    const struct qcow2_snapshot *snap,
			    const void *entry, void *data)
{
	return metaset_add_range(img, "snapshot's L1 table",
				 snap->l1_table_offset,
				 (u64)snap->l1_size * 8);
}

/* The snapshot table and the L1 tables of the snapshots. */
static int open_snapshots(struct qc_image *img)
{
	u64 bytes;
	int err;

	if (!img->h.nb_snapshots)
		return 0;
	err = qc_snapshot_each(img, &img->h, open_snapshot_l1, NULL, &bytes);
	return err ? err : metaset_add_range(img, "snapshot table",
					     img->h.snapshots_offset, bytes);
}

/*
 * Clusters in use end in the last refcount block that counts any.  What the device
 * does not have is not asked for: a small file that is sparse can have a million
 * refcount blocks of 2 MiB, and nobody can stop their reading.
 */
static int find_end(struct qc_image *img)
{
	/* The last one need not be there as a whole. */
	u64 end = round_up(qc_image_clusters(img) + 1, refs_per_block(img));
	u64 per_block = 1ULL << img->h.refblock_bits;
	u32 index = min_t(u64, img->reftable_blocks,
			  DIV_ROUND_UP_ULL(end, per_block));

	img->hwm = 0;
	while (index--) {
		u64 first = index * per_block;
		u64 c = min(first + per_block, end);

		cond_resched();
		if (!rt_read(img, index))
			continue;
		while (c > first) {
			u64 low = c - refs_per_block(img);
			struct qc_block *b;
			int err;

			mutex_lock(&img->alloc_lock);
			err = rb_lock(img, low, false, &b);
			while (!err && c > low && !ref_get(img, b, c - 1))
				c--;
			/* It will not be asked for until the end is there. */
			if (!err && c == low)
				qc_block_drop(b);
			if (!err)
				mutex_unlock(&img->meta_lock);
			mutex_unlock(&img->alloc_lock);
			if (err)
				return err;
			if (c > low) {
				img->hwm = c;
				return 0;
			}
		}
	}
	return 0;
}

int qc_alloc_open(struct qc_image *img)
{
	int err;

	img->cursor = 0;
	img->low_water_told = false;
	err = open_reftable(img);
	if (!err)
		err = metaset_add_range(img, "header", 0, img->h.cluster_size);
	if (!err && img->h.l1_size)
		err = metaset_add_range(img, "L1 table", img->h.l1_table_offset,
					(u64)img->h.l1_size * 8);
	if (!err)
		err = metaset_add_range(img, "refcount table",
					img->h.refcount_table_offset,
					(u64)img->h.refcount_table_clusters <<
					img->h.cluster_bits);
	if (!err)
		err = open_refblocks(img);
	if (!err)
		err = open_l2_tables(img);
	if (!err)
		err = open_snapshots(img);
	if (!err)
		err = find_end(img);
	/* Readers of the image may be at work: the switch takes meta_lock. */
	mutex_lock(&img->meta_lock);
	if (!err)
		swap(img->metaset, img->new_metaset);
	qc_metaset_clear(&img->new_metaset);
	mutex_unlock(&img->meta_lock);
	return err == -EEXIST ? -EINVAL : err;
}
