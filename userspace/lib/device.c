// SPDX-License-Identifier: GPL-2.0-only
/*
 * Open devices.
 */
#include "device.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "loop.h"
#include "report.h"
#include "state.h"

/* First line of a file of a block device in sysfs, or NULL */
static char *sysfs_line(dev_t device, const char *file)
{
	char path[128], *line = NULL;
	size_t size = 0;
	ssize_t len;
	FILE *stream;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(device),
		 minor(device), file);
	stream = fopen(path, "re");
	len = stream ? getline(&line, &size, stream) : -1;
	if (stream)
		fclose(stream);
	if (len < 0) {
		free(line);
		return NULL;
	}
	line[strcspn(line, "\n")] = '\0';
	return line;
}

char *name_of_dm_device(dev_t device)
{
	return sysfs_line(device, "dm/name");
}

bool device_zeroes_itself(dev_t device)
{
	char *most = sysfs_line(device, "queue/write_zeroes_max_bytes");
	bool does;

	if (!most)
		most = sysfs_line(device, "../queue/write_zeroes_max_bytes");
	does = most && strcmp(most, "0");
	free(most);
	return does;
}

char *path_of_device(dev_t device)
{
	char *name, *path;

	name = name_of_dm_device(device);
	if (name) {
		path = text("/dev/mapper/%s", name);
		free(name);
		return path;
	}
	name = kernel_name_of_device(device);
	path = name ? text("/dev/%s", name) :
		text("%u:%u", major(device), minor(device));
	free(name);
	return path;
}

static uint64_t sysfs_number(dev_t device, const char *file)
{
	char *line = sysfs_line(device, file);
	uint64_t number = line ? strtoull(line, NULL, 10) : 0;

	free(line);
	return number;
}

uint64_t device_length(dev_t device)
{
	return sysfs_number(device, "size");
}

bool device_is_read_only(dev_t device)
{
	return sysfs_number(device, "ro");
}

bool device_is_crypt(dev_t device, dev_t *below)
{
	char *uuid = sysfs_line(device, "dm/uuid");
	unsigned int big, small;
	bool crypt;

	crypt = uuid && sscanf(uuid, DM_UUID_CRYPT "%x-%x-", &big, &small) == 2;
	free(uuid);
	if (crypt)
		*below = makedev(big, small);
	return crypt;
}

/* The loop device over the file that a tail device completes */
static char *tail_path(dev_t device)
{
	char path[64], *result = NULL;
	struct dirent *entry;
	struct loop loop;
	int index;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves",
		 major(device), minor(device));
	dir = opendir(path);
	while (dir && !result && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, "loop%d", &index) != 1 ||
		    !loop_open(index, &loop))
			continue;
		if (loop.kind == LOOP_READ)
			result = text_copy(loop.path);
		loop_close(&loop);
	}
	if (dir)
		closedir(dir);
	return result;
}

/* Is it one of our tail devices? Its UUID tells which file it is. */
static bool resolve_tail(dev_t device, struct image_id *id, char **path)
{
	char *uuid = sysfs_line(device, "dm/uuid");
	unsigned long long dev, ino;
	bool tail;

	tail = uuid && sscanf(uuid, DM_UUID_TAIL "%llx-%llx-", &dev, &ino) == 2;
	free(uuid);
	if (!tail)
		return false;
	id->block = false;
	id->dev = dev;
	id->ino = ino;
	*path = tail_path(device);
	return true;
}

/* The file or device behind a block device of a table, and its name */
static void resolve_device(dev_t device, struct image_id *id, char **path)
{
	struct loop loop;

	*path = NULL;
	*id = image_id_of_device(device);
	if (loop_open_device(device, &loop)) {
		*path = text_copy(loop.path);
		loop_close(&loop);
	} else if (!resolve_tail(device, id, path)) {
		*path = path_of_device(device);
	}
}

static void resolve_layer(struct device_layer *layer)
{
	dev_t data = layer->data;

	resolve_device(layer->device, &layer->id, &layer->path);
	layer->data_path = NULL;
	memset(&layer->data_id, 0, sizeof(layer->data_id));
	layer->encrypted = data && device_is_crypt(data, &data);
	if (data && data != layer->device)
		resolve_device(data, &layer->data_id, &layer->data_path);
}

/* The names that the images were opened by say more than the kernel's. */
static void use_known_paths(struct device *device)
{
	struct json_object *state, *layers = NULL;
	struct image_id id;
	const char *path;
	unsigned int i;

	state = device_state_load(device->name);
	if (state)
		json_object_object_get_ex(state, "layers", &layers);
	for (i = 0; i < device->count && layers &&
	     i < json_object_array_length(layers); i++) {
		path = json_string(json_object_array_get_idx(layers, i), "path");
		if (!path || !image_id_of_path(path, &id) ||
		    !image_id_equal(&id, &device->layers[i].id))
			continue;
		free(device->layers[i].path);
		device->layers[i].path = text_copy(path);
	}
	json_object_put(state);
}

