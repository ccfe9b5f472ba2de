// SPDX-License-Identifier: GPL-2.0-only
/*
 * Compressed clusters, see unpack.h.
 */
#include <linux/bio.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/device-mapper.h>
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/zlib.h>
#include <linux/zstd.h>

#include "image.h"
#include "rw.h"
#include "unpack.h"

#define CACHE_BITS	10
/* Clusters of the smallest size must not make the chains long. */
#define CACHE_MAX	(8U << CACHE_BITS)
/* Kept whatever the limit says: small reads of one cluster follow each other. */
#define CACHE_KEEP	2
/* The part of the metadata memory: a quarter */
#define CACHE_SHIFT	2
/* zlib data of qcow2 images: no header, a window of 4 KiB */
#define ZLIB_WINDOW	(-12)
/* What is tried before the reserve is taken. */
#define GFP_TRY		(GFP_NOIO | __GFP_NOWARN | __GFP_NORETRY)

/**
 * struct qc_unpacked - a cluster in the cache
 * @hash: in the cache; not where decompressing failed or the image is gone
 * @lru: in the list of all, least recently used first
 * @img: the image
 * @entry: L2 entry
 * @cost: bytes counted for it
 * @users: who may look at it
 * @ready: @data is valid
 * @err: why it is not, once @done
 * @done: decompressing has ended
 * @data: contents
 */
struct qc_unpacked {
	struct hlist_node hash;
	struct list_head lru;
	struct qc_image *img;
	u64 entry;
	long cost;
	unsigned int users;
	bool ready;
	int err;
	struct completion done;
	void *data;
};

static DEFINE_SPINLOCK(cache_lock);
/* All of this under the lock */
static DEFINE_HASHTABLE(cache, CACHE_BITS);
static LIST_HEAD(cache_lru);
static unsigned int cache_nr;
static u64 cache_bytes;
static LIST_HEAD(workspaces);
static unsigned int workspaces_nr;

static struct shrinker *cache_shrinker;

/* Decompressing */

static u32 work_size(const struct qc_image *img)
{
	return img->h.compression_type == QCOW2_COMPRESSION_ZSTD ?
		zstd_dctx_workspace_bound() : zlib_inflate_workspacesize();
}

/* Bytes to be read: whole logical blocks. */
static u32 input_size(const struct qc_image *img, u64 entry)
{
	u32 unit = bdev_logical_block_size(img->bdev);
	u64 offset = qcow2_packed_offset(&img->h, entry);
	u64 end = offset + qcow2_packed_bytes(&img->h, entry);

	return round_up(end, unit) - round_down(offset, unit);
}

/* Of all that QEMU writes: data that does not get smaller is not compressed. */
static u32 usual_input_size(const struct qc_image *img)
{
	return img->h.cluster_size + 2 * QC_BLOCK_MAX_BYTES;
}

static int unpack_zlib(const struct qc_workspace *ws, const void *in,
		       u32 in_len, void *out, u32 out_len)
{
	struct z_stream_s stream = {
		.next_in = in,
		.avail_in = in_len,
		.next_out = out,
		.avail_out = out_len,
		.workspace = ws->work,
	};
	int ret = zlib_inflateInit2(&stream, ZLIB_WINDOW);

	if (ret != Z_OK)
		return -EIO;
	ret = zlib_inflate(&stream, Z_FINISH);
	zlib_inflateEnd(&stream);
	/* The data may go on behind a whole cluster, as for QEMU. */
	if (stream.avail_out || (ret != Z_STREAM_END && ret != Z_BUF_ERROR))
		return -EIO;
	return 0;
}

/* Usually one frame; what is behind the last one is of no interest. */
static int unpack_zstd(const struct qc_workspace *ws, const void *in,
		       u32 in_len, void *out, u32 out_len)
{
	zstd_dctx *dctx = zstd_init_dctx(ws->work, ws->work_bytes);

	if (!dctx)
		return -EIO;
	while (out_len) {
		size_t frame = zstd_find_frame_compressed_size(in, in_len);
		size_t n;

		if (zstd_is_error(frame))
			return -EIO;
		n = zstd_decompress_dctx(dctx, out, out_len, in, frame);
		if (zstd_is_error(n))
			return -EIO;
		in += frame;
		in_len -= frame;
		out += n;
		out_len -= n;
	}
	return 0;
}

