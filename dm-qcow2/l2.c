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

static unsigned long slice_key(const struct qc_image *img, u64 guest)
{
	return guest >> img->slice_shift;
}

static u32 slice_index(const struct qc_image *img, u64 guest)
{
	return (guest >> img->h.cluster_bits) &
		((1U << img->block_entry_bits) - 1);
}

/* Byte offset of the slice within its L2 table. */
static u32 slice_offset(const struct qc_image *img, u64 guest)
{
	u32 index = qcow2_l2_index(&img->h, guest);

	return (index >> img->block_entry_bits) * img->block_bytes;
}

static u64 entry_read(const struct qc_block *b, u32 index)
{
	return be64_to_cpu(READ_ONCE(b->data[index]));
}

static u64 l1_read(struct qc_image *img, u64 guest)
{
	u64 index = qcow2_l1_index(&img->h, guest);
	struct qc_block *b = qc_block_find(img, QC_L1,
					   index >> img->block_entry_bits);

	return b ? entry_read(b, index & ((1U << img->block_entry_bits) - 1))
		 : 0;
}

static enum qc_map map_of(u64 entry)
{
	switch (qcow2_l2_kind(entry)) {
	case QCOW2_UNALLOCATED:
		return QC_MAP_NONE;
	case QCOW2_ZERO_PLAIN:
	case QCOW2_ZERO_ALLOC:
		return QC_MAP_ZERO;
	case QCOW2_NORMAL:
		return entry & QCOW2_OFLAG_COPIED ? QC_MAP_OWNED : QC_MAP_DATA;
	case QCOW2_COMPRESSED:
		break;
	}
	return entry == QC_ENTRY_POISON ? QC_MAP_BAD : QC_MAP_PACKED;
}

/* No slice in memory: the L1 entry tells whether there is one to read. */
static void lookup_l1(struct qc_image *img, u64 guest, u64 len,
		      struct qc_extent *ext)
{
	u64 span = 1ULL << (img->h.l2_bits + img->h.cluster_bits);

	ext->host = 0;
	ext->map = l1_read(img, guest) & QCOW2_OFFSET_MASK ?
		QC_MAP_MISS : QC_MAP_NONE;
	ext->len = min(len, span - (guest & (span - 1)));
}

/*
 * A file need not be padded to whole clusters: what the last one lacks reads
 * as zeroes.  Also the last line of defence: no I/O leaves the device.
 */
static void clip_to_device(struct qc_image *img, struct qc_extent *ext)
{
	u64 end = READ_ONCE(img->dev_bytes);

	if (likely(ext->host + ext->len <= end))
		return;
	if (ext->host < end) {
		ext->len = end - ext->host;
		return;
	}
	ext->map = ext->map == QC_MAP_DATA ? QC_MAP_ZERO : QC_MAP_BAD;
	/* Not kept for anybody: it may be a snapshot's as well. */
	ext->host = 0;
}

void qc_l2_lookup(struct qc_image *img, u64 guest, u64 len,
		  struct qc_extent *ext)
{
	struct qc_block *b = qc_block_find(img, QC_L2, slice_key(img, guest));
	u32 cluster_size = img->h.cluster_size;
	u32 in_cluster = guest & (cluster_size - 1);
	u32 index, last;
	u64 entry, step, run;

	ext->safe = true;
	if (!b) {
		lookup_l1(img, guest, len, ext);
		return;
	}
	index = slice_index(img, guest);
	last = (1U << img->block_entry_bits) - 1;
	entry = entry_read(b, index);
	ext->map = map_of(entry);
	run = cluster_size - in_cluster;
	step = ext->map == QC_MAP_DATA || ext->map == QC_MAP_OWNED ?
		cluster_size : 0;
	ext->host = 0;
	if (step)
		ext->host = (entry & QCOW2_OFFSET_MASK) + in_cluster;
	else if (ext->map == QC_MAP_ZERO && (entry & QCOW2_OFLAG_COPIED))
		ext->host = entry & QCOW2_OFFSET_MASK;
	if (unlikely(ext->map == QC_MAP_PACKED)) {
		ext->host = in_cluster;
		ext->packed = entry;
		/* No two entries are alike. */
		len = min(run, len);
	}
	while (run < len && index < last) {
		u64 next = entry_read(b, ++index);

		entry += step;
		/* Zero entries may differ in what they keep allocated. */
		if (next != entry &&
		    !(ext->map == QC_MAP_ZERO && map_of(next) == QC_MAP_ZERO))
			break;
		run += cluster_size;
	}
	ext->len = min(run, len);
	if (step) {
		/* Entries first, then the marks: pairs with qc_block_prepare() */
		smp_rmb();
		/* Of the marks @dirty first: pairs with the freeze */
		ext->safe = !smp_load_acquire(&b->dirty) &&
			!READ_ONCE(b->in_commit);
		clip_to_device(img, ext);
	}
}

