// SPDX-License-Identifier: GPL-2.0-only
/*
 * qemu-img.
 */
#include "qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "durable.h"
#include "report.h"
#include "run.h"

/* What a pipe holds if nothing is said, see pipe(7) */
#define PIPE_BYTES	65536

/**
 * struct call - a command line of qemu-img
 * @argv: its words, and NULL
 * @count: of the words
 * @secrets: pipes with passphrases: the ends to be read
 * @objects: words that name these
 * @secret_count: of both
 * @files: descriptors that words name
 * @file_count: of these
 */
struct call {
	const char **argv;
	unsigned int count;
	int *secrets;
	char **objects;
	unsigned int secret_count;
	int *files;
	unsigned int file_count;
};

static void add_word(struct call *call, const char *word)
{
	call->argv = grow_array(call->argv, call->count + 1,
				sizeof(*call->argv));
	call->argv[call->count++] = word;
	call->argv[call->count] = NULL;
}

static void call_begin(struct call *call, const char *command)
{
	memset(call, 0, sizeof(*call));
	add_word(call, "qemu-img");
	add_word(call, command);
}

static void call_end(struct call *call)
{
	while (call->secret_count) {
		close(call->secrets[--call->secret_count]);
		free(call->objects[call->secret_count]);
	}
	while (call->file_count)
		close(call->files[--call->file_count]);
	free(call->files);
	free(call->secrets);
	free(call->objects);
	free(call->argv);
}

/*
 * @fd: qemu-img inherits it, and call_end() closes it
 *
 * Return: a name by which it is opened; free() it.
 */
static char *add_file(struct call *call, int fd)
{
	call->files = grow_array(call->files, call->file_count,
				 sizeof(*call->files));
	call->files[call->file_count++] = fd;
	return text("/proc/self/fd/%d", fd);
}

/* What does not fit would wait for a reader. */
static int fill_pipe(int fd, const struct passphrase *passphrase)
{
	if (passphrase->size > PIPE_BYTES &&
	    fcntl(fd, F_SETPIPE_SZ, passphrase->size) < 0)
		return report_errno(errno, "The passphrase is too long");
	if (write(fd, passphrase->data, passphrase->size) !=
	    (ssize_t)passphrase->size)
		return report_fail(EIO, "Cannot write into a pipe.");
	return 0;
}

/*
 * qemu-img reads the passphrase once, from a pipe that it inherits: nobody else sees
 * it, and it is in no memory that can be swapped out.  It is key0, key1 in this
 * order.
 */
static int add_secret(struct call *call, const struct passphrase *passphrase)
{
	int ends[2], r;

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return report_errno(errno, "Cannot make a pipe");
	r = fill_pipe(ends[1], passphrase);
	close(ends[1]);
	if (!r && fcntl(ends[0], F_SETFD, 0) < 0)
		r = report_errno(errno, "Cannot make a pipe");
	if (r < 0) {
		close(ends[0]);
		return r;
	}
	call->secrets = grow_array(call->secrets, call->secret_count,
				   sizeof(*call->secrets));
	call->objects = grow_array(call->objects, call->secret_count,
				   sizeof(*call->objects));
	call->secrets[call->secret_count] = ends[0];
	call->objects[call->secret_count] =
		text("secret,id=key%u,file=/proc/self/fd/%d",
		     call->secret_count, ends[0]);
	add_word(call, "--object");
	add_word(call, call->objects[call->secret_count++]);
	return 0;
}

int qemu_missing(void)
{
	return report_fail(ENOENT,
			   "Cannot find qemu-img (package qemu-utils).");
}

/* Takes what run_program() returned. */
static int report_result(int r)
{
	switch (r) {
	case -ENOENT:
		return qemu_missing();
	case -EIO:
	case -EINTR:
		return report_fail(EIO, "qemu-img failed.");
	default:
		return r;
	}
}

/* A comma in a value stands there twice. */
static char *unescape(const char *value)
{
	char *result = text_copy(value), *to = result;

	for (; *value && (value[0] != ',' || value[1] == ','); value++) {
		if (*value == ',')
			value++;
		*to++ = *value;
	}
	*to = '\0';
	return result;
}

