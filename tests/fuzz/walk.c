// SPDX-License-Identifier: GPL-2.0-only
/*
 * An image from its header down to the table entries.
 */
#include "walk.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "must.h"
#include "oracle.h"
#include "sparse.h"

/* Plain accesses: nobody changes the words meanwhile. */
#define smp_load_acquire(p)	(*(p))
/* The same */
#define smp_store_release(p, v)	(*(p) = (v))
#define READ_ONCE(x)		(x)
#include "words.h"

#include "relink.h"

/* Of the first cluster, as the module reads it */
#define HEADER_BYTES	4096U
#define AREA_BYTES	65536U
/* What of longer tables is looked at, so that an input takes no more than 1 ms */
#define ENTRIES		48U
#define TABLES		6U
#define SNAPSHOTS	12U
#define WORDS		64U
#define REFCOUNT_BYTES	64U
/* As userspace/lib/details.c reads entries of the snapshot table */
#define SHORT_ENTRY	1024U
#define LONG_ENTRY	(136U * 1024)

/**
 * struct walking - a walk under way
 * @image: the image
 * @h: its header
 * @refused: how much was not accepted
 * @tables: how many tables may still be looked at
 */
struct walking {
	struct sparse image;
	struct qcow2_header h;
	unsigned int refused;
	unsigned int tables;
};

/*
 * Header
 */

static int decode(const struct sparse *image, uint32_t len,
		  struct qcow2_header *h)
{
	uint8_t *buf = sparse_read(image, 0, len);
	struct qcow2_fault fault = { 0 };
	int r;

	memset(h, 0xa5, sizeof(*h));
	r = qcow2_header_decode(buf, len, h, &fault);
	must(r == 0 || r == -1);
	must(r || qcow2_probe(buf, len));
	if (r)
		oracle_fault(buf, len, &fault);
	else
		oracle_header(buf, len, h);
	free(buf);
	return r;
}

static int decode_header(struct walking *w)
{
	struct qcow2_header shorter;

	/* Of any length: what lies behind it must not be looked at. */
	decode(&w->image, w->image.length % 128, &shorter);
	if (decode(&w->image, HEADER_BYTES, &w->h)) {
		w->refused++;
		return -1;
	}
	return 0;
}

static int check_bounds(struct walking *w)
{
	struct qcow2_fault fault = { 0 };

	if (!qcow2_header_check_bounds(&w->h, w->image.length, &fault)) {
		oracle_bounds(&w->h, w->image.length);
		return 0;
	}
	must(fault.field && fault.why);
	w->refused++;
	return -1;
}

/* Whatever is refused has a name, or is not known to anybody. */
static void name_features(void)
{
	unsigned int bit;

	for (bit = 0; bit < 64; bit++)
		must(!qcow2_feature_name(bit) ==
		     !(QCOW2_INCOMPAT_KNOWN >> bit & 1));
}

/*
 * Extensions and bitmaps
 */

static void walk_directory(struct walking *w,
			   const struct qcow2_bitmaps *bitmaps)
{
	uint32_t left = bitmaps->directory_size < AREA_BYTES ?
		bitmaps->directory_size : AREA_BYTES;
	uint8_t *directory = sparse_read(&w->image, bitmaps->directory_offset,
					 left);
	struct qcow2_bitmap bitmap;
	struct qcow2_fault fault;
	uint32_t pos = 0, i;

	for (i = 0; i < bitmaps->nb; i++) {
		if (qcow2_bitmap_decode(directory + pos, left - pos, pos,
					&bitmap, &fault)) {
			must(fault.field && fault.why && fault.where == pos);
			w->refused++;
			break;
		}
		oracle_bitmap(directory + pos, left - pos, &bitmap);
		pos += bitmap.entry_len;
	}
	free(directory);
}

static void walk_bitmaps(struct walking *w, const uint8_t *data,
			 const struct qcow2_ext *ext)
{
	struct qcow2_bitmaps bitmaps;
	struct qcow2_fault fault;

	if (qcow2_bitmaps_decode(data, ext, &w->h, &bitmaps, &fault)) {
		must(fault.field && fault.why);
		must(fault.where >= ext->data_offset - 4);
		w->refused++;
		return;
	}
	oracle_bitmaps(&w->h, &bitmaps);
	walk_directory(w, &bitmaps);
}

