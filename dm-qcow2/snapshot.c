// SPDX-License-Identifier: GPL-2.0-only
/*
 * The snapshot table of an image, see snapshot.h.
 */
#include <linux/device-mapper.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "image.h"
#include "snapshot.h"

/* Most entries are shorter than this; none is longer: 40 + 1024 + 2 * 65535 */
#define ENTRY_USUAL	(4U * 1024)
#define ENTRY_MAX	(136U * 1024)

/* Read and decode the entry at @pos.  There may be 65536 of them. */
static int read_entry(struct qc_image *img, const struct qcow2_header *h,
		      void *buf, u64 pos, struct qcow2_snapshot *snap)
{
	struct qcow2_fault fault = {
		.field = "snapshot entry",
		.where = pos,
		.why = "longer than an entry can be",
	};
	u32 len = ENTRY_USUAL;
	int ret;

	ret = qc_image_read_bytes(img, pos, buf, len);
	if (ret)
		return ret;
	ret = qcow2_snapshot_decode(buf, len, pos, h, snap, &fault);
	if (ret > 0) {
		len = ENTRY_MAX;
		ret = qc_image_read_bytes(img, pos, buf, len);
		if (ret)
			return ret;
		ret = qcow2_snapshot_decode(buf, len, pos, h, snap, &fault);
	}
	if (ret) {
		DMERR("%pg: %s at %llu: %llu: %s; run qemu-img check -r all",
		      img->bdev, fault.field, fault.where, fault.value,
		      fault.why);
		return -EINVAL;
	}
	if (snap->l1_table_offset + (u64)snap->l1_size * 8 > img->dev_bytes) {
		DMERR("%pg: snapshot at %llu: its L1 table at %llu ends beyond the device",
		      img->bdev, pos, snap->l1_table_offset);
		return -EINVAL;
	}
	return 0;
}

int qc_snapshot_each(struct qc_image *img, const struct qcow2_header *h,
		     qc_snapshot_fn fn, void *data, u64 *table_bytes)
{
	u64 pos = h->snapshots_offset;
	struct qcow2_snapshot snap;
	void *buf = kvmalloc(ENTRY_MAX, GFP_KERNEL);
	u32 i;
	int ret = 0;

	if (!buf)
		return -ENOMEM;
	for (i = 0; i < h->nb_snapshots && !ret; i++) {
		ret = read_entry(img, h, buf, pos, &snap);
		if (!ret)
			ret = fn(img, &snap, buf, data);
		if (!ret)
			pos += snap.entry_len;
		if (pos - h->snapshots_offset > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
			ret = -EINVAL;
		cond_resched();
	}
	kvfree(buf);
	*table_bytes = pos - h->snapshots_offset;
	return ret;
}

/* What qc_snapshot_apply() looks for, and what it found. */
struct search {
	const char *id;
	struct qcow2_snapshot snap;
};

static int match(struct qc_image *img, const struct qcow2_snapshot *snap,
		 const void *entry, void *data)
{
	struct search *s = data;

	if (strlen(s->id) != snap->id_len ||
	    memcmp(s->id, entry + snap->id_offset, snap->id_len))
		return 0;
	s->snap = *snap;
	return 1;
}

int qc_snapshot_apply(struct qc_image *img, struct qcow2_header *h,
		      const char *id)
{
	struct search s = { .id = id };
	u64 bytes;
	int ret = qc_snapshot_each(img, h, match, &s, &bytes);

	if (ret < 0)
		return ret;
	if (!ret) {
		DMERR("%pg: no internal snapshot has the ID %s", img->bdev, id);
		return -ENOENT;
	}
	/* Old images do not record the size: it was the same then. */
	if (s.snap.disk_size != QCOW2_NO_DISK_SIZE)
		h->size = s.snap.disk_size;
	h->l1_table_offset = s.snap.l1_table_offset;
	h->l1_size = s.snap.l1_size;
	if (h->size > 1ULL << 62 || qcow2_l1_entries(h, h->size) > h->l1_size) {
		DMERR("%pg: snapshot %s: its L1 table is too small for its size of %llu bytes",
		      img->bdev, id, h->size);
		return -EINVAL;
	}
	return 0;
}
