// SPDX-License-Identifier: GPL-2.0-only
/*
 * Crashes a recorded image at random points and looks at what is left of it.
 *
 * The model of a crash
 *
 * The device has a volatile write cache, and its unit is a sector of 512 bytes:
 * every sector of every request that no flush has made durable is on the medium
 * or is not, each for itself, whatever the order of the requests was. Sectors
 * are whole. A FUA write is on the medium when it has ended, and until then any
 * of its sectors may be. A discarded sector holds what it held, zeroes, or
 * anything else, for ever: here a pattern that says so.
 *
 * What dm-log-writes tells
 *
 * Entries stand in the log in this order: when a flush ends, first the writes
 * and discards that had ended before that flush was submitted, in the order in
 * which they ended, then the flush. FUA writes and marks are entered when they
 * end, or are made. So between flush k and flush k+1 there are
 *
 *	FUA writes and marks, in order of time: the head
 *	the writes that flush k+1 made durable: the tail
 *
 * where writes of the tail may be older than FUA writes of the head. The states
 * that were possible, and of which the log proves that they were, are
 *
 *	A	everything up to flush k, the head up to some place, and any
 *		sectors of the FUA write that comes next
 *	B	everything up to flush k, the whole head, any sectors of the tail
 *
 * and no others: a write that ended after flush k+1 was submitted may have been
 * made because that flush ended. A test at flushes alone sees only B with an
 * empty tail, where every order between two flushes is as good as another and a
 * missing flush does no harm.
 *
 * Where FUA writes of the head and writes of the tail hit one sector, the log
 * does not say which was last. Guest data says so itself: operations on a
 * sector are numbered in order of time. Zeroes are older than the guest's data
 * if the journal has no later operation that makes them, and what comes from the
 * layer below always is: it fills what the guest has not written yet. What is
 * left is counted as ambiguous.
 *
 * If a flush ends before one that was submitted earlier, what the earlier one
 * made durable is entered too late, which would look like a loss. The disk under
 * the log (record) ends every flush as it is submitted.
 *
 * What is demanded
 *
 * Marks (journal.h) say which operations were durable and which had not begun.
 * Of the operations on a sector, none may be visible that came before the last
 * durable one, and none that had not begun. Its content is exact: what that
 * operation wrote to that sector, or zeroes, or what the image held at the start.
 * The same holds for internal snapshots, with the time when they were made. And
 * qemu-img check finds leaks at the worst.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image.h"
#include "journal.h"
#include "log.h"
#include "sector.h"

#define MAX_SNAPSHOTS	64
#define MAX_COMPLAINTS	20

static void die(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "replay: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(2);
}

static void *allocate(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	if (!p)
		die("out of memory");
	return p;
}

/* ---- the log ---- */

struct entry {
	uint64_t sector, count, flags;
	const uint8_t *data;		/* a mark's text, or what was written */
	uint64_t mark[2];		/* numbers of a mark */
	char mark_kind;
};

static struct entry *entries;
static uint64_t nr_entries;

/* ---- the journal ---- */

struct operation {
	uint64_t sector, submitted;	/* the latter: record in the journal */
	uint32_t count;
	uint16_t kind;
};

static const struct journal_record *records;
static uint64_t nr_records;
static struct operation *operations;	/* by number */
static uint32_t nr_operations;
/* Operations on sector s: touching[first[s]] to touching[first[s + 1] - 1]. */
static uint64_t *first;
static uint32_t *touching;

/* ---- what must be there ---- */

#define NONE	-1	/* no operation: what the image held at the start */

struct demand {
	int32_t *floor;		/* by sector: index into touching of the last durable */
	uint64_t end;		/* records: what was submitted later is not there */
};

struct snapshot {
	uint32_t number;
	struct demand demand;
};

static struct demand now;
static uint64_t durable_records;
static struct snapshot snapshots[MAX_SNAPSHOTS];
static unsigned int nr_snapshots;

/* ---- the device ---- */

static const char *state_path;
static uint8_t *state;
static uint64_t state_sectors;
static const uint8_t *initial;
static uint64_t guest_sectors;

/* ---- options and results ---- */

static uint64_t seed = 1;
static uint32_t run_seed;
static uint64_t only_interval = UINT64_MAX, only_point;
static const char *keep_path;
static const char *qemu_img = "qemu-img";
static int clean_end, want_all;

static uint64_t nr_points, nr_wrong, nr_corrupt, nr_lost, nr_alien, nr_leaky;
static uint64_t nr_ambiguous, nr_intervals;
static char point_name[128];

static uint64_t random_state;