static bool parse_device(const char *word, dev_t *device)
{
	unsigned int major, minor;

	if (sscanf(word, "%u:%u", &major, &minor) != 2)
		return false;
	*device = makedev(major, minor);
	return true;
}

static bool parse_layer(char **words, struct device_layer *layer)
{
	char *format = strsep(words, " ");
	char *device = strsep(words, " ");
	char *data = strsep(words, " ");

	if (!data || !parse_device(device, &layer->device))
		return false;
	layer->format = format_of_name(format);
	layer->data = 0;
	return !strcmp(data, "-") || parse_device(data, &layer->data);
}

static void keep_feature(struct device *device, const char *word)
{
	char *longer = text("%s %s", device->features, word);

	free(device->features);
	device->features = longer;
	device->feature_words++;
}

static void parse_features(struct device *device, char *words)
{
	char *word;

	device->features = text_copy("");
	device->feature_words = 0;
	strsep(&words, " ");	/* how many there are */
	while ((word = strsep(&words, " "))) {
		if (!strcmp(word, "zero_from")) {
			strsep(&words, " ");
			continue;
		}
		if (!strcmp(word, "mirror") && words)
			parse_device(strsep(&words, " "), &device->mirror);
		if (!strcmp(word, "mirror") || !strcmp(word, "explicit_zeroes")) {
			device->job_features = true;
			continue;
		}
		/* Done when the table became active */
		if (!*word || !strcmp(word, "extend"))
			continue;
		if (!strcmp(word, FEATURE_NO_SPACE_ERROR))
			device->no_space_error = true;
		keep_feature(device, word);
		/* Whatever its ID is, it is no feature. */
		if (!strcmp(word, "snapshot") && words) {
			device->snapshot = text_copy(strsep(&words, " "));
			keep_feature(device, device->snapshot);
		}
	}
}

static bool parse_params(struct device *device, char *words)
{
	char *count = strsep(&words, " ");
	unsigned int i, layers = count ? atoi(count) : 0;

	for (i = 0; i < layers; i++) {
		device->layers = grow_array(device->layers, i,
					    sizeof(*device->layers));
		if (!parse_layer(&words, &device->layers[i]))
			return false;
		resolve_layer(&device->layers[i]);
		device->count++;
	}
	parse_features(device, words);
	return device->count;
}

bool device_load(const char *name, struct device *device)
{
	struct dm_segment segment;
	bool good;

	memset(device, 0, sizeof(*device));
	if (strlen(name) >= DM_NAME_MAX || !dm_table(name, &segment))
		return false;
	snprintf(device->name, sizeof(device->name), "%s", name);
	device->dm = dm_query(name);
	device->sectors = segment.length;
	good = device->dm.exists && parse_params(device, segment.params);
	free(segment.params);
	if (good)
		use_known_paths(device);
	else
		device_free(device);
	return good;
}

void device_free(struct device *device)
{
	while (device->count) {
		free(device->layers[--device->count].path);
		free(device->layers[device->count].data_path);
	}
	free(device->layers);
	free(device->features);
	free(device->snapshot);
	device->layers = NULL;
	device->features = NULL;
	device->snapshot = NULL;
}

static int hold(dev_t device)
{
	char *path = path_of_device(device);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	free(path);
	return fd;
}

int *device_hold(const struct device *device)
{
	int *held = NULL;
	unsigned int i;

	for (i = 0; i < device->count; i++) {
		held = grow_array(held, 2 * i, sizeof(*held));
		held[2 * i] = hold(device->layers[i].device);
		held = grow_array(held, 2 * i + 1, sizeof(*held));
		held[2 * i + 1] = device->layers[i].data ?
			hold(device->layers[i].data) : -1;
	}
	return held;
}

void device_release(const struct device *device, int *held)
{
	unsigned int count = held ? 2 * device->count : 0;

	while (count--) {
		if (held[count] >= 0)
			close(held[count]);
	}
	free(held);
}

