// SPDX-License-Identifier: GPL-2.0-only
/*
 * Room in the refcounts of an image for one more internal snapshot.
 */
#include "refroom.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

/* Of more bits than eight nobody has used them up. */
#define ORDER_MAX	3

/**
 * struct refroom - a look at what a table leads to
 * @image: the image
 * @clusters: of its file
 * @more: for each of them, how many references there would be more
 * @table: the refcount table
 * @entries: of @table
 * @block: the refcount block that was read last, or NULL
 * @index: of that block in @table
 */
struct refroom {
	const struct image *image;
	uint64_t clusters;
	uint8_t *more;
	__be64 *table;
	uint64_t entries;
	void *block;
	uint64_t index;
};

static int room_open(const struct image *image, struct refroom *room)
{
	const struct qcow2_header *h = &image->header;
	size_t bytes = (size_t)h->refcount_table_clusters << h->cluster_bits;

	memset(room, 0, sizeof(*room));
	room->image = image;
	room->clusters = (image->length + h->cluster_size - 1) >>
		h->cluster_bits;
	room->entries = bytes / sizeof(*room->table);
	room->table = image_read(image, bytes, h->refcount_table_offset);
	if (!room->table)
		return -EIO;
	room->more = calloc(room->clusters, 1);
	return room->more ? 0 : report_memory();
}

static void room_close(struct refroom *room)
{
	free(room->more);
	free(room->table);
	free(room->block);
}

static int refcount_of(struct refroom *room, uint64_t cluster, uint64_t *count)
{
	const struct qcow2_header *h = &room->image->header;
	uint64_t index = cluster >> h->refblock_bits, entry;

	*count = 0;
	entry = index < room->entries ? __be64_to_cpu(room->table[index]) &
		QCOW2_REFTABLE_OFFSET_MASK : 0;
	if (!entry)
		return 0;
	if (!room->block || room->index != index) {
		free(room->block);
		room->block = image_read(room->image, h->cluster_size, entry);
		room->index = index;
	}
	if (!room->block)
		return -EIO;
	*count = qcow2_refcount_get(room->block,
				    cluster & ((1ULL << h->refblock_bits) - 1),
				    h->refcount_order);
	return 0;
}

/* Return: 1 if one more fits, 0, or an error, reported */
static int refer_cluster(struct refroom *room, uint64_t cluster)
{
	unsigned int bits = 1U << room->image->header.refcount_order;
	uint64_t most = (1ULL << bits) - 1, count;
	int r;

	if (cluster >= room->clusters)
		return 1;
	r = refcount_of(room, cluster, &count);
	if (r < 0)
		return r;
	if (count + room->more[cluster] >= most)
		return 0;
	room->more[cluster]++;
	return 1;
}

/* Compressed clusters that share a host cluster count there one by one. */
static int refer_packed(struct refroom *room, uint64_t entry)
{
	const struct qcow2_header *h = &room->image->header;
	uint32_t i, count;
	__u64 first;
	int r = 1;

	count = qcow2_packed_clusters(h, entry, &first);
	for (i = 0; i < count && r > 0; i++)
		r = refer_cluster(room, first + i);
	return r;
}

static int refer(struct refroom *room, uint64_t offset)
{
	return refer_cluster(room,
			     offset >> room->image->header.cluster_bits);
}

static int refer_l2(struct refroom *room, uint64_t offset)
{
	const struct qcow2_header *h = &room->image->header;
	uint32_t step = h->l2_entry_bytes / sizeof(__be64), i;
	__be64 *table = image_read(room->image, h->cluster_size, offset);
	uint64_t entry;
	int r = 1;

	if (!table)
		return -EIO;
	for (i = 0; i < 1U << h->l2_bits && r > 0; i++) {
		entry = __be64_to_cpu(table[i * step]);
		if (entry & QCOW2_OFLAG_COMPRESSED)
			r = refer_packed(room, entry);
		else if (entry & QCOW2_OFFSET_MASK)
			r = refer(room, entry & QCOW2_OFFSET_MASK);
	}
	free(table);
	return r;
}

static int refer_l1(struct refroom *room, const __be64 *l1, uint32_t l1_size)
{
	uint64_t offset;
	uint32_t i;
	int r = 1;

	for (i = 0; i < l1_size && r > 0; i++) {
		offset = __be64_to_cpu(l1[i]) & QCOW2_OFFSET_MASK;
		if (!offset)
			continue;
		r = refer(room, offset);
		if (r > 0)
			r = refer_l2(room, offset);
	}
	return r;
}

int refroom_check(const struct image *image, uint64_t l1_offset,
		  uint32_t l1_size)
{
	struct refroom room;
	__be64 *l1;
	int r;

	if (image->header.refcount_order > ORDER_MAX || !l1_size ||
	    l1_size > QCOW2_MAX_L1_BYTES / sizeof(*l1))
		return 1;
	l1 = image_read(image, l1_size * sizeof(*l1), l1_offset);
	if (!l1)
		return -EIO;
	r = room_open(image, &room);
	if (!r)
		r = refer_l1(&room, l1, l1_size);
	room_close(&room);
	free(l1);
	return r;
}
