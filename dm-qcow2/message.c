// SPDX-License-Identifier: GPL-2.0-only
/*
 * Target messages, see message.h.
 */
#include <linux/device-mapper.h>
#include <linux/sched/mm.h>

#include "edit.h"
#include "message.h"
#include "write.h"

struct job_range {
	u64 start;			/* guest bytes */
	u64 end;
	u32 layers;
};

/* <sector> <sectors> <layers> */
static int parse_range(struct qc_target *t, char **argv, struct job_range *r)
{
	u64 start, count, end;

	if (kstrtou64(argv[0], 10, &start) || kstrtou64(argv[1], 10, &count) ||
	    kstrtou32(argv[2], 10, &r->layers))
		return -EINVAL;
	if (check_add_overflow(start, count, &end) || end > t->ti->len)
		return -EINVAL;
	if (!r->layers || r->layers > t->chain.nr)
		return -EINVAL;
	r->start = start << SECTOR_SHIFT;
	r->end = end << SECTOR_SHIFT;
	return 0;
}

/* <sectors done> <sectors copied> */
static int answer(u64 done, u64 copied, char *result, unsigned int maxlen)
{
	unsigned int sz = 0;

	DMEMIT("%llu %llu", done >> SECTOR_SHIFT, copied >> SECTOR_SHIFT);
	return 1;
}

static int copy_message(struct qc_target *t, unsigned int argc, char **argv,
			char *result, unsigned int maxlen)
{
	struct qc_mirror_copy c = {};
	struct job_range r;
	int err;

	if (argc != 3 || !t->mirror)
		return -EINVAL;
	err = parse_range(t, argv, &r);
	if (err)
		return err;
	c.start = r.start;
	c.end = r.end;
	c.layers = r.layers;
	err = qc_mirror_copy(t, &c);
	return err ? err : answer(c.start - r.start, c.copied, result, maxlen);
}

static int populate_message(struct qc_target *t, unsigned int argc,
			    char **argv, char *result, unsigned int maxlen)
{
	struct qc_populate p = {};
	struct job_range r;
	int err;

	if (argc < 3 || argc > 4 || !t->explicit_zeroes)
		return -EINVAL;
	if (argc == 4 && strcmp(argv[3], "zeroes"))
		return -EINVAL;
	err = parse_range(t, argv, &r);
	if (err)
		return err;
	p.start = r.start;
	p.end = r.end;
	p.layers = r.layers;
	p.zeroes = argc == 4;
	err = qc_populate(t, &p);
	return err ? err : answer(p.start - r.start, p.copied, result, maxlen);
}

static int backing_message(struct qc_target *t, unsigned int argc, char **argv)
{
	if (argc == 1 && !strcmp(argv[0], "none"))
		return qc_edit_relink(t->top, NULL, NULL);
	if (argc != 2 || (strcmp(argv[0], "raw") && strcmp(argv[0], "qcow2")))
		return -EINVAL;
	return qc_edit_relink(t->top, argv[0], argv[1]);
}

static int final_message(struct qc_target *t, unsigned int argc, char **argv)
{
	bool keep = argc == 1 && !strcmp(argv[0], "keep");
	int err = 0;

	if (!t->mirror || (argc && !keep))
		return -EINVAL;
	/* Only an overlay of the one image that the mirror writes can go. */
	if (!keep && (!t->top || t->chain.nr < 2))
		return -EINVAL;
	/* Where another target has taken it over, it is in use there. */
	if (!keep && !READ_ONCE(t->writable))
		return -EROFS;
	/* One of several prepares, and all are told what came of it. */
	mutex_lock(&t->final_lock);
	if (!keep && !t->retired.count)
		err = qc_edit_retire_prepare(t->top, &t->retired);
	if (!err)
		err = qc_mirror_final(t->mirror);
	if (err && t->retired.count)
		qc_edit_retire_undo(t->top, &t->retired);
	mutex_unlock(&t->final_lock);
	return err;
}

static int dispatch(struct qc_target *t, unsigned int argc, char **argv,
		    char *result, unsigned int maxlen)
{
	const char *word = argv[0];

	if (!strcmp(word, "copy"))
		return copy_message(t, argc - 1, argv + 1, result, maxlen);
	if (!strcmp(word, "final"))
		return final_message(t, argc - 1, argv + 1);
	/* The rest changes the top image. */
	if (!t->top)
		return -EINVAL;
	if (!qc_may_write(t))
		return -EROFS;
	if (!strcmp(word, "populate"))
		return populate_message(t, argc - 1, argv + 1, result, maxlen);
	if (!strcmp(word, "backing"))
		return backing_message(t, argc - 1, argv + 1);
	if (!strcmp(word, "resize") && argc == 1)
		return qc_edit_size(t->top);
	DMERR("Unknown message \"%s\"", word);
	return -EINVAL;
}

int qc_message(struct dm_target *ti, unsigned int argc, char **argv,
	       char *result, unsigned int maxlen)
{
	struct qc_target *t = ti->private;
	unsigned int noio;
	int ret = -EAGAIN;

	down_read(&t->jobs);
	if (t->active && !READ_ONCE(t->suspending)) {
		/* Reclaim may need this very device. */
		noio = memalloc_noio_save();
		ret = dispatch(t, argc, argv, result, maxlen);
		memalloc_noio_restore(noio);
	}
	up_read(&t->jobs);
	return ret;
}
