// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit test of words.h: lookups of an extended L2 entry while it changes. All
 * interleavings of the loads of one lookup with the stores of some changes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <linux/types.h>

#define CHANGES		4
#define STORES		(2 * CHANGES)
#define LOADS		3
#define SEEDS		60000

/* What is stored, in order; @done of it is in memory. */
static struct {
	__be64 *where;
	__be64 value;
} stores[STORES];
static unsigned int nr_stores, done;

/* How much is done when each load comes; later loads come after all stores. */
static unsigned int schedule[LOADS], nr_loads;

static void store(__be64 *where, __be64 value)
{
	stores[nr_stores].where = where;
	stores[nr_stores++].value = value;
}

static __be64 load(const __be64 *where)
{
	unsigned int until = nr_loads < LOADS ? schedule[nr_loads] : nr_stores;

	nr_loads++;
	for (; done < until; done++)
		*stores[done].where = stores[done].value;
	return *where;
}

/* One place at a time stands in for any order that barriers allow. */
#define smp_load_acquire(p)	load(p)
/* The same */
#define smp_store_release(p, v)	store(p, v)
#define READ_ONCE(x)		load(&(x))

#include "words.h"

#define SUBS	3U
#define HOST(n)	((n) * 0x10000ULL)

/* What all is between two changes */
static struct qc_words states[CHANGES + 1];

static uint64_t all_of(uint64_t subs)
{
	return subs | subs << QCOW2_BITMAP_ZERO_SHIFT;
}

/* As the target changes entries; a host cluster that was lost never returns. */
static struct qc_words changed(struct qc_words w, unsigned int number)
{
	uint64_t subs = 1 + rand() % ((1 << SUBS) - 1);
	unsigned int op = rand() % 4;

	if (w.entry & QCOW2_OFLAG_COMPRESSED) {
		w.entry = 0;
		w.bitmap = 0;
		subs = (1 << SUBS) - 1;
	}
	w.bitmap &= ~all_of(subs);
	if (op == 0) {
		if (!(w.entry & QCOW2_OFLAG_COPIED))
			w.entry = HOST(10 + number) | QCOW2_OFLAG_COPIED;
		w.bitmap |= subs;
		return w;
	}
	if (op > 1)
		w.bitmap |= subs << QCOW2_BITMAP_ZERO_SHIFT;
	if (!(w.bitmap & QCOW2_BITMAP_ALLOC) &&
	    (op < 3 || !(w.entry & QCOW2_OFLAG_COPIED)))
		w.entry = 0;
	return w;
}

static struct qc_words first_state(void)
{
	static const uint64_t entries[] = {
		0, QCOW2_OFLAG_COMPRESSED | HOST(1), HOST(2),
		HOST(3) | QCOW2_OFLAG_COPIED,
	};
	struct qc_words w = { .entry = entries[rand() % 4] };
	unsigned int sub;

	for (sub = 0; sub < SUBS; sub++) {
		unsigned int kind = rand() % 3;

		if (kind == 1)
			w.bitmap |= 1ULL << (QCOW2_BITMAP_ZERO_SHIFT + sub);
		else if (kind == 2 && w.entry)
			w.bitmap |= 1ULL << sub;
	}
	if (w.entry & QCOW2_OFLAG_COMPRESSED)
		w.bitmap = 0;
	return w;
}

/* Is a subcluster the same in both? */
static int alike(const struct qc_words *a, const struct qc_words *b,
		 unsigned int sub)
{
	enum qcow2_kind kind = qcow2_sub_kind(a->entry, a->bitmap, sub);

	if (kind != qcow2_sub_kind(b->entry, b->bitmap, sub))
		return 0;
	return (kind != QCOW2_NORMAL && kind != QCOW2_COMPRESSED) ||
		a->entry == b->entry;
}

/* Did each subcluster have what was found, at some time during the lookup? */
static void check_found(const struct qc_words *found)
{
	unsigned int from = schedule[0] / 2, to = (done + 1) / 2, sub, i;

	for (sub = 0; sub < SUBS; sub++) {
		for (i = from; i <= to; i++)
			if (alike(found, &states[i], sub))
				break;
		assert_true(i <= to);
	}
}

static void look_up(void)
{
	__be64 words[2] = { __cpu_to_be64(states[0].entry),
			    __cpu_to_be64(states[0].bitmap) };
	struct qc_words found;
	unsigned int i;

	nr_stores = 0;
	for (i = 0; i < CHANGES; i++)
		qc_words_write(words, &states[i], &states[i + 1]);
	nr_loads = 0;
	done = 0;
	qc_words_read(words, &found);
	check_found(&found);
}

static void test_lookups(void **state)
{
	unsigned int seed, i, a, b, c;

	for (seed = 0; seed < SEEDS; seed++) {
		srand(seed);
		states[0] = first_state();
		for (i = 0; i < CHANGES; i++)
			states[i + 1] = changed(states[i], i);
		for (a = 0; a <= STORES; a++)
			for (b = a; b <= STORES; b++)
				for (c = b; c <= STORES; c++) {
					schedule[0] = a;
					schedule[1] = b;
					schedule[2] = c;
					look_up();
				}
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lookups),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
