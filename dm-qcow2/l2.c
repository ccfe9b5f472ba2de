// SPDX-License-Identifier: GPL-2.0-only
/*
 * The mapping of one image, see l2.h.
 */
#include <linux/device-mapper.h>
#include <linux/slab.h>

#include "alloc.h"
#include "commit.h"
#include "image.h"
#include "l2.h"
#include "words.h"

static unsigned long slice_key(const struct qc_image *img, u64 guest)
{
	return guest >> img->slice_shift;
}

static u32 slice_index(const struct qc_image *img, u64 guest)
{
	return (guest >> img->h.cluster_bits) & ((1U << img->slice_bits) - 1);
}

/* Byte offset of the slice within its L2 table. */
static u32 slice_offset(const struct qc_image *img, u64 guest)
{
	u32 index = qcow2_l2_index(&img->h, guest);

	return (index >> img->slice_bits) * img->block_bytes;
}

static bool extended(const struct qc_image *img)
{
	return img->h.l2_entry_bytes == 16;
}

static u64 word_read(const struct qc_block *b, u32 index)
{
	return be64_to_cpu(READ_ONCE(b->data[index]));
}

static void state_read(const struct qc_image *img, const struct qc_block *b,
		       u32 index, struct qc_words *s)
{
	if (unlikely(extended(img))) {
		qc_words_read(&b->data[2 * index], s);
		return;
	}
	s->entry = word_read(b, index);
	s->bitmap = 0;
}

static void state_write(const struct qc_image *img, struct qc_block *b,
			u32 index, const struct qc_words *old,
			const struct qc_words *new)
{
	if (unlikely(extended(img)))
		qc_words_write(&b->data[2 * index], old, new);
	else if (new->entry != old->entry)
		WRITE_ONCE(b->data[index], cpu_to_be64(new->entry));
}

static u64 l1_read(struct qc_image *img, u64 guest)
{
	u64 index = guest >> img->table_shift;
	struct qc_block *b = qc_block_find(img, QC_L1,
					   index >> img->block_entry_bits);

	return b ? word_read(b, index & ((1U << img->block_entry_bits) - 1))
		 : 0;
}

static enum qc_map state_map(const struct qc_image *img, const struct qc_words *s,
			     u32 sub)
{
	enum qcow2_kind kind = unlikely(extended(img)) ?
		qcow2_sub_kind(s->entry, s->bitmap, sub) :
		qcow2_l2_kind(s->entry);

	switch (kind) {
	case QCOW2_UNALLOCATED:
		return QC_MAP_NONE;
	case QCOW2_ZERO_PLAIN:
	case QCOW2_ZERO_ALLOC:
		return QC_MAP_ZERO;
	case QCOW2_NORMAL:
		return s->entry & QCOW2_OFLAG_COPIED ? QC_MAP_OWNED :
			QC_MAP_DATA;
	case QCOW2_COMPRESSED:
		break;
	}
	return s->entry == QC_ENTRY_POISON ? QC_MAP_BAD : QC_MAP_PACKED;
}

/* Bytes from an offset in the cluster on that are mapped alike. */
static u32 state_run(const struct qc_image *img, const struct qc_words *s,
		     u32 in_cluster)
{
	u32 sub = in_cluster >> img->h.sub_bits;
	u32 end = img->h.cluster_size;

	if (unlikely(extended(img)) && !(s->entry & QCOW2_OFLAG_COMPRESSED))
		end = (sub + qcow2_sub_run(s->bitmap, sub)) << img->h.sub_bits;
	return end - in_cluster;
}

static bool on_device(enum qc_map map)
{
	return map == QC_MAP_DATA || map == QC_MAP_OWNED;
}

/* Does the cluster of @next, at @distance from that of @s, go on as @s does? */
static bool goes_on(const struct qc_image *img, enum qc_map map,
		    const struct qc_words *s, const struct qc_words *next,
		    u64 distance)
{
	if (state_map(img, next, 0) != map || map == QC_MAP_PACKED)
		return false;
	if (on_device(map))
		return next->entry == s->entry + distance;
	/*
	 * Zero entries may differ in what they keep allocated.  But what is kept
	 * for subclusters may hold data of others.
	 */
	return !extended(img) || map == QC_MAP_BAD ||
		!(next->entry & QCOW2_OFFSET_MASK);
}

