/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Open devices, as the kernel's tables show them, and table lines.
 */
#ifndef DEVICE_H
#define DEVICE_H

#include "dm.h"
#include "image.h"
#include "lock.h"

/**
 * struct device_layer - a layer of an open device
 * @format: as the table has it
 * @device: the block device in the table
 * @id: the image behind it
 * @path: name of that image: as it was opened, or else as the kernel has it
 * @data: the data device in the table, or 0
 * @data_id: the external data file behind it
 * @data_path: name of that file, or NULL: there is none
 * @encrypted: @data decrypts what is in the image, or in its data file
 */
struct device_layer {
	enum image_format format;
	dev_t device;
	struct image_id id;
	char *path;
	dev_t data;
	struct image_id data_id;
	char *data_path;
	bool encrypted;
};

/**
 * struct device - a device whose table is one line of our target
 * @name: its name
 * @dm: what device-mapper says of it
 * @sectors: its size
 * @layers: top first
 * @count: of @layers
 * @features: words of the table behind the layers, each with a blank before it;
 *	without zero_from and extend, and without those that belong to a job
 * @feature_words: number of those words
 * @no_space_error: one of them is FEATURE_NO_SPACE_ERROR
 * @snapshot: ID of the internal snapshot that it shows of its top image, or NULL;
 *	@features have it, too
 * @job_features: there are features that belong to a job: mirror,
 *	explicit_zeroes
 * @mirror: device that is written as well, or 0
 */
struct device {
	char name[DM_NAME_MAX];
	struct dm_state dm;
	uint64_t sectors;
	struct device_layer *layers;
	unsigned int count;
	char *features;
	unsigned int feature_words;
	bool no_space_error;
	char *snapshot;
	bool job_features;
	dev_t mirror;
};

/**
 * struct image_user - an open device that uses an image
 * @name: the device
 * @layer: 0 for its top
 * @writes: it writes to the image, as its top or as its mirror
 * @snapshot: it shows an internal snapshot of the image, which nobody changes
 */
struct image_user {
	char name[DM_NAME_MAX];
	unsigned int layer;
	bool writes;
	bool snapshot;
};

/* Feature: a write that finds no space fails, and does not wait */
#define FEATURE_NO_SPACE_ERROR	"error_if_no_space"

/** ZERO_FROM_NONE: a table line without that feature */
#define ZERO_FROM_NONE	UINT64_MAX

/**
 * device_load() - look at a device
 * @name: its name
 * @device: result; free it with device_free() if there was one
 *
 * Return: false (unreported) if there is none with an active table of ours.
 */
bool device_load(const char *name, struct device *device);

/**
 * device_is_crypt() - is it one of our dm-crypt devices?
 * @device: a block device
 * @below: result, what is below it
 */
bool device_is_crypt(dev_t device, dev_t *below);

/** device_length() - length of a block device in sectors of 512 bytes */
uint64_t device_length(dev_t device);

/** device_is_read_only() - is it a block device that cannot be written? */
bool device_is_read_only(dev_t device);

/**
 * device_hold() - keep the block devices of its layers
 * @device: as loaded
 *
 * Loop devices of a table, and others of ours, go with it else.
 *
 * Return: descriptors, for device_release().
 */
int *device_hold(const struct device *device);

/** device_release() - end of device_hold() */
void device_release(const struct device *device, int *held);

/** device_free() - free what device_load() filled */
void device_free(struct device *device);

/**
 * device_name_check() - is this a good name for a device?
 *
 * Return: 0 or -EINVAL, reported.
 */
int device_name_check(const char *name);

/** device_inactive() - report that there is no such device; a negative errno */
int device_inactive(const char *name);

/**
 * device_uses() - is an image part of an open chain?
 * @id: the image, or an external data file
 * @writer: look for a device that writes to it only
 * @user: result
 *
 * Return: whether it is.
 */
bool device_uses(const struct image_id *id, bool writer,
		 struct image_user *user);

/**
 * device_uses_so() - does an open chain use an image in a certain way?
 * @id: the image
 * @counts: tells whether it is such a use
 * @user: result
 *
 * Return: whether there is one.
 */
bool device_uses_so(const struct image_id *id,
		    bool (*counts)(const struct image_user *user),
		    struct image_user *user);

/** device_user_reads() - for device_uses_so(): only readers count */
bool device_user_reads(const struct image_user *user);

/** device_user_writes() - for device_uses_so(): only writers count */
bool device_user_writes(const struct image_user *user);

/**
 * device_user_not_view() - for device_uses_so(): all count but who shows an
 * internal snapshot of it
 */
bool device_user_not_view(const struct image_user *user);

/** device_user_any() - for device_uses_so(): all count */
bool device_user_any(const struct image_user *user);

/**
 * struct devices - all open devices, for who asks about many images
 * @list: the devices
 * @count: of @list
 */
struct devices {
	struct device *list;
	unsigned int count;
};

/**
 * devices_load() - look at all open devices
 * @devices: result, as it is now; end it with devices_free()
 */
void devices_load(struct devices *devices);

/** devices_free() - free what devices_load() filled */
void devices_free(struct devices *devices);

/**
 * devices_use() - as device_uses_so(), of devices that were looked at before
 * @devices: from devices_load()
 * @id: the image
 * @counts: tells whether it is such a use
 * @user: result
 *
 * Return: whether there is one.
 */
bool devices_use(const struct devices *devices, const struct image_id *id,
		 bool (*counts)(const struct image_user *user),
		 struct image_user *user);

/**
 * device_shows() - name of a device that shows an internal snapshot
 * @id: the image
 * @snapshot: ID of the snapshot
 *
 * Return: the name, or NULL; free() it.
 */
char *device_shows(const struct image_id *id, const char *snapshot);

/**
 * device_refuse() - report who uses an image
 * @path: the image
 * @user: who
 *
 * Return: -EBUSY
 */
int device_refuse(const char *path, const struct image_user *user);

/**
 * device_params() - the arguments of a table line
 * @layers: top first
 * @count: of @layers
 * @zero_from: sector, or ZERO_FROM_NONE
 * @features: other features, as in struct device; may be NULL
 * @feature_words: number of its words
 *
 * Return: the text; free() it.
 */
char *device_params(const struct device_layer *layers, unsigned int count,
		    uint64_t zero_from, const char *features,
		    unsigned int feature_words);

/**
 * device_sectors_of() - size of the device for an image
 * @size: virtual size, bytes
 */
static inline uint64_t device_sectors_of(uint64_t size)
{
	return size / 512 + !!(size % 512);
}

/**
 * device_zeroes_itself() - does a block device write zeroes at a command?
 * @device: device number
 *
 * Else they have to be sent to it.
 */
bool device_zeroes_itself(dev_t device);

/**
 * path_of_device() - name of a block device; free() it
 * @device: device number
 */
char *path_of_device(dev_t device);

/** name_of_dm_device() - name of a device-mapper device, or NULL; free() it */
char *name_of_dm_device(dev_t device);

#endif /* DEVICE_H */
