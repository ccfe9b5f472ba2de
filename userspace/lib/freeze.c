// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is frozen around a snapshot.
 */
#include "freeze.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "qga.h"
#include "report.h"

bool freeze_any(const struct freeze *freeze)
{
	return freeze->mount_count || freeze->socket_count;
}

static int check_mount(const char *path)
{
	char *above = text("%s/..", path);
	struct stat st, parent;
	int r = 0;

	if (stat(path, &st) < 0 || stat(above, &parent) < 0)
		r = report_errno(errno, "Cannot freeze %s", path);
	else if (!S_ISDIR(st.st_mode) ||
		 (st.st_dev == parent.st_dev && st.st_ino != parent.st_ino))
		r = report_fail(EINVAL, "%s is not a mount point.", path);
	free(above);
	return r;
}

int freeze_check(const struct freeze *freeze)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < freeze->mount_count && !r; i++)
		r = check_mount(freeze->mounts[i]);
	for (i = 0; i < freeze->socket_count && !r; i++) {
		r = qga_ping(freeze->sockets[i]);
		if (r < 0)
			report_errno(-r, "The guest agent at %s does not answer",
				     freeze->sockets[i]);
	}
	return r;
}

const char *freeze_holds(const struct freeze *freeze,
			 const struct image_id *id)
{
	struct stat st;
	unsigned int i;

	for (i = 0; i < freeze->mount_count; i++) {
		if (stat(freeze->mounts[i], &st) == 0 && st.st_dev == id->dev)
			return freeze->mounts[i];
	}
	return NULL;
}

static int mount_ioctl(const char *path, unsigned long request)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;

	if (fd < 0)
		return -errno;
	if (ioctl(fd, request, 0) < 0)
		r = -errno;
	close(fd);
	return r;
}

/* EINVAL: it is not frozen. */
static int thaw_mount(const char *path)
{
	int r = mount_ioctl(path, FITHAW);

	return r == -EINVAL ? 0 : r;
}

/*
 * An agent that refuses has not frozen anything: a guest that is frozen already is
 * somebody else's.  One that did not answer may have.
 */
static bool may_be_frozen(int r)
{
	return r != -EREMOTEIO;
}

int freeze_begin(const struct freeze *freeze, struct freeze *frozen,
		 const char **who)
{
	unsigned int i;
	int r = 0;

	*frozen = *freeze;
	frozen->socket_count = 0;
	frozen->mount_count = 0;
	for (i = 0; i < freeze->socket_count && !r; i++) {
		*who = freeze->sockets[i];
		r = qga_freeze(*who);
		frozen->socket_count += may_be_frozen(r);
	}
	for (i = 0; i < freeze->mount_count && !r; i++) {
		*who = freeze->mounts[i];
		r = mount_ioctl(*who, FIFREEZE);
		frozen->mount_count += !r;
	}
	return r;
}

static void note(int error, const char *path, int *first, const char **who)
{
	if (!error || *first)
		return;
	*first = error;
	*who = path;
}

int freeze_end(const struct freeze *frozen, const char **who)
{
	unsigned int i;
	int r = 0;

	for (i = frozen->mount_count; i--;)
		note(thaw_mount(frozen->mounts[i]), frozen->mounts[i], &r, who);
	for (i = frozen->socket_count; i--;)
		note(qga_thaw(frozen->sockets[i]), frozen->sockets[i], &r, who);
	return r;
}

static struct json_object *list_json(const char **list, unsigned int count)
{
	struct json_object *array = json_object_new_array();
	unsigned int i;

	for (i = 0; i < count; i++)
		json_object_array_add(array, json_object_new_string(list[i]));
	return array;
}

struct json_object *freeze_json(const struct freeze *freeze)
{
	struct json_object *json = json_object_new_object();

	json_object_object_add(json, "mounts",
			       list_json(freeze->mounts, freeze->mount_count));
	json_object_object_add(json, "sockets",
			       list_json(freeze->sockets,
					 freeze->socket_count));
	return json;
}

static void list_of(struct json_object *json, const char *key,
		    const char ***list, unsigned int *count)
{
	struct json_object *array;
	unsigned int i;

	if (!json_object_object_get_ex(json, key, &array) ||
	    !json_object_is_type(array, json_type_array))
		return;
	for (i = 0; i < json_object_array_length(array); i++) {
		*list = grow_array(*list, i, sizeof(**list));
		(*list)[(*count)++] =
			json_object_get_string(json_object_array_get_idx(array, i));
	}
}

int freeze_undo(struct json_object *json)
{
	struct freeze freeze = { 0 };
	const char *who = NULL;
	int r;

	list_of(json, "mounts", &freeze.mounts, &freeze.mount_count);
	list_of(json, "sockets", &freeze.sockets, &freeze.socket_count);
	r = freeze_end(&freeze, &who);
	if (r < 0)
		report_errno(-r, "Cannot thaw %s", who);
	freeze_free(&freeze);
	return r;
}

void freeze_free(struct freeze *freeze)
{
	free(freeze->mounts);
	free(freeze->sockets);
}
