// SPDX-License-Identifier: GPL-2.0-only
/*
 * Persistent dirty bitmaps, see bitmaps.h.
 */
#include <linux/device-mapper.h>
#include <linux/slab.h>

#include "bitmaps.h"
#include "image.h"

/* Extensions are small; what follows them in the first cluster is a name. */
#define HEADER_AREA_BYTES	(64U << 10)

static int bad(struct qc_image *img, const struct qcow2_fault *fault)
{
	DMERR("%pg: %s at %llu: %llu: %s; not fit for writing",
	      img->bdev, fault->field, fault->where, fault->value, fault->why);
	return -EINVAL;
}

/* Returns 1 where there is a bitmaps extension, 0 where not. */
static int find_directory(struct qc_image *img, struct qcow2_bitmaps *bitmaps)
{
	u32 len = min(img->h.cluster_size, HEADER_AREA_BYTES);
	u32 offset = img->h.header_length;
	struct qcow2_fault fault;
	struct qcow2_ext ext;
	void *buf = kvmalloc(len, GFP_KERNEL);
	int ret;

	if (!buf)
		return -ENOMEM;
	ret = qc_image_read_bytes(img, 0, buf, len);
	while (!ret) {
		int more = qcow2_ext_next(buf, len, offset, &img->h, &ext,
					  &fault);

		if (more <= 0) {
			ret = more ? bad(img, &fault) : 0;
			break;
		}
		if (ext.type == QCOW2_EXT_BITMAPS)
			ret = qcow2_bitmaps_decode(buf + ext.data_offset, &ext,
						   &img->h, bitmaps, &fault) ?
				bad(img, &fault) : 1;
		offset = ext.next_offset;
	}
	kvfree(buf);
	return ret;
}

static int mark_entry(struct qc_image *img, u64 where, u32 flags)
{
	__be32 disk = cpu_to_be32(flags | QCOW2_BITMAP_IN_USE);

	return qc_image_write_bytes(img, where, &disk, sizeof(disk));
}

/* All of them, before the first is marked */
static int check_all(struct qc_image *img, const struct qcow2_bitmaps *bitmaps,
		     const void *dir)
{
	struct qcow2_fault fault;
	struct qcow2_bitmap bitmap;
	const char *why;
	u64 pos = 0;
	u32 i;

	for (i = 0; i < bitmaps->nb; i++) {
		u64 where = bitmaps->directory_offset + pos;

		if (qcow2_bitmap_decode(dir + pos,
					bitmaps->directory_size - pos, where,
					&bitmap, &fault))
			return bad(img, &fault);
		why = qcow2_bitmap_check(&img->h, &bitmap);
		if (why) {
			DMERR("%pg: the bitmap whose entry is at %llu %s: not fit for writing",
			      img->bdev, where, why);
			return -EROFS;
		}
		pos += bitmap.entry_len;
	}
	if (pos == bitmaps->directory_size)
		return 0;
	DMERR("%pg: the bitmap directory at %llu is longer than its entries: not fit for writing",
	      img->bdev, bitmaps->directory_offset);
	return -EROFS;
}

static int mark_all(struct qc_image *img, const struct qcow2_bitmaps *bitmaps,
		    const void *dir)
{
	struct qcow2_fault fault;
	struct qcow2_bitmap bitmap;
	u64 pos = 0;
	u32 i;

	for (i = 0; i < bitmaps->nb; i++) {
		u64 where = bitmaps->directory_offset + pos;
		int err;

		if (qcow2_bitmap_decode(dir + pos,
					bitmaps->directory_size - pos, where,
					&bitmap, &fault))
			return bad(img, &fault);
		if (!(bitmap.flags & QCOW2_BITMAP_IN_USE)) {
			err = mark_entry(img, where + bitmap.flags_offset,
					 bitmap.flags);
			if (err)
				return err;
		}
		pos += bitmap.entry_len;
	}
	return 0;
}

int qc_bitmaps_mark_in_use(struct qc_image *img)
{
	struct qcow2_bitmaps bitmaps;
	void *dir;
	int ret;

	ret = find_directory(img, &bitmaps);
	if (ret <= 0)
		return ret;
	if (bitmaps.directory_offset + bitmaps.directory_size >
	    img->dev_bytes) {
		DMERR("%pg: the bitmap directory at %llu ends beyond the device",
		      img->bdev, bitmaps.directory_offset);
		return -EINVAL;
	}
	dir = kvmalloc(bitmaps.directory_size, GFP_KERNEL);
	if (!dir)
		return -ENOMEM;
	ret = qc_image_read_bytes(img, bitmaps.directory_offset, dir,
				  bitmaps.directory_size);
	if (!ret)
		ret = check_all(img, &bitmaps, dir);
	if (!ret)
		ret = mark_all(img, &bitmaps, dir);
	kvfree(dir);
	return ret;
}