static void walk_extensions(struct walking *w, uint32_t len)
{
	uint8_t *area = sparse_read(&w->image, 0, len);
	uint32_t offset = w->h.header_length;
	struct qcow2_fault fault;
	struct qcow2_ext ext;
	int more;

	while ((more = qcow2_ext_next(area, len, offset, &w->h, &ext,
				      &fault)) > 0) {
		oracle_extension(&w->h, len, offset, &ext);
		if (ext.type == QCOW2_EXT_BITMAPS)
			walk_bitmaps(w, area + ext.data_offset, &ext);
		offset = ext.next_offset;
	}
	if (more < 0) {
		must(fault.field && fault.why && fault.where == offset + 4);
		w->refused++;
	}
	free(area);
}

/*
 * Tables
 */

static unsigned int min_of(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void store_and_load(const __be64 *words, uint64_t entry,
			   uint64_t bitmap)
{
	struct qc_words before, now = { entry, bitmap }, after;
	__be64 pair[2] = { words[0], words[1] };

	qc_words_read(pair, &before);
	must(before.entry == entry && before.bitmap == bitmap);
	before.entry = bitmap;
	qc_words_write(pair, &before, &now);
	must(!memcmp(pair, words, sizeof(pair)));
	qc_words_read(pair, &after);
	must(after.entry == entry && after.bitmap == bitmap);
}

static void walk_l2_entry(struct walking *w, const uint8_t *where,
			  uint64_t guest)
{
	uint64_t entry = get(where, 8), bitmap;
	__be64 words[2];

	if (oracle_l2_entry(&w->h, entry, guest, w->image.length)) {
		w->refused++;
		return;
	}
	if (w->h.l2_entry_bytes == 8)
		return;
	bitmap = get(where + 8, 8);
	if (oracle_l2_bitmap(&w->h, entry, bitmap)) {
		w->refused++;
		return;
	}
	memcpy(words, where, sizeof(words));
	store_and_load(words, entry, bitmap);
}

/* @guest: what the first entry maps */
static void walk_l2(struct walking *w, uint64_t offset, uint64_t guest)
{
	uint32_t size = w->h.l2_entry_bytes, i;
	uint32_t count = min_of(w->h.cluster_size / size, ENTRIES);
	uint8_t *table = sparse_read(&w->image, offset, count * size);

	for (i = 0; i < count; i++)
		walk_l2_entry(w, table + i * size,
			      guest + (uint64_t)i * w->h.cluster_size);
	free(table);
}

static void walk_l1(struct walking *w, uint64_t offset, uint32_t entries)
{
	uint64_t span = (uint64_t)w->h.cluster_size / w->h.l2_entry_bytes *
		w->h.cluster_size;
	uint32_t count = min_of(entries, ENTRIES), i;
	uint8_t *table = sparse_read(&w->image, offset, count * 8);
	uint64_t entry;

	for (i = 0; i < count; i++) {
		entry = get(table + i * 8, 8);
		if (oracle_l1_entry(&w->h, entry, w->image.length)) {
			w->refused++;
		} else if (entry && w->tables) {
			w->tables--;
			walk_l2(w, entry & QCOW2_OFFSET_MASK, i * span);
		}
	}
	free(table);
}

static void walk_refblock(struct walking *w, uint64_t offset)
{
	uint8_t *block = sparse_read(&w->image, offset, REFCOUNT_BYTES);

	oracle_refcounts(block, REFCOUNT_BYTES, w->h.refcount_order);
	free(block);
}

static void walk_reftable(struct walking *w)
{
	uint64_t bytes = (uint64_t)w->h.refcount_table_clusters *
		w->h.cluster_size;
	uint32_t count = min_of(bytes / 8, ENTRIES), i;
	uint8_t *table = sparse_read(&w->image, w->h.refcount_table_offset,
				     count * 8);
	uint64_t entry;

	/* A file may end within its last block. */
	bytes = (w->image.length + w->h.cluster_size - 1) &
		~(w->h.cluster_size - 1ULL);
	for (i = 0; i < count; i++) {
		entry = get(table + i * 8, 8);
		if (oracle_reftable_entry(&w->h, entry, bytes)) {
			w->refused++;
		} else if (entry && w->tables) {
			w->tables--;
			walk_refblock(w, entry);
		}
	}
	free(table);
}

/*
 * Internal snapshots
 */

/* Return: length of the entry, or 0 */
static uint32_t walk_snapshot(struct walking *w, uint64_t where, uint32_t len)
{
	uint8_t *entry = sparse_read(&w->image, where, len);
	struct qcow2_snapshot snap = { 0 };
	struct qcow2_fault fault;
	int r;

	r = qcow2_snapshot_decode(entry, len, where, &w->h, &snap, &fault);
	must(r == 0 || r == 1 || r == -1);
	if (!r) {
		oracle_snapshot(entry, len, &w->h, &snap);
		walk_l1(w, snap.l1_table_offset, snap.l1_size);
	} else if (r < 0) {
		must(fault.field && fault.why && fault.where >= where);
	}
	free(entry);
	if (r > 0 && len < LONG_ENTRY)
		return walk_snapshot(w, where, LONG_ENTRY);
	/* There is none that is longer. */
	must(r <= 0);
	return r ? 0 : snap.entry_len;
}

static void walk_snapshots(struct walking *w)
{
	uint64_t where = w->h.snapshots_offset;
	uint32_t count = min_of(w->h.nb_snapshots, SNAPSHOTS), i, len;

	for (i = 0; i < count; i++) {
		len = walk_snapshot(w, where, SHORT_ENTRY);
		if (!len) {
			w->refused++;
			return;
		}
		where += len;
	}
}

/*
 * Whatever else
 */

/* Any word of the input as any entry, whether or not a table has it */
static void walk_words(struct walking *w, const uint8_t *input, size_t size)
{
	uint32_t count = min_of(size / 8, WORDS), i;
	uint64_t word, next = 0, guest;

	for (i = 0; i < count; i++) {
		word = get(input + i * 8, 8);
		/* Half of the words are at home. */
		guest = i % 2 ? word & QCOW2_OFFSET_MASK &
			~(w->h.cluster_size - 1ULL) : i * w->h.cluster_size;
		oracle_l1_entry(&w->h, word, w->image.length);
		oracle_reftable_entry(&w->h, word, w->image.length);
		if (!oracle_l2_entry(&w->h, word, guest, w->image.length) &&
		    w->h.l2_entry_bytes == 16)
			oracle_l2_bitmap(&w->h, word, next);
		oracle_l1_entries(&w->h, word);
		oracle_indices(&w->h, word);
		oracle_indices(&w->h, w->h.size ? word % w->h.size : 0);
		next = word;
	}
}

static void walk_refcounts(const uint8_t *input, size_t size)
{
	uint8_t block[64] = { 0 };
	uint32_t order;

	memcpy(block, input, min_of(size, sizeof(block)));
	for (order = 0; order <= 6; order++)
		oracle_refcounts(block, sizeof(block), order);
}

/* Another backing file: a name of any length, or none */
static void walk_relink(struct walking *w)
{
	static char name[QCOW2_MAX_BACKING_NAME_BYTES + 1];
	uint64_t seed = w->image.length / 512;
	uint8_t *area;

	t.len = min_of(w->h.cluster_size, AREA_MAX);
	area = sparse_read(&w->image, 0, t.len);
	memcpy(t.old, area, t.len);
	free(area);
	memset(name, 'n', sizeof(name));
	name[seed % (seed & 1 ? 32 : sizeof(name))] = '\0';
	t.name = name;
	t.format = seed & 2 ? "raw" : "qcow2";
	t.unit = seed & 4 ? 512 : 4096;
	relink();
}

/* Large clusters take long: one input out of 16 */
static int wants_relink(const struct walking *w)
{
	return w->h.cluster_size <= 4096 || !(w->image.length / 512 & 15);
}

unsigned int walk(const uint8_t *input, size_t size)
{
	struct walking w = { .tables = TABLES };

	sparse_parse(input, size, &w.image);
	walk_refcounts(input, size);
	name_features();
	if (decode_header(&w))
		return w.refused;
	walk_words(&w, input, size);
	walk_extensions(&w, min_of(w.h.cluster_size, HEADER_BYTES));
	walk_extensions(&w, min_of(w.h.cluster_size, AREA_BYTES));
	if (wants_relink(&w))
		walk_relink(&w);
	if (check_bounds(&w))
		return w.refused;
	walk_l1(&w, w.h.l1_table_offset, w.h.l1_size);
	w.tables += TABLES;
	walk_reftable(&w);
	w.tables += TABLES;
	walk_snapshots(&w);
	return w.refused;
}