/* Bytes from an offset to the next multiple of 1 << @shift. */
static u64 to_next(u64 offset, u8 shift)
{
	u64 unit = 1ULL << shift;

	return unit - (offset & (unit - 1));
}

/*
 * What the device lacks reads as zeroes, as by QEMU: a file need not be padded to
 * whole clusters, and may have been truncated.  Who writes there gets another host
 * cluster.  Also the last line of defence: no I/O leaves the device.
 */
static void clip_to_device(struct qc_image *img, struct qc_extent *ext)
{
	u64 end = READ_ONCE(img->data_bytes);

	if (likely(ext->host + ext->len <= end))
		return;
	if (ext->host < end) {
		ext->len = end - ext->host;
		return;
	}
	ext->map = QC_MAP_ZERO;
	ext->beyond = true;
	/* Not kept for anybody: it may be a snapshot's as well. */
	ext->host = 0;
}

/* A cluster that is being moved is not written in place, see qc_l2_move_begin(). */
static void spare_moving(const struct qc_image *img, u64 guest, u64 moving,
			 struct qc_extent *ext)
{
	if (likely(moving >= guest + ext->len) ||
	    moving + img->h.cluster_size <= guest || ext->map != QC_MAP_OWNED)
		return;
	if (moving > guest) {
		ext->len = moving - guest;
		return;
	}
	ext->map = QC_MAP_DATA;
	ext->len = min(ext->len, moving + img->h.cluster_size - guest);
}

static void set_host(struct qc_extent *ext, const struct qc_words *s,
		     u32 in_cluster)
{
	ext->host = 0;
	if (on_device(ext->map)) {
		ext->host = (s->entry & QCOW2_OFFSET_MASK) + in_cluster;
	} else if (ext->map == QC_MAP_PACKED) {
		ext->host = in_cluster;
		ext->packed = s->entry;
	} else if (s->entry & QCOW2_OFLAG_COPIED) {
		ext->host = s->entry & QCOW2_OFFSET_MASK;
	}
}

static void lookup_slice(struct qc_image *img, const struct qc_block *b,
			 u64 guest, u64 len, struct qc_extent *ext)
{
	u32 in_cluster = guest & (img->h.cluster_size - 1);
	/* Before the entries: pairs with qc_l2_move_end() */
	u64 moving = smp_load_acquire(&img->moving);
	struct qc_words s, next;
	u64 end, run;
	u32 index, last;

	index = slice_index(img, guest);
	last = (1U << img->slice_bits) - 1;
	state_read(img, b, index, &s);
	ext->map = state_map(img, &s, in_cluster >> img->h.sub_bits);
	run = state_run(img, &s, in_cluster);
	set_host(ext, &s, in_cluster);
	/* Counted from the start of the first cluster */
	end = in_cluster + run;
	while (end - in_cluster < len && index < last &&
	       !(end & (img->h.cluster_size - 1))) {
		state_read(img, b, ++index, &next);
		if (!goes_on(img, ext->map, &s, &next, end))
			break;
		end += state_run(img, &next, 0);
	}
	ext->len = min(end - in_cluster, len);
	if (on_device(ext->map)) {
		/* Entries first, then the marks: pairs with qc_block_prepare() */
		smp_rmb();
		/* Of the marks @dirty first: pairs with the freeze */
		ext->safe = !smp_load_acquire(&b->dirty) &&
			!READ_ONCE(b->in_commit);
		clip_to_device(img, ext);
		spare_moving(img, guest, moving, ext);
	}
}

void qc_l2_lookup(struct qc_image *img, u64 guest, u64 len,
		  struct qc_extent *ext)
{
	struct qc_block *b = qc_block_find(img, QC_L2, slice_key(img, guest));

