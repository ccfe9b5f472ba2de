/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A set of host clusters: those that hold metadata of an image.
 *
 * An L2 entry that points to one of them would let the guest write over
 * metadata; an allocator that returns one would do the same.  The set is open
 * addressed: a 64 TiB image has 160,000 members, 2.5 MiB here.
 *
 * Context: the caller serialises; the image's meta_lock, or single-threaded
 * while the image is activated.  qc_metaset_add() may sleep.
 */
#ifndef DM_QCOW2_METASET_H
#define DM_QCOW2_METASET_H

#include <linux/types.h>

struct qc_metaset {
	u64 *slot;		/* cluster + 1; 0 is free */
	unsigned int bits;	/* log2 of the slots */
	unsigned int used;
};

/**
 * qc_metaset_add() - add a cluster
 * @set: the set
 * @cluster: host cluster
 *
 * Return: 0, -EEXIST if it was there, -EFBIG if the set is as large as one may be,
 * -ENOMEM.
 */
int qc_metaset_add(struct qc_metaset *set, u64 cluster);

/**
 * qc_metaset_del() - take out a cluster, if it is there
 * @set: the set
 * @cluster: host cluster
 */
void qc_metaset_del(struct qc_metaset *set, u64 cluster);

/** qc_metaset_has() - is a cluster in the set? */
bool qc_metaset_has(const struct qc_metaset *set, u64 cluster);

/** qc_metaset_clear() - empty the set and free its memory */
void qc_metaset_clear(struct qc_metaset *set);

#endif /* DM_QCOW2_METASET_H */
