// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocation and copy-on-write, see piece.h.
 */
#include <linux/device-mapper.h>
#include <linux/mm.h>

#include "io.h"
#include "piece.h"
#include "rw.h"
#include "zero.h"

/* Pages that are copied at once */
#define COPY_ORDER	4

/* Copy-on-write */

/* As many pages in a row as there are, or NULL: then @order is that of one */
static struct page *copy_pages(unsigned int *order)
{
	struct page *page;

	for (*order = COPY_ORDER; ; (*order)--) {
		page = alloc_pages(GFP_NOWAIT | __GFP_NOWARN | __GFP_NORETRY,
				   *order);
		if (page || !*order)
			return page;
	}
}

static int copy_data(struct qc_target *t, const struct qc_place *place,
		     u64 host)
{
	u64 left = place->ext.len;
	u64 from = place->ext.host;
	unsigned int order;
	struct page *page;
	void *buf;
	int err = 0;

	page = copy_pages(&order);
	if (!page)
		mutex_lock(&t->copy_lock);
	buf = page ? page_address(page) : t->copy_buf;
	while (left && !err) {
		u32 n = min_t(u64, left, PAGE_SIZE << order);

		err = qc_device_rw(place->layer->bdev, REQ_OP_READ, from, buf,
				   n);
		if (!err)
			err = qc_device_rw(t->top->data_bdev, REQ_OP_WRITE,
					   host, buf, n);
		from += n;
		host += n;
		left -= n;
	}
	if (page)
		__free_pages(page, order);
	else
		mutex_unlock(&t->copy_lock);
	return err;
}

static int copy_packed(struct qc_target *t, const struct qc_place *place,
		       u64 host)
{
	struct qc_unpack u;
	int err = qc_unpack_place(t, place, &u);

	if (err)
		return err;
	err = qc_device_rw(t->top->data_bdev, REQ_OP_WRITE, host,
			   u.data + place->ext.host, place->ext.len);
	qc_unpack_put(&u);
	return err;
}

static int write_zeroes(struct qc_target *t, u64 host, u64 len)
{
	return qc_device_zero(t->top->data_bdev, host, len, false);
}

static int copy_place(struct qc_target *t, const struct qc_place *place,
		      u64 host, bool virgin)
{
	switch (place->ext.map) {
	case QC_MAP_ZERO:
		return virgin ? 0 : write_zeroes(t, host, place->ext.len);
	case QC_MAP_PACKED:
		return copy_packed(t, place, host);
	default:
		return copy_data(t, place, host);
	}
}

/*
 * Fill a part of a new cluster with what the guest reads there now: the old
 * contents, of whatever layer.  Never leaves what the device happened to hold.
 */
static int fill_old(struct qc_target *t, u64 guest, u64 len, u64 host,
		    bool virgin)
{
	while (len) {
		struct qc_place place;
		int err = qc_chain_resolve(&t->chain, 0, guest, len, &place);

		if (err)
			return err;
		err = copy_place(t, &place, host, virgin);
		qc_place_leave(&place);
		if (err)
			return err;
		guest += place.ext.len;
		host += place.ext.len;
		len -= place.ext.len;
	}
	return 0;
}

static int fill_new(struct qc_io *io, const struct qc_piece *p)
{
	u64 host = p->host + (p->pos - p->start);

	switch (p->fill) {
	case QC_FILL_DATA:
		return qc_part_write(io, p->pos, p->len, host);
	case QC_FILL_ZERO:
		return p->virgin ? 0 : write_zeroes(io->t, host, p->len);
	case QC_FILL_COPY:
		break;
	}
	return fill_old(io->t, p->pos, p->len, host, p->virgin);
}

static bool on_device(enum qc_map map)
{
	return map == QC_MAP_DATA || map == QC_MAP_OWNED;
}

/*
 * Subclusters beside those written: what is allocated in a cluster shared with
 * a snapshot, or one that the device ends in, has to be in the new host cluster as
 * well.  Nothing can drop the mapping, as the range is locked, so no epoch is
 * needed.
 */