static int unpack(struct qc_image *img, u64 entry,
		  const struct qc_workspace *ws, void *out)
{
	u64 offset = qcow2_packed_offset(&img->h, entry);
	u32 len = qcow2_packed_bytes(&img->h, entry);
	u64 start = round_down(offset, bdev_logical_block_size(img->bdev));
	u64 end = min(start + input_size(img, entry),
		      READ_ONCE(img->dev_bytes));
	const void *in = ws->in + (offset - start);
	int err;

	if (offset >= end)
		return -EIO;
	len = min_t(u64, len, end - offset);
	err = qc_device_rw(img->bdev, REQ_OP_READ, start, ws->in, end - start);
	if (err) {
		DMERR_LIMIT("%pg: cannot read the compressed data at %llu: %d",
			    img->bdev, offset, err);
		/* Callers wait for memory and space, which is not about these. */
		return err == -EAGAIN || err == -ENOSPC ? -EIO : err;
	}
	if (img->h.compression_type == QCOW2_COMPRESSION_ZSTD)
		err = unpack_zstd(ws, in, len, out, img->h.cluster_size);
	else
		err = unpack_zlib(ws, in, len, out, img->h.cluster_size);
	if (err)
		DMERR_LIMIT("%pg: the compressed data at %llu (%u bytes at the most) is not sound",
			    img->bdev, offset, len);
	return err;
}

/* Workspaces */

static void workspace_clear(struct qc_workspace *ws)
{
	kvfree(ws->in);
	kvfree(ws->work);
	ws->in = NULL;
	ws->work = NULL;
}

static int workspace_fill(struct qc_workspace *ws, u32 in, u32 work, gfp_t gfp)
{
	ws->in = kvmalloc(in, gfp);
	ws->work = kvmalloc(work, gfp);
	ws->in_bytes = in;
	ws->work_bytes = work;
	if (ws->in && ws->work)
		return 0;
	workspace_clear(ws);
	return -ENOMEM;
}

static void workspace_free(struct qc_workspace *ws)
{
	qc_cache_account(-(long)(ws->in_bytes + ws->work_bytes));
	workspace_clear(ws);
	kfree(ws);
}

static struct qc_workspace *workspace_idle(u32 in, u32 work)
{
	struct qc_workspace *ws;

	spin_lock(&cache_lock);
	list_for_each_entry(ws, &workspaces, node) {
		if (ws->in_bytes < in || ws->work_bytes < work)
			continue;
		list_del(&ws->node);
		workspaces_nr--;
		spin_unlock(&cache_lock);
		return ws;
	}
	spin_unlock(&cache_lock);
	return NULL;
}

static struct qc_workspace *workspace_get(const struct qc_image *img, u64 entry)
{
	u32 in = max(usual_input_size(img), input_size(img, entry));
	u32 work = work_size(img);
	struct qc_workspace *ws = workspace_idle(in, work);

	if (ws)
		return ws;
	ws = kzalloc(sizeof(*ws), GFP_TRY);
	if (!ws)
		return NULL;
	if (workspace_fill(ws, in, work, GFP_TRY)) {
		kfree(ws);
		return NULL;
	}
	qc_cache_account(in + work);
	return ws;
}

static bool over_limit(void)
{
	return qc_cache_used_kib() > qc_cache_limit_kib();
}

static void workspace_put(struct qc_workspace *ws)
{
	spin_lock(&cache_lock);
	list_add(&ws->node, &workspaces);
	workspaces_nr++;
	spin_unlock(&cache_lock);
}

/* All idle ones but for @keep, the last ones used */
static unsigned long workspaces_free(unsigned int keep)
{
	struct qc_workspace *ws, *next;
	unsigned long done = 0;
	LIST_HEAD(list);

	spin_lock(&cache_lock);
	for (; workspaces_nr > keep; workspaces_nr--)
		list_move(workspaces.prev, &list);
	spin_unlock(&cache_lock);
	list_for_each_entry_safe(ws, next, &list, node) {
		workspace_free(ws);
		done++;
	}
	return done;
}

/* Reserves */

void qc_reserve_init(struct qc_reserve *r)
{
	mutex_init(&r->lock);
}

void qc_reserve_exit(struct qc_reserve *r)
{
	workspace_clear(&r->ws);
	kvfree(r->out);
	r->out = NULL;
}

void qc_reserve_want(struct qc_reserve *r, const struct qc_image *img)
{
	r->want_in = max(r->want_in, usual_input_size(img));
	r->want_work = max(r->want_work, work_size(img));
	r->want_out = max(r->want_out, img->h.cluster_size);
}

static void *reserve_alloc(const struct qc_reserve *r, struct qc_workspace *ws)
{
	void *out;

	if (workspace_fill(ws, r->want_in, r->want_work, GFP_TRY))
		return NULL;
	out = kvmalloc(r->want_out, GFP_TRY);
	if (!out)
		workspace_clear(ws);
	return out;
}

