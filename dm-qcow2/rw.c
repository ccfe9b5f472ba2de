// SPDX-License-Identifier: GPL-2.0-only
/*
 * Device I/O of the kernel's memory, see rw.h.
 */
#include <linux/bio.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>

#include "rw.h"

/* Pages of an I/O: what fits on the stack. */
#define RW_VECS		16

static struct page *page_of(void *buf)
{
	return is_vmalloc_addr(buf) ? vmalloc_to_page(buf) : virt_to_page(buf);
}

/* Returns how many bytes of the buffer the bio took. */
static u32 add_memory_pages(struct bio *bio, void *buf, u32 len)
{
	u32 done = 0;

	while (done < len && bio->bi_vcnt < RW_VECS) {
		u32 n = min_t(u32, len - done,
			      PAGE_SIZE - offset_in_page(buf + done));

		__bio_add_page(bio, page_of(buf + done), n,
			       offset_in_page(buf + done));
		done += n;
	}
	return done;
}

static int rw_some(struct block_device *bdev, blk_opf_t op, u64 offset,
		   void *buf, u32 len, u32 *done)
{
	struct bio_vec vecs[RW_VECS];
	struct bio bio;
	int err;

	bio_init(&bio, bdev, vecs, RW_VECS, op);
	bio.bi_iter.bi_sector = offset >> SECTOR_SHIFT;
	*done = add_memory_pages(&bio, buf, len);
	err = submit_bio_wait(&bio);
	bio_uninit(&bio);
	return err;
}

int qc_device_rw(struct block_device *bdev, blk_opf_t op, u64 offset,
		 void *buf, u32 len)
{
	bool alias = is_vmalloc_addr(buf);
	u32 pos, n;
	int err = 0;

	if (alias && op_is_write(op))
		flush_kernel_vmap_range(buf, len);
	for (pos = 0; pos < len && !err; pos += n)
		err = rw_some(bdev, op, offset + pos, buf + pos, len - pos, &n);
	if (alias && !op_is_write(op))
		invalidate_kernel_vmap_range(buf, len);
	return err;
}