	ext->safe = true;
	ext->beyond = false;
	if (b) {
		lookup_slice(img, b, guest, len, ext);
		return;
	}
	/* The L1 entry tells whether there is one to read. */
	ext->host = 0;
	ext->map = l1_read(img, guest) & QCOW2_OFFSET_MASK ?
		QC_MAP_MISS : QC_MAP_NONE;
	ext->len = min(len, to_next(guest, img->table_shift));
}

/* An entry of a slice that says nothing at all */
static bool entry_blank(const struct qc_image *img, const struct qc_block *b,
			u32 index)
{
	if (likely(!extended(img)))
		return !READ_ONCE(b->data[index]);
	/*
	 * The entry first: else a compressed cluster that becomes zeroes could
	 * look blank in between, see words.h.
	 */
	return !smp_load_acquire(&b->data[2 * index]) &&
		!READ_ONCE(b->data[2 * index + 1]);
}

bool qc_l2_passes(struct qc_image *img, u64 guest, u64 *len)
{
	struct qc_block *b;

	if (!(l1_read(img, guest) & QCOW2_OFFSET_MASK)) {
		*len = min(*len, to_next(guest, img->table_shift));
		return true;
	}
	if (*len > to_next(guest, img->h.cluster_bits))
		return false;
	b = qc_block_find(img, QC_L2, slice_key(img, guest));
	return b && entry_blank(img, b, slice_index(img, guest));
}

void qc_l2_complain(struct qc_image *img, u64 guest)
{
	struct qc_block *b;
	struct qc_words s;

	rcu_read_lock();
	b = qc_block_find(img, QC_L2, slice_key(img, guest));
	if (b)
		state_read(img, b, slice_index(img, guest), &s);
	rcu_read_unlock();
	if (b && s.entry == QC_ENTRY_POISON)
		DMERR_LIMIT("%pg: invalid L2 entry of guest offset %llu; run qemu-img check",
			    img->bdev, guest);
}

/* The clusters of the image that an entry refers to; returns how many. */
static u32 entry_clusters(const struct qc_image *img, u64 entry, u64 *first)
{
	if (img->external)
		return 0;
	if (entry & QCOW2_OFLAG_COMPRESSED)
		return qcow2_packed_clusters(&img->h, entry, first);
	*first = (entry & QCOW2_OFFSET_MASK) >> img->h.cluster_bits;
	return *first ? 1 : 0;
}

static bool refers_to_metadata(const struct qc_image *img, u64 entry)
{
	u64 first;
	u32 n = entry_clusters(img, entry, &first);

	while (n--)
		if (qc_metaset_has(&img->metaset, first + n))
			return true;
	return false;
}

/*
 * Where entries may point: of an image that is only read anywhere, as
 * clip_to_device() has zeroes there.  One that is written must not have clusters
 * that its device may get one day, with anything in them.
 */
static u64 entry_limit(struct qc_image *img, u64 entry)
{
	return qc_image_writable(img) ? img->dev_bytes :
		qcow2_read_limit(entry, img->dev_bytes);
}

static const char *state_check(struct qc_image *img, const struct qc_words *s,
			       u64 guest)
{
	const char *why = qcow2_l2_entry_check(&img->h, s->entry, guest,
					       entry_limit(img, s->entry));

	if (!why && extended(img))
		why = qcow2_l2_bitmap_check(s->entry, s->bitmap);
	if (!why && refers_to_metadata(img, s->entry))
		why = "points to metadata";
	return why;
}

/* Check a slice just read; what is wrong becomes QC_ENTRY_POISON. */
static u32 check_entries(struct qc_image *img, struct qc_block *b,
			 const char **why, struct qc_words *bad)
{
	u32 words = img->h.l2_entry_bytes / sizeof(u64);
	u64 guest = (u64)b->key << img->slice_shift;
	u32 n = 1U << img->slice_bits;
	bool packed = false;
	u32 i, wrong = 0;

	for (i = 0; i < n; i++) {
		__be64 *word = &b->data[i * words];
		struct qc_words s = { .entry = be64_to_cpu(word[0]) };
		const char *msg;

		if (extended(img))
			s.bitmap = be64_to_cpu(word[1]);
		if (s.entry & QCOW2_OFLAG_COMPRESSED)
			packed = true;
		msg = state_check(img, &s,
				  guest + ((u64)i << img->h.cluster_bits));
		if (!msg)
			continue;
		*why = msg;
		*bad = s;
		word[0] = cpu_to_be64(QC_ENTRY_POISON);
		if (extended(img))
			word[1] = 0;
		wrong++;
	}
	if (packed && !READ_ONCE(img->packed))
		WRITE_ONCE(img->packed, true);
	return wrong;
}