static int keep_subclusters(struct qc_target *t, struct qc_piece *p, u64 guest,
			    u64 end)
{
	struct qc_place place = { .layer = &t->chain.layer[0] };
	int err = 0;

	while (guest < end && !err) {
		err = qc_l2_find(t->top, guest, end - guest, &place.ext);
		if (err)
			break;
		if (on_device(place.ext.map) || place.ext.beyond) {
			p->copies = true;
			err = copy_place(t, &place,
					 p->host + (guest - p->start),
					 p->virgin);
		}
		guest += place.ext.len;
	}
	return err;
}

static int keep_others(struct qc_target *t, struct qc_piece *p)
{
	u64 end = p->start + ((u64)p->clusters << t->top->h.cluster_bits);
	int err;

	if (p->in_place)
		return 0;
	err = keep_subclusters(t, p, p->start, p->from);
	return err ? err : keep_subclusters(t, p, p->to, end);
}

/* A data file may end in its last cluster: there is nothing behind. */
static u64 fill_end(const struct qc_image *img, const struct qc_piece *p)
{
	return img->external ? min(p->to, READ_ONCE(img->data_bytes)) : p->to;
}

static int fill_piece(struct qc_io *io, struct qc_piece *p)
{
	u64 end = fill_end(io->t->top, p);
	u64 tail = p->pos + p->len;
	int err;

	p->copies = p->pos > p->from || tail < end || p->fill == QC_FILL_COPY;
	err = keep_others(io->t, p);
	if (p->copies)
		atomic64_add(p->clusters, &io->t->top->nr_cow);
	if (!err)
		err = fill_old(io->t, p->from, p->pos - p->from,
			       p->host + (p->from - p->start), p->virgin);
	if (!err)
		err = fill_old(io->t, tail, end - tail,
			       p->host + (tail - p->start), p->virgin);
	return err ? err : fill_new(io, p);
}

/* Host clusters */

void qc_piece_bounds(const struct qc_image *img, struct qc_piece *p)
{
	u64 unit = p->whole ? img->h.cluster_size : qc_sub_size(img);

	p->from = round_down(p->pos, unit);
	p->to = round_up(p->pos + p->len, unit);
}

/* Give the piece host clusters; it may become shorter. */
static int piece_alloc(struct qc_image *img, struct qc_piece *p, u64 reserved,
		       struct qc_run *run)
{
	u32 bits = img->h.cluster_bits;
	int err;

	if (img->external) {
		/* Nothing to allocate: each cluster has its place. */
		p->host = p->start;
		p->in_place = true;
		p->virgin = false;
		qc_piece_bounds(img, p);
		return 0;
	}
	if (reserved) {
		/* A cluster that has its host cluster already. */
		run->start = reserved >> bits;
		run->count = 1;
		run->virgin = false;
	} else {
		err = qc_alloc(img, p->clusters, run);
		if (err)
			return err;
	}
	p->clusters = run->count;
	p->host = run->start << bits;
	p->in_place = reserved;
	/* Zeroes of the device are none through dm-crypt. */
	p->virgin = run->virgin && img->data_bdev == img->bdev;
	p->len = min(p->len, p->start + ((u64)p->clusters << bits) - p->pos);
	qc_piece_bounds(img, p);
	return reserved ? qc_alloc_reaches(img, p->host + (p->to - p->start)) :
		0;
}

int qc_piece_map(struct qc_image *img, const struct qc_piece *p,
		 struct qc_run *run)
{
	u64 done, mapped;
	int err;

	err = qc_l2_set(img, p->from, p->to - p->from, QC_L2_MAP, p->host,
			&done);
	if (!err || p->in_place)
		return err;
	mapped = (p->from + done - p->start) >> img->h.cluster_bits;
	run->start += mapped;
	run->count -= mapped;
	qc_alloc_undo(img, run);
	return err;
}

int qc_piece_write(struct qc_io *io, struct qc_piece *p, u64 reserved)
{
	struct qc_image *img = io->t->top;
	struct qc_run run;
	int err;

	err = qc_l2_make_writable(img, p->start);
	if (!err)
		err = piece_alloc(img, p, reserved, &run);
	if (err)
		return err;
	err = fill_piece(io, p);
	if (err) {
		if (!p->in_place)
			qc_alloc_undo(img, &run);
		return err;
	}
	return qc_piece_map(img, p, &run);
}