/* Where the next option starts */
static const char *next_option(const char *options)
{
	for (; *options; options++) {
		if (*options != ',')
			continue;
		if (options[1] != ',')
			return options + 1;
		options++;
	}
	return options;
}

static bool is_flag(const char *option, const char *key)
{
	size_t length = strlen(key);

	return !strncmp(option, key, length) && strchr(",", option[length]);
}

/*
 * An option without a value has one for qemu-img, which takes "data_file" alone for a
 * file of the name "on".
 *
 * Return: up to a comma; or NULL: it is another option.
 */
static const char *value_of(const char *option, const char *key)
{
	size_t length = strlen(key);

	if (!strncmp(option, key, length) && option[length] == '=')
		return option + length + 1;
	if (is_flag(option, key))
		return "on";
	return !strncmp(option, "no", 2) && is_flag(option + 2, key) ? "off" :
		NULL;
}

char *qemu_option(const char *options, const char *key)
{
	const char *found = NULL, *value;

	/* Of several the last one counts. */
	for (; options && *options; options = next_option(options)) {
		value = value_of(options, key);
		if (value)
			found = value;
	}
	return found ? unescape(found) : NULL;
}

bool qemu_option_has(const char *options, const char *key)
{
	for (; options && *options; options = next_option(options)) {
		if (value_of(options, key))
			return true;
	}
	return false;
}

/* The file, and its name */
static int make_durable(const char *path)
{
	int r = durable_make(path);

	return r < 0 ? r : durable_name(path);
}

/* The options, and those that encrypt with the first secret; free() it */
static char *all_options(const struct new_image *image)
{
	static const char encrypt[] =
		"encrypt.format=luks,encrypt.key-secret=key0";

	if (!image->passphrase)
		return text_copy(image->options);
	return text("%s%s%s", encrypt, image->options ? "," : "",
		    image->options ? image->options : "");
}

static void add_create_words(struct call *call, const struct new_image *image,
			     const char *options)
{
	add_word(call, "-q");
	add_word(call, "-f");
	add_word(call, "qcow2");
	if (options) {
		add_word(call, "-o");
		add_word(call, options);
	}
	if (image->backing) {
		add_word(call, "-u");
		add_word(call, "-b");
		add_word(call, image->backing);
		add_word(call, "-F");
		add_word(call, image->backing_format);
	}
	add_word(call, "--");
	add_word(call, image->path);
	if (image->size)
		add_word(call, image->size);
}

/* Return: as run_program() */
static int run_create(const struct new_image *image, int errors)
{
	/* What it takes the name of a data file from, which we see from there */
	char *directory = directory_of(image->path);
	struct run_files files = { -1, errors, -1, directory };
	char *options = all_options(image);
	struct call call;
	int r = 0;

	call_begin(&call, "create");
	if (image->passphrase)
		r = add_secret(&call, image->passphrase);
	add_create_words(&call, image, options);
	if (!r)
		r = run_program(call.argv, &files);
	call_end(&call);
	free(options);
	free(directory);
	return r;
}

/*
 * QEMU measures how fast the CPU derives a key, and some versions (9.2.0, 7.2.22 of
 * Debian 12) give up where the first of these measurements is over before the
 * kernel has accounted for its time.  QEMU commit 145f12ea885c ("crypto: fix bogus
 * error benchmarking pbkdf on fast machines") has them go on.
 */
static bool is_measured_too_early(int errors)
{
	char said[4096];
	ssize_t len = pread(errors, said, sizeof(said) - 1, 0);

	said[len < 0 ? 0 : len] = '\0';
	return strstr(said, "Unable to get accurate CPU usage");
}

int qemu_create(const struct new_image *image, const char *name)
{
	int tries = 20, errors, r;

	do {
		errors = run_errors();
		if (errors < 0)
			return errors;
		r = run_create(image, errors);
		if (r == -EIO && --tries && is_measured_too_early(errors))
			r = -EAGAIN;
		else
			run_print_errors(errors, image->path, name);
		close(errors);
	} while (r == -EAGAIN);
	r = report_result(r);
	if (!r)
		r = make_durable(image->path);
	if (!r && image->data)
		r = make_durable(image->data);
	return r;
}