static void corrupt_entries(struct qc_image *img, u64 guest, u64 l1_entry,
			    const struct qc_words *bad, const char *why,
			    u32 wrong)
{
	char bitmap[32] = "";

	if (extended(img))
		snprintf(bitmap, sizeof(bitmap), " with bitmap %#llx",
			 bad->bitmap);
	qc_image_corrupt(img, "L2 table at %llu: entry %#llx%s %s (%u such, guest %llu)",
			 l1_entry & QCOW2_OFFSET_MASK, bad->entry, bitmap, why,
			 wrong, guest & ~((1ULL << img->slice_shift) - 1));
}

/* Returns -EAGAIN where the L2 table moved while it was read. */
static int load_insert(struct qc_image *img, u64 guest, u64 l1_entry,
		       struct qc_block *b)
{
	const char *why = NULL;
	struct qc_words bad = {};
	u32 wrong;

	mutex_lock(&img->meta_lock);
	wrong = check_entries(img, b, &why, &bad);
	if (wrong && l1_read(img, guest) == l1_entry) {
		/* First: nobody may change its neighbours, and write it then. */
		mutex_unlock(&img->meta_lock);
		corrupt_entries(img, guest, l1_entry, &bad, why, wrong);
		mutex_lock(&img->meta_lock);
	}
	/* The second where a writer came in between: the image fails then. */
	if (l1_read(img, guest) != l1_entry ||
	    (wrong && qc_image_writable(img))) {
		mutex_unlock(&img->meta_lock);
		qc_block_free(b);
		return -EAGAIN;
	}
	qc_block_insert(b);
	mutex_unlock(&img->meta_lock);
	return 0;
}

static int load_once(struct qc_image *img, u64 guest)
{
	unsigned long key = slice_key(img, guest);
	struct qc_block *b;
	const char *why;
	u64 l1_entry, host;
	int err;

	rcu_read_lock();
	b = qc_block_find(img, QC_L2, key);
	l1_entry = l1_read(img, guest);
	rcu_read_unlock();
	if (b || !(l1_entry & QCOW2_OFFSET_MASK))
		return 0;
	why = qcow2_l1_entry_check(&img->h, l1_entry, img->dev_bytes);
	if (why) {
		qc_image_corrupt(img, "L1 entry %llu (%#llx) %s",
				 qcow2_l1_index(&img->h, guest), l1_entry, why);
		return -EIO;
	}
	host = (l1_entry & QCOW2_OFFSET_MASK) + slice_offset(img, guest);
	b = qc_block_new(img, QC_L2, key, host);
	err = qc_image_rw(img, REQ_OP_READ, host, b->data, img->block_bytes);
	if (err) {
		DMERR_LIMIT("%pg: cannot read the L2 table at %llu: %d",
			    img->bdev, l1_entry & QCOW2_OFFSET_MASK, err);
		qc_block_free(b);
		return err;
	}
	return load_insert(img, guest, l1_entry, b);
}

int qc_l2_load(struct qc_image *img, u64 guest)
{
	struct mutex *lock =
		&img->load_lock[slice_key(img, guest) % QC_LOAD_LOCKS];
	int err;

	qc_cache_trim(img);
	mutex_lock(lock);
	do {
		err = load_once(img, guest);
	} while (err == -EAGAIN);
	mutex_unlock(lock);
	return err;
}

