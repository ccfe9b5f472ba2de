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
 * other never wait in a circle.  It is several clusters large, and most images
 * have no compressed clusters, which nothing tells before one is met: a target
 * makes its reserve when it meets the first one in its chain, of what the kernel
 * keeps for those who make memory free if there is no other, or becomes active
 * over an image where one has been met.  Should even that be gone, what needs the
 * cluster waits for memory, without holding anything, as it does for space.
 *
 * Locks: the cache's spinlock is a leaf.  The reserve's mutex is outside all
 * I/O of its target, inside of range locks; sizes are read without it, to see
 * whether it is worth taking.
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
 * @lock: who uses or makes them; held across the I/O and the copying
 * @ws: to decompress with
 * @out: a decompressed cluster
 * @out_bytes: size of @out; 0: nothing was made yet
 * @want_in: bytes that @ws needs for the images of the target's chain...
 * @want_work: as well
 * @want_out: ...and @out; these three change while no I/O is in flight
 */
struct qc_reserve {
	struct mutex lock;		/* ws, out, out_bytes */
	struct qc_workspace ws;
	void *out;
	u32 out_bytes;
	u32 want_in;
	u32 want_work;
	u32 want_out;
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
 * qc_reserve_want() - a reserve is to be large enough for an image
 * @r: the reserve, of a target without I/O in flight
 * @img: the image, header read
 */
void qc_reserve_want(struct qc_reserve *r, const struct qc_image *img);

/**
 * qc_reserve_ready() - is a reserve as large as is wanted?
 * @r: the reserve
 *
 * Context: any.
 */
static inline bool qc_reserve_ready(const struct qc_reserve *r)
{
	return READ_ONCE(r->out_bytes) >= r->want_out &&
		READ_ONCE(r->ws.in_bytes) >= r->want_in &&
		READ_ONCE(r->ws.work_bytes) >= r->want_work;
}

/**
 * qc_reserve_make() - make a reserve as large as is wanted, if there is memory
 * @r: the reserve
 *
 * Context: may sleep, but does not wait for who uses it.
 */
void qc_reserve_make(struct qc_reserve *r);

/** qc_reserve_exit() - free the buffers of a reserve not in use; may sleep */
void qc_reserve_exit(struct qc_reserve *r);

/**
 * qc_unpack_get() - get the contents of a compressed cluster
 * @img: the image
 * @entry: its L2 entry, from a lookup; the lookup's epoch is held
 * @reserve: of the calling target; made if need be
 * @u: result; qc_unpack_put() is due, after no more waiting than for I/O of
 *	the target's own devices
 *
 * Context: may sleep; no lock held but range locks.
 * Return: 0, or a negative error: -EAGAIN: no memory now, try again later; others
 * are logged, -EIO where the data is not sound.
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
