/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Discarding and zeroing parts of a device.
 *
 * Without memory from shared pools: blkdev_issue_zeroout() and its like take
 * bios from a pool that the file systems above us may have emptied.
 */
#ifndef DM_QCOW2_ZERO_H
#define DM_QCOW2_ZERO_H

#include <linux/blk_types.h>

/**
 * qc_device_drop() - an I/O without data
 * @bdev: device
 * @op: REQ_OP_DISCARD or REQ_OP_WRITE_ZEROES, with flags
 * @offset: bytes, sector aligned
 * @len: bytes, sector aligned, less than 4 GiB
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_device_drop(struct block_device *bdev, blk_opf_t op, u64 offset,
		   u64 len);

/**
 * qc_device_zero() - write zeroes
 * @bdev: device
 * @offset: bytes, sector aligned
 * @len: bytes, sector aligned
 * @unmap: the device may give the space back; else it keeps or gets it
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_device_zero(struct block_device *bdev, u64 offset, u64 len, bool unmap);

#endif /* DM_QCOW2_ZERO_H */
