// SPDX-License-Identifier: GPL-2.0-only
/*
 * A chain of images, see chain.h.
 */
#include "chain.h"

static void lookup_layer(struct qc_layer *layer, bool top, u64 guest, u64 len,
			 struct qc_extent *ext)
{
	if (layer->img) {
		qc_l2_lookup(layer->img, guest, len, ext);
		return;
	}
	ext->map = top ? QC_MAP_OWNED : QC_MAP_DATA;
	ext->safe = true;
	ext->host = guest;
	ext->len = len;
}

static bool on_device(enum qc_map map)
{
	return map == QC_MAP_DATA || map == QC_MAP_OWNED ||
		map == QC_MAP_PACKED;
}

void qc_chain_lookup(struct qc_chain *chain, u32 first, u64 guest, u64 len,
		     struct qc_place *place)
{
	struct qc_extent *ext = &place->ext;
	u32 i;

	place->counted = false;
	rcu_read_lock();
	for (i = first; i < chain->nr; i++) {
		struct qc_layer *layer = &chain->layer[i];

		if (guest >= layer->bytes)
			break;
		len = min(len, layer->bytes - guest);
		if (i + 1 < chain->nr && layer->img &&
		    qc_l2_passes(layer->img, guest, &len))
			continue;
		lookup_layer(layer, i == 0, guest, len, ext);
		len = ext->len;
		if (ext->map == QC_MAP_NONE)
			continue;
		place->layer = layer;
		place->index = i;
		if (layer->img && on_device(ext->map)) {
			place->epoch = qc_epoch_enter(layer->img);
			place->counted = true;
		}
		rcu_read_unlock();
		return;
	}
	rcu_read_unlock();
	place->layer = NULL;
	place->index = i;
	ext->map = QC_MAP_ZERO;
	ext->safe = true;
	ext->host = 0;
	ext->len = len;
}

int qc_chain_resolve(struct qc_chain *chain, u32 first, u64 guest, u64 len,
		     struct qc_place *place)
{
	for (;;) {
		int err;

		qc_chain_lookup(chain, first, guest, len, place);
		if (place->ext.map == QC_MAP_BAD) {
			qc_l2_complain(place->layer->img, guest);
			return -EIO;
		}
		if (place->ext.map != QC_MAP_MISS)
			return 0;
		err = qc_l2_load(place->layer->img, guest);
		if (err)
			return err;
	}
}