static void random_seed(uint64_t a, uint64_t b)
{
	random_state = sector_mix(seed) ^ sector_mix(a + 1) * 31 ^
		       sector_mix(b + 1) * 1009;
}

static uint64_t randoms(void)
{
	random_state = random_state * 6364136223846793005ULL +
		       1442695040888963407ULL;
	return sector_mix(random_state) >> 16;
}

static uint64_t below(uint64_t limit)
{
	return limit ? randoms() % limit : 0;
}

/* ---- reading files ---- */

static const void *map_file(const char *path, uint64_t *length)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *p;

	if (fd < 0 || fstat(fd, &st))
		die("%s: %s", path, strerror(errno));
	*length = st.st_size;
	p = mmap(NULL, st.st_size ? st.st_size : 1, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		die("%s: %s", path, strerror(errno));
	close(fd);
	return p;
}

static void parse_mark(struct entry *e, uint64_t length)
{
	char text[SECTOR_BYTES] = "";
	unsigned long long a = 0, b = 0;
	char kind;
	int n;

	if (length > SECTOR_BYTES - sizeof(struct log_entry))
		length = SECTOR_BYTES - sizeof(struct log_entry);
	memcpy(text, e->data, length);
	n = sscanf(text, "%c:%llu:%llu", &kind, &a, &b);
	if (n < 2 || !strchr("DUSE", kind))
		return;
	e->mark_kind = kind;
	e->mark[0] = a;
	e->mark[1] = n == 3 ? b : a;
}

static void load_log(const char *path)
{
	struct log_super super;
	struct log_entry disk;
	const uint8_t *log;
	uint64_t length, offset = SECTOR_BYTES, i, bytes;

	log = map_file(path, &length);
	if (length < SECTOR_BYTES)
		die("%s: no log", path);
	memcpy(&super, log, sizeof(super));
	if (le64toh(super.magic) != LOG_MAGIC)
		die("%s: no log", path);
	nr_entries = le64toh(super.nr_entries);
	entries = allocate(nr_entries, sizeof(*entries));
	for (i = 0; i < nr_entries; i++) {
		struct entry *e = &entries[i];

		if (offset + SECTOR_BYTES > length)
			die("%s: ends in entry %llu", path, (unsigned long long)i);
		memcpy(&disk, log + offset, sizeof(disk));
		e->sector = le64toh(disk.sector);
		e->count = le64toh(disk.nr_sectors);
		e->flags = le64toh(disk.flags);
		e->data = log + offset + SECTOR_BYTES;
		offset += SECTOR_BYTES;
		if (e->flags & LOG_MARK) {
			e->data = log + offset - SECTOR_BYTES + sizeof(disk);
			parse_mark(e, le64toh(disk.data_len));
			continue;
		}
		bytes = e->flags & LOG_DISCARD ? 0 : e->count * SECTOR_BYTES;
		if (bytes > length - offset)
			die("%s: ends in entry %llu", path, (unsigned long long)i);
		if (e->sector > state_sectors ||
		    e->count > state_sectors - e->sector)
			die("%s: entry %llu is outside the device", path,
			    (unsigned long long)i);
		offset += bytes;
	}
}

static void load_operations(void)
{
	uint64_t i;

	for (i = 0; i < nr_records; i++) {
		const struct journal_record *r = &records[i];

		if (r->type == J_SUBMIT && r->op > nr_operations)
			nr_operations = r->op;
	}
	operations = allocate(nr_operations + 1, sizeof(*operations));
	for (i = 0; i < nr_records; i++) {
		const struct journal_record *r = &records[i];

		if (r->type != J_SUBMIT)
			continue;
		if (r->sector + r->count > guest_sectors)
			die("operation %u is outside the disk", r->op);
		operations[r->op] = (struct operation) {
			.sector = r->sector, .count = r->count,
			.kind = r->kind, .submitted = i,
		};
	}
}

/* Sorts operations by sector; within a sector they stay in order of time. */
static void index_operations(void)
{
	uint64_t *next, s, end;
	uint32_t op;

	first = allocate(guest_sectors + 2, sizeof(*first));
	for (op = 1; op <= nr_operations; op++) {
		end = operations[op].sector + operations[op].count;
		for (s = operations[op].sector; s < end; s++)
			first[s + 1]++;
	}
	for (s = 0; s < guest_sectors; s++)
		first[s + 1] += first[s];
	touching = allocate(first[guest_sectors], sizeof(*touching));
	next = allocate(guest_sectors + 1, sizeof(*next));
	memcpy(next, first, guest_sectors * sizeof(*next));
	for (op = 1; op <= nr_operations; op++) {
		end = operations[op].sector + operations[op].count;
		for (s = operations[op].sector; s < end; s++)
			touching[next[s]++] = op;
	}
	free(next);
}

