/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Both words of an extended L2 entry (spec, "Extended L2 Entries"): the entry, and
 * behind it the bitmap of the cluster's subclusters.  They are in one sector, at a
 * multiple of 16 bytes: a crash leaves both old or both new.
 *
 * Lookups read them without a lock: the entry, then the bitmap, then the entry
 * again, until that has not changed and has a host cluster if the bitmap allocates
 * something.  An entry that has not changed was there all the time: a host cluster
 * that it lost does not come back before the lookup's RCU read section ends, and
 * nobody makes compressed ones.  (A bitmap can come back, for another host cluster.
 * And of an external data file a cluster does come back, but to the same entry only,
 * which had it with each of the bitmaps in between, or nothing allocated.)
 * Changes, under meta_lock, store
 *
 *	the bitmap, then the entry	where the entry was compressed (the bitmap
 *					of such an entry means nothing), or loses
 *					its host cluster
 *	the entry, then the bitmap	else: whatever the old bitmap allocates has
 *					its data in the new host cluster already
 *
 * with release.  So a lookup finds a bitmap that fits the entry; which of several
 * changes it sees does not matter, as for single words.  What is in memory between
 * two stores fits as well: a lookup never waits for the second one.
 *
 * The unit tests include this file with barriers of their own.
 */
#ifndef DM_QCOW2_WORDS_H
#define DM_QCOW2_WORDS_H

#ifdef __KERNEL__
#include <linux/compiler.h>
#include <asm/barrier.h>
#endif

#include "format.h"

/**
 * struct qc_words - what an L2 table says of a guest cluster
 * @entry: the entry, host byte order
 * @bitmap: of the subclusters; 0 without extended L2
 */
struct qc_words {
	__u64 entry;
	__u64 bitmap;
};

/**
 * qc_words_read() - read an extended L2 entry that may be changing
 * @words: where it is
 * @w: result
 *
 * Context: RCU read section, or meta_lock; takes no lock, does not sleep.
 */
static inline void qc_words_read(const __be64 *words, struct qc_words *w)
{
	__be64 entry;

	do {
		/* In this order, pairs with qc_words_write() */
		entry = smp_load_acquire(&words[0]);
		/* The same: before the entry is read again */
		w->bitmap = __be64_to_cpu(smp_load_acquire(&words[1]));
		w->entry = __be64_to_cpu(entry);
	} while (entry != READ_ONCE(words[0]) ||
		 (!(w->entry & (QCOW2_HOST_MASK | QCOW2_OFLAG_COMPRESSED)) &&
		  (w->bitmap & QCOW2_BITMAP_ALLOC)));
}

/**
 * qc_words_write() - change an extended L2 entry
 * @words: where it is
 * @old: what is there
 * @new: what it becomes
 *
 * Context: meta_lock.
 */
static inline void qc_words_write(__be64 *words, const struct qc_words *old,
				  const struct qc_words *new)
{
	int entry_last = (old->entry & QCOW2_OFLAG_COMPRESSED) ||
		!(new->entry & QCOW2_HOST_MASK);
	__be64 entry = __cpu_to_be64(new->entry);
	__be64 bitmap = __cpu_to_be64(new->bitmap);

	/* Who sees it sees earlier changes: pairs with qc_words_read() */
	smp_store_release(&words[entry_last], entry_last ? bitmap : entry);
	/* Who sees it sees the first store: pairs with qc_words_read() */
	smp_store_release(&words[!entry_last], entry_last ? entry : bitmap);
}

#endif /* DM_QCOW2_WORDS_H */
