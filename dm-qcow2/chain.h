/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A chain of images: guest range -> layer, kind, host range.
 *
 * Layer 0 is the top one.  Past its end a layer owns zeroes: it hides whatever
 * a longer layer below has there.
 */
#ifndef DM_QCOW2_CHAIN_H
#define DM_QCOW2_CHAIN_H

#include <linux/types.h>

#include "image.h"
#include "l2.h"

struct dm_dev;

/**
 * struct qc_layer - one image of a chain
 * @path: of the device, from the table line; only until it is open
 * @data_path: of the data device, or NULL; the same
 * @dev: as opened for the table
 * @data: device of the guest data, as well, or NULL
 * @bdev: where the guest data is: of @data, or of @dev
 * @img: the image, NULL for a raw layer
 * @raw: format
 * @bytes: virtual size
 */
struct qc_layer {
	const char *path;
	const char *data_path;
	struct dm_dev *dev;
	struct dm_dev *data;
	struct block_device *bdev;
	struct qc_image *img;
	bool raw;
	u64 bytes;
};

/**
 * struct qc_chain - layers, top first
 * @nr: how many
 * @layer: the layers; fixed while the target is active
 */
struct qc_chain {
	u32 nr;
	struct qc_layer *layer;
};

/**
 * struct qc_place - where a guest range is
 * @ext: kind, host range, length; never QC_MAP_NONE
 * @layer: layer that decided, NULL for zeroes past the end of a layer
 * @index: of the layer that decided, be it by its end; the number of layers
 *	for zeroes below all
 * @epoch: token of qc_epoch_enter() where @counted
 * @counted: qc_place_leave() is due after the I/O
 */
struct qc_place {
	struct qc_extent ext;
	struct qc_layer *layer;
	u32 index;
	unsigned int epoch;
	bool counted;
};

/**
 * qc_chain_lookup() - look up a guest range in the layers from @first down
 * @chain: the chain
 * @first: index of the first layer to ask
 * @guest: byte offset
 * @len: bytes wanted, at least 1
 * @place: result; counted as I/O in flight where it is on a device
 *
 * The lookup of the hot path: a wait-free search a layer.
 *
 * Context: any, does not sleep.
 */
void qc_chain_lookup(struct qc_chain *chain, u32 first, u64 guest, u64 len,
		     struct qc_place *place);

/**
 * qc_chain_resolve() - as qc_chain_lookup(), reading metadata where needed
 * @chain: the chain
 * @first: index of the first layer to ask
 * @guest: byte offset
 * @len: bytes wanted, at least 1
 * @place: result: zeroes, data or compressed data
 *
 * Context: may sleep.
 * Return: 0 or a negative error; then nothing is counted.
 */
int qc_chain_resolve(struct qc_chain *chain, u32 first, u64 guest, u64 len,
		     struct qc_place *place);

/**
 * qc_place_leave() - the I/O to a place has ended
 * @place: from a lookup
 *
 * Context: any.
 */
static inline void qc_place_leave(struct qc_place *place)
{
	if (place->counted)
		qc_epoch_leave(place->layer->img, place->epoch);
}

#endif /* DM_QCOW2_CHAIN_H */
