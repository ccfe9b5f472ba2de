// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of map.c and walk.c: random chains beside a model that knows each
 * sector, and tables that are wrong.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "map.h"
#include "walk.h"

#define MAX_SECTORS	2048U
#define MAX_LAYERS	5U
#define SEEDS		100U

/**
 * struct model - a layer, sector by sector
 * @path: its file
 * @index: tells it from all others
 * @sectors: its size
 * @cluster: bytes of a cluster, 0 for a raw one
 * @unit: bytes that are mapped alike: a cluster or a subcluster
 * @kind: of each sector
 * @image: as it was opened
 */
struct model {
	char path[64];
	unsigned int index;
	uint64_t sectors;
	uint32_t cluster;
	uint32_t unit;
	enum map_kind kind[MAX_SECTORS];
	struct image image;
};

static void put_be(uint8_t *buf, uint32_t bytes, uint64_t value)
{
	while (bytes--) {
		buf[bytes] = value;
		value >>= 8;
	}
}

static void write_at(const struct model *model, uint64_t offset,
		     const void *buf, size_t len)
{
	FILE *file = fopen(model->path, "r+");

	assert_non_null(file);
	assert_int_equal(fseek(file, offset, SEEK_SET), 0);
	assert_int_equal(fwrite(buf, 1, len, file), len);
	fclose(file);
}

static unsigned int bits_of(uint32_t cluster)
{
	return __builtin_ctz(cluster);
}

/* Clusters: 0 the header, 1 the L1 table, 2 data, then the L2 tables. */
static void write_header(const struct model *model, uint32_t l1_size)
{
	uint8_t header[512] = { 0 };

	put_be(header, 4, QCOW2_MAGIC);
	put_be(header + 4, 4, 3);
	put_be(header + 20, 4, bits_of(model->cluster));
	put_be(header + 24, 8, model->sectors * 512);
	put_be(header + 36, 4, l1_size);
	put_be(header + 40, 8, model->cluster);
	put_be(header + 48, 8, 2 * model->cluster);
	put_be(header + 56, 4, 1);
	if (model->unit != model->cluster)
		put_be(header + 72, 8, QCOW2_INCOMPAT_EXTL2);
	put_be(header + 96, 4, 4);
	put_be(header + 100, 4, 104);
	write_at(model, 0, header, sizeof(header));
}

static uint64_t entry_of(const struct model *model, uint64_t sector)
{
	switch (model->kind[sector]) {
	case MAP_NONE:
		return 0;
	case MAP_ZERO:
		return rand() % 2 ? 1 : QCOW2_OFLAG_COPIED | 1 |
			2 * model->cluster;
	default:
		return QCOW2_OFLAG_COPIED | 2 * model->cluster;
	}
}

/* Host clusters that hold nothing are valid as well. */
static uint64_t extended_of(const struct model *model, uint64_t sector,
			    uint64_t *bitmap)
{
	uint64_t step = model->unit / 512, sub;

	*bitmap = 0;
	for (sub = 0; sub < 32 && sector < model->sectors; sub++) {
		if (model->kind[sector] == MAP_DATA)
			*bitmap |= 1ULL << sub;
		else if (model->kind[sector] == MAP_ZERO)
			*bitmap |= 1ULL << (32 + sub);
		sector += step;
	}
	return *bitmap & QCOW2_BITMAP_ALLOC || rand() % 2 ?
		QCOW2_OFLAG_COPIED | 2 * model->cluster : 0;
}

/* Returns whether there is anything in the table. */
static bool fill_table(const struct model *model, uint64_t s, uint8_t *table)
{
	bool any = rand() % 2, extended = model->unit != model->cluster;
	uint32_t bytes = extended ? 16 : 8, pos;
	uint64_t value, bitmap = 0;

	memset(table, 0, model->cluster);
	for (pos = 0; pos < model->cluster && s < model->sectors;
	     pos += bytes) {
		value = extended ? extended_of(model, s, &bitmap) :
			entry_of(model, s);
		put_be(table + pos, 8, value);
		if (extended)
			put_be(table + pos + 8, 8, bitmap);
		any |= value || bitmap;
		s += model->cluster / 512;
	}
	return any;
}

