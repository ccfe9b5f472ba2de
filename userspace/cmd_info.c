// SPDX-License-Identifier: GPL-2.0-only
/*
 * info IMAGE|NAME: what is in an image, as qemu-img tells it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "commands.h"
#include "details.h"
#include "encryption.h"
#include "look.h"
#include "report.h"
#include "scan.h"

/*
 * An ImageInfo of QEMU's qapi/block-core.json
 */

static void add_version3(struct json_object *data, const struct image *image)
{
	const struct qcow2_header *h = &image->header;

	if (image->data_file)
		json_set_string(data, "data-file", image->data_file);
	/* One that needs a data file may have lost its name. */
	if (qcow2_external(h))
		json_set_bool(data, "data-file-raw", qcow2_raw_data(h));
	json_set_bool(data, "corrupt",
		      !!(h->incompatible & QCOW2_INCOMPAT_CORRUPT));
	json_set_bool(data, "extended-l2",
		      !!(h->incompatible & QCOW2_INCOMPAT_EXTL2));
}

/* ImageInfoSpecificQCow2 */
static int add_specific(struct json_object *info, const struct image *image)
{
	struct json_object *specific = json_object_new_object();
	struct json_object *data = json_object_new_object();
	struct json_object *bitmaps, *encryption = NULL;
	const struct qcow2_header *h = &image->header;
	int r;

	json_object_object_add(info, "format-specific", specific);
	json_set_string(specific, "type", "qcow2");
	json_object_object_add(specific, "data", data);
	json_set_string(data, "compat", h->version == 2 ? "0.10" : "1.1");
	json_set_string(data, "compression-type", h->compression_type ==
			QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib");
	if (h->version == 3)
		json_set_bool(data, "lazy-refcounts",
			      !!(h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS));
	r = details_bitmaps(image, &bitmaps);
	if (bitmaps)
		json_object_object_add(data, "bitmaps", bitmaps);
	json_set_number(data, "refcount-bits", 1U << h->refcount_order);
	if (!r)
		r = encryption_describe(image, &encryption);
	if (encryption)
		json_object_object_add(data, "encrypt", encryption);
	if (h->version == 3)
		add_version3(data, image);
	return r;
}

static void add_backing(struct json_object *info, const struct image *image)
{
	char *path = scan_backing(image);

	if (path)
		json_set_string(info, "full-backing-filename", path);
	json_set_string(info, "backing-filename", image->backing);
	if (image->backing_format)
		json_set_string(info, "backing-filename-format",
				image->backing_format);
	free(path);
}

static int add_qcow2(struct json_object *info, const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	struct json_object *snapshots;
	int r;

	if (h->crypt_method)
		json_set_bool(info, "encrypted", true);
	json_set_number(info, "cluster-size", h->cluster_size);
	if (image->backing)
		add_backing(info, image);
	r = details_snapshots(image, &snapshots);
	if (snapshots)
		json_object_object_add(info, "snapshots", snapshots);
	/* QEMU does not open such an image. */
	if (image->unknown_features)
		json_set_string(info, "unknown-features",
				image->unknown_features);
	return r < 0 ? r : add_specific(info, image);
}

static int describe(const struct image *image, struct json_object **result)
{
	struct json_object *info = json_object_new_object();
	bool dirty = image->format == FORMAT_QCOW2 &&
		image->header.incompatible & QCOW2_INCOMPAT_DIRTY;

	*result = info;
	json_set_string(info, "filename", image->path);
	json_set_string(info, "format", format_name(image->format));
	/* A raw file counts in whole sectors. */
	json_set_number(info, "virtual-size", image->format == FORMAT_RAW ?
			round_up(image->size, 512) : image->size);
	json_set_number(info, "actual-size", image->allocated);
	json_set_number(info, "file-length", image->length);
	json_set_bool(info, "block-device", image->is_device);
	json_set_bool(info, "dirty-flag", dirty);
	return image->format == FORMAT_QCOW2 ? add_qcow2(info, image) : 0;
}

/*
 * The same as text
 */

/* What is in an image may do to a terminal what it likes, or look like other lines. */
static void make_printable(struct json_object *value)
{
	char *word;
	size_t i;

	if (json_object_is_type(value, json_type_object)) {
		json_object_object_foreach(value, key, member) {
			(void)key;
			make_printable(member);
		}
	} else if (json_object_is_type(value, json_type_array)) {
		for (i = 0; i < json_object_array_length(value); i++)
			make_printable(json_object_array_get_idx(value, i));
	} else if (json_object_is_type(value, json_type_string)) {
		word = text_printable(json_object_get_string(value));
		json_object_set_string(value, word);
		free(word);
	}
}

static void print_value(struct json_object *value, unsigned int indent);

static void print_member(const char *key, struct json_object *value,
			 unsigned int indent)
{
	bool many = json_object_is_type(value, json_type_object) ||
		json_object_is_type(value, json_type_array);

	printf("%*s%s:%s", indent * 4, "", key, many ? "\n" : " ");
	print_value(value, indent + 1);
}

static void print_array(struct json_object *array, unsigned int indent)
{
	size_t i, count = json_object_array_length(array);
	char key[32];

	for (i = 0; i < count; i++) {
		snprintf(key, sizeof(key), "[%zu]", i);
		print_member(key, json_object_array_get_idx(array, i), indent);
	}
}

static void print_object(struct json_object *object, unsigned int indent)
{
	char *words, *c;

	json_object_object_foreach(object, key, value) {
		words = text_copy(key);
		for (c = words; *c; c++) {
			if (*c == '-')
				*c = ' ';
		}
		print_member(words, value, indent);
		free(words);
	}
}

static void print_value(struct json_object *value, unsigned int indent)
{
	if (json_object_is_type(value, json_type_object))
		print_object(value, indent);
	else if (json_object_is_type(value, json_type_array))
		print_array(value, indent);
	else
		puts(json_object_get_string(value));
}

static void print_snapshot(struct json_object *snapshot)
{
	uint64_t clock = json_number(snapshot, "vm-clock-sec");
	time_t date = json_number(snapshot, "date-sec");
	char when[32] = "", size[SIZE_TEXT], run[48], icount[24] = "";
	struct tm tm;

	if (localtime_r(&date, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
	snprintf(run, sizeof(run), "%02" PRIu64 ":%02u:%02u.%03u", clock / 3600,
		 (unsigned int)(clock / 60 % 60), (unsigned int)(clock % 60),
		 (unsigned int)(json_number(snapshot, "vm-clock-nsec") /
				1000000));
	if (json_object_object_get_ex(snapshot, "icount", NULL))
		snprintf(icount, sizeof(icount), "%" PRIu64,
			 json_number(snapshot, "icount"));
	printf("%-9s %-16s %8s%20s%13s%11s\n", json_string(snapshot, "id"),
	       json_string(snapshot, "name"),
	       size_text(json_number(snapshot, "vm-state-size"), size), when,
	       run, icount);
}

static void print_snapshots(struct json_object *info)
{
	struct json_object *list;
	size_t i;

	if (!json_object_object_get_ex(info, "snapshots", &list))
		return;
	printf("Snapshot list:\n%-9s %-16s %8s%20s%13s%11s\n", "ID", "TAG",
	       "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
	for (i = 0; i < json_object_array_length(list); i++)
		print_snapshot(json_object_array_get_idx(list, i));
}

static void print_backing(struct json_object *info)
{
	const char *name = json_string(info, "backing-filename");
	const char *path = json_string(info, "full-backing-filename");
	const char *format = json_string(info, "backing-filename-format");

	if (!name)
		return;
	printf("backing file: %s", name);
	if (!path)
		printf(" (cannot determine actual path)");
	else if (strcmp(path, name))
		printf(" (actual path: %s)", path);
	putchar('\n');
	if (format)
		printf("backing file format: %s\n", format);
}

static void print_specific(struct json_object *info)
{
	struct json_object *specific, *data;

	if (!json_object_object_get_ex(info, "format-specific", &specific) ||
	    !json_object_object_get_ex(specific, "data", &data))
		return;
	puts("Format specific information:");
	print_object(data, 1);
}

static bool is_true(struct json_object *info, const char *key)
{
	struct json_object *value;

	return json_object_object_get_ex(info, key, &value) &&
		json_object_get_boolean(value);
}

static void print_info(struct json_object *info, const struct image *image)
{
	uint64_t size = json_number(info, "virtual-size");
	const char *unknown;
	char buf[SIZE_TEXT];

	make_printable(info);
	printf("image: %s\n", json_string(info, "filename"));
	printf("file format: %s\n", format_name(image->format));
	printf("virtual size: %s (%" PRIu64 " bytes)\n", size_text(size, buf),
	       size);
	printf("disk size: %s\n",
	       size_text(json_number(info, "actual-size"), buf));
	printf("%s: %s (%" PRIu64 " bytes)\n", image->is_device ?
	       "device size" : "file length", size_text(image->length, buf),
	       image->length);
	if (is_true(info, "encrypted"))
		puts("encrypted: yes");
	if (image->format == FORMAT_QCOW2)
		printf("cluster_size: %u\n", image->header.cluster_size);
	if (is_true(info, "dirty-flag"))
		puts("cleanly shut down: no");
	unknown = json_string(info, "unknown-features");
	if (unknown)
		printf("unknown features: %s\n", unknown);
	print_backing(info);
	print_snapshots(info);
	print_specific(info);
}

/* What was found is printed, also where the rest cannot be read. */
static int print_chain(const struct chain *chain, const struct arguments *args)
{
	struct json_object *all = NULL, *info;
	unsigned int i;
	int r = 0;

	if (args->json && args->backing_chain)
		all = json_object_new_array();
	for (i = 0; i < chain->count && !r; i++) {
		r = describe(&chain->layers[i], &info);
		if (all) {
			json_object_array_add(all, info);
		} else if (args->json) {
			report_json(info);
		} else {
			if (i)
				putchar('\n');
			print_info(info, &chain->layers[i]);
			json_object_put(info);
		}
	}
	if (all)
		report_json(all);
	return r;
}

int cmd_info(struct arguments *args)
{
	struct chain chain = { 0 };
	int r;

	r = look_open(args->words[0], &args->formats, args->backing_chain,
		      &chain);
	if (!r)
		r = print_chain(&chain, args);
	chain_close(&chain);
	return r;
}
