// SPDX-License-Identifier: GPL-2.0-only
/*
 * Device-mapper target "qcow2": a chain of qcow2 images as a block device.
 *
 * This file is the glue: table lines, map(), status, suspend and resume.  What
 * map() cannot decide without waiting goes to write.c.
 */
#include <linux/bio.h>
#include <linux/device-mapper.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "commit.h"
#include "light.h"
#include "message.h"
#include "write.h"

#define MAX_LAYERS		1024
#define WORDS_PER_LAYER		3
/* What one bio may drop: whole clusters of any size. */
#define MAX_DROP_SECTORS	(SZ_2G >> SECTOR_SHIFT)
/* Small compressed clusters share a work item. */
#define UNPACK_BYTES		SZ_64K

/* Table lines */

static int parse_layer(struct qc_target *t, struct dm_arg_set *as,
		       struct qc_layer *layer, bool last)
{
	struct dm_target *ti = t->ti;
	const char *format = dm_shift_arg(as);
	const char *path = dm_shift_arg(as);
	const char *data = dm_shift_arg(as);
	bool raw = !strcmp(format, "raw");
	bool has_data = strcmp(data, "-");

	if (!raw && strcmp(format, "qcow2")) {
		ti->error = "Unknown image format: must be qcow2 or raw";
		return -EINVAL;
	}
	if (raw && !last) {
		ti->error = "A raw image has no layer below: it must be the last one";
		return -EINVAL;
	}
	if (raw && has_data) {
		ti->error = "A raw image is its own data: its data device must be -";
		return -EINVAL;
	}
	layer->path = path;
	layer->data_path = has_data ? data : NULL;
	layer->raw = raw;
	return 0;
}

/* Logical blocks in which a layer can be read and written. */
static u32 layer_unit(const struct qc_layer *layer)
{
	return max(bdev_logical_block_size(layer->dev->bdev),
		   bdev_logical_block_size(layer->bdev));
}

static bool shares_device(const struct qc_layer *a, const struct qc_layer *b)
{
	return a->dev->bdev == b->dev->bdev || a->dev->bdev == b->bdev ||
		a->bdev == b->dev->bdev || a->bdev == b->bdev;
}

/* Guest data would be written where the image has its header and tables. */
static bool is_mirror(const struct qc_target *t, const struct qc_layer *layer)
{
	struct block_device *bdev = t->mirror ? qc_mirror_bdev(t->mirror) : NULL;

	return bdev && !layer->raw &&
		(bdev == layer->dev->bdev || bdev == layer->bdev);
}

static int check_layer(struct qc_target *t, u32 index)
{
	const struct qc_layer *layer = &t->chain.layer[index];
	u32 i;

	if (layer->data && layer->bdev == layer->dev->bdev) {
		t->ti->error = "The data device of a layer is the image itself";
		return -EINVAL;
	}
	if (is_mirror(t, layer)) {
		t->ti->error = "The mirror is the device of a qcow2 layer";
		return -EINVAL;
	}
	if (layer_unit(layer) > layer_unit(&t->chain.layer[0])) {
		t->ti->error = "A lower layer has larger logical blocks than the top one";
		return -EINVAL;
	}
	for (i = 0; i < index; i++) {
		if (!shares_device(&t->chain.layer[i], layer))
			continue;
		t->ti->error = "The same device stands in the chain twice";
		return -EINVAL;
	}
	return 0;
}

static int parse_layers(struct qc_target *t, struct dm_arg_set *as)
{
	static const struct dm_arg count_arg = {
		1, MAX_LAYERS, "Invalid number of layers",
	};
	unsigned int nr, i;
	int err;

	err = dm_read_arg(&count_arg, as, &nr, &t->ti->error);
	if (err)
		return err;
	if (as->argc < nr * WORDS_PER_LAYER) {
		t->ti->error = "Too few words: <format> <device> <data device> for each layer";
		return -EINVAL;
	}
	t->chain.layer = kvcalloc(nr, sizeof(*t->chain.layer), GFP_KERNEL);
	if (!t->chain.layer) {
		t->ti->error = "No memory for the layers";
		return -ENOMEM;
	}
	for (i = 0; i < nr; i++) {
		t->chain.nr = i + 1;
		err = parse_layer(t, as, &t->chain.layer[i], i == nr - 1);
		if (err)
			return err;
	}
	return 0;
}

