// SPDX-License-Identifier: GPL-2.0-only
/*
 * Discarding and zeroing parts of a device, see zero.h.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/sizes.h>

#include "zero.h"

/* Zeroes are written so many pages at a time... */
#define ZERO_VECS	16
/* ...or by an I/O without data, which has this limit. */
#define MAX_DROP_BYTES	SZ_1G

int qc_device_drop(struct block_device *bdev, blk_opf_t op, u64 offset,
		   u64 len)
{
	struct bio bio;
	int err;

	bio_init(&bio, bdev, NULL, 0, op);
	bio.bi_iter.bi_sector = offset >> SECTOR_SHIFT;
	bio.bi_iter.bi_size = len;
	err = submit_bio_wait(&bio);
	bio_uninit(&bio);
	return err;
}

static int write_zero_pages(struct block_device *bdev, u64 offset, u64 len)
{
	struct bio_vec vecs[ZERO_VECS];
	struct bio bio;
	int err;

	bio_init(&bio, bdev, vecs, ZERO_VECS, REQ_OP_WRITE);
	bio.bi_iter.bi_sector = offset >> SECTOR_SHIFT;
	while (len) {
		u32 n = min_t(u64, len, PAGE_SIZE);

		__bio_add_page(&bio, ZERO_PAGE(0), n, 0);
		len -= n;
	}
	err = submit_bio_wait(&bio);
	bio_uninit(&bio);
	return err;
}

int qc_device_zero(struct block_device *bdev, u64 offset, u64 len, bool unmap)
{
	blk_opf_t op = REQ_OP_WRITE_ZEROES | (unmap ? 0 : REQ_NOUNMAP);
	bool offload = bdev_write_zeroes_sectors(bdev);
	int err = 0;

	while (len && !err) {
		u64 n = min_t(u64, len, ZERO_VECS * PAGE_SIZE);

		/* Small ones cost less as data, but take space. */
		if (offload && (unmap || len > n)) {
			n = min_t(u64, len, MAX_DROP_BYTES);
			err = qc_device_drop(bdev, op, offset, n);
			if (err) {
				offload = false;
				err = 0;
				continue;
			}
		} else {
			err = write_zero_pages(bdev, offset, n);
		}
		offset += n;
		len -= n;
	}
	return err;
}
