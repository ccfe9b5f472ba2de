// SPDX-License-Identifier: GPL-2.0-only
/*
 * info IMAGE|NAME: what is in an image.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "look.h"
#include "report.h"

/* Names of feature bits that are set, comma separated; free() it */
static char *features_text(const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	char *all = text_copy(""), *longer;
	unsigned int bit;

	for (bit = 0; bit < 5; bit++) {
		if (!(h->incompatible >> bit & 1))
			continue;
		longer = text("%s%s%s", all, *all ? ", " : "",
			      qcow2_feature_name(bit));
		free(all);
		all = longer;
	}
	if (!image->unknown_features)
		return all;
	longer = text("%s%sunknown: %s", all, *all ? ", " : "",
		      image->unknown_features);
	free(all);
	return longer;
}

static const char *encryption_name(const struct qcow2_header *h)
{
	static const char * const names[] = { NULL, "aes", "luks" };

	return names[h->crypt_method];
}

static void add_qcow2(struct json_object *object, const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	char *features = features_text(image);

	json_set_number(object, "version", h->version);
	json_set_number(object, "cluster-size", h->cluster_size);
	json_set_number(object, "refcount-bits", 1U << h->refcount_order);
	json_set_string(object, "backing-file", image->backing);
	json_set_string(object, "backing-format", image->backing_format);
	json_set_string(object, "data-file", image->data_file);
	json_set_string(object, "encryption", encryption_name(h));
	json_set_string(object, "incompatible-features",
			*features ? features : NULL);
	json_set_number(object, "internal-snapshots", h->nb_snapshots);
	json_set_bool(object, "dirty",
		      !!(h->incompatible & QCOW2_INCOMPAT_DIRTY));
	json_set_bool(object, "corrupt",
		      !!(h->incompatible & QCOW2_INCOMPAT_CORRUPT));
	json_set_bool(object, "bitmaps",
		      !!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS));
	free(features);
}

static struct json_object *image_json(const struct image *image)
{
	struct json_object *object = json_object_new_object();

	json_set_string(object, "image", image->path);
	json_set_string(object, "format", format_name(image->format));
	json_set_number(object, "virtual-size", image->size);
	json_set_bool(object, "block-device", image->is_device);
	json_set_number(object, "length", image->length);
	if (!image->is_device)
		json_set_number(object, "allocated", image->allocated);
	if (image->format == FORMAT_QCOW2)
		add_qcow2(object, image);
	return object;
}

static void print_qcow2(const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	char *features = features_text(image);
	char size[SIZE_TEXT];

	printf("cluster size:  %s\n", size_text(h->cluster_size, size));
	printf("refcounts:     %u bits\n", 1U << h->refcount_order);
	if (image->backing)
		printf("backing file:  %s (%s)\n", image->backing,
		       image->backing_format ? image->backing_format :
		       "format not recorded");
	if (image->data_file)
		printf("data file:     %s\n", image->data_file);
	if (encryption_name(h))
		printf("encryption:    %s\n", encryption_name(h));
	if (*features)
		printf("features:      %s\n", features);
	if (h->nb_snapshots)
		printf("snapshots:     %u internal\n", h->nb_snapshots);
	free(features);
}

static void print_image(const struct image *image)
{
	char size[SIZE_TEXT], allocated[SIZE_TEXT];

	printf("image:         %s\n", image->path);
	if (image->format == FORMAT_QCOW2)
		printf("format:        qcow2, version %u\n",
		       image->header.version);
	else
		printf("format:        raw\n");
	printf("virtual size:  %llu (%s)\n", (unsigned long long)image->size,
	       size_text(image->size, size));
	printf("%s%llu (%s)", image->is_device ? "device size:   " :
	       "file length:   ", (unsigned long long)image->length,
	       size_text(image->length, size));
	if (!image->is_device)
		printf(", allocated %s",
		       size_text(image->allocated, allocated));
	putchar('\n');
	if (image->format == FORMAT_QCOW2)
		print_qcow2(image);
}

static void print_chain(const struct chain *chain, const struct arguments *args)
{
	struct json_object *all;
	unsigned int i;

	if (args->json && !args->backing_chain) {
		report_json(image_json(&chain->layers[0]));
		return;
	}
	all = args->json ? json_object_new_array() : NULL;
	for (i = 0; i < chain->count; i++) {
		if (all) {
			json_object_array_add(all, image_json(&chain->layers[i]));
			continue;
		}
		if (i)
			putchar('\n');
		print_image(&chain->layers[i]);
	}
	if (all)
		report_json(all);
}

int cmd_info(struct arguments *args)
{
	struct chain chain = { 0 };
	int r;

	r = look_open(args->words[0], &args->formats, args->backing_chain,
		      &chain);
	if (!r)
		print_chain(&chain, args);
	chain_close(&chain);
	return r;
}