/* The page cache of a block device does not know what the target wrote there. */
static struct json_object *node_at(const char *path, bool is_device,
				   enum image_format format)
{
	struct json_object *node = json_object_new_object();
	struct json_object *file = json_object_new_object();
	struct json_object *cache = json_object_new_object();

	json_set_string(file, "driver", is_device ? "host_device" : "file");
	json_set_string(file, "filename", path);
	json_set_bool(cache, "direct", is_device);
	json_object_object_add(file, "cache", cache);
	json_set_string(node, "driver", format_name(format));
	json_object_object_add(node, "file", file);
	if (format == FORMAT_QCOW2)
		json_object_object_add(node, "backing", NULL);
	return node;
}

/*
 * JSON is UTF-8, and names of files may be any bytes. Messages are of the path
 * wherever it can be said.
 */
static char *sayable_name(struct call *call, const struct image *image)
{
	int fd = -1;

	if (!text_is_utf8(image->path))
		fd = fcntl(image->fd, F_DUPFD, STDERR_FILENO + 1);
	return fd < 0 ? text_copy(image->path) : add_file(call, fd);
}

static struct json_object *node_of(struct call *call, const struct image *image)
{
	char *name = sayable_name(call, image);
	struct json_object *node;

	node = node_at(name, image->is_device, image->format);
	free(name);
	return node;
}

/* QEMU would look for the data file in its working directory. */
static struct json_object *node_with_data(struct call *call,
					  const struct image *image)
{
	struct json_object *node = node_of(call, image);
	struct image data;

	if (!image_external(image))
		return node;
	if (image_open_data(image, &data) == 0)
		json_object_object_add(node, "data-file", node_of(call, &data));
	image_close(&data);
	return node;
}

static struct json_object *node_of_zeroes(uint64_t size)
{
	struct json_object *node = json_object_new_object();

	json_set_string(node, "driver", "null-co");
	json_set_number(node, "size", size);
	json_set_bool(node, "read-zeroes", true);
	return node;
}

/* Drops @node. */
static char *name_of(struct json_object *node)
{
	char *name = text("json:%s", json_object_to_json_string(node));

	json_object_put(node);
	return name;
}

/* Without a passphrase the image is not encrypted. */
static int add_key(struct call *call, const struct passphrase *passphrase,
		   struct json_object *node)
{
	struct json_object *encrypt;
	char key[16];
	int r;

	if (!passphrase)
		return 0;
	snprintf(key, sizeof(key), "key%u", call->secret_count);
	r = add_secret(call, passphrase);
	if (r < 0)
		return r;
	encrypt = json_object_new_object();
	json_set_string(encrypt, "format", "luks");
	json_set_string(encrypt, "key-secret", key);
	json_object_object_add(node, "encrypt", encrypt);
	return 0;
}

/*
 * The image alone: what it is linked to may be missing, in use, or of a format that
 * QEMU would have to guess.
 */
static int node_to_open(struct call *call, const struct image *image,
			const struct unlock *unlock, struct json_object **node)
{
	*node = node_with_data(call, image);
	return add_key(call, unlock_passphrase(unlock, image), *node);
}

static int run_check(struct call *call, struct json_object **report)
{
	char *output;
	int r = run_output(call->argv, &output);

	if (output && *output)
		*report = json_tokener_parse(output);
	if (r == -ENOENT)
		qemu_missing();
	else if (r == -EINTR)
		report_fail(EIO, "qemu-img failed.");
	free(output);
	return r;
}

int qemu_check(const struct image *image, const struct unlock *unlock,
	       bool repair, struct json_object **report)
{
	struct json_object *node;
	struct call call;
	char *name;
	int r;

	*report = NULL;
	call_begin(&call, "check");
	r = node_to_open(&call, image, unlock, &node);
	name = name_of(node);
	add_word(&call, "--output=json");
	if (repair) {
		add_word(&call, "-r");
		add_word(&call, "all");
	}
	add_word(&call, name);
	if (!r)
		r = run_check(&call, report);
	call_end(&call);
	free(name);
	return r;
}

