// SPDX-License-Identifier: GPL-2.0-only
/*
 * map IMAGE|NAME: which image of a chain has what, and where.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "copy.h"
#include "dm.h"
#include "look.h"
#include "map.h"
#include "report.h"

/**
 * struct entry - what is printed in one piece
 * @extent: where, and what
 * @depth: index of the image, as QEMU counts: where a layer ends above a longer
 *	one, it is the layer above that decides for zeroes
 * @present: @depth has something there, and be it zeroes
 */
struct entry {
	struct map_extent extent;
	unsigned int depth;
	bool present;
};

/**
 * struct printing - a map on its way out
 * @files: for each image the file that has its data
 * @json: print JSON
 * @first: nothing was printed so far
 * @last: what comes next, if it does not get longer
 */
struct printing {
	char **files;
	bool json;
	bool first;
	struct entry last;
};

static void print_json_string(const char *string)
{
	struct json_object *object = json_object_new_string(string);
	char *text = json_text(object, JSON_C_TO_STRING_NOSLASHESCAPE);

	fputs(text, stdout);
	free(text);
	json_object_put(object);
}

static const char *truth(bool value)
{
	return value ? "true" : "false";
}

/* The keys are those of MapEntry in QEMU's qapi/block-core.json. */
static void print_json(const struct printing *printing)
{
	const struct entry *entry = &printing->last;
	const struct map_extent *extent = &entry->extent;
	bool data = extent->kind == MAP_DATA;

	printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
	       ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s, \"compressed\": %s",
	       printing->first ? "[" : ",\n", extent->start, extent->length,
	       entry->depth, truth(entry->present),
	       truth(!data || extent->hole), truth(data),
	       truth(extent->packed));
	if (extent->offset != MAP_NOWHERE) {
		printf(", \"offset\": %" PRIu64 ", \"filename\": ",
		       extent->offset);
		print_json_string(printing->files[entry->depth]);
	}
	putchar('}');
}

/* Data alone; what is compressed or encrypted cannot be read at any place. */
static void print_line(const struct printing *printing)
{
	const struct entry *entry = &printing->last;
	const struct map_extent *extent = &entry->extent;
	char *file;

	if (extent->kind != MAP_DATA || extent->hole)
		return;
	printf("%#-16" PRIx64 "%#-16" PRIx64, extent->start, extent->length);
	if (extent->packed)
		printf("%-16s", "compressed");
	else if (extent->offset == MAP_NOWHERE)
		printf("%-16s", "encrypted");
	else
		printf("%#-16" PRIx64, extent->offset);
	file = text_printable(printing->files[entry->depth]);
	puts(file);
	free(file);
}

static void print_last(struct printing *printing)
{
	if (printing->json)
		print_json(printing);
	else
		print_line(printing);
	printing->first = false;
}

static bool goes_on(const struct entry *a, const struct entry *b)
{
	uint64_t offset = a->extent.offset;

	if (offset != MAP_NOWHERE)
		offset += a->extent.length;
	return a->extent.kind == b->extent.kind && a->depth == b->depth &&
		a->present == b->present && b->extent.offset == offset &&
		a->extent.packed == b->extent.packed &&
		a->extent.hole == b->extent.hole;
}

static void print_entry(struct printing *printing, const struct entry *entry)
{
	if (printing->last.extent.length) {
		if (goes_on(&printing->last, entry)) {
			printing->last.extent.length += entry->extent.length;
			return;
		}
		print_last(printing);
	}
	printing->last = *entry;
}

static int find_entry(struct map *map, uint64_t start, uint64_t max,
		      struct entry *entry)
{
	struct map_extent *extent = &entry->extent;
	int r = map_at(map, start, max, extent);

	if (r < 0)
		return r;
	entry->depth = extent->layer;
	entry->present = extent->kind != MAP_NONE;
	if (extent->kind == MAP_ZERO && map_ended(map, extent)) {
		entry->depth--;
		entry->present = false;
	}
	/* Nobody has it: zeroes, like those behind the end of a layer */
	if (!entry->present)
		extent->kind = MAP_ZERO;
	return 0;
}

static int print_map(const struct chain *chain, char **files, bool json)
{
	struct printing printing = {
		.files = files,
		.json = json,
		.first = true,
	};
	uint64_t pos = 0, end = round_up(chain->layers[0].size, 512);
	struct entry entry;
	struct map *map;
	int r;

	r = map_open(chain->layers, chain->count, &map);
	if (!r)
		r = map_exact(map);
	if (!r && !json)
		printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to",
		       "File");
	while (!r && pos < end) {
		r = find_entry(map, pos, end - pos, &entry);
		if (r < 0)
			break;
		print_entry(&printing, &entry);
		pos += entry.extent.length;
	}
	if (printing.last.extent.length)
		print_last(&printing);
	/* What was found is JSON, too, where the rest cannot be read. */
	if (json && (!r || !printing.first))
		puts(printing.first ? "[]" : "]");
	map_close(map);
	return r;
}

/*
 * What the kernel has in memory is not in the image yet. It has nothing there
 * when the device is suspended, which would not take a flush either.
 */
static int flush_device(const char *name)
{
	struct device device;
	char *path;
	int r = 0;

	r = device_name_check(name);
	if (!r)
		r = dm_available();
	if (r < 0)
		return r;
	if (!device_load(name, &device))
		return device_inactive(name);
	path = text("/dev/mapper/%s", name);
	if (device.snapshot)
		r = report_fail(EOPNOTSUPP,
				"Device %s shows an internal snapshot: the map of the image is another one. Give the path of the image for that.",
				name);
	else if (!device.dm.read_only && !device.dm.suspended)
		r = copy_flush(path);
	free(path);
	device_free(&device);
	return r;
}

static char *file_of(const struct image *image)
{
	char *path;

	if (image_data_path(image, &path) == 0 && path)
		return path;
	return text_copy(image->path);
}

static int print_chain(const struct chain *chain, bool json)
{
	char **files = NULL;
	unsigned int i;
	int r;

	for (i = 0; i < chain->count; i++) {
		files = grow_array(files, i, sizeof(*files));
		files[i] = file_of(&chain->layers[i]);
	}
	r = print_map(chain, files, json);
	while (i)
		free(files[--i]);
	free(files);
	return r;
}

static int check_usable(const struct chain *chain)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < chain->count && !r; i++)
		r = image_check_usable(&chain->layers[i], false);
	return r;
}

int cmd_map(struct arguments *args)
{
	struct chain chain = { 0 };
	int r = 0;

	if (!is_path(args->words[0]))
		r = flush_device(args->words[0]);
	if (!r)
		r = look_open(args->words[0], &args->formats, true, &chain);
	if (!r)
		r = check_usable(&chain);
	if (!r)
		r = print_chain(&chain, args->json);
	chain_close(&chain);
	return r;
}