static void write_tables(const struct model *model)
{
	uint64_t entries = model->cluster /
		(model->unit != model->cluster ? 16 : 8);
	uint64_t per_table = entries * (model->cluster / 512);
	uint64_t tables = (model->sectors + per_table - 1) / per_table, i;
	uint8_t *table = calloc(1, model->cluster);
	uint8_t entry[8];

	write_header(model, tables);
	for (i = 0; i < tables; i++) {
		if (!fill_table(model, i * per_table, table))
			continue;
		write_at(model, (3 + i) * model->cluster, table,
			 model->cluster);
		put_be(entry, 8, QCOW2_OFLAG_COPIED | (3 + i) * model->cluster);
		write_at(model, model->cluster + i * 8, entry, 8);
	}
	free(table);
}

static void choose_kinds(struct model *model)
{
	uint32_t unit = model->unit / 512, i, j;
	enum map_kind kind = MAP_NONE;

	for (i = 0; i < model->sectors; i += unit) {
		if (rand() % 3 == 0)
			kind = rand() % 3;
		for (j = i; j < i + unit && j < model->sectors; j++)
			model->kind[j] = kind;
	}
}

/* A hole is zeroes; ext4, xfs and tmpfs have them in blocks of 4 KiB. */
static void write_raw(struct model *model)
{
	char block[4096];
	uint32_t i, j;

	memset(block, 'x', sizeof(block));
	for (i = 0; i < model->sectors; i += 8) {
		bool data = rand() % 2;

		for (j = i; j < i + 8 && j < model->sectors; j++)
			model->kind[j] = data ? MAP_DATA : MAP_ZERO;
		if (data)
			write_at(model, i * 512ULL, block,
				 (j - i) * 512ULL);
	}
}

static void model_make(struct model *model, unsigned int index, bool raw)
{
	static const uint32_t clusters[] = { 512, 1024, 4096, 16384, 65536 };

	model->index = index;
	snprintf(model->path, sizeof(model->path), "/tmp/test-map-%d-%u",
		 getpid(), index);
	fclose(fopen(model->path, "w"));
	model->sectors = 1 + rand() % MAX_SECTORS;
	model->cluster = raw ? 0 : clusters[rand() % 5];
	model->unit = model->cluster;
	if (model->cluster >= 16384 && rand() % 2)
		model->unit /= QCOW2_SUBCLUSTERS;
	if (raw) {
		assert_int_equal(truncate(model->path, model->sectors * 512), 0);
		write_raw(model);
	} else {
		assert_int_equal(truncate(model->path, 4 << 20), 0);
		choose_kinds(model);
		write_tables(model);
	}
	assert_int_equal(image_open(model->path, raw ? FORMAT_RAW :
				    FORMAT_QCOW2, &model->image), 0);
}

static void model_free(struct model *model)
{
	image_close(&model->image);
	unlink(model->path);
}

static enum map_kind model_layer(const struct model *model, uint64_t sector)
{
	return sector < model->sectors ? model->kind[sector] : MAP_ZERO;
}

static enum map_kind model_at(const struct model *models, unsigned int count,
			      uint64_t sector)
{
	enum map_kind kind = MAP_NONE;

	for (; count-- && kind == MAP_NONE; models++)
		kind = model_layer(models, sector);
	return kind;
}

/**
 * struct chain_of - a chain of models, and of their images
 * @models: top first
 * @images: the same
 * @count: of both
 */
struct chain_of {
	struct model models[MAX_LAYERS];
	struct image images[MAX_LAYERS];
	unsigned int count;
};

static void chain_make(struct chain_of *chain, unsigned int first)
{
	unsigned int i;

	chain->count = 2 + rand() % (MAX_LAYERS - 1);
	for (i = 0; i < chain->count; i++) {
		model_make(&chain->models[i], first + i,
			   i + 1 == chain->count && rand() % 3 == 0);
		chain->images[i] = chain->models[i].image;
	}
}

