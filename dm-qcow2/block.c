// SPDX-License-Identifier: GPL-2.0-only
/*
 * The metadata cache, see block.h.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "block.h"
#include "commit.h"
#include "image.h"

static unsigned long metadata_limit_kib = 65536;
module_param(metadata_limit_kib, ulong, 0644);
MODULE_PARM_DESC(metadata_limit_kib,
		 "Limit for cached metadata of all images, in KiB");

static atomic_long_t cache_bytes;
static struct shrinker *cache_shrinker;
static struct kmem_cache *block_cache;

/* How many blocks one pass looks at before it gives up. */
#define EVICT_SCAN	256
/*
 * Blocks an image keeps whatever the limit says: without any, two readers could
 * evict each other's block for ever between load and use.
 */
#define EVICT_KEEP	32

unsigned long qc_cache_used_kib(void)
{
	return max(atomic_long_read(&cache_bytes), 0L) >> 10;
}

unsigned long qc_cache_limit_kib(void)
{
	return READ_ONCE(metadata_limit_kib);
}

void qc_cache_account(long bytes)
{
	atomic_long_add(bytes, &cache_bytes);
}

static long block_cost(const struct qc_image *img)
{
	return img->block_bytes + sizeof(struct qc_block);
}

unsigned int qc_cache_dirty_limit(const struct qc_image *img)
{
	u64 bytes = (u64)qc_cache_limit_kib() << 9;	/* half of it */

	return clamp_t(u64, bytes / block_cost(img), 16, 16384);
}

static struct qc_block *block_try_new(struct qc_image *img,
				      enum qc_table table, unsigned long key)
{
	gfp_t gfp = GFP_NOIO | __GFP_NOWARN | __GFP_NORETRY;
	struct qc_block *b = kmem_cache_zalloc(block_cache, gfp);

	if (!b)
		return NULL;
	b->data = kmalloc(img->block_bytes, gfp);
	if (!b->data || xa_reserve(&img->tables[table], key, gfp)) {
		kfree(b->data);
		kmem_cache_free(block_cache, b);
		return NULL;
	}
	return b;
}

/* Needs meta_lock.  Takes the oldest block not used since it was last seen. */
static bool evict_one(struct qc_image *img)
{
	struct qc_block *b, *next;
	int scan = EVICT_SCAN;

	list_for_each_entry_safe(b, next, &img->lru, lru) {
		if (!scan--)
			break;
		if (img->nr_lru <= EVICT_KEEP)
			break;
		list_move_tail(&b->lru, &img->lru);
		if (b->dirty || b->in_commit)
			continue;
		if (READ_ONCE(b->referenced)) {
			WRITE_ONCE(b->referenced, false);
			continue;
		}
		qc_block_drop(b);
		return true;
	}
	return false;
}

static unsigned long evict_some(struct qc_image *img, unsigned long count)
{
	unsigned long done = 0;

	while (done < count && evict_one(img))
		done++;
	return done;
}

struct qc_block *qc_block_new(struct qc_image *img, enum qc_table table,
			      unsigned long key, u64 host)
{
	struct qc_block *b;

	while (!(b = block_try_new(img, table, key))) {
		mutex_lock(&img->meta_lock);
		evict_some(img, 4);
		mutex_unlock(&img->meta_lock);
		qc_commit_kick(img);
		schedule_timeout_uninterruptible(1);
	}
	b->img = img;
	b->table = table;
	b->key = key;
	b->host = host;
	INIT_LIST_HEAD(&b->dirty_node);
	INIT_LIST_HEAD(&b->commit_node);
	INIT_LIST_HEAD(&b->lru);
	qc_cache_account(block_cost(img));
	return b;
}

static void block_destroy(struct qc_block *b)
{
	kfree(b->data);
	kmem_cache_free(block_cache, b);
}

static void block_free_rcu(struct rcu_head *head)
{
	block_destroy(container_of(head, struct qc_block, rcu));
}

void qc_block_free(struct qc_block *b)
{
	if (!b)
		return;
	xa_release(&b->img->tables[b->table], b->key);
	qc_cache_account(-block_cost(b->img));
	block_destroy(b);
}

static struct qc_block __rcu **front_of(struct qc_block *b)
{
	return &b->img->front[b->table][b->key % QC_FRONT];
}

void qc_block_insert(struct qc_block *b)
{
	struct qc_image *img = b->img;

	lockdep_assert_held(&img->meta_lock);
	/* The slot is reserved: nothing is allocated, nothing can fail. */
	WARN_ON(xa_err(xa_store(&img->tables[b->table], b->key, b,
				GFP_NOWAIT)));
	rcu_assign_pointer(*front_of(b), b);
	b->referenced = true;
	if (b->table == QC_L2 || b->table == QC_RB) {
		list_add_tail(&b->lru, &img->lru);
		img->nr_lru++;
	}
}