static int open_layer(struct qc_target *t, struct qc_layer *layer,
		      qc_mode_t mode)
{
	int err;

	err = dm_get_device(t->ti, layer->path, mode, &layer->dev);
	if (err) {
		t->ti->error = "Cannot open the device of a layer";
		return err;
	}
	layer->bdev = layer->dev->bdev;
	if (layer->data_path) {
		err = dm_get_device(t->ti, layer->data_path, mode,
				    &layer->data);
		if (err) {
			t->ti->error = "Cannot open the data device of a layer";
			return err;
		}
		layer->bdev = layer->data->bdev;
	}
	layer->path = NULL;
	layer->data_path = NULL;
	return 0;
}

/*
 * After the mirror, which may be a layer as well.  Where a table opens a device
 * once more, and for more than before, dm frees the struct dm_dev that it gave
 * out and makes another one (upgrade_mode() in dm-table.c).
 */
static int open_devices(struct qc_target *t)
{
	qc_mode_t mode = dm_table_get_mode(t->ti->table);
	u32 i;
	int err = 0;

	for (i = 0; i < t->chain.nr && !err; i++) {
		err = open_layer(t, &t->chain.layer[i], i ? QC_MODE_READ :
				 mode);
		if (!err)
			err = check_layer(t, i);
	}
	return err;
}

/* After the features: one of them says as what to look at the top image. */
static int open_images(struct qc_target *t)
{
	u32 i;

	if (t->snapshot && (t->writable || t->chain.layer[0].raw)) {
		t->ti->error = "An internal snapshot is read-only: use a read-only table";
		return -EINVAL;
	}
	for (i = 0; i < t->chain.nr; i++) {
		struct qc_layer *layer = &t->chain.layer[i];
		struct qc_image *img;

		if (layer->raw)
			continue;
		img = qc_image_get(layer->dev->bdev,
				   layer->data ? layer->bdev : NULL,
				   i ? NULL : t->snapshot, &t->ti->error);
		if (IS_ERR(img))
			return PTR_ERR(img);
		layer->img = img;
	}
	t->top = t->chain.layer[0].img;
	return 0;
}

static int parse_zero_from(struct qc_target *t, struct dm_arg_set *as,
			   unsigned int *left)
{
	const char *word;
	u64 sector;

	if (!*left) {
		t->ti->error = "zero_from needs a sector";
		return -EINVAL;
	}
	(*left)--;
	word = dm_shift_arg(as);
	if (kstrtou64(word, 10, &sector) || sector > U64_MAX >> SECTOR_SHIFT) {
		t->ti->error = "Invalid sector of zero_from";
		return -EINVAL;
	}
	t->zero_from = sector;
	return 0;
}

static int parse_snapshot(struct qc_target *t, struct dm_arg_set *as,
			  unsigned int *left)
{
	if (!*left || t->snapshot) {
		t->ti->error = "snapshot needs one ID";
		return -EINVAL;
	}
	(*left)--;
	t->snapshot = kstrdup(dm_shift_arg(as), GFP_KERNEL);
	return t->snapshot ? 0 : -ENOMEM;
}

static int parse_mirror(struct qc_target *t, struct dm_arg_set *as,
			unsigned int *left)
{
	struct qc_mirror *m;

	if (!*left || t->mirror || !t->writable) {
		t->ti->error = "mirror needs one device, and a writable table";
		return -EINVAL;
	}
	(*left)--;
	m = qc_mirror_create(t->ti, dm_shift_arg(as));
	if (IS_ERR(m))
		return PTR_ERR(m);
	t->mirror = m;
	t->explicit_zeroes = true;
	return 0;
}

/* Returns whether the word is a feature without arguments. */
static bool set_flag(struct qc_target *t, const char *word)
{
	const struct {
		const char *word;
		bool *flag;
	} flags[] = {
		{ "copy_on_read", &t->copy_on_read },
		{ "error_if_no_space", &t->error_if_no_space },
		{ "no_discard_passdown", &t->no_discard },
		{ "explicit_zeroes", &t->explicit_zeroes },
		{ "yield", &t->yields },
		{ "grow", &t->grow },
		{ "extend", &t->extend },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		if (strcmp(word, flags[i].word))
			continue;
		*flags[i].flag = true;
		return true;
	}
	return false;
}

static int parse_features(struct qc_target *t, struct dm_arg_set *as)
{
	static const struct dm_arg count_arg = {
		0, 16, "Invalid number of feature words",
	};
	unsigned int left;
	int err;

	if (!as->argc)
		return 0;
	err = dm_read_arg_group(&count_arg, as, &left, &t->ti->error);
	if (err)
		return err;
	while (left) {
		const char *word = dm_shift_arg(as);

		left--;
		if (set_flag(t, word))
			continue;
		if (!strcmp(word, "zero_from")) {
			err = parse_zero_from(t, as, &left);
			if (err)
				return err;
		} else if (!strcmp(word, "mirror")) {
			err = parse_mirror(t, as, &left);
			if (err)
				return err;
		} else if (!strcmp(word, "snapshot")) {
			err = parse_snapshot(t, as, &left);
			if (err)
				return err;
		} else {
			t->ti->error = "Unknown feature";
			return -EINVAL;
		}
	}
	if (as->argc) {
		t->ti->error = "Words left at the end of the line";
		return -EINVAL;
	}
	return 0;
}