static void chain_free(struct chain_of *chain)
{
	while (chain->count)
		model_free(&chain->models[--chain->count]);
}

static void check_map(const struct chain_of *chain)
{
	struct map_extent extent;
	uint64_t sector = 0, i;
	struct map *map;

	assert_int_equal(map_open(chain->images, chain->count, &map), 0);
	while (sector < MAX_SECTORS + 8) {
		assert_int_equal(map_at(map, sector * 512,
					(1 + rand() % 600) * 512, &extent), 0);
		assert_int_equal(extent.start, sector * 512);
		assert_true(extent.length && extent.length % 512 == 0);
		for (i = 0; i < extent.length / 512; i++)
			assert_int_equal(model_at(chain->models, chain->count,
						  sector + i), extent.kind);
		sector += extent.length / 512;
	}
	map_close(map);
}

static void test_map(void **state)
{
	static struct chain_of chain;
	unsigned int seed;

	for (seed = 0; seed < SEEDS; seed++) {
		srand(seed);
		chain_make(&chain, 0);
		check_map(&chain);
		chain_free(&chain);
	}
}

/* What a walk writes, sector by sector: MAP_NONE where nothing */
static void take_walk(struct walk *walk, enum map_kind *out)
{
	struct copy_piece piece;
	uint64_t i;

	for (i = 0; i < 2 * MAX_SECTORS; i++)
		out[i] = MAP_NONE;
	for (;;) {
		assert_int_equal(walk_next(walk, &piece), 0);
		if (!piece.length)
			return;
		for (i = piece.start; i < piece.start + piece.length; i += 512)
			out[i / 512] = piece.zero ? MAP_ZERO : MAP_DATA;
	}
}

static void test_walk_down(void **state)
{
	static enum map_kind out[2 * MAX_SECTORS];
	static struct chain_of chain;
	struct walk *walk;
	unsigned int seed;
	uint64_t end, i;

	for (seed = 0; seed < SEEDS; seed++) {
		srand(seed);
		chain_make(&chain, 0);
		assert_int_equal(walk_down(chain.images, chain.count, &walk), 0);
		take_walk(walk, out);
		walk_close(walk);
		end = chain.models[0].sectors;
		if (end < chain.models[chain.count - 1].sectors)
			end = chain.models[chain.count - 1].sectors;
		for (i = 0; i < 2 * MAX_SECTORS; i++)
			assert_int_equal(out[i], i >= end ? MAP_NONE :
					 model_at(chain.models, chain.count - 1,
						  i));
		chain_free(&chain);
	}
}

/* What a chain reads: data of which layer, or zeroes: -1 */
static int reads(const struct model *const *models, unsigned int count,
		 uint64_t sector)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		enum map_kind kind = model_layer(models[i], sector);

		if (kind != MAP_NONE)
			return kind == MAP_ZERO ? -1 : (int)models[i]->index;
	}
	return -1;
}

/* With what was written into the top, the new chain reads as the old one. */
static void check_up(const struct chain_of *old, const struct chain_of *new,
		     unsigned int common, const enum map_kind *out)
{
	const struct model *before[MAX_LAYERS], *after[2 * MAX_LAYERS];
	unsigned int i, count = 0;
	uint64_t sector;

	for (i = 0; i < old->count; i++)
		before[i] = &old->models[i];
	for (i = 0; i < new->count; i++)
		after[count++] = &new->models[i];
	for (i = old->count - common; i < old->count; i++)
		after[count++] = &old->models[i];
	for (sector = 0; sector < old->models[0].sectors; sector++) {
		if (model_layer(&old->models[0], sector) != MAP_NONE) {
			assert_int_equal(out[sector], MAP_NONE);
			continue;
		}
		if (out[sector] == MAP_DATA)
			continue;
		assert_int_equal(reads(before + 1, old->count - 1, sector),
				 out[sector] == MAP_ZERO ? -1 :
				 reads(after, count, sector));
	}
}

