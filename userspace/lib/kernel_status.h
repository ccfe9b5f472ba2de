/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The status line of the kernel target; its words are described in
 * Documentation/dm-qcow2.rst.
 */
#ifndef KERNEL_STATUS_H
#define KERNEL_STATUS_H

#include <stdbool.h>
#include <stdint.h>

/**
 * struct kernel_status - a status line
 * @mode: "rw", "ro", "no_space" or "failed"
 * @cluster_sectors: cluster size of the top image in sectors, 0 if it is raw
 * @has_space: @used_clusters and @total_clusters are known
 * @used_clusters: index past the last host cluster in use of the top image
 * @total_clusters: clusters its device has room for
 * @dirty: metadata blocks not yet durable
 * @memory_kib: metadata memory of all images
 * @memory_limit_kib: its limit
 * @commits: commits so far
 * @allocated: clusters allocated so far
 * @copied: clusters copied or filled so far
 * @layers: number of layers
 * @reason: "-", or why the mode is not what was asked for
 * @mirror: "-", "mirror" or "mirror_failed"
 */
struct kernel_status {
	char mode[32];
	uint64_t cluster_sectors;
	bool has_space;
	uint64_t used_clusters;
	uint64_t total_clusters;
	uint64_t dirty;
	uint64_t memory_kib;
	uint64_t memory_limit_kib;
	uint64_t commits;
	uint64_t allocated;
	uint64_t copied;
	uint64_t layers;
	char reason[64];
	char mirror[32];
};

/**
 * kernel_status_read() - ask the kernel
 * @name: device
 * @status: result
 *
 * Return: false (unreported) if the line is not understood.
 */
bool kernel_status_read(const char *name, struct kernel_status *status);

/** kernel_status_clean() - is everything written, and nothing failed? */
bool kernel_status_clean(const struct kernel_status *status);

#endif /* KERNEL_STATUS_H */