static struct qc_writer *writer_of(struct qc_target *t, u32 index)
{
	return t->writer.ti && index == 0 ? &t->writer : NULL;
}

static void set_layer_sizes(struct qc_target *t)
{
	u32 i;

	for (i = 0; i < t->chain.nr; i++) {
		struct qc_layer *layer = &t->chain.layer[i];

		/* Sectors are the unit of I/O: the last one counts whole. */
		layer->bytes = layer->img ?
			round_up(qc_image_bytes(layer->img, writer_of(t, i)),
				 SECTOR_SIZE) :
			bdev_nr_bytes(layer->dev->bdev);
	}
}

/* What it takes to decompress when memory is gone, of whatever layer */
static int plan_reserve(struct qc_target *t)
{
	bool packed = false;
	u32 i;

	for (i = 0; i < t->chain.nr; i++) {
		struct qc_image *img = t->chain.layer[i].img;

		if (!img)
			continue;
		qc_reserve_want(&t->reserve, img);
		packed |= READ_ONCE(img->packed);
	}
	if (!packed)
		return 0;
	qc_reserve_make(&t->reserve);
	return qc_reserve_ready(&t->reserve) ? 0 : -ENOMEM;
}

/* Pieces that a copy makes must be whole logical blocks of the top image. */
static int check_blocks(struct qc_target *t)
{
	u32 unit = layer_unit(&t->chain.layer[0]);
	u32 i;

	for (i = 0; i < t->chain.nr; i++) {
		struct qc_layer *layer = &t->chain.layer[i];

		if (!(layer->bytes & (unit - 1)) &&
		    (!layer->img || 1U << layer->img->h.sub_bits >= unit))
			continue;
		DMERR("%pg: size and clusters must be multiples of the top's blocks of %u",
		      layer->dev->bdev, unit);
		t->ti->error = "A layer does not fit the logical blocks of the top one";
		return -EINVAL;
	}
	return 0;
}

/* What it does not own must read as zeroes, as the data file does there. */
static int check_raw_data(struct qc_target *t)
{
	if (!t->writable || !t->top || !t->top->raw_data || t->chain.nr == 1)
		return 0;
	t->ti->error = "An image with a raw external data file has no layer below";
	DMERR("%s", t->ti->error);
	return -EINVAL;
}

static int check_length(struct qc_target *t)
{
	u64 sectors = t->chain.layer[0].bytes >> SECTOR_SHIFT;

	if (t->ti->len <= sectors)
		return 0;
	DMERR("table length of %llu sectors exceeds the %llu of the top image",
	      (u64)t->ti->len, sectors);
	t->ti->error = "The table line is longer than the top image";
	return -EINVAL;
}

/* Another target writes the top image from now on. */
static void revoke(struct qc_writer *writer)
{
	struct qc_target *t = container_of(writer, struct qc_target, writer);

	WRITE_ONCE(t->writable, false);
	qc_write_drain(t);
}

static void set_writer(struct qc_target *t)
{
	if (!t->writable)
		return;
	t->writer.ti = t->ti;
	t->writer.zero_from = U64_MAX;
	if (t->zero_from != U64_MAX)
		t->writer.zero_from = t->zero_from << SECTOR_SHIFT;
	if (t->grow || t->extend)
		t->writer.grow_to = (u64)t->ti->len << SECTOR_SHIFT;
	t->writer.extend = t->extend;
	t->writer.no_discard = t->no_discard;
	t->writer.yields = t->yields;
	t->writer.revoke = revoke;
}

static void deactivate_layers(struct qc_target *t, u32 first)
{
	u32 i;

	for (i = first; i < t->chain.nr; i++)
		if (t->chain.layer[i].img)
			qc_image_deactivate(t->chain.layer[i].img,
					    writer_of(t, i));
}

static void qc_free_target(struct qc_target *t)
{
	u32 i;

	/* Another target of the table failed to resume: no postsuspend came. */
	if (t->active)
		deactivate_layers(t, 0);
	qc_write_exit(t);
	qc_mirror_destroy(t->mirror);
	for (i = 0; i < t->chain.nr; i++) {
		struct qc_layer *layer = &t->chain.layer[i];

		if (layer->img)
			qc_image_put(layer->img);
		if (layer->data)
			dm_put_device(t->ti, layer->data);
		if (layer->dev)
			dm_put_device(t->ti, layer->dev);
	}
	kvfree(t->chain.layer);
	kfree(t->snapshot);
	kfree(t);
}