static void test_walk_up(void **state)
{
	static enum map_kind out[2 * MAX_SECTORS];
	static struct chain_of old, new;
	struct image images[2 * MAX_LAYERS];
	struct walk_chains chains;
	struct walk *walk;
	unsigned int seed;

	for (seed = 0; seed < SEEDS; seed++) {
		srand(seed);
		chain_make(&old, 0);
		chain_make(&new, MAX_LAYERS);
		if (seed % 3 == 0)
			chain_free(&new);
		chains.top = &old.images[0];
		chains.live = false;
		chains.old = old.images + 1;
		chains.old_count = old.count - 1;
		chains.common = rand() % old.count;
		if (new.count && !new.models[new.count - 1].cluster)
			chains.common = 0;
		memcpy(images, new.images, new.count * sizeof(*images));
		memcpy(images + new.count, old.images + old.count -
		       chains.common, chains.common * sizeof(*images));
		chains.new = images;
		chains.new_count = new.count + chains.common;
		assert_int_equal(walk_up(&chains, &walk), 0);
		take_walk(walk, out);
		walk_close(walk);
		check_up(&old, &new, chains.common, out);
		chain_free(&old);
		chain_free(&new);
	}
}

/*
 * Entries that lead nowhere are errors, not data, but for L2 entries that point
 * behind the end: the file may have been truncated, and that reads as zeroes.
 */
static void test_wrong_tables(void **state)
{
	static const uint64_t wrong[] = {
		QCOW2_OFLAG_COPIED | 0x4000000000ULL,	/* behind the end */
		QCOW2_OFLAG_COPIED | 0x10200,		/* not a cluster */
		QCOW2_OFLAG_COPIED | 0x1000000000000000ULL | 0x20000,
	};
	static struct model model;
	struct map_extent extent;
	struct map *map;
	uint8_t entry[8];
	unsigned int i;

	for (i = 0; i < 6; i++) {
		srand(1);
		do {
			model_make(&model, 0, false);
		} while ((model.cluster != 65536 || model.unit != 65536) &&
			 (model_free(&model), true));
		put_be(entry, 8, QCOW2_OFLAG_COPIED | 3 * model.cluster);
		write_at(&model, model.cluster, entry, 8);
		put_be(entry, 8, wrong[i % 3]);
		write_at(&model, (i < 3 ? 1 : 3) * model.cluster, entry, 8);
		assert_int_equal(map_open(&model.image, 1, &map), 0);
		if (i == 3)
			assert_int_equal(map_at(map, 0, 512, &extent), 0);
		else
			assert_true(map_at(map, 0, 512, &extent) < 0);
		map_close(map);
		model_free(&model);
	}
}

static void test_wrong_bitmaps(void **state)
{
	static const uint64_t wrong[][2] = {
		{ QCOW2_OFLAG_COPIED | 0x20000, 1ULL << 32 | 1 },
		{ QCOW2_OFLAG_COPIED | 0x20000, 1ULL << 63 | 1ULL << 31 },
		{ 0, 1 },
	};
	static struct model model;
	struct map_extent extent;
	struct map *map;
	uint8_t entry[16];
	unsigned int i;

	for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		srand(1);
		do {
			model_make(&model, 0, false);
		} while ((model.cluster != 65536 || model.unit == 65536) &&
			 (model_free(&model), true));
		put_be(entry, 8, QCOW2_OFLAG_COPIED | 3 * model.cluster);
		write_at(&model, model.cluster, entry, 8);
		put_be(entry, 8, wrong[i][0]);
		put_be(entry + 8, 8, wrong[i][1]);
		write_at(&model, 3 * model.cluster, entry, 16);
		assert_int_equal(map_open(&model.image, 1, &map), 0);
		assert_true(map_at(map, 0, 512, &extent) < 0);
		map_close(map);
		model_free(&model);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map),
		cmocka_unit_test(test_walk_down),
		cmocka_unit_test(test_walk_up),
		cmocka_unit_test(test_wrong_tables),
		cmocka_unit_test(test_wrong_bitmaps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