int qc_l2_find(struct qc_image *img, u64 guest, u64 len, struct qc_extent *ext)
{
	for (;;) {
		int err;

		rcu_read_lock();
		qc_l2_lookup(img, guest, len, ext);
		rcu_read_unlock();
		if (ext->map == QC_MAP_BAD) {
			qc_l2_complain(img, guest);
			return -EIO;
		}
		if (ext->map != QC_MAP_MISS)
			return 0;
		err = qc_l2_load(img, guest);
		if (err)
			return err;
	}
}

void qc_l2_move_begin(struct qc_image *img, u64 guest)
{
	mutex_lock(&img->move_lock);
	WRITE_ONCE(img->moving, guest);
	/* Lookups that did not see it have been counted, if they write. */
	qc_epoch_drain(img);
}

void qc_l2_move_end(struct qc_image *img)
{
	/* Who sees it sees the new entry: pairs with lookup_slice() */
	smp_store_release(&img->moving, U64_MAX);
	mutex_unlock(&img->move_lock);
}

/* Write the contents of a new table: zeroes, or a copy of the old one. */
static int fill_table(struct qc_image *img, u64 host, u64 old, bool virgin)
{
	u32 pos, step = img->block_bytes;
	void *buf;
	int err = 0;

	if (!old)
		return virgin ? 0 : qc_alloc_zero_host(img, host,
						       img->h.cluster_size);
	buf = mempool_alloc(img->wb_pool, GFP_NOIO);
	for (pos = 0; pos < img->h.cluster_size && !err; pos += step) {
		err = qc_image_rw(img, REQ_OP_READ, old + pos, buf, step);
		if (!err)
			err = qc_image_rw(img, REQ_OP_WRITE, host + pos, buf,
					  step);
	}
	mempool_free(buf, img->wb_pool);
	return err;
}

/* Slices of a table that moved: same contents, clean, another place. */
static void rehost_slices(struct qc_image *img, u64 guest, u64 host)
{
	u32 n = img->h.cluster_size / img->block_bytes;
	u64 span = 1ULL << (img->h.l2_bits + img->h.cluster_bits);
	unsigned long key = slice_key(img, guest & ~(span - 1));
	u32 i;

	for (i = 0; i < n; i++) {
		struct qc_block *b = xa_load(&img->tables[QC_L2], key + i);

		if (b)
			b->host = host + (u64)i * img->block_bytes;
	}
}

/* A block of the L1 table that was all zero so far has to be in memory now. */
static void need_l1_block(struct qc_image *img, u64 guest)
{
	unsigned long key = qcow2_l1_index(&img->h, guest) >>
		img->block_entry_bits;
	struct qc_block *b;

	lockdep_assert_held(&img->l2_lock);
	if (xa_load(&img->tables[QC_L1], key))
		return;
	b = qc_block_new(img, QC_L1, key, img->h.l1_table_offset +
			 (u64)key * img->block_bytes);
	memset(b->data, 0, img->block_bytes);
	mutex_lock(&img->meta_lock);
	qc_block_insert(b);
	mutex_unlock(&img->meta_lock);
}

/* Point the L1 entry to a new table.  Drops the reference to the old one. */
static void set_l1(struct qc_image *img, u64 guest, u64 host, u64 old,
		   struct qc_free *rec)
{
	u64 index = qcow2_l1_index(&img->h, guest);
	struct qc_block *b;

	for (;;) {
		mutex_lock(&img->meta_lock);
		b = qc_block_find(img, QC_L1, index >> img->block_entry_bits);
		if (!qc_block_prepare(b))
			break;
		mutex_unlock(&img->meta_lock);
		qc_block_wait_copied(img);
	}
	rehost_slices(img, guest, host);
	index &= (1U << img->block_entry_bits) - 1;
	WRITE_ONCE(b->data[index], cpu_to_be64(host | QCOW2_OFLAG_COPIED));
	/* Without memory for it the set protects less, no more than that. */
	qc_metaset_add(&img->metaset, host >> img->h.cluster_bits);
	if (old)
		qc_free_add(img, rec, old >> img->h.cluster_bits, 1);
	qc_free_end(img, rec);
	mutex_unlock(&img->meta_lock);
}