static void setup_target(struct dm_target *ti, struct qc_target *t)
{
	ti->private = t;
	ti->per_io_data_size = sizeof(struct qc_io);
	ti->num_flush_bios = 1;
	ti->flush_supported = true;
	ti->num_discard_bios = 1;
	ti->discards_supported = true;
	ti->num_write_zeroes_bios = 1;
}

/*
 * <#layers> {<format> <device> <data device | ->}... [<#words> <feature>...]
 */
static int qc_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dm_arg_set as = { .argc = argc, .argv = argv };
	struct qc_target *t = kzalloc(sizeof(*t), GFP_KERNEL);
	int err;

	if (!t) {
		ti->error = "No memory for the target";
		return -ENOMEM;
	}
	t->ti = ti;
	t->zero_from = U64_MAX;
	t->writable = dm_table_get_mode(ti->table) & QC_MODE_WRITE;
	err = qc_write_init(t);
	if (err)
		ti->error = "No memory for the target";
	if (!err)
		err = parse_layers(t, &as);
	if (!err)
		err = parse_features(t, &as);
	if (!err)
		err = open_devices(t);
	if (!err)
		err = open_images(t);
	if (!err) {
		set_layer_sizes(t);
		/* Activation makes it as long as the line. */
		err = t->grow || t->extend ? 0 : check_length(t);
	}
	if (!err)
		err = check_blocks(t);
	if (!err)
		err = check_raw_data(t);
	if (err) {
		qc_free_target(t);
		return err;
	}
	set_writer(t);
	setup_target(ti, t);
	return 0;
}

static void qc_dtr(struct dm_target *ti)
{
	qc_free_target(ti->private);
}

/* The data path */

static int map_flush(struct qc_target *t, struct bio *bio)
{
	if (t->writable && t->top) {
		if (!qc_image_writable(t->top))
			return DM_MAPIO_KILL;
		if (atomic_read(&t->top->nr_unsafe)) {
			qc_commit_wait_bio(t->top, bio);
			return DM_MAPIO_SUBMITTED;
		}
	}
	/* All mappings are durable: the data alone remains to be flushed. */
	bio_set_dev(bio, t->chain.layer[0].bdev);
	return DM_MAPIO_REMAPPED;
}

static int defer(struct qc_target *t, struct bio *bio, u64 guest)
{
	qc_io_defer(t, bio, guest);
	return DM_MAPIO_SUBMITTED;
}

/*
 * A lower layer or a data device need not support NOWAIT where the device of the
 * top image does, which is the one that counts for the queue: then a work item
 * waits for it.
 *
 * And whoever hears of EAGAIN only when other parts of the bio are through cannot
 * do it again: io_uring sends a request to a thread that may wait only if it is
 * told at once.  So NOWAIT goes down with a bio that is in one piece.  Parts of
 * others need not even be unlucky: a device with 128 tags never has 129.
 */
static bool may_sleep_below(const struct bio *bio, const struct qc_place *place)
{
	return unlikely(bio->bi_opf & REQ_NOWAIT) &&
		(!bdev_nowait(place->layer->bdev) ||
		 place->ext.len < bio->bi_iter.bi_size);
}

/* Send a bio to where the lookup found its start; the rest comes again. */
static int remap(struct bio *bio, struct qc_io *io,
		 const struct qc_place *place)
{
	if (place->ext.len < bio->bi_iter.bi_size)
		dm_accept_partial_bio(bio, place->ext.len >> SECTOR_SHIFT);
	if (place->counted) {
		io->layer = place->layer;
		io->epoch = place->epoch;
	}
	bio_set_dev(bio, place->layer->bdev);
	bio->bi_iter.bi_sector = place->ext.host >> SECTOR_SHIFT;
	return DM_MAPIO_REMAPPED;
}

/*
 * A part of a compressed read, at most as much as fits into a work item of its
 * own: so many of them run beside each other.  What follows may be remapped, as
 * NOWAIT if the bio is: before that, no part may be under way.
 */
static int map_packed(struct qc_target *t, struct bio *bio,
		      struct qc_place *place, u64 guest)
{
	u32 unit = max_t(u32, place->layer->img->h.cluster_size, UNPACK_BYTES);
	u32 len = unit - (guest & (unit - 1));
	bool part = len < bio->bi_iter.bi_size;
	struct qc_unpack u;
	bool done;