int qc_block_prepare(struct qc_block *b)
{
	struct qc_image *img = b->img;

	lockdep_assert_held(&img->meta_lock);
	if (b->frozen && !b->wb_data) {
		/*
		 * Not from wb_pool: its reserve belongs to the commit, which
		 * could not finish if later phases held all of it.
		 */
		void *copy = kmalloc(QC_BLOCK_MAX_BYTES,
				     GFP_NOWAIT | __GFP_NOWARN);

		if (!copy)
			return -EAGAIN;
		memcpy(copy, b->data, img->block_bytes);
		b->wb_data = copy;
	}
	if (b->dirty)
		return 0;
	if (!b->in_commit && (b->table == QC_L1 || b->table == QC_L2))
		atomic_inc(&img->nr_unsafe);
	WRITE_ONCE(b->dirty, true);
	list_add_tail(&b->dirty_node, &img->dirty[b->table]);
	img->nr_dirty++;
	/* A lookup that sees the change must see the mark. */
	smp_wmb();
	qc_commit_schedule(img);
	return 0;
}

void qc_block_wait_copied(struct qc_image *img)
{
	wait_event_timeout(img->commit_wait,
			   READ_ONCE(img->commit_done) ==
			   READ_ONCE(img->commit_seq), HZ / 10);
}

static void forget_dirty(struct qc_block *b)
{
	struct qc_image *img = b->img;

	if (!b->dirty)
		return;
	list_del_init(&b->dirty_node);
	b->dirty = false;
	img->nr_dirty--;
	if (b->table == QC_L1 || b->table == QC_L2)
		atomic_dec(&img->nr_unsafe);
}

void qc_block_drop(struct qc_block *b)
{
	struct qc_image *img = b->img;

	lockdep_assert_held(&img->meta_lock);
	forget_dirty(b);
	xa_erase(&img->tables[b->table], b->key);
	if (rcu_access_pointer(*front_of(b)) == b)
		RCU_INIT_POINTER(*front_of(b), NULL);
	if (!list_empty(&b->lru)) {
		list_del_init(&b->lru);
		img->nr_lru--;
	}
	qc_cache_account(-block_cost(img));
	call_rcu(&b->rcu, block_free_rcu);
}

void qc_block_drop_all(struct qc_image *img)
{
	struct qc_block *b;
	unsigned long key;
	int table;

	mutex_lock(&img->meta_lock);
	for (table = 0; table < QC_NR_TABLES; table++) {
		xa_for_each(&img->tables[table], key, b)
			qc_block_drop(b);
		xa_destroy(&img->tables[table]);
	}
	mutex_unlock(&img->meta_lock);
}

/* With what a load is going to add */
static bool over_limit(const struct qc_image *img)
{
	return qc_cache_used_kib() + (block_cost(img) >> 10) >=
		qc_cache_limit_kib();
}

/* Take blocks from any image whose locks are free. */
static unsigned long evict_anywhere(unsigned long count)
{
	struct qc_image *img;
	unsigned long done = 0;

	if (!mutex_trylock(&qc_images_lock))
		return 0;
	list_for_each_entry(img, &qc_images, node) {
		if (done >= count)
			break;
		if (!mutex_trylock(&img->meta_lock))
			continue;
		done += evict_some(img, count - done);
		mutex_unlock(&img->meta_lock);
	}
	/* Next time from another image. */
	if (!list_empty(&qc_images))
		list_rotate_left(&qc_images);
	mutex_unlock(&qc_images_lock);
	return done;
}

void qc_cache_trim(struct qc_image *img)
{
	unsigned long done;

	/* One pass a load: twice what the load adds, no loop that may not end. */
	if (!over_limit(img))
		return;
	mutex_lock(&img->meta_lock);
	done = evict_some(img, 2);
	mutex_unlock(&img->meta_lock);
	if (!done)
		evict_anywhere(2);
}

static unsigned long shrink_count(struct shrinker *s, struct shrink_control *sc)
{
	return qc_cache_used_kib() / 4;
}

static unsigned long shrink_scan(struct shrinker *s, struct shrink_control *sc)
{
	unsigned long done = evict_anywhere(sc->nr_to_scan);

	return done ? done : SHRINK_STOP;
}

int qc_cache_init(void)
{
	block_cache = kmem_cache_create("dm_qcow2_block",
					sizeof(struct qc_block), 0, 0, NULL);
	if (!block_cache)
		return -ENOMEM;
	cache_shrinker = qc_shrinker_register("dm-qcow2", shrink_count,
					      shrink_scan);
	if (!cache_shrinker) {
		kmem_cache_destroy(block_cache);
		return -ENOMEM;
	}
	return 0;
}

void qc_cache_exit(void)
{
	qc_shrinker_free(cache_shrinker);
	/* Blocks are freed by RCU callbacks. */
	rcu_barrier();
	kmem_cache_destroy(block_cache);
}