/* The lock is held.  What there is stays until all is there. */
static void reserve_make_locked(struct qc_reserve *r)
{
	struct qc_workspace ws = {};
	void *out = reserve_alloc(r, &ws);
	unsigned int flags;

	if (!out) {
		/*
		 * What makes memory free may go through this very target: once
		 * in its life it may take what is kept for that.
		 */
		flags = memalloc_noreclaim_save();
		out = reserve_alloc(r, &ws);
		memalloc_noreclaim_restore(flags);
	}
	if (!out)
		return;
	qc_reserve_exit(r);
	r->ws.in = ws.in;
	r->ws.work = ws.work;
	r->out = out;
	WRITE_ONCE(r->ws.in_bytes, ws.in_bytes);
	WRITE_ONCE(r->ws.work_bytes, ws.work_bytes);
	WRITE_ONCE(r->out_bytes, r->want_out);
}

void qc_reserve_make(struct qc_reserve *r)
{
	/* If somebody uses it, memory is gone, and the next one tries again. */
	if (qc_reserve_ready(r) || !mutex_trylock(&r->lock))
		return;
	if (!qc_reserve_ready(r))
		reserve_make_locked(r);
	mutex_unlock(&r->lock);
}

static int unpack_reserved(struct qc_image *img, u64 entry,
			   struct qc_reserve *r, struct qc_unpack *u)
{
	int err = -EAGAIN;

	mutex_lock(&r->lock);
	/* Data longer than its cluster is valid, but nobody writes it. */
	if (r->out_bytes >= img->h.cluster_size &&
	    r->ws.in_bytes >= input_size(img, entry) &&
	    r->ws.work_bytes >= work_size(img))
		err = unpack(img, entry, &r->ws, r->out);
	if (err) {
		mutex_unlock(&r->lock);
		return err;
	}
	u->data = r->out;
	u->cached = NULL;
	u->reserve = r;
	return 0;
}

/* The cache */

static u64 cache_key(const struct qc_image *img, u64 entry)
{
	return (unsigned long)img ^ entry;
}

static struct qc_unpacked *unpacked_new(struct qc_image *img, u64 entry)
{
	struct qc_unpacked *c = kzalloc(sizeof(*c), GFP_TRY);

	if (!c)
		return NULL;
	c->data = kvmalloc(img->h.cluster_size, GFP_TRY);
	if (!c->data) {
		kfree(c);
		return NULL;
	}
	c->img = img;
	c->entry = entry;
	c->cost = img->h.cluster_size + sizeof(*c);
	c->users = 1;
	init_completion(&c->done);
	return c;
}

static void unpacked_free(struct qc_unpacked *c)
{
	kvfree(c->data);
	kfree(c);
}

/* Under the lock.  Another user of what is there, or NULL. */
static struct qc_unpacked *cache_find(struct qc_image *img, u64 entry)
{
	struct qc_unpacked *c;

	hash_for_each_possible(cache, c, hash, cache_key(img, entry)) {
		if (c->img != img || c->entry != entry)
			continue;
		c->users++;
		list_move_tail(&c->lru, &cache_lru);
		return c;
	}
	return NULL;
}

/* Returns @c, or what somebody else was faster to insert. */
static struct qc_unpacked *cache_insert(struct qc_unpacked *c)
{
	struct qc_unpacked *other;

	spin_lock(&cache_lock);
	other = cache_find(c->img, c->entry);
	if (!other) {
		hash_add(cache, &c->hash, cache_key(c->img, c->entry));
		list_add_tail(&c->lru, &cache_lru);
		cache_nr++;
		cache_bytes += c->cost;
		qc_cache_account(c->cost);
	}
	spin_unlock(&cache_lock);
	return other ? other : c;
}

/* Under the lock: not counted any more; its last user frees it. */
static void cache_forget(struct qc_unpacked *c)
{
	if (!hash_hashed(&c->hash))
		return;
	hash_del(&c->hash);
	list_del(&c->lru);
	cache_nr--;
	cache_bytes -= c->cost;
	qc_cache_account(-c->cost);
}

static bool cache_over(void)
{
	if (cache_nr <= CACHE_KEEP)
		return false;
	return cache_nr > CACHE_MAX || over_limit() ||
		cache_bytes >> 10 > qc_cache_limit_kib() >> CACHE_SHIFT;
}

/* Take up to @count clusters that nobody uses, or so many that it fits. */
static unsigned long cache_evict(unsigned long count, bool fit)
{
	struct qc_unpacked *c, *next;
	unsigned long done = 0;
	LIST_HEAD(list);

	spin_lock(&cache_lock);
	list_for_each_entry_safe(c, next, &cache_lru, lru) {
		if (done >= count || (fit && !cache_over()))
			break;
		if (c->users)
			continue;
		cache_forget(c);
		list_add(&c->lru, &list);
		done++;
	}
	spin_unlock(&cache_lock);
	list_for_each_entry_safe(c, next, &list, lru)
		unpacked_free(c);
	return done;
}