	/* Who finds all in the cache has to have a reserve as well. */
	done = place->ext.len >= min(len, bio->bi_iter.bi_size) &&
		qc_reserve_ready(&t->reserve) &&
		qc_unpack_find(place->layer->img, place->ext.packed, &u);
	if (!done && part && (bio->bi_opf & REQ_NOWAIT)) {
		qc_place_leave(place);
		bio_wouldblock_error(bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (part)
		dm_accept_partial_bio(bio, len >> SECTOR_SHIFT);
	if (done)
		qc_unpack_to_bio(&u, place->ext.host, bio, 0,
				 bio->bi_iter.bi_size);
	qc_place_leave(place);
	if (!done)
		return defer(t, bio, guest);
	qc_unpack_put(&u);
	bio_endio(bio);
	return DM_MAPIO_SUBMITTED;
}

static int map_read(struct qc_target *t, struct bio *bio, struct qc_io *io,
		    u64 guest)
{
	struct qc_place place;

	qc_chain_lookup(&t->chain, 0, guest, bio->bi_iter.bi_size, &place);
	switch (place.ext.map) {
	case QC_MAP_OWNED:
	case QC_MAP_DATA:
	case QC_MAP_PACKED:
		if (qc_wants_populate(t, &place) ||
		    (place.ext.map != QC_MAP_PACKED &&
		     may_sleep_below(bio, &place))) {
			qc_place_leave(&place);
			return defer(t, bio, guest);
		}
		if (place.ext.map == QC_MAP_PACKED)
			return map_packed(t, bio, &place, guest);
		return remap(bio, io, &place);
	case QC_MAP_ZERO:
		if (place.ext.len < bio->bi_iter.bi_size)
			dm_accept_partial_bio(bio,
					      place.ext.len >> SECTOR_SHIFT);
		zero_fill_bio(bio);
		bio_endio(bio);
		return DM_MAPIO_SUBMITTED;
	default:
		return defer(t, bio, guest);
	}
}

static int map_write(struct qc_target *t, struct bio *bio, struct qc_io *io,
		     u64 guest)
{
	struct qc_place place;

	if (!qc_may_write(t))
		return DM_MAPIO_KILL;
	if (unlikely(t->mirror)) {
		qc_io_mirror(t, bio, guest);
		return DM_MAPIO_SUBMITTED;
	}
	qc_chain_lookup(&t->chain, 0, guest, bio->bi_iter.bi_size, &place);
	if (place.ext.map != QC_MAP_OWNED ||
	    place.layer != &t->chain.layer[0] || may_sleep_below(bio, &place)) {
		qc_place_leave(&place);
		return defer(t, bio, guest);
	}
	if (!place.ext.safe && qc_entry_first(t)) {
		qc_place_leave(&place);
		return defer(t, bio, guest);
	}
	if ((bio->bi_opf & REQ_FUA) && !place.ext.safe) {
		/* The commit that makes the mapping durable flushes as well. */
		bio->bi_opf &= ~REQ_FUA;
		io->wait_commit = true;
	}
	return remap(bio, io, &place);
}

static int qc_map(struct dm_target *ti, struct bio *bio)
{
	struct qc_target *t = ti->private;
	struct qc_io *io = dm_per_bio_data(bio, sizeof(*io));
	u64 guest = dm_target_offset(ti, bio->bi_iter.bi_sector) <<
		SECTOR_SHIFT;

	io->t = t;
	io->layer = NULL;
	io->wait_commit = false;
	io->mirrored = false;
	if (unlikely(bio->bi_opf & REQ_PREFLUSH))
		return map_flush(t, bio);
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return map_read(t, bio, io, guest);
	case REQ_OP_WRITE:
		return map_write(t, bio, io, guest);
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		if (!qc_may_write(t))
			return DM_MAPIO_KILL;
		if (!t->mirror)
			return defer(t, bio, guest);
		qc_io_mirror(t, bio, guest);
		return DM_MAPIO_SUBMITTED;
	default:
		return DM_MAPIO_KILL;
	}
}

static int qc_end_io(struct dm_target *ti, struct bio *bio,
		     blk_status_t *error)
{
	struct qc_target *t = ti->private;
	struct qc_io *io = dm_per_bio_data(bio, sizeof(*io));

	if (io->layer) {
		qc_epoch_leave(io->layer->img, io->epoch);
		io->layer = NULL;
	}
	if (unlikely(io->wait_commit)) {
		io->wait_commit = false;
		if (!*error) {
			qc_commit_wait_bio(t->top, bio);
			return DM_ENDIO_INCOMPLETE;
		}
	}
	if (unlikely(io->mirrored)) {
		io->mirrored = false;
		qc_mirror_leave(t->mirror, &io->mirror);
	}
	return DM_ENDIO_DONE;
}

/* Suspend and resume */

static void qc_presuspend(struct dm_target *ti)
{
	qc_write_presuspend(ti->private, dm_noflush_suspending(ti));
}

static void qc_presuspend_undo(struct dm_target *ti)
{
	qc_write_resume(ti->private);
}

/*
 * What the mirror has is durable before the next table counts on it: as its top
 * image, or as a lower layer whose zeroes allow to drop clusters above.  If the
 * mirror is to replace the top image, that one becomes an empty overlay of it:
 * whoever opens it after a crash reads what the device had.
 */
static void suspend_mirror(struct qc_target *t)
{
	/* Taken over: the image is another target's, and in use. */
	bool complete = qc_mirror_flush(t->mirror) && READ_ONCE(t->writable);
	struct qc_area area;

	if (!complete && t->retired.count)
		qc_edit_retire_undo(t->top, &t->retired);
	area = t->retired;
	t->retired.count = 0;
	deactivate_layers(t, 0);
	if (!area.count || t->top->mode == QC_FAILED)
		return;
	if (qc_edit_retire(t->top, &area))
		DMERR("%pg: cannot be made an empty overlay: do not use it again",
		      t->top->bdev);
}

static void qc_postsuspend(struct dm_target *ti)
{
	struct qc_target *t = ti->private;

	if (!t->active)
		return;
	t->active = false;
	if (t->mirror)
		suspend_mirror(t);
	else
		deactivate_layers(t, 0);
}

static u64 bytes_below(const struct qc_target *t)
{
	const struct qc_layer *below = &t->chain.layer[1];

	if (t->chain.nr < 2)
		return 0;
	return below->img ? below->img->h.size : below->bytes;
}

static int activate(struct qc_target *t)
{
	struct qc_layer *top = &t->chain.layer[0];
	int err = 0;
	u32 i;

	/*
	 * The top one last: its writer may be another target, which is not
	 * robbed of it for nothing.
	 */
	for (i = t->chain.nr; i > 0 && !err; i--) {
		if (i == 1)
			t->writer.below = bytes_below(t);
		/* As a reader where another target has taken the image over */
		if (t->chain.layer[i - 1].img)
			err = qc_image_activate(t->chain.layer[i - 1].img,
						READ_ONCE(t->writable) ?
						writer_of(t, i - 1) : NULL);
	}
	/* What it holds may have come through another device. */
	if (!err && !t->top && t->writable)
		err = blkdev_issue_flush(top->dev->bdev);
	if (err) {
		deactivate_layers(t, i + 1);
		return err;
	}
	set_layer_sizes(t);
	err = check_length(t);
	if (!err)
		err = check_blocks(t);
	if (!err)
		err = check_raw_data(t);
	if (!err)
		err = plan_reserve(t);
	if (err)
		deactivate_layers(t, 0);
	return err;
}

/*
 * Not the target's own queue: a take-over flushes that one with the image's
 * state_lock held, which an activation takes.
 */
static struct workqueue_struct *activate_wq;

struct activation {
	struct work_struct work;
	struct qc_target *t;
	int err;
};

static void activate_work(struct work_struct *work)
{
	struct activation *a = container_of(work, struct activation, work);

	a->err = activate(a->t);
}

/*
 * Device-mapper takes WRITE_ZEROES from a device when one below has none, and does so
 * after io_hints (dm_table_set_restrictions()); unlike with discards a target cannot
 * say that it needs no help.  Zero clusters need none: it gets it back, before
 * anybody can use the device.  Not beside other targets, which may have no way.
 */
static void keep_write_zeroes(struct qc_target *t)
{
	struct dm_table *table = t->ti->table;
	struct request_queue *q = dm_disk(dm_table_get_md(table))->queue;

	if (!t->writable || !t->top || t->top->h.version < 3 ||
	    t->top->raw_data || q->limits.max_write_zeroes_sectors ||
	    t->ti->len != dm_table_get_size(table))
		return;
	if (qc_queue_set_write_zeroes(q, MAX_DROP_SECTORS))
		DMWARN("%s: zeroes are written as data",
		       dm_device_name(dm_table_get_md(table)));
}

/* The target of the device's previous table that still writes our top image */
static struct qc_target *superseded(struct qc_target *t)
{
	struct qc_target *old = NULL;
	struct qc_writer *writer;