static int new_table(struct qc_image *img, u64 guest, u64 l1_entry)
{
	u64 old = l1_entry & QCOW2_OFFSET_MASK;
	struct qc_free *rec;
	struct qc_run run;
	const char *why;
	int err;

	why = qcow2_l1_entry_check(&img->h, l1_entry, img->dev_bytes);
	if (why) {
		qc_image_corrupt(img, "L1 entry %llu (%#llx) %s",
				 qcow2_l1_index(&img->h, guest), l1_entry, why);
		return -EIO;
	}
	err = qc_alloc(img, 1, &run);
	if (err)
		return err;
	err = fill_table(img, run.start << img->h.cluster_bits, old,
			 run.virgin);
	if (err) {
		qc_alloc_undo(img, &run);
		return err;
	}
	need_l1_block(img, guest);
	rec = qc_free_begin(img);
	set_l1(img, guest, run.start << img->h.cluster_bits, old, rec);
	return 0;
}

bool qc_l2_writable(struct qc_image *img, u64 guest)
{
	u64 l1_entry;

	rcu_read_lock();
	l1_entry = l1_read(img, guest);
	rcu_read_unlock();
	return l1_entry & QCOW2_OFLAG_COPIED;
}

int qc_l2_make_writable(struct qc_image *img, u64 guest)
{
	u64 l1_entry;
	int err = 0;

	if (qc_l2_writable(img, guest))
		return 0;
	mutex_lock(&img->l2_lock);
	rcu_read_lock();
	l1_entry = l1_read(img, guest);
	rcu_read_unlock();
	if (!(l1_entry & QCOW2_OFLAG_COPIED))
		err = new_table(img, guest, l1_entry);
	mutex_unlock(&img->l2_lock);
	return err;
}

static u64 changed_entry(enum qc_l2_op op, u64 old, u64 host)
{
	switch (op) {
	case QC_L2_MAP:
		return host | QCOW2_OFLAG_COPIED;
	case QC_L2_ZERO:
		return QCOW2_OFLAG_ZERO;
	case QC_L2_ZERO_KEEP:
		return old & QCOW2_OFLAG_COPIED ? old | QCOW2_OFLAG_ZERO
						: QCOW2_OFLAG_ZERO;
	case QC_L2_UNMAP:
		break;
	}
	return 0;
}

/*
 * Note what is lost when @old becomes @new.  Compressed clusters share host
 * clusters: each of them has a reference to lose.
 */
static bool drop_old(struct qc_image *img, u64 old, u64 new,
		     struct qc_free *rec)
{
	u64 first, kept;
	u32 n = entry_clusters(img, old, &first);

	if (!n || (entry_clusters(img, new, &kept) && kept == first &&
		   !(old & QCOW2_OFLAG_COMPRESSED)))
		return true;
	return qc_free_add(img, rec, first, n);
}

/* The same for subclusters; @mask has their bits. */
static void change_subclusters(enum qc_l2_op op, u64 mask, u64 host,
			       struct qc_words *s)
{
	u64 both = mask | mask << QCOW2_BITMAP_ZERO_SHIFT;

	/* Compressed: it is replaced as a whole. */
	if (s->entry & QCOW2_OFLAG_COMPRESSED) {
		s->entry = 0;
		both = ~0ULL;
	}
	s->bitmap &= ~both;
	if (op == QC_L2_MAP) {
		s->entry = host | QCOW2_OFLAG_COPIED;
		s->bitmap |= both & QCOW2_BITMAP_ALLOC;
		return;
	}
	if (op != QC_L2_UNMAP)
		s->bitmap |= both & QCOW2_BITMAP_ZERO;
	if (s->bitmap & QCOW2_BITMAP_ALLOC)
		return;
	/* No subcluster is left. */
	if (op != QC_L2_ZERO_KEEP || !(s->entry & QCOW2_OFLAG_COPIED))
		s->entry = 0;
}

/**
 * struct change - of L2 entries of one slice
 * @op: what they become
 * @guest: byte offset of the first cluster or subcluster
 * @len: bytes
 * @host: for QC_L2_MAP
 */
