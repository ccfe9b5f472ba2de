// SPDX-License-Identifier: GPL-2.0-only
/*
 * create IMAGE [SIZE] [-b BACKING -F FORMAT]: a new image.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "device.h"
#include "link.h"
#include "newimage.h"
#include "overlay.h"
#include "recover.h"
#include "report.h"
#include "size.h"
#include "state.h"

static int check_format(const char *format)
{
	if (!strcmp(format, "luks"))
		return 0;
	if (!strcmp(format, "aes"))
		return report_fail(EOPNOTSUPP,
				   "The legacy AES of qcow2 is not supported, as its IVs can be predicted: use -o encrypt.format=luks.");
	return report_fail(EINVAL,
			   "Encryption format '%s' is not supported (luks is).",
			   format);
}

static int check_encryption(const char *options)
{
	char *format = qemu_option(options, "encrypt.format");
	char *secret = qemu_option(options, "encrypt.key-secret");
	char *legacy = qemu_option(options, "encryption");
	int r = 0;

	if (legacy && strcmp(legacy, "off"))
		r = check_format("aes");
	if (!r && secret)
		r = report_fail(EINVAL,
				"Give the passphrase with --key-file, not with -o.");
	if (!r && format)
		r = check_format(format);
	free(format);
	free(secret);
	free(legacy);
	return r;
}

static int check_arguments(const struct arguments *args)
{
	uint64_t size;

	if (args->words[1] && size_parse(args->words[1], &size) < 0)
		return -EINVAL;
	if (!args->backing != !args->backing_format)
		return report_fail(EINVAL,
				   "-b BACKING and -F FORMAT go together: a format is never guessed.");
	if (qemu_option_has(args->options, "backing_file") ||
	    qemu_option_has(args->options, "backing_fmt"))
		return report_fail(EINVAL,
				   "Give the backing image with -b and -F, not with -o.");
	if (qemu_option_has(args->options, "size"))
		return report_fail(EINVAL,
				   "Give the size behind the name of the image, not with -o.");
	if (qemu_option_has(args->options, "help") ||
	    qemu_option_has(args->options, "?"))
		return report_fail(EINVAL,
				   "What options there are 'qemu-img create -f qcow2 -o help' tells.");
	if (!args->words[1] && !args->backing)
		return report_fail(EINVAL, "The image needs a SIZE.");
	return check_encryption(args->options);
}

/* A path as qemu-img has it: from the directory that the new image is in */
static int find_backing(const struct arguments *args, const char *image,
			char **path)
{
	const char *word = args->backing;
	int error;

	*path = link_beside(image, word);
	if (access(*path, F_OK) == 0)
		return 0;
	error = errno;
	if (!is_path(word) && strlen(word) < DM_NAME_MAX &&
	    dm_query(word).exists)
		return report_fail(EBUSY,
				   "%s is an open device, not an image: to put an overlay on its image, use 'qcow2setup snapshot %s OVERLAY'.",
				   word, word);
	return report_errno(error, "Backing file %s", *path);
}

/* check_format() has seen that it is LUKS. */
static int find_passphrase(struct arguments *args, const char *path,
			   const struct passphrase **passphrase)
{
	char *format = qemu_option(args->options, "encrypt.format");
	int r = 0;

	*passphrase = NULL;
	if (format)
		r = unlock_new(&args->unlock, path, passphrase);
	free(format);
	return r;
}

/*
 * The external data file that is asked for: as the image, there may be nothing yet.
 * qemu-img would take a protocol from its name here, and nobody would later.
 */
static int find_data(const struct arguments *args, const char *image,
		     char **data)
{
	char *name = qemu_option(args->options, "data_file"), *path;
	int r;

	*data = NULL;
	if (!name)
		return 0;
	if (!*name || link_has_protocol(name)) {
		r = report_fail(EINVAL,
				"The external data file needs the name of a file or block device, not '%s'%s.",
				name, *name ? " (of a file say ./NAME)" : "");
		free(name);
		return r;
	}
	path = link_beside(image, name);
	r = new_image_path(path, data);
	free(path);
	free(name);
	return r;
}

static int make_overlay(struct json_object *entry,
			const struct new_image *image, struct arguments *args)
{
	struct overlay overlay;
	char *backing = NULL;
	int r;

	r = find_backing(args, image->path, &backing);
	if (!r)
		r = overlay_backing_open(&overlay, backing,
					 args->backing_format, &args->formats);
	if (!r) {
		overlay.path = image->path;
		overlay.link = link_of_file(args->backing);
		overlay.size = image->size;
		overlay.options = image->options;
		overlay.data = image->data;
		overlay.passphrase = image->passphrase;
		r = overlay_make(entry, &overlay);
		overlay_backing_close(&overlay);
	}
	free(backing);
	return r;
}

static void print_result(const char *path)
{
	struct json_object *object;
	struct image image;

	if (image_open(path, FORMAT_QCOW2, &image) == 0) {
		object = json_object_new_object();
		json_set_string(object, "image", path);
		json_set_string(object, "format", "qcow2");
		json_set_number(object, "virtual-size", image.size);
		json_set_string(object, "backing-file", image.backing);
		report_json(object);
	}
	image_close(&image);
}

/* In bytes: versions of qemu-img differ in what else they take. */
static char *size_in_bytes(const char *word)
{
	uint64_t size;

	if (!word || size_parse(word, &size) < 0)
		return NULL;
	return text("%llu", (unsigned long long)size);
}

static int create(struct arguments *args, const char *path)
{
	struct json_object *entry = journal_entry("create", "", "");
	char *size = size_in_bytes(args->words[1]), *data;
	struct new_image image = {
		.path = path,
		.size = size,
		.options = args->options,
	};
	int r;

	r = find_data(args, path, &data);
	image.data = data;
	if (!r)
		r = find_passphrase(args, path, &image.passphrase);
	if (!r)
		r = args->backing ? make_overlay(entry, &image, args) :
			new_image_make(entry, &image);
	free(data);
	free(size);
	if (!r)
		journal_clear();
	json_object_put(entry);
	recover();
	return r;
}

int cmd_create(struct arguments *args)
{
	char *path = NULL;
	int r;

	r = check_arguments(args);
	if (!r)
		r = begin_change(false);
	if (!r)
		r = new_image_path(args->words[0], &path);
	if (!r)
		r = create(args, path);
	if (!r && args->json)
		print_result(path);
	state_unlock();
	free(path);
	return r;
}