static void load_journal(const char *path)
{
	uint64_t length, s;

	records = map_file(path, &length);
	nr_records = length / sizeof(*records);
	load_operations();
	index_operations();
	now.floor = allocate(guest_sectors, sizeof(*now.floor));
	for (s = 0; s < guest_sectors; s++)
		now.floor[s] = NONE;
}

/* ---- demands ---- */

/* Index of an operation among those on a sector, or NONE. */
static int32_t index_of(uint64_t sector, uint32_t op)
{
	uint64_t low = first[sector], high = first[sector + 1], mid;

	while (low < high) {
		mid = (low + high) / 2;
		if (touching[mid] < op)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == first[sector + 1] || touching[low] != op)
		return NONE;
	return low - first[sector];
}

static const struct operation *nth(uint64_t sector, int32_t index)
{
	return &operations[touching[first[sector] + index]];
}

static void op_durable(uint32_t op)
{
	uint64_t s, end = operations[op].sector + operations[op].count;
	int32_t i;

	for (s = operations[op].sector; s < end; s++) {
		i = index_of(s, op);
		if (i > now.floor[s])
			now.floor[s] = i;
	}
}

static void records_durable(uint64_t length)
{
	if (length > nr_records)
		die("a mark is ahead of the journal");
	for (; durable_records < length; durable_records++)
		if (records[durable_records].type == J_COMPLETE)
			op_durable(records[durable_records].op);
}

static void snapshot_add(uint32_t number, uint64_t end)
{
	struct snapshot *s = &snapshots[nr_snapshots++];
	size_t bytes = guest_sectors * sizeof(*s->demand.floor);

	if (nr_snapshots > MAX_SNAPSHOTS)
		die("too many snapshots");
	s->number = number;
	s->demand.end = end;
	s->demand.floor = allocate(1, bytes);
	memcpy(s->demand.floor, now.floor, bytes);
}

static void snapshot_remove(uint32_t number)
{
	unsigned int i;

	for (i = 0; i < nr_snapshots; i++) {
		if (snapshots[i].number != number)
			continue;
		free(snapshots[i].demand.floor);
		snapshots[i] = snapshots[--nr_snapshots];
		return;
	}
	die("snapshot %u was never made", number);
}

static void mark_passed(const struct entry *e)
{
	const struct journal_record *r;

	switch (e->mark_kind) {
	case 'D':
		records_durable(e->mark[0]);
		break;
	case 'U':
		if (!e->mark[0] || e->mark[0] > nr_operations)
			die("a mark of an unknown operation");
		op_durable(e->mark[0]);
		break;
	case 'E':
		records_durable(e->mark[0]);
		r = &records[e->mark[0]];
		if (r->type == J_SNAPSHOT_BEGIN)
			snapshot_add(r->op, e->mark[1]);
		else
			snapshot_remove(r->op);
		break;
	}
}

/* ---- the device after a crash ---- */

struct undo {
	uint64_t sector;
	uint8_t old[SECTOR_BYTES];
};

static struct undo *undos;
static uint64_t nr_undos, max_undos;
static int undoing;

static uint8_t *sector_at(uint64_t sector)
{
	return state + sector * SECTOR_BYTES;
}

static void put_sector(uint64_t sector, const uint8_t *data)
{
	if (undoing) {
		if (nr_undos == max_undos) {
			max_undos = max_undos * 2 + 1024;
			undos = realloc(undos, max_undos * sizeof(*undos));
			if (!undos)
				die("out of memory");
		}
		undos[nr_undos].sector = sector;
		memcpy(undos[nr_undos++].old, sector_at(sector), SECTOR_BYTES);
	}
	memcpy(sector_at(sector), data, SECTOR_BYTES);
}

static void undo_all(void)
{
	for (; nr_undos; nr_undos--)
		memcpy(sector_at(undos[nr_undos - 1].sector),
		       undos[nr_undos - 1].old, SECTOR_BYTES);
	undoing = 0;
}

/* Which way a discard goes is a matter of luck, but the same luck every time. */
static void discard_sector(uint64_t index, uint64_t sector)
{
	struct sector_tag tag = { .magic = SECTOR_DISCARD, .number = sector };
	uint64_t luck = sector_mix(seed * 77 + index);
	uint8_t buf[SECTOR_BYTES] = "";
	unsigned int way = luck >> 20 & 3;

	if (way == 3)
		way = sector_mix(luck + sector) >> 20 & 3;
	if (way == 0)
		return;
	if (way > 1)
		sector_make(buf, &tag);
	put_sector(sector, buf);
}