struct change {
	enum qc_l2_op op;
	u64 guest;
	u64 len;
	u64 host;
};

/* The part of @c in its first cluster; returns where it ends in that. */
static u32 first_part(const struct qc_image *img, const struct change *c)
{
	u32 in_cluster = c->guest & (img->h.cluster_size - 1);

	return min_t(u64, in_cluster + c->len, img->h.cluster_size);
}

static bool change_one(struct qc_image *img, struct qc_block *b,
		       const struct change *c, struct qc_free *rec)
{
	u32 in_cluster = c->guest & (img->h.cluster_size - 1);
	u32 index = slice_index(img, c->guest);
	struct qc_words old, new;

	state_read(img, b, index, &old);
	new = old;
	if (extended(img))
		change_subclusters(c->op,
				   qcow2_sub_mask(&img->h, in_cluster,
						  first_part(img, c)),
				   c->host, &new);
	else
		new.entry = changed_entry(c->op, old.entry, c->host);
	if (!drop_old(img, old.entry, new.entry, rec))
		return false;
	state_write(img, b, index, &old, &new);
	return true;
}

/*
 * Change entries until @rec cannot hold another freed cluster; @c becomes what
 * is left.
 */
static void change_entries(struct qc_image *img, struct qc_block *b,
			   struct change *c, struct qc_free *rec)
{
	while (c->len && change_one(img, b, c, rec)) {
		u32 in_cluster = c->guest & (img->h.cluster_size - 1);
		u64 done = min_t(u64, c->len, first_part(img, c) - in_cluster);

		c->guest += done;
		c->len -= done;
		c->host += img->h.cluster_size;
	}
}

static int change_some(struct qc_image *img, struct change *c)
{
	struct qc_free *rec = qc_free_begin(img);
	u64 before = c->len;
	struct qc_block *b;
	int err = 0;

	mutex_lock(&img->meta_lock);
	b = qc_block_find(img, QC_L2, slice_key(img, c->guest));
	if (!qc_image_writable(img))
		err = -EIO;
	else if (b && !qc_block_prepare(b))
		change_entries(img, b, c, rec);
	qc_free_end(img, rec);
	mutex_unlock(&img->meta_lock);
	if (err || c->len != before)
		return err;
	if (b)
		qc_block_wait_copied(img);
	return qc_l2_load(img, c->guest);
}

int qc_l2_set(struct qc_image *img, u64 guest, u64 len, enum qc_l2_op op,
	      u64 host, u64 *done)
{
	struct change c = {
		.op = op,
		.guest = guest,
		.len = len,
		.host = host,
	};
	int err = 0;

	while (c.len && !err)
		err = change_some(img, &c);
	if (done)
		*done = len - c.len;
	return err;
}

/* Do entries that become data at c->host have no other host cluster to lose? */
static bool nothing_dropped(struct qc_image *img, struct qc_block *b,
			    const struct change *c)
{
	u64 host = c->host >> img->h.cluster_bits;
	u32 index = slice_index(img, c->guest);
	u32 last = slice_index(img, c->guest + c->len - 1);
	struct qc_words s;
	u64 first;

	for (; index <= last; index++, host++) {
		state_read(img, b, index, &s);
		if (entry_clusters(img, s.entry, &first) &&
		    (first != host || (s.entry & QCOW2_OFLAG_COMPRESSED)))
			return false;
	}
	return true;
}

bool qc_l2_map_now(struct qc_image *img, u64 guest, u64 len, u64 host)
{
	struct change c = {
		.op = QC_L2_MAP,
		.guest = guest,
		.len = len,
		.host = host,
	};
	struct qc_block *b;
	bool now;

	mutex_lock(&img->meta_lock);
	b = qc_block_find(img, QC_L2, slice_key(img, guest));
	now = b && qc_image_writable(img) && nothing_dropped(img, b, &c) &&
		!qc_block_prepare(b);
	if (now)
		change_entries(img, b, &c, NULL);
	mutex_unlock(&img->meta_lock);
	return now;
}