int device_name_check(const char *name)
{
	static const char allowed[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789#+-.:=@_";

	if (!*name || strlen(name) >= DM_NAME_MAX)
		return report_fail(EINVAL,
				   "A device name has 1 to %d characters.",
				   DM_NAME_MAX - 1);
	if (name[strspn(name, allowed)] || !strcmp(name, ".") ||
	    !strcmp(name, "..") || !strcmp(name, "control"))
		return report_fail(EINVAL,
				   "'%s' is not a device name (letters, digits and #+-.:=@_ are allowed).",
				   name);
	return 0;
}

int device_inactive(const char *name)
{
	if (dm_query(name).exists)
		return report_fail(ENODEV,
				   "Device %s is not a qcow2 device.", name);
	if (access(name, F_OK) == 0)
		return report_fail(ENODEV,
				   "Device %s is not active (for the file say ./%s).",
				   name, name);
	return report_fail(ENODEV, "Device %s is not active.", name);
}

struct search {
	const struct image_id *id;
	bool (*counts)(const struct image_user *user);
	struct image_user *user;
};

static bool layer_has(const struct device_layer *layer,
		      const struct image_id *id)
{
	return image_id_equal(&layer->id, id) ||
		(layer->data_path && image_id_equal(&layer->data_id, id));
}

static bool layers_have(const struct device *device,
			const struct search *search)
{
	struct image_user *user = search->user;
	unsigned int i;

	for (i = 0; i < device->count; i++) {
		user->layer = i;
		user->writes = !i && !device->dm.read_only;
		user->snapshot = !i && device->snapshot;
		if (layer_has(&device->layers[i], search->id) &&
		    search->counts(user))
			return true;
	}
	return false;
}

/* A raw image, which needs no device over it to be written */
static bool mirror_is(const struct device *device, const struct search *search)
{
	struct image_user *user = search->user;
	struct image_id id;

	if (!device->mirror)
		return false;
	id = image_id_of_device(device->mirror);
	user->layer = 0;
	user->writes = true;
	user->snapshot = false;
	return image_id_equal(&id, search->id) && search->counts(user);
}

static bool device_has(const struct device *device, const struct search *search)
{
	if (!layers_have(device, search) && !mirror_is(device, search))
		return false;
	snprintf(search->user->name, sizeof(search->user->name), "%s",
		 device->name);
	return true;
}

static bool visit_device(const char *name, void *data)
{
	struct devices *devices = data;
	struct device device;

	if (!device_load(name, &device))
		return false;
	devices->list = grow_array(devices->list, devices->count,
				   sizeof(*devices->list));
	devices->list[devices->count++] = device;
	return false;
}

void devices_load(struct devices *devices)
{
	devices->list = NULL;
	devices->count = 0;
	dm_each(visit_device, devices);
}

void devices_free(struct devices *devices)
{
	while (devices->count)
		device_free(&devices->list[--devices->count]);
	free(devices->list);
	devices->list = NULL;
}

bool devices_use(const struct devices *devices, const struct image_id *id,
		 bool (*counts)(const struct image_user *user),
		 struct image_user *user)
{
	struct search search = { id, counts, user };
	unsigned int i;

	for (i = 0; i < devices->count; i++) {
		if (device_has(&devices->list[i], &search))
			return true;
	}
	return false;
}

static bool visit_user(const char *name, void *data)
{
	const struct search *search = data;
	struct device device;
	bool found;

	if (!device_load(name, &device))
		return false;
	found = device_has(&device, search);
	device_free(&device);
	return found;
}

bool device_uses_so(const struct image_id *id,
		    bool (*counts)(const struct image_user *user),
		    struct image_user *user)
{
	struct search search = { id, counts, user };

	return dm_each(visit_user, &search);
}

bool device_user_reads(const struct image_user *user)
{
	return !user->writes;
}

bool device_user_any(const struct image_user *user)
{
	(void)user;
	return true;
}

bool device_user_writes(const struct image_user *user)
{
	return user->writes;
}

bool device_user_not_view(const struct image_user *user)
{
	return !user->snapshot;
}

bool device_uses(const struct image_id *id, bool writer,
		 struct image_user *user)
{
	return device_uses_so(id, writer ? device_user_writes : device_user_any,
			      user);
}

struct view {
	const struct image_id *id;
	const char *snapshot;
	char *name;
};

static bool visit_view(const char *name, void *data)
{
	struct view *view = data;
	struct device device;

	if (!device_load(name, &device))
		return false;
	if (device.snapshot && !strcmp(device.snapshot, view->snapshot) &&
	    image_id_equal(&device.layers[0].id, view->id))
		view->name = text_copy(name);
	device_free(&device);
	return view->name;
}

char *device_shows(const struct image_id *id, const char *snapshot)
{
	struct view view = { id, snapshot, NULL };

	dm_each(visit_view, &view);
	return view.name;
}

int device_refuse(const char *path, const struct image_user *user)
{
	const char *how = "is open read-only as";

	if (user->writes)
		how = "is open for writing as";
	else if (user->layer)
		how = "is a lower layer of";
	else if (user->snapshot)
		how = "has an internal snapshot open as";
	return report_fail(EBUSY, "%s %s device %s.", path, how, user->name);
}

char *device_params(const struct device_layer *layers, unsigned int count,
		    uint64_t zero_from, const char *features,
		    unsigned int feature_words)
{
	char *params = text("%u", count), *longer;
	unsigned int i;

	for (i = 0; i < count; i++) {
		longer = text("%s %s %u:%u", params,
			      format_name(layers[i].format),
			      major(layers[i].device), minor(layers[i].device));
		free(params);
		params = layers[i].data ?
			text("%s %u:%u", longer, major(layers[i].data),
			     minor(layers[i].data)) : text("%s -", longer);
		free(longer);
	}
	if (zero_from != ZERO_FROM_NONE)
		longer = text("%s %u%s zero_from %llu", params,
			      feature_words + 2, features ? features : "",
			      (unsigned long long)zero_from);
	else if (feature_words)
		longer = text("%s %u%s", params, feature_words, features);
	else
		return params;
	free(params);
	return longer;
}
