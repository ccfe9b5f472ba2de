/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Compressed clusters: reading and decompressing them, and a cache of those
 * that were decompressed lately.
 *
 * The cache is one for all images.  Its key is an image and an L2 entry: what
 * compressed data says cannot change while an image is in use, since nobody
 * writes compressed data and host clusters that an entry refers to are not
 * reused before all I/O to them has ended (the epoch that a lookup enters
 * covers the decompression as well).
 *
 * Who finds a cluster being decompressed waits for that.  Different clusters
 * are decompressed beside each other, on as many CPUs as there are callers.
 *
 * The cache is a part of the metadata memory, a quarter of the limit at the
 * most, and shrinks under memory pressure.  Without any memory a cluster is
 * decompressed in the caller's reserve and not cached.  A reserve belongs to
 * one target: what a target waits for is below it, so targets stacked over each
 * other never wait in a circle.
 *
 * Locks: the cache's spinlock is a leaf.  The reserve's mutex is outside all
 * I/O of its target, inside of range locks.
 */
#ifndef DM_QCOW2_UNPACK_H
#define DM_QCOW2_UNPACK_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>

struct bio;
struct qc_image;
struct qc_unpacked;

/**
 * struct qc_workspace - what it takes to decompress a cluster
 * @node: in the list of idle ones
 * @in: compressed data
 * @work: of the decompressor
 * @in_bytes: size of @in
 * @work_bytes: size of @work
 */
struct qc_workspace {
	struct list_head node;
	void *in;
	void *work;
	u32 in_bytes;
	u32 work_bytes;
};

/**
 * struct qc_reserve - buffers for when memory is gone
 * @lock: who uses them
 * @ws: to decompress with
 * @out: a decompressed cluster
 * @out_bytes: size of @out
 */
struct qc_reserve {
	struct mutex lock;		/* ws, out */
	struct qc_workspace ws;
	void *out;
	u32 out_bytes;
};

/**
 * struct qc_unpack - a decompressed cluster in use
 * @data: its contents, a cluster's worth
 * @cached: in the cache, or NULL
 * @reserve: @data is in there, or NULL
 */
struct qc_unpack {
	void *data;
	struct qc_unpacked *cached;
	struct qc_reserve *reserve;
};

/** qc_reserve_init() - make an empty reserve */
void qc_reserve_init(struct qc_reserve *r);

/**
 * qc_reserve_fit() - make a reserve large enough for an image
 * @r: the reserve, not in use
 * @img: the image, header read
 *
 * Context: may sleep.
 * Return: 0 or -ENOMEM.
 */
int qc_reserve_fit(struct qc_reserve *r, const struct qc_image *img);

/** qc_reserve_exit() - free the buffers; may sleep */
void qc_reserve_exit(struct qc_reserve *r);

/**
 * qc_unpack_get() - get the contents of a compressed cluster
 * @img: the image
 * @entry: its L2 entry, from a lookup; the lookup's epoch is held
 * @reserve: of the calling target
 * @u: result; qc_unpack_put() is due, after no more waiting than for I/O of
 *	the target's own devices
 *
 * Context: may sleep; no lock held but range locks.
 * Return: 0, or a negative error, logged: -EIO where the data is not sound.
 */
int qc_unpack_get(struct qc_image *img, u64 entry, struct qc_reserve *reserve,
		  struct qc_unpack *u);

/**
 * qc_unpack_find() - get the contents if they are in the cache
 * @img: the image
 * @entry: its L2 entry, from a lookup; the lookup's epoch is held
 * @u: result; qc_unpack_put() is due
 *
 * Context: process context, does not sleep.
 * Return: whether they are.
 */
bool qc_unpack_find(struct qc_image *img, u64 entry, struct qc_unpack *u);

/**
 * qc_unpack_put() - the contents are not used any more
 * @u: from qc_unpack_get() or qc_unpack_find()
 *
 * Context: process context.
 */
void qc_unpack_put(struct qc_unpack *u);

/**
 * qc_unpack_to_bio() - copy a part of a cluster into a part of a bio
 * @u: the cluster
 * @from: offset in it in bytes
 * @bio: a read
 * @skip: bytes of the bio to leave out
 * @len: bytes
 *
 * Context: any.
 */
void qc_unpack_to_bio(const struct qc_unpack *u, u32 from, struct bio *bio,
		      u32 skip, u32 len);

/**
 * qc_unpack_drop() - forget what the cache has of an image
 * @img: the image
 *
 * Context: may sleep.
 */
void qc_unpack_drop(struct qc_image *img);

int qc_unpack_init(void);
void qc_unpack_exit(void);

#endif /* DM_QCOW2_UNPACK_H */
