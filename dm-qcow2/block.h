/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The metadata cache: parts of L1, L2, refcount table and refcount blocks.
 *
 * A block holds up to 4 KiB of a table in on-disk byte order.  A block is
 *
 *	clean		as on the device; L2 and refcount blocks may be evicted
 *	dirty		changed, on the dirty list: part of the next commit
 *	frozen		taken by the running commit, not copied for it yet
 *	in_commit	taken by the running commit, not durable yet
 *
 * A block can be dirty and in a commit at once.  The commit writes from a copy
 * made at the latest when a frozen block is about to change, so what is written
 * is the state at the freeze, and a change never waits for a commit.
 *
 * All functions need the image's meta_lock unless they say otherwise.
 */
#ifndef DM_QCOW2_BLOCK_H
#define DM_QCOW2_BLOCK_H

#include <linux/list.h>
#include <linux/rcupdate.h>
#include <linux/types.h>

struct qc_image;

/**
 * enum qc_table - what a block is a part of; the key of a block within
 * @QC_L1: block number in the active L1 table; always in memory, but for those that
 *	are all zero (the first one is, then, too: it is asked for most)
 * @QC_L2: guest offset >> slice_shift
 * @QC_RT: block number in the refcount table; always in memory when writing
 * @QC_RB: host cluster >> block_ref_bits
 * @QC_NR_TABLES: how many there are
 */
enum qc_table {
	QC_L1,
	QC_L2,
	QC_RT,
	QC_RB,
	QC_NR_TABLES,
};

#define QC_BLOCK_MAX_BYTES	4096
#define QC_FRONT		32

struct qc_block {
	__be64 *data;
	u64 host;			/* byte offset on the device */
	unsigned long key;
	enum qc_table table;
	bool dirty;
	bool frozen;
	bool in_commit;
	bool referenced;		/* set by lookups, without a lock */
	struct list_head dirty_node;
	struct list_head commit_node;
	struct list_head lru;		/* empty where always in memory */
	void *wb_data;			/* copy for the running commit */
	u64 wb_host;			/* where the commit writes it */
	struct qc_image *img;
	struct rcu_head rcu;
};

/**
 * qc_block_new() - allocate a block, not in the cache yet
 * @img: the image
 * @table: which table
 * @key: see enum qc_table
 * @host: byte offset on the device
 *
 * Makes the slot in the table as well, so that qc_block_insert() cannot fail.
 * Does not give up: where memory is gone it evicts and waits for commits.
 *
 * Context: may sleep; no meta_lock.
 */
struct qc_block *qc_block_new(struct qc_image *img, enum qc_table table,
			      unsigned long key, u64 host);

/**
 * qc_block_free() - free a block that was never inserted
 * @b: block or NULL
 */
void qc_block_free(struct qc_block *b);

/**
 * qc_block_insert() - put a block into the cache
 * @b: block from qc_block_new(), data filled
 *
 * There is no block of that key yet.
 */
void qc_block_insert(struct qc_block *b);

/**
 * qc_block_prepare() - a block is about to be changed
 * @b: the block
 *
 * Must come before the change: it saves the frozen state, and marks the block
 * dirty so that a lookup that sees the change sees the mark.
 *
 * Return: 0, or -EAGAIN where no memory is left for the copy: drop meta_lock,
 * qc_block_wait_copied(), start over.
 */
int qc_block_prepare(struct qc_block *b);

/**
 * qc_block_wait_copied() - wait until the running commit has copied its blocks
 * @img: the image
 *
 * Context: may sleep; no meta_lock.
 */
void qc_block_wait_copied(struct qc_image *img);

/**
 * qc_block_drop() - take a block out of the cache
 * @b: the block, not in a commit; what was changed in it is lost: of a failed
 *	image only
 */
void qc_block_drop(struct qc_block *b);

/**
 * qc_block_drop_all() - empty the cache of an image
 * @img: the image, with no commit running and no target active; dirty blocks
 *	of a failed image are lost
 *
 * Context: may sleep; no meta_lock.
 */
void qc_block_drop_all(struct qc_image *img);

/**
 * qc_cache_trim() - make room before a block is read
 * @img: image to take blocks from first
 *
 * What must be in memory may exceed the limit; then little else is kept.
 *
 * Context: may sleep; no meta_lock.
 */
void qc_cache_trim(struct qc_image *img);

/** qc_cache_used_kib() - metadata memory of all images; any context */
unsigned long qc_cache_used_kib(void);

/** qc_cache_limit_kib() - the limit for it; any context */
unsigned long qc_cache_limit_kib(void);

/**
 * qc_cache_dirty_limit() - dirty blocks an image may have before it commits
 * @img: the image
 */
unsigned int qc_cache_dirty_limit(const struct qc_image *img);

/**
 * qc_cache_account() - count memory that is metadata but not in blocks
 * @bytes: more or less
 */
void qc_cache_account(long bytes);

int qc_cache_init(void);
void qc_cache_exit(void);

#endif /* DM_QCOW2_BLOCK_H */
