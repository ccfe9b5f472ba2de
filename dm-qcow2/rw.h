/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading a device into the kernel's memory, and writing it from there.
 */
#ifndef DM_QCOW2_RW_H
#define DM_QCOW2_RW_H

#include <linux/blk_types.h>

/**
 * qc_device_rw() - read or write, and wait
 * @bdev: device
 * @op: REQ_OP_READ or REQ_OP_WRITE, with flags
 * @offset: bytes, aligned to logical blocks
 * @buf: from kvmalloc() or pages, aligned to sectors
 * @len: bytes, aligned to logical blocks
 *
 * Needs no memory.
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
int qc_device_rw(struct block_device *bdev, blk_opf_t op, u64 offset,
		 void *buf, u32 len);

#endif /* DM_QCOW2_RW_H */
