// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who else uses an image?
 */
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "dm.h"
#include "job.h"
#include "layerlist.h"
#include "loop.h"
#include "report.h"
#include "scan.h"

/* The target takes no longer chain; one that is perhaps has a loop. */
#define LINKS_MAX	1024

/**
 * struct seen - what has been dealt with already
 * @ids: array
 * @count: of @ids
 */
struct seen {
	struct image_id *ids;
	unsigned int count;
};

/**
 * struct victims - images that suffer
 * @list: the images, then their external data files
 * @count: of @list
 * @data: these files
 * @data_count: of @data
 */
struct victims {
	const struct image **list;
	unsigned int count;
	struct image *data;
	unsigned int data_count;
};

/**
 * struct check - a search under way
 * @users: where to look
 * @victims: images that suffer
 * @own: a device that shows the chain was found
 * @found: users that cannot be overridden
 * @overlays: users that can
 * @named: the overlays that were named
 */
struct check {
	const struct users *users;
	struct victims victims;
	bool own;
	unsigned int found;
	unsigned int overlays;
	struct seen named;
};

/* Return: whether it was noted before; it is from now on. */
static bool seen_before(struct seen *seen, const struct image_id *id)
{
	unsigned int i;

	for (i = 0; i < seen->count; i++) {
		if (image_id_equal(&seen->ids[i], id))
			return true;
	}
	seen->ids = grow_array(seen->ids, seen->count, sizeof(*seen->ids));
	seen->ids[seen->count++] = *id;
	return false;
}

static const struct image *find_victim(const struct check *check,
				       const struct image_id *id)
{
	unsigned int i;

	for (i = 0; i < check->victims.count; i++) {
		if (image_id_equal(&check->victims.list[i]->id, id))
			return check->victims.list[i];
	}
	return NULL;
}

static bool is_left(const struct users *users, const struct image_id *id)
{
	struct image_id left;
	size_t i, count = users->left ? json_object_array_length(users->left) :
		0;

	for (i = 0; i < count; i++) {
		left = layer_json_id(json_object_array_get_idx(users->left, i));
		if (image_id_equal(&left, id))
			return true;
	}
	return false;
}

static bool in_chain(const struct chain *chain, const struct image_id *id)
{
	unsigned int i;

	for (i = 0; i < chain->count; i++) {
		if (image_id_equal(&chain->layers[i].id, id))
			return true;
	}
	return false;
}

/*
 * Open devices
 */

static bool shows_chain(const struct device *device, const struct chain *chain)
{
	unsigned int i;

	if (device->count != chain->count || device->snapshot)
		return false;
	for (i = 0; i < chain->count; i++) {
		if (!image_id_equal(&device->layers[i].id,
				    &chain->layers[i].id))
			return false;
	}
	return true;
}

static bool is_own_job(const struct device *device)
{
	char own[JOB_UUID_MAX];

	job_uuid("", own);
	return !strncmp(device->dm.uuid, own, strlen(own));
}

static void check_layers(struct check *check, const struct device *device)
{
	const struct image *victim;
	struct image_user user;
	unsigned int i;

	for (i = 0; i < device->count; i++) {
		victim = find_victim(check, &device->layers[i].id);
		if (!victim && device->layers[i].data_path)
			victim = find_victim(check, &device->layers[i].data_id);
		if (!victim)
			continue;
		user.layer = i;
		user.writes = !i && !device->dm.read_only;
		user.snapshot = !i && device->snapshot;
		memcpy(user.name, device->name, sizeof(user.name));
		device_refuse(victim->path, &user);
		check->found++;
	}
}

static bool visit_device(const char *name, void *data)
{
	struct check *check = data;
	struct device device;

	if (!device_load(name, &device))
		return false;
	/* A second device that shows the same is another user. */
	if (!check->own && !dm_uuid_is(&device.dm, DM_UUID_JOB) &&
	    shows_chain(&device, check->users->chain))
		check->own = true;
	else if (!is_own_job(&device))
		check_layers(check, &device);
	device_free(&device);
	return false;
}

/*
 * Locks
 */

static int check_locks(struct check *check, const struct image *victim)
{
	struct lock_mates mates = loop_mates(&victim->id);
	int fd = open(victim->path, O_RDONLY | O_CLOEXEC), r;

	if (fd < 0)
		return report_errno(errno, "Cannot open %s", victim->path);
	r = lock_test(fd, ROLE_WRITE, &mates);
	close(fd);
	if (r == -EBUSY) {
		report_fail(EBUSY,
			    "%s is locked: another program (QEMU, qemu-img, qemu-nbd) has it open.",
			    victim->path);
		check->found++;
		return 0;
	}
	return r < 0 ? report_errno(-r, "Cannot test the locks of %s",
				    victim->path) : 0;
}

/*
 * Overlays
 */

/* Is this what the next link is to be read from? */
static bool open_next(const struct check *check, const struct image_id *id,
		      const char *path, struct image *image)
{
	memset(image, 0, sizeof(*image));
	image->fd = -1;
	/* What stands on an image that keeps its contents is not harmed. */
	return !in_chain(check->users->chain, id) && scan_open(path, image);
}

static bool is_raw(const char *format)
{
	return format && format_of_name(format) == FORMAT_RAW;
}

/* Which victim do the links of an image lead to, if any? */
static const struct image *stands_on(const struct check *check,
				     const struct image *overlay)
{
	const struct image *victim = NULL;
	char *path = scan_backing(overlay);
	bool raw = is_raw(overlay->backing_format);
	unsigned int links = 0;
	struct image image;
	struct image_id id;
	char *next;

	while (path && !victim && links++ < LINKS_MAX &&
	       image_id_of_path(path, &id)) {
		victim = find_victim(check, &id);
		next = NULL;
		if (!victim && !raw) {
			if (open_next(check, &id, path, &image))
				next = scan_backing(&image);
			raw = is_raw(image.backing_format);
			image_close(&image);
		}
		free(path);
		path = next;
	}
	free(path);
	return victim;
}