static uint8_t *fua_sector;	/* of the current interval: written by the head */

/* Can the guest have asked for zeroes after the write of @tag? */
static int zeroed_after(const struct sector_tag *tag)
{
	uint64_t i = first[tag->number + 1];

	while (i > first[tag->number] && touching[i - 1] > tag->op) {
		const struct operation *op = &operations[touching[--i]];

		if (op->kind != OP_WRITE && op->submitted < now.end)
			return 1;
	}
	return 0;
}

/* Of a write of the tail: was its sector written later, by the head? */
static int outdated(uint64_t sector, const uint8_t *data)
{
	struct sector_tag old, new;

	if (!fua_sector[sector])
		return 0;
	if (!sector_read(sector_at(sector), &old) ||
	    old.magic != SECTOR_GUEST || old.number >= guest_sectors)
		goto ambiguous;
	if (sector_is_zero(data)) {
		if (!zeroed_after(&old))
			return 1;
	} else if (sector_read(data, &new) && new.number == old.number) {
		if (new.magic == SECTOR_GUEST)
			return old.op > new.op;
		if (new.magic == SECTOR_BACKING)
			return 1;
	}
ambiguous:
	nr_ambiguous++;
	return 0;
}

/* Sector @i of an entry reaches the medium. */
static void apply_sector(uint64_t index, uint64_t i)
{
	const struct entry *e = &entries[index];
	uint64_t sector = e->sector + i;

	if (e->flags & LOG_DISCARD) {
		discard_sector(index, sector);
		return;
	}
	if (!(e->flags & LOG_FUA) && outdated(sector, e->data + i * SECTOR_BYTES))
		return;
	put_sector(sector, e->data + i * SECTOR_BYTES);
}

static void apply(uint64_t index)
{
	uint64_t i;

	if (entries[index].flags & LOG_MARK)
		return;
	for (i = 0; i < entries[index].count; i++)
		apply_sector(index, i);
}

/* ---- the verdict on one state ---- */

static int complaints;
static int point_alien, point_lost, point_corrupt;