/* As many workspaces as can be in use at once are kept. */
static void cache_trim(void)
{
	workspaces_free(over_limit() ? 1 : num_online_cpus());
	cache_evict(ULONG_MAX, true);
}

/* What was in use when others made room makes room when it no longer is. */
static void unpacked_put(struct qc_unpacked *c)
{
	bool last, over;

	spin_lock(&cache_lock);
	last = !--c->users && !hash_hashed(&c->hash);
	over = cache_over();
	spin_unlock(&cache_lock);
	if (last)
		unpacked_free(c);
	if (over)
		cache_trim();
}

static int unpacked_use(struct qc_unpacked *c, struct qc_unpack *u)
{
	int err;

	wait_for_completion(&c->done);
	err = c->err;
	if (err) {
		unpacked_put(c);
		return err;
	}
	u->data = c->data;
	u->cached = c;
	u->reserve = NULL;
	return 0;
}

static void unpack_cached(struct qc_unpacked *c, const struct qc_workspace *ws)
{
	c->err = unpack(c->img, c->entry, ws, c->data);
	spin_lock(&cache_lock);
	if (c->err)
		cache_forget(c);
	else
		c->ready = true;
	spin_unlock(&cache_lock);
	complete_all(&c->done);
}

int qc_unpack_get(struct qc_image *img, u64 entry, struct qc_reserve *reserve,
		  struct qc_unpack *u)
{
	struct qc_unpacked *c, *new;
	struct qc_workspace *ws;

	qc_reserve_make(reserve);
	spin_lock(&cache_lock);
	c = cache_find(img, entry);
	spin_unlock(&cache_lock);
	if (c)
		return unpacked_use(c, u);
	/* All before others can wait for it: who waits, waits for I/O only. */
	new = unpacked_new(img, entry);
	ws = new ? workspace_get(img, entry) : NULL;
	if (!ws) {
		if (new)
			unpacked_free(new);
		return unpack_reserved(img, entry, reserve, u);
	}
	c = cache_insert(new);
	if (c == new)
		unpack_cached(c, ws);
	else
		unpacked_free(new);
	workspace_put(ws);
	cache_trim();
	return unpacked_use(c, u);
}

bool qc_unpack_find(struct qc_image *img, u64 entry, struct qc_unpack *u)
{
	struct qc_unpacked *c;

	spin_lock(&cache_lock);
	c = cache_find(img, entry);
	if (c && !c->ready) {
		/* Whoever decompresses it is still a user. */
		c->users--;
		c = NULL;
	}
	spin_unlock(&cache_lock);
	if (!c)
		return false;
	u->data = c->data;
	u->cached = c;
	u->reserve = NULL;
	return true;
}

void qc_unpack_put(struct qc_unpack *u)
{
	if (u->reserve)
		mutex_unlock(&u->reserve->lock);
	else
		unpacked_put(u->cached);
}

void qc_unpack_to_bio(const struct qc_unpack *u, u32 from, struct bio *bio,
		      u32 skip, u32 len)
{
	struct bvec_iter part = bio->bi_iter, iter;
	const char *data = u->data + from;
	struct bio_vec vec;

	bio_advance_iter(bio, &part, skip);
	part.bi_size = len;
	__bio_for_each_segment(vec, bio, iter, part) {
		memcpy_to_bvec(&vec, data);
		data += vec.bv_len;
	}
}

void qc_unpack_drop(struct qc_image *img)
{
	struct qc_unpacked *c, *next;
	bool empty;
	LIST_HEAD(list);

	spin_lock(&cache_lock);
	list_for_each_entry_safe(c, next, &cache_lru, lru) {
		if (c->img != img)
			continue;
		cache_forget(c);
		if (!c->users)
			list_add(&c->lru, &list);
	}
	empty = list_empty(&cache_lru);
	spin_unlock(&cache_lock);
	list_for_each_entry_safe(c, next, &list, lru)
		unpacked_free(c);
	if (empty)
		workspaces_free(0);
}

static unsigned long shrink_count(struct shrinker *s, struct shrink_control *sc)
{
	return READ_ONCE(cache_nr) + READ_ONCE(workspaces_nr);
}

static unsigned long shrink_scan(struct shrinker *s, struct shrink_control *sc)
{
	unsigned long done = cache_evict(sc->nr_to_scan, false);

	if (done < sc->nr_to_scan)
		done += workspaces_free(0);
	return done ? done : SHRINK_STOP;
}

int qc_unpack_init(void)
{
	cache_shrinker = qc_shrinker_register("dm-qcow2-unpacked", shrink_count,
					      shrink_scan);
	return cache_shrinker ? 0 : -ENOMEM;
}

void qc_unpack_exit(void)
{
	qc_shrinker_free(cache_shrinker);
	workspaces_free(0);
}