	if (!t->top)
		return NULL;
	mutex_lock(&t->top->event_lock);
	writer = t->top->writer;
	if (writer && writer->ti->table != t->ti->table &&
	    dm_table_get_md(writer->ti->table) == dm_table_get_md(t->ti->table))
		old = container_of(writer, struct qc_target, writer);
	mutex_unlock(&t->top->event_lock);
	return old;
}

/* Messages reach a device that is suspended, too: none may be at work. */
static void deactivate_target(struct qc_target *t)
{
	if (!t->active)
		return;
	qc_write_presuspend(t, false);
	qc_postsuspend(t->ti);
}

/*
 * Where a target cannot be resumed, device-mapper leaves the device suspended, and
 * those of the table that were resumed before it as they are.  Tools may have edited
 * the image since then, or this is another table, whose predecessor is destroyed only
 * when this one is resumed.  Nothing was written.
 */
static void deactivate_left(struct qc_target *t)
{
	struct qc_target *old = superseded(t);

	if (old)
		deactivate_target(old);
	deactivate_target(t);
}

/*
 * In a work item: who resumes may have been killed, and then neither threads
 * nor large buffers can be made on its behalf.  The device would stay suspended,
 * its users hanging, for no fault of the image.
 */
static int qc_preresume(struct dm_target *ti)
{
	struct activation a = { .t = ti->private };

	deactivate_left(a.t);
	INIT_WORK_ONSTACK(&a.work, activate_work);
	queue_work(activate_wq, &a.work);
	flush_work(&a.work);
	destroy_work_on_stack(&a.work);
	if (a.err)
		return a.err;
	a.t->active = true;
	keep_write_zeroes(a.t);
	qc_write_resume(a.t);
	return 0;
}

/* Status */

static const char *mode_word(struct qc_target *t)
{
	if (!t->writable)
		return "ro";
	if (!t->top)
		return "rw";
	switch (READ_ONCE(t->top->mode)) {
	case QC_RO:
	case QC_RW:
		return "rw";
	case QC_NO_SPACE:
		return "no_space";
	case QC_FAILED:
		break;
	}
	return "failed";
}

static const char *mirror_word(struct qc_target *t)
{
	if (!t->mirror)
		return "-";
	return qc_mirror_broken(t->mirror) ? "mirror_failed" : "mirror";
}

static unsigned int emit_info(struct qc_target *t, char *result,
			      unsigned int maxlen)
{
	struct qc_image *img = t->top;
	unsigned int sz = 0;

	DMEMIT("%s %u ", mode_word(t),
	       img ? img->h.cluster_size >> SECTOR_SHIFT : 0);
	if (img && t->writable)
		DMEMIT("%llu/%llu ", READ_ONCE(img->hwm),
		       qc_image_clusters(img));
	else
		DMEMIT("- ");
	DMEMIT("%u %lu/%lu %llu %llu %llu %u %s %s",
	       img ? READ_ONCE(img->nr_dirty) : 0,
	       qc_cache_used_kib(), qc_cache_limit_kib(),
	       img ? READ_ONCE(img->nr_commits) : 0,
	       img ? READ_ONCE(img->nr_allocated) : 0,
	       img ? (u64)atomic64_read(&img->nr_cow) : 0,
	       t->chain.nr, img && img->reason ? img->reason : "-",
	       mirror_word(t));
	return sz;
}

static unsigned int emit_features(struct qc_target *t, char *result,
				  unsigned int maxlen, unsigned int sz)
{
	bool explicit = t->explicit_zeroes && !t->mirror;
	unsigned int words = t->copy_on_read + t->error_if_no_space +
		t->no_discard + explicit + t->yields + t->grow + t->extend +
		2 * (t->zero_from != U64_MAX) + 2 * !!t->mirror +
		2 * !!t->snapshot;

	if (!words)
		return sz;
	DMEMIT(" %u", words);
	if (t->copy_on_read)
		DMEMIT(" copy_on_read");
	if (t->error_if_no_space)
		DMEMIT(" error_if_no_space");
	if (t->no_discard)
		DMEMIT(" no_discard_passdown");
	if (explicit)
		DMEMIT(" explicit_zeroes");
	if (t->yields)
		DMEMIT(" yield");
	if (t->grow)
		DMEMIT(" grow");
	if (t->extend)
		DMEMIT(" extend");
	if (t->zero_from != U64_MAX)
		DMEMIT(" zero_from %llu", t->zero_from);
	if (t->mirror)
		DMEMIT(" mirror %s", qc_mirror_name(t->mirror));
	if (t->snapshot)
		DMEMIT(" snapshot %s", t->snapshot);
	return sz;
}

static unsigned int emit_table(struct qc_target *t, char *result,
			       unsigned int maxlen)
{
	unsigned int sz = 0;
	u32 i;

	DMEMIT("%u", t->chain.nr);
	for (i = 0; i < t->chain.nr; i++)
		DMEMIT(" %s %s %s", t->chain.layer[i].raw ? "raw" : "qcow2",
		       t->chain.layer[i].dev->name,
		       t->chain.layer[i].data ? t->chain.layer[i].data->name :
		       "-");
	return emit_features(t, result, maxlen, sz);
}

static void qc_status(struct dm_target *ti, status_type_t type,
		      unsigned int status_flags, char *result,
		      unsigned int maxlen)
{
	struct qc_target *t = ti->private;

	switch (type) {
	case STATUSTYPE_INFO:
		emit_info(t, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		emit_table(t, result, maxlen);
		break;
	case STATUSTYPE_IMA:
		*result = '\0';
		break;
	}
}

/*
 * Only the device that is written to: one lower layer without WRITE_ZEROES
 * would take it from the whole device, and so would such a data device.  The
 * length is the device's, which has nothing to do with the length of the table
 * line.
 */
static int qc_iterate_devices(struct dm_target *ti,
			      iterate_devices_callout_fn fn, void *data)
{
	struct qc_target *t = ti->private;
	struct dm_dev *dev = t->chain.layer[0].dev;

	return fn(ti, dev, 0, bdev_nr_sectors(dev->bdev), data);
}

static void stack_dma_alignment(struct queue_limits *limits,
				struct block_device *bdev)
{
	limits->dma_alignment = max_t(u32, limits->dma_alignment,
				      bdev_dma_alignment(bdev));
}

/*
 * Bios go to all layers, their data devices and the mirror with the memory that the
 * guest gave them.  Who misaligns it for one of them cannot be helped by splitting.
 */
static void stack_dma_alignments(struct qc_target *t,
				 struct queue_limits *limits)
{
	u32 i;

	for (i = 0; i < t->chain.nr; i++)
		stack_dma_alignment(limits, t->chain.layer[i].bdev);
	if (t->mirror)
		stack_dma_alignment(limits, qc_mirror_bdev(t->mirror));
}

static void qc_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct qc_target *t = ti->private;
	unsigned int unit = layer_unit(&t->chain.layer[0]);
	u32 granularity = t->top ? t->top->h.cluster_size :
		limits->logical_block_size;

	/* Of the data device, which device-mapper has not been told. */
	limits->logical_block_size = max(limits->logical_block_size, unit);
	limits->physical_block_size = max(limits->physical_block_size,
					  limits->logical_block_size);
	limits->io_min = max(limits->io_min, limits->physical_block_size);
	stack_dma_alignments(t, limits);
	qc_limits_set_discard(limits, MAX_DROP_SECTORS, granularity);
	qc_limits_set_write_zeroes(limits, MAX_DROP_SECTORS);
}

static struct target_type qcow2_target = {
	.name = "qcow2",
	.version = {1, 0, 0},
	.module = THIS_MODULE,
	/* I/O, allocation, decompression: what may sleep is left to work items. */
	.features = DM_TARGET_NOWAIT,
	.ctr = qc_ctr,
	.dtr = qc_dtr,
	.map = qc_map,
	.end_io = qc_end_io,
	.presuspend = qc_presuspend,
	.presuspend_undo = qc_presuspend_undo,
	.postsuspend = qc_postsuspend,
	.preresume = qc_preresume,
	.status = qc_status,
	.message = qc_message,
	.iterate_devices = qc_iterate_devices,
	.io_hints = qc_io_hints,
};

static int __init qc_init(void)
{
	int err = qc_cache_init();

	if (err)
		return err;
	err = qc_unpack_init();
	if (err)
		goto out_cache;
	err = qc_light_init();
	if (err)
		goto out_unpack;
	activate_wq = alloc_workqueue("qcow2-activate",
				      WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	err = activate_wq ? dm_register_target(&qcow2_target) : -ENOMEM;
	if (!err)
		return 0;
	if (activate_wq)
		destroy_workqueue(activate_wq);
	qc_light_exit();
out_unpack:
	qc_unpack_exit();
out_cache:
	qc_cache_exit();
	return err;
}

static void __exit qc_exit(void)
{
	dm_unregister_target(&qcow2_target);
	destroy_workqueue(activate_wq);
	qc_light_exit();
	qc_unpack_exit();
	qc_cache_exit();
}

module_init(qc_init);
module_exit(qc_exit);

MODULE_DESCRIPTION("device-mapper target for chains of qcow2 images");
MODULE_LICENSE("GPL");
MODULE_ALIAS("dm-target-qcow2");