static int node_over(struct call *call, const struct image *layers,
		     unsigned int count, const struct unlock *unlock,
		     struct json_object **node)
{
	struct json_object *lower;
	int r = node_to_open(call, layers, unlock, node);

	if (r < 0 || count < 2)
		return r;
	r = node_over(call, layers + 1, count - 1, unlock, &lower);
	json_object_object_add(*node, "backing", lower);
	return r;
}

/*
 * An image in memory with nothing in it.
 *
 * @name: result, the name that qemu-img has for it; free() it
 */
static int make_cover(struct call *call, uint64_t size, char **name)
{
	char bytes[24];
	struct new_image image = {
		.size = bytes,
		.options = "cluster_size=2M",
	};
	int fd = memfd_create("cover", 0);

	if (fd < 0)
		return report_errno(errno, "Cannot create a file in memory");
	snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size);
	*name = add_file(call, fd);
	image.path = *name;
	return report_result(run_create(&image, -1));
}

/* Where the image below is not longer itself, an empty one over it is. */
static int cover(struct call *call, uint64_t size, struct json_object **node)
{
	struct json_object *over;
	char *name = NULL;
	int r;

	r = make_cover(call, size, &name);
	if (!r) {
		over = node_at(name, false, FORMAT_QCOW2);
		json_object_object_add(over, "backing", *node);
		*node = over;
	}
	free(name);
	return r;
}

/*
 * QEMU makes the new part zeroes where what is below is longer. Of the cluster that
 * the image ends in, it copies from there what the image does not have.
 */
static int node_to_hide(struct call *call, const struct chain *chain,
			const struct unlock *unlock, uint64_t size,
			struct json_object **node)
{
	const struct image *layers = chain->layers;
	struct json_object *lower;
	int r;

	r = node_to_open(call, &layers[0], unlock, node);
	if (r < 0)
		return r;
	if (chain->count < 2) {
		json_object_object_add(*node, "backing", node_of_zeroes(size));
		return 0;
	}
	r = node_over(call, layers + 1, chain->count - 1, unlock, &lower);
	/* It counts whole sectors. */
	if (!r && layers[1].size / 512 <= layers[0].size / 512)
		r = cover(call, size, &lower);
	json_object_object_add(*node, "backing", lower);
	return r;
}

int qemu_resize(const struct chain *chain, bool hide,
		const struct unlock *unlock, uint64_t size)
{
	const struct image *image = &chain->layers[0];
	struct json_object *node;
	struct call call;
	char bytes[24], *name;
	int r;

	snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size);
	call_begin(&call, "resize");
	r = hide ? node_to_hide(&call, chain, unlock, size, &node) :
		node_to_open(&call, image, unlock, &node);
	name = name_of(node);
	add_word(&call, "-q");
	add_word(&call, "--shrink");
	add_word(&call, name);
	add_word(&call, bytes);
	if (!r)
		r = report_result(run_program(call.argv, NULL));
	call_end(&call);
	free(name);
	return r < 0 ? r : durable_make(image->path);
}

/*
 * With lazy refcounts a killed qemu-img would leave the dirty bit set, and the
 * kernel does not write to such an image.
 */
static int name_to_edit(struct call *call, const struct qemu_snapshot *edit,
			char **name)
{
	struct json_object *node, *file;
	int r;

	node = node_at(edit->path, edit->is_device, FORMAT_QCOW2);
	json_object_object_get_ex(node, "file", &file);
	json_set_string(file, "locking", "off");
	json_set_bool(node, "lazy-refcounts", false);
	r = add_key(call, edit->passphrase, node);
	*name = name_of(node);
	return r;
}

int qemu_snapshot(const struct qemu_snapshot *edit)
{
	struct run_files files = {
		.output = -1,
		.errors = edit->errors,
		.keep = edit->keep,
	};
	struct call call;
	char *name;
	int r;

	call_begin(&call, "snapshot");
	r = name_to_edit(&call, edit, &name);
	add_word(&call, edit->option);
	add_word(&call, edit->name);
	add_word(&call, "--");
	add_word(&call, name);
	if (!r)
		r = run_program(call.argv, &files);
	call_end(&call);
	free(name);
	return r;
}