static void complain(int *counter, const char *format, ...)
{
	va_list args;

	if (counter)
		(*counter)++;
	if (counter && *counter > 3 && !want_all)
		return;
	if (complaints++ >= MAX_COMPLAINTS && !want_all)
		return;
	printf("# %s: ", point_name);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

static void describe(char *text, size_t size, uint64_t sector,
		     const uint8_t *data)
{
	const char *what = "?";
	struct sector_tag tag;

	if (sector_is_zero(data)) {
		snprintf(text, size, "zeroes");
		return;
	}
	if (!sector_read(data, &tag)) {
		snprintf(text, size, "no whole sector (%llx)",
			 (unsigned long long)be64toh(*(uint64_t *)data));
		return;
	}
	switch (tag.magic) {
	case SECTOR_GUEST:
		what = tag.number == sector ? "its own data" :
		       "ANOTHER SECTOR'S data";
		break;
	case SECTOR_BACKING:
		what = "the backing file's data";
		break;
	case SECTOR_VIRGIN:
		what = "WHAT THE DEVICE HELD BEFORE";
		break;
	case SECTOR_DISCARD:
		what = "WHAT A DISCARD LEFT";
		break;
	}
	snprintf(text, size, "%s: sector %llu, op %u", what,
		 (unsigned long long)tag.number, tag.op);
}

/*
 * Operation at which what may be visible begins: the last durable one, or the
 * one before the discards of which it is the last, as these promise nothing.
 */
static int32_t visible_from(const struct demand *d, uint64_t sector)
{
	int32_t i = d->floor[sector];

	while (i != NONE && nth(sector, i)->kind == OP_DISCARD)
		i--;
	return i;
}

static int may_be_zero(const struct demand *d, uint64_t sector, int32_t from)
{
	int32_t n = first[sector + 1] - first[sector], i;

	for (i = from < 0 ? 0 : from; i < n; i++) {
		const struct operation *op = nth(sector, i);

		if (op->submitted >= d->end)
			break;
		if (op->kind != OP_WRITE)
			return 1;
	}
	return 0;
}

static int acceptable(const struct demand *d, uint64_t sector,
		      const uint8_t *data)
{
	int32_t from = visible_from(d, sector), i;
	struct sector_tag tag;

	if (from == NONE && !memcmp(data, initial + sector * SECTOR_BYTES,
				    SECTOR_BYTES))
		return 1;
	if (sector_is_zero(data))
		return may_be_zero(d, sector, from);
	if (!sector_read(data, &tag) || tag.magic != SECTOR_GUEST ||
	    tag.number != sector || tag.seed != run_seed)
		return 0;
	i = index_of(sector, tag.op);
	return i != NONE && i >= from && nth(sector, i)->kind == OP_WRITE &&
	       nth(sector, i)->submitted < d->end;
}

/* Older data of its own or zeroes: lost. Anything else was never its own. */
static int is_loss(uint64_t sector, const uint8_t *data)
{
	struct sector_tag tag;

	if (sector_is_zero(data) ||
	    !memcmp(data, initial + sector * SECTOR_BYTES, SECTOR_BYTES))
		return 1;
	return sector_read(data, &tag) && tag.magic == SECTOR_GUEST &&
	       tag.number == sector && tag.seed == run_seed;
}

static void reject(const struct demand *d, const char *where, uint64_t sector,
		   const uint8_t *data)
{
	int32_t from = visible_from(d, sector);
	char text[96], want[64] = "what the image held at the start";

	describe(text, sizeof(text), sector, data);
	if (from != NONE)
		snprintf(want, sizeof(want), "%s of op %u",
			 nth(sector, from)->kind == OP_WRITE ? "data" : "zeroes",
			 touching[first[sector] + from]);
	complain(is_loss(sector, data) ? &point_lost : &point_alien,
		 "%s sector %llu holds %s; durable was %s", where,
		 (unsigned long long)sector, text, want);
}

static void check_guest(const struct image *image, const struct image_map *map,
			const struct demand *d, const char *where)
{
	static const uint8_t zeroes[SECTOR_BYTES];
	uint32_t per_part = (1U << image->h.sub_bits) / SECTOR_BYTES, i;
	uint64_t sector, part;
	enum qcow2_kind kind;
	const uint8_t *data, *p;
	const char *why;

	for (part = 0; part * per_part < guest_sectors; part++) {
		sector = part * per_part;
		why = image_part(image, map, part, &kind, &data);
		if (why) {
			complain(&point_corrupt, "%s sector %llu: %s", where,
				 (unsigned long long)sector, why);
			continue;
		}
		for (i = 0; i < per_part && sector < guest_sectors;
		     i++, sector++) {
			p = data ? data + i * SECTOR_BYTES : zeroes;
			if (kind == QCOW2_UNALLOCATED) {
				/* the layer below, which never changes */
				p = initial + (guest_sectors + sector) *
					      SECTOR_BYTES;
			}
			if (!acceptable(d, sector, p))
				reject(d, where, sector, p);
		}
	}
}

static void check_content(void)
{
	struct image image;
	struct image_map map;
	char name[32];
	const char *why;
	unsigned int i;

	why = image_open(&image, state, state_sectors * SECTOR_BYTES);
	if (!why)
		why = image_active(&image, &map);
	if (why) {
		complain(&point_corrupt, "%s", why);
		return;
	}
	check_guest(&image, &map, &now, "guest");
	for (i = 0; i < nr_snapshots; i++) {
		snprintf(name, sizeof(name), "s%u", snapshots[i].number);
		why = image_snapshot(&image, name, &map);
		if (why)
			complain(&point_corrupt, "%s: %s", name, why);
		else
			check_guest(&image, &map, &snapshots[i].demand, name);
	}
}

/* Returns qemu-img's exit status; its output goes to @output. */
static int run_check(const char *output)
{
	posix_spawn_file_actions_t actions;
	char image[512];
	char * const argv[] = { (char *)qemu_img, "check", image, NULL };
	int status;
	pid_t pid;

	snprintf(image, sizeof(image),
		 "json:{\"driver\":\"qcow2\",\"backing\":null,\"file\":{\"driver\":\"file\",\"locking\":\"off\",\"filename\":\"%s\"}}",
		 state_path);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, output,
					 O_WRONLY | O_CREAT | O_TRUNC, 0644);
	posix_spawn_file_actions_adddup2(&actions, 1, 2);
	if (posix_spawnp(&pid, qemu_img, &actions, NULL, argv, environ) ||
	    waitpid(pid, &status, 0) != pid)
		die("cannot run %s", qemu_img);
	posix_spawn_file_actions_destroy(&actions);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void show_check(const char *output)
{
	char line[256];
	FILE *f = fopen(output, "r");
	int n;

	for (n = 0; f && n < 5 && fgets(line, sizeof(line), f);) {
		line[strcspn(line, "\n")] = 0;
		if (!*line || !strncmp(line, "Leaked", 6))
			continue;
		complain(NULL, "qemu-img check: %s", line);
		n++;
	}
	if (f)
		fclose(f);
}

static void check_structure(int may_leak)
{
	char output[512];
	int status;

	snprintf(output, sizeof(output), "%s.check", state_path);
	status = run_check(output);
	if (status == 3)
		nr_leaky++;
	if (status && (status != 3 || !may_leak)) {
		point_corrupt++;
		complain(NULL, "qemu-img check exits with %d", status);
		show_check(output);
	}
	unlink(output);
}

static void keep_state(void)
{
	FILE *f = fopen(keep_path, "w");

	if (!f || fwrite(state, SECTOR_BYTES, state_sectors, f) != state_sectors ||
	    fclose(f))
		die("cannot write %s", keep_path);
}

static void judge(int may_leak)
{
	point_alien = 0;
	point_lost = 0;
	point_corrupt = 0;
	check_structure(may_leak);
	check_content();
	nr_points++;
	nr_wrong += point_alien || point_lost || point_corrupt;
	nr_corrupt += !!point_corrupt;
	nr_lost += !!point_lost;
	nr_alien += !!point_alien;
	if (point_alien + point_lost + point_corrupt)
		complain(NULL, "%d sectors alien, %d lost, %d errors of structure",
			 point_alien, point_lost, point_corrupt);
}

/* ---- crash points ---- */

/* Entries after one flush, up to the next: see the top of this file. */
struct interval {
	uint64_t begin, tail, end;
	uint64_t writes;	/* of the tail */
	uint64_t points;
	int edited;		/* from outside: not ours */
};

static struct interval *intervals;

static int is_flush(const struct entry *e)
{
	return e->flags & LOG_FLUSH;
}

static int is_head(const struct entry *e)
{
	return e->flags & (LOG_FUA | LOG_MARK);
}

/* The tail starts after the last entry of the head. */
static void interval_end(struct interval *v, uint64_t end)
{
	v->end = end;
	for (v->tail = end; v->tail > v->begin; v->tail--)
		if (is_head(&entries[v->tail - 1]))
			break;
	v->writes = v->end - v->tail;
}

static void find_intervals(void)
{
	int edited = 0, touched = 0;
	uint64_t i;

	intervals = allocate(nr_entries + 1, sizeof(*intervals));
	for (i = 0; i < nr_entries; i++) {
		struct interval *v = &intervals[nr_intervals];

		if (entries[i].mark_kind == 'S')
			edited = 1;
		touched |= edited;
		if (entries[i].mark_kind == 'E')
			edited = 0;
		if (!is_flush(&entries[i]))
			continue;
		if (entries[i].count)
			die("entry %llu is a flush with data",
			    (unsigned long long)i);
		interval_end(v, i);
		v->edited = touched;
		touched = edited;
		v[1].begin = i + 1;
		nr_intervals++;
	}
	interval_end(&intervals[nr_intervals], nr_entries);
	intervals[nr_intervals++].edited = touched;
}

static int worth_a_point(const struct interval *v)
{
	return !v->edited && v->end > v->begin;
}

/* As evenly as can be, the rest by chance. */
static void distribute(uint64_t points)
{
	uint64_t n = 0, i, left;

	for (i = 0; i < nr_intervals; i++)
		n += worth_a_point(&intervals[i]);
	if (!n)
		die("nothing to crash");
	left = points;
	for (i = 0; i < nr_intervals; i++) {
		if (!worth_a_point(&intervals[i]))
			continue;
		intervals[i].points = points / n;
		left -= points / n;
	}
	random_seed(0, 0);
	while (left) {
		struct interval *v = &intervals[below(nr_intervals)];

		if (!worth_a_point(v) || v->points > points / n)
			continue;
		v->points++;
		left--;
	}
}

/*
 * What a crash left is known from the first mark after it. But <now> of that
 * mark may have been taken before the crash: take the second.
 */
static uint64_t submitted_by(uint64_t index)
{
	int marks = 0;

	for (; index < nr_entries; index++)
		if (entries[index].mark_kind && ++marks == 2)
			return entries[index].mark[1];
	return UINT64_MAX;
}

/* Which sectors of the tail reach the medium */
enum choice {
	SECTORS,	/* each by chance */
	WRITES,		/* each write by chance */
	PREFIX,		/* up to some sector, in order */
	SUFFIX,		/* from some sector on */
	ALL_BUT_ONE,
	ONLY_ONE,
	METADATA,	/* each write that is not guest data, by chance */
	GUEST,		/* each write of guest data, by chance */
	NR_CHOICES,
};

static const char * const choice_names[] = {
	"sectors", "writes", "prefix", "suffix", "all but one", "only one",
	"metadata", "guest data",
};

static int is_guest_data(const struct entry *e)
{
	struct sector_tag tag;

	return !(e->flags & LOG_DISCARD) && e->count &&
	       sector_read(e->data, &tag);
}

static int chance(unsigned int percent)
{
	return below(100) < percent;
}

static void tear_entry(uint64_t index, unsigned int percent)
{
	uint64_t i;

	for (i = 0; i < entries[index].count; i++)
		if (percent == 100 || chance(percent))
			apply_sector(index, i);
}

static void tear_tail(const struct interval *v, enum choice choice)
{
	static const unsigned int likely[] = { 3, 20, 50, 50, 80, 97, 100 };
	unsigned int percent = likely[below(7)];
	uint64_t pick = v->tail + below(v->writes), i;
	int take;

	for (i = v->tail; i < v->end; i++) {
		switch (choice) {
		case SECTORS:
			tear_entry(i, percent);
			continue;
		case PREFIX:
			if (i == pick)
				tear_entry(i, 50);
			take = i < pick;
			break;
		case SUFFIX:
			if (i == pick)
				tear_entry(i, 50);
			take = i > pick;
			break;
		case ALL_BUT_ONE:
			take = i != pick;
			break;
		case ONLY_ONE:
			take = i == pick;
			break;
		case METADATA:
			take = !is_guest_data(&entries[i]) && chance(percent);
			break;
		case GUEST:
			take = is_guest_data(&entries[i]) && chance(percent);
			break;
		default:
			take = chance(percent);
		}
		if (take)
			tear_entry(i, 100);
	}
}

static int wanted(uint64_t interval, uint64_t point)
{
	return only_interval == UINT64_MAX ||
	       (only_interval == interval && only_point == point);
}

static void crash_here(uint64_t interval, uint64_t point, int tail)
{
	const struct interval *v = &intervals[interval];
	enum choice choice = below(NR_CHOICES);

	if (!wanted(interval, point))
		return;
	undoing = 1;
	if (tail && v->writes) {
		snprintf(point_name, sizeof(point_name),
			 "point %llu.%llu (%llu writes, %s)",
			 (unsigned long long)interval, (unsigned long long)point,
			 (unsigned long long)v->writes, choice_names[choice]);
		tear_tail(v, choice);
	} else {
		snprintf(point_name, sizeof(point_name), "point %llu.%llu",
			 (unsigned long long)interval, (unsigned long long)point);
	}
	judge(1);
	if (keep_path && only_interval != UINT64_MAX)
		keep_state();
	undo_all();
}

/* One of the head's places, the next FUA write torn. */
static void crash_in_head(uint64_t interval, uint64_t point, uint64_t place)
{
	if (!wanted(interval, point))
		return;
	undoing = 1;
	snprintf(point_name, sizeof(point_name),
		 "point %llu.%llu (before entry %llu)",
		 (unsigned long long)interval, (unsigned long long)point,
		 (unsigned long long)place);
	if (entries[place].flags & LOG_FUA)
		tear_entry(place, 50);
	judge(1);
	if (keep_path && only_interval != UINT64_MAX)
		keep_state();
	undo_all();
}

static void pass_head(const struct interval *v, uint64_t index)
{
	const struct entry *e = &entries[index];
	uint64_t i;

	(void)v;
	if (e->flags & LOG_MARK) {
		mark_passed(e);
		return;
	}
	apply(index);
	for (i = 0; !(e->flags & LOG_DISCARD) && i < e->count; i++)
		fua_sector[e->sector + i] = 1;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/*
 * Crashes in one interval, in the order of their places in the head; those in
 * the tail last. Then everything in it is durable.
 */
static void replay_interval(uint64_t index)
{
	struct interval *v = &intervals[index];
	uint64_t *places = allocate(v->points, sizeof(*places));
	uint64_t head = v->tail - v->begin, p, i;

	random_seed(index, UINT32_MAX);
	for (p = 0; p < v->points; p++)
		places[p] = v->tail;
	for (p = 0; p < v->points; p++)
		if (head && (chance(25) || !v->writes))
			places[p] = v->begin + below(head + 1);
	qsort(places, v->points, sizeof(*places), by_value);

	now.end = submitted_by(v->end);
	for (p = 0, i = v->begin; i < v->tail; i++) {
		for (; p < v->points && places[p] == i; p++) {
			random_seed(index, p);
			crash_in_head(index, p, i);
		}
		pass_head(v, i);
	}
	for (; p < v->points; p++) {
		random_seed(index, p);
		crash_here(index, p, 1);
	}
	for (i = v->tail; i < v->end; i++)
		apply(i);
	for (i = v->begin; i < v->tail; i++)
		if (entries[i].flags & LOG_FUA)
			memset(fua_sector + entries[i].sector, 0,
			       entries[i].count);
	free(places);
}

static void replay(uint64_t points)
{
	uint64_t i;

	find_intervals();
	distribute(points);
	for (i = 0; i < nr_intervals; i++)
		replay_interval(i);
	if (only_interval != UINT64_MAX)
		return;
	if (clean_end) {
		snprintf(point_name, sizeof(point_name), "after the end");
		judge(0);
	}
}

/* ---- start ---- */

static void make_state(const char *image_path, int pattern)
{
	struct sector_tag tag = { .magic = SECTOR_VIRGIN };
	uint64_t length, bytes = state_sectors * SECTOR_BYTES;
	const void *image = map_file(image_path, &length);
	int fd = open(state_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, bytes))
		die("%s: %s", state_path, strerror(errno));
	state = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (state == MAP_FAILED)
		die("%s: %s", state_path, strerror(errno));
	close(fd);
	for (; pattern && tag.number < state_sectors; tag.number++)
		sector_make(sector_at(tag.number), &tag);
	if (length > bytes)
		die("%s is larger than the device", image_path);
	memcpy(state, image, length);
	fua_sector = allocate(state_sectors, 1);
}

/*
 * @path holds the guest's disk twice: as it was at the start, and what the
 * layer below says.
 */
static void load_initial(const char *path)
{
	uint64_t length;

	initial = map_file(path, &length);
	guest_sectors = length / SECTOR_BYTES / 2;
}

static void parse_only(const char *text)
{
	unsigned long long a, b;

	if (sscanf(text, "%llu.%llu", &a, &b) != 2)
		die("--only INTERVAL.POINT");
	only_interval = a;
	only_point = b;
	want_all = 1;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "image", 1, NULL, 'i' },	/* at the start of the device */
		{ "sectors", 1, NULL, 'n' },	/* of the device */
		{ "virgin", 1, NULL, 'v' },	/* pattern or zero */
		{ "initial", 1, NULL, 'g' },
		{ "log", 1, NULL, 'l' },
		{ "journal", 1, NULL, 'j' },
		{ "run-seed", 1, NULL, 'r' },	/* the workload's */
		{ "state", 1, NULL, 's' },	/* file to work in */
		{ "points", 1, NULL, 'p' },
		{ "seed", 1, NULL, 'e' },
		{ "only", 1, NULL, 'o' },	/* one point, in detail */
		{ "keep", 1, NULL, 'k' },	/* and its image */
		{ "qemu-img", 1, NULL, 'q' },
		{ "clean-end", 0, NULL, 'c' },	/* no leak at the end */
		{ }
	};
	const char *image = NULL, *log = NULL, *journal = NULL;
	const char *initial_path = NULL;
	uint64_t points = 100;
	int pattern = 1, c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'i':
			image = optarg;
			break;
		case 'n':
			state_sectors = strtoull(optarg, NULL, 0);
			break;
		case 'v':
			pattern = !strcmp(optarg, "pattern");
			break;
		case 'g':
			initial_path = optarg;
			break;
		case 'l':
			log = optarg;
			break;
		case 'j':
			journal = optarg;
			break;
		case 'r':
			run_seed = strtoul(optarg, NULL, 0);
			break;
		case 's':
			state_path = optarg;
			break;
		case 'p':
			points = strtoull(optarg, NULL, 0);
			break;
		case 'e':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'o':
			parse_only(optarg);
			break;
		case 'k':
			keep_path = optarg;
			break;
		case 'q':
			qemu_img = optarg;
			break;
		case 'c':
			clean_end = 1;
			break;
		default:
			die("wrong option");
		}
	}
	if (!image || !log || !journal || !initial_path || !state_path ||
	    !state_sectors)
		die("an option is missing");

	make_state(image, pattern);
	load_initial(initial_path);
	load_log(log);
	load_journal(journal);
	replay(points);
	unlink(state_path);
	printf("points %llu wrong %llu corrupt %llu lost %llu alien %llu leaky %llu ",
	       (unsigned long long)nr_points, (unsigned long long)nr_wrong,
	       (unsigned long long)nr_corrupt, (unsigned long long)nr_lost,
	       (unsigned long long)nr_alien, (unsigned long long)nr_leaky);
	printf("ambiguous %llu flushes %llu entries %llu operations %u\n",
	       (unsigned long long)nr_ambiguous,
	       (unsigned long long)nr_intervals - 1,
	       (unsigned long long)nr_entries, nr_operations);
	return nr_wrong != 0;
}