/* Which victim is its external data file, if any? */
static const struct image *has_data_in(const struct check *check,
				       const struct image *image)
{
	const struct image *victim = NULL;
	struct image_id id;
	char *path;

	if (!image->data_file || image_data_path(image, &path) < 0 || !path)
		return NULL;
	if (image_id_of_path(path, &id))
		victim = find_victim(check, &id);
	free(path);
	return victim;
}

static void visit_image(const struct image *image, void *data)
{
	struct check *check = data;
	const struct image *victim;

	/* A victim that is not in the chain any more has its data file as well. */
	if (in_chain(check->users->chain, &image->id) ||
	    is_left(check->users, &image->id) ||
	    find_victim(check, &image->id))
		return;
	victim = stands_on(check, image);
	if (!victim)
		victim = has_data_in(check, image);
	if (!victim || seen_before(&check->named, &image->id))
		return;
	if (check->users->force)
		report_warn("%s stands on %s, and will not read right any more.",
			    image->path, victim->path);
	else
		report_fail(EBUSY, "%s stands on %s.", image->path,
			    victim->path);
	check->overlays++;
}

static bool directory_was_searched(struct seen *seen, const char *directory)
{
	struct image_id id = { 0 };
	struct stat st;

	if (stat(directory, &st) < 0)
		return false;
	id.dev = st.st_dev;
	id.ino = st.st_ino;
	return seen_before(seen, &id);
}

static int scan_beside(struct check *check, struct seen *seen, const char *path)
{
	char *directory = directory_of(path);
	int r = 0;

	if (!directory_was_searched(seen, directory))
		r = scan_directory(directory, false, visit_image, check);
	free(directory);
	return r;
}

/* The directory of the path, and that of what a symbolic link leads to */
static int scan_chain(struct check *check, struct seen *seen)
{
	unsigned int i;
	char *real;
	int r = 0;

	for (i = 0; i < check->users->chain->count && !r; i++) {
		r = scan_beside(check, seen, check->users->chain->layers[i].path);
		real = realpath(check->users->chain->layers[i].path, NULL);
		if (!r && real)
			r = scan_beside(check, seen, real);
		free(real);
	}
	return r;
}

static int check_overlays(struct check *check)
{
	const struct users *users = check->users;
	struct seen seen = { NULL, 0 };
	unsigned int i;
	int r;

	r = scan_chain(check, &seen);
	for (i = 0; i < users->nsearch && !r; i++)
		r = scan_directory(users->search[i], true, visit_image, check);
	free(seen.ids);
	return r;
}

static int judge(const struct check *check)
{
	const struct users *users = check->users;

	/* What was named is said by then. */
	if (users->halves && (check->found ||
			      (check->overlays && !users->force)))
		return -EBUSY;
	if (check->found)
		return report_fail(EBUSY,
				   "Images that would be changed are in use: nothing was done.");
	if (check->overlays && !users->force)
		return report_fail(EBUSY,
				   "Other overlays would not read right any more: nothing was done. --force does it all the same.");
	return 0;
}

/*
 * Victims
 */

/* A job was killed when it had deleted this one, and not yet the image. */
static bool data_is_gone(const struct image *image)
{
	bool gone;
	char *path;

	if (!image->data_file || image_data_path(image, &path) < 0)
		return false;
	gone = path && access(path, F_OK) < 0 && errno == ENOENT;
	free(path);
	return gone;
}

/* External data files fare as their images do. */
static int victims_open(struct victims *victims, const struct users *users,
			const struct image *const *images, unsigned int count)
{
	unsigned int i;
	int r = 0;

	memset(victims, 0, sizeof(*victims));
	victims->list = grow_array(NULL, 2 * count, sizeof(*victims->list));
	victims->data = grow_array(NULL, count, sizeof(*victims->data));
	for (i = 0; i < count; i++)
		victims->list[victims->count++] = images[i];
	for (i = 0; i < count && !r; i++) {
		struct image *data = &victims->data[victims->data_count];

		if (!image_external(images[i]) ||
		    (users->halves && data_is_gone(images[i])))
			continue;
		victims->data_count++;
		victims->list[victims->count++] = data;
		r = image_open_data(images[i], data);
	}
	return r;
}

static void victims_close(struct victims *victims)
{
	while (victims->data_count)
		image_close(&victims->data[--victims->data_count]);
	free(victims->data);
	free(victims->list);
}

static int check_open(struct check *check)
{
	unsigned int i;
	int r = 0;

	dm_each(visit_device, check);
	for (i = 0; i < check->victims.count && !r; i++)
		r = check_locks(check, check->victims.list[i]);
	return r;
}

int users_check_written(const struct chain *chain, const struct image *image)
{
	const struct users users = { .chain = chain };
	struct check check = { .users = &users };
	int r;

	r = victims_open(&check.victims, &users, &image, 1);
	if (!r)
		r = check_open(&check);
	victims_close(&check.victims);
	return r < 0 ? r : judge(&check);
}

int users_check(const struct users *users, const struct image *const *victims,
		unsigned int count)
{
	struct check check = { .users = users };
	int r;

	r = victims_open(&check.victims, users, victims, count);
	if (!r)
		r = check_open(&check);
	if (!r)
		r = check_overlays(&check);
	victims_close(&check.victims);
	free(check.named.ids);
	return r < 0 ? r : judge(&check);
}