void qc_l2_complain(struct qc_image *img, u64 guest)
{
	struct qc_block *b;
	u64 entry = 0;

	rcu_read_lock();
	b = qc_block_find(img, QC_L2, slice_key(img, guest));
	if (b)
		entry = entry_read(b, slice_index(img, guest));
	rcu_read_unlock();
	if (!b)
		return;
	if (entry == QC_ENTRY_POISON)
		DMERR_LIMIT("%pg: invalid L2 entry of guest offset %llu; run qemu-img check",
			    img->bdev, guest);
	else
		DMERR_LIMIT("%pg: guest offset %llu: the device ends before its cluster",
			    img->bdev, guest);
}

/* The host clusters that an entry refers to; returns how many. */
static u32 entry_clusters(const struct qc_image *img, u64 entry, u64 *first)
{
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

/* Check a slice just read; what is wrong becomes QC_ENTRY_POISON. */
static u32 check_entries(struct qc_image *img, struct qc_block *b,
			 const char **why, u64 *bad)
{
	u32 n = 1U << img->block_entry_bits;
	u32 i, wrong = 0;

	for (i = 0; i < n; i++) {
		u64 entry = be64_to_cpu(b->data[i]);
		const char *msg;

		msg = qcow2_l2_entry_check(&img->h, entry, img->dev_bytes);
		if (!msg && refers_to_metadata(img, entry))
			msg = "points to metadata";
		if (!msg)
			continue;
		*why = msg;
		*bad = entry;
		b->data[i] = cpu_to_be64(QC_ENTRY_POISON);
		wrong++;
	}
	return wrong;
}

/* Returns -EAGAIN where the L2 table moved while it was read. */
static int load_insert(struct qc_image *img, u64 guest, u64 l1_entry,
		       struct qc_block *b)
{
	const char *why = NULL;
	u64 bad = 0;
	u32 wrong;

	mutex_lock(&img->meta_lock);
	if (l1_read(img, guest) != l1_entry) {
		mutex_unlock(&img->meta_lock);
		qc_block_free(b);
		return -EAGAIN;
	}
	wrong = check_entries(img, b, &why, &bad);
	qc_block_insert(b);
	mutex_unlock(&img->meta_lock);
	if (wrong)
		qc_image_corrupt(img, "L2 table at %llu: entry %#llx %s (%u such, guest %llu)",
				 l1_entry & QCOW2_OFFSET_MASK, bad, why, wrong,
				 guest & ~((1ULL << img->slice_shift) - 1));
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
	rec = qc_free_begin(img);
	set_l1(img, guest, run.start << img->h.cluster_bits, old, rec);
	return 0;
}

int qc_l2_make_writable(struct qc_image *img, u64 guest)
{
	u64 l1_entry;
	int err = 0;

	rcu_read_lock();
	l1_entry = l1_read(img, guest);
	rcu_read_unlock();
	if (l1_entry & QCOW2_OFLAG_COPIED)
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

/*
 * Change entries until @rec cannot hold another freed cluster.
 * Returns how many were done.
 */
static u32 set_entries(struct qc_image *img, struct qc_block *b, u32 index,
		       u32 count, enum qc_l2_op op, u64 host,
		       struct qc_free *rec)
{
	u32 i;

	for (i = 0; i < count; i++) {
		u64 old = entry_read(b, index + i);
		u64 new = changed_entry(op, old,
					host + ((u64)i << img->h.cluster_bits));

		if (!drop_old(img, old, new, rec))
			break;
		if (new != old)
			WRITE_ONCE(b->data[index + i], cpu_to_be64(new));
	}
	return i;
}

/* Returns how many entries were changed, 0 for "again", or an error. */
static int set_some(struct qc_image *img, u64 guest, u32 count,
		    enum qc_l2_op op, u64 host)
{
	struct qc_free *rec = qc_free_begin(img);
	struct qc_block *b;
	int done = 0;

	mutex_lock(&img->meta_lock);
	b = qc_block_find(img, QC_L2, slice_key(img, guest));
	if (!qc_image_writable(img))
		done = -EIO;
	else if (b && !qc_block_prepare(b))
		done = set_entries(img, b, slice_index(img, guest), count, op,
				   host, rec);
	qc_free_end(img, rec);
	mutex_unlock(&img->meta_lock);
	if (done)
		return done;
	if (b)
		qc_block_wait_copied(img);
	return qc_l2_load(img, guest);
}

int qc_l2_set(struct qc_image *img, u64 guest, u32 count, enum qc_l2_op op,
	      u64 host)
{
	while (count) {
		int done = set_some(img, guest, count, op, host);

		if (done < 0)
			return done;
		count -= done;
		guest += (u64)done << img->h.cluster_bits;
		host += (u64)done << img->h.cluster_bits;
	}
	return 0;
}
