/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One image: its header, its name, and what can be told from reading it.
 * Nothing here writes to an image.
 */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "format.h"
#include "identity.h"

enum image_format { FORMAT_UNKNOWN, FORMAT_QCOW2, FORMAT_RAW };

/**
 * struct image - what is known of an image
 * @path: absolute, spelled as it was given
 * @format: qcow2 or raw
 * @id: identity
 * @is_device: @path is a block device (also where @id is the file behind it)
 * @fd: open for reading
 * @length: of the file or device, bytes
 * @allocated: bytes of disk space a file takes
 * @size: virtual size, bytes
 * @header: of a qcow2 image
 * @backing: backing file name as recorded, or NULL
 * @backing_format: as recorded, or NULL
 * @data_file: name of the external data file, or NULL
 * @unknown_features: names of incompatible features unknown to us, or NULL
 */
struct image {
	char *path;
	enum image_format format;
	struct image_id id;
	bool is_device;
	int fd;
	uint64_t length;
	uint64_t allocated;
	uint64_t size;
	struct qcow2_header header;
	char *backing;
	char *backing_format;
	char *data_file;
	char *unknown_features;
};

/** format_name() - "qcow2", "raw" or "unknown" */
const char *format_name(enum image_format format);

/** format_of_name() - the reverse; FORMAT_UNKNOWN for what we do not know */
enum image_format format_of_name(const char *name);

/** absolute_path() - @path from the root, symbolic links as they are */
char *absolute_path(const char *path);

/** directory_of() - the directory that a path is in; free() it */
char *directory_of(const char *path);

/**
 * image_open() - read the header of an image
 * @path: file or block device
 * @format: FORMAT_UNKNOWN for a qcow2 image that must show it; others as told
 * @image: result; close it with image_close(), after errors as well
 *
 * No locks are taken: an image in use elsewhere may be looked at.
 *
 * Return: 0 or an error, reported.
 */
int image_open(const char *path, enum image_format format, struct image *image);

/**
 * image_open_damaged() - image_open() of a qcow2 image that is to be checked
 * @path: file or block device
 * @image: result; close it with image_close(), after errors as well
 *
 * What 'qemu-img check -r all' can repair is no error: a refcount table of no
 * clusters, and more snapshots than there can be, which @image tells as one and
 * as none.
 *
 * Return: 0 or an error, reported.
 */
int image_open_damaged(const char *path, struct image *image);

/**
 * image_reopen() - open the file of an image again, for direct I/O
 * @image: what image_open() has filled
 * @flags: of open()
 *
 * Without direct I/O where the file system has none.
 *
 * Return: a file descriptor; or an error, reported: the path leads to another
 * file now.
 */
int image_reopen(const struct image *image, int flags);

/** image_close() - free what image_open() filled */
void image_close(struct image *image);

/**
 * image_read() - read a part of an image into new memory
 * @image: the image
 * @len: bytes; what lies behind the end of the image reads as zeroes
 * @offset: where, bytes
 *
 * Return: the memory, free() it; NULL after an error, reported.
 */
void *image_read(const struct image *image, size_t len, uint64_t offset);

/**
 * image_extension() - find an extension of the header
 * @image: a qcow2 image
 * @type: QCOW2_EXT_*
 * @ext: result, if there is one
 *
 * Return: its data, free() it; NULL if there is none, or after an error,
 * reported, which image_open() would have found, too.
 */
void *image_extension(const struct image *image, uint32_t type,
		      struct qcow2_ext *ext);

/**
 * image_bitmaps() - read the directory of persistent bitmaps
 * @image: a qcow2 image
 * @bitmaps: what the header says of it
 * @directory: result, free() it; NULL where there is none
 *
 * Return: 0 or an error, reported.
 */
int image_bitmaps(const struct image *image, struct qcow2_bitmaps *bitmaps,
		  uint8_t **directory);

/**
 * image_bitmap_next() - decode an entry of that directory
 * @image: the same
 * @bitmaps: of image_bitmaps()
 * @directory: of image_bitmaps()
 * @pos: bytes; where the entry begins, and when this returns the one behind it
 * @bitmap: result
 *
 * Return: 0 or an error, reported.
 */
int image_bitmap_next(const struct image *image,
		      const struct qcow2_bitmaps *bitmaps,
		      const uint8_t *directory, uint64_t *pos,
		      struct qcow2_bitmap *bitmap);

/**
 * image_fault() - report what is wrong in an image
 *
 * Return: -EMEDIUMTYPE
 */
int image_fault(const struct image *image, const struct qcow2_fault *fault);

/**
 * image_check_usable() - can the kernel target work with this image?
 * @image: the image
 * @role_write: it is to be written
 *
 * Return: 0, or an error that names the feature or field, reported.
 */
int image_check_usable(const struct image *image, bool role_write);

/**
 * image_check_device() - could there be a device as long as this image?
 * @image: the image
 *
 * A layer may have no bytes at all: it owns zeroes past its end, which is where it
 * begins.
 *
 * Return: 0, or an error, reported.
 */
int image_check_device(const struct image *image);

/**
 * image_check_grow() - could an image be made longer?
 * @image: the image
 * @size: bytes that it is to have; it may be long enough
 *
 * Return: 0, or an error, reported.
 */
int image_check_grow(const struct image *image, uint64_t size);

/** image_external() - is its guest data in an external data file? */
static inline bool image_external(const struct image *image)
{
	return image->format == FORMAT_QCOW2 && qcow2_external(&image->header);
}

/** image_encrypted() - is its guest data encrypted, and can be decrypted? */
static inline bool image_encrypted(const struct image *image)
{
	return image->format == FORMAT_QCOW2 &&
		image->header.crypt_method == QCOW2_CRYPT_LUKS;
}

/**
 * image_data_path() - path of the external data file of an image
 * @image: the image
 * @path: result, free() it; NULL where there is none
 *
 * Return: 0 or an error, reported: also where the image does not name it.
 */
int image_data_path(const struct image *image, char **path);

/**
 * image_open_data() - open the external data file of an image
 * @image: image_external()
 * @data: result, as a raw image; close it with image_close(), after errors as
 *	well
 *
 * Return: 0 or an error, reported: also where the image names none.
 */
int image_open_data(const struct image *image, struct image *data);

/**
 * image_used_end() - where the last cluster in use ends
 * @image: a qcow2 image; nobody writes it
 * @end: result, bytes
 *
 * Return: 0, or an error, reported, if the refcounts cannot be trusted.
 */
int image_used_end(const struct image *image, uint64_t *end);

/**
 * image_is_empty() - does it have no data of its own?
 * @image: a qcow2 image; nobody writes it
 *
 * Return: 1 if all is left to the images below, and there are no internal
 * snapshots, 0 if not, or an error, reported. Clusters may be allocated already
 * where they are not read.
 */
int image_is_empty(const struct image *image);

/** image_is_empty_at() - is there an image at a path for which that is so? */
bool image_is_empty_at(const char *path);

/**
 * image_has_more() - is there something behind the end of the disk?
 * @image: a qcow2 image; nobody writes it
 *
 * The state of a virtual machine is kept there while a snapshot with one is made,
 * or after it was applied; whoever wrote the image may have left more.  The rest of the
 * cluster that the disk ends in is left out, see tail.h.
 *
 * Return: 1, 0, or an error, reported.
 */
int image_has_more(const struct image *image);

/**
 * struct image_entry - what the tables of an image say of a guest cluster
 * @l1: entry of the L1 table
 * @l2: entry of the L2 table, or 0: there is none
 * @bitmap: of an extended L2 entry
 */
struct image_entry {
	uint64_t l1;
	uint64_t l2;
	uint64_t bitmap;
};

/**
 * image_entry_at() - look up a guest cluster, also behind the end of the disk
 * @image: a qcow2 image; nobody writes it
 * @guest: offset, bytes
 * @entry: result, found sound
 *
 * Return: 0 or an error, reported.
 */
int image_entry_at(const struct image *image, uint64_t guest,
		   struct image_entry *entry);

/**
 * image_is_preallocated() - are clusters in use that have no place on the disk?
 * @image: a qcow2 image
 *
 * Judged as QEMU does (qcow2_detect_metadata_preallocation() in its
 * block/qcow2-refcount.c): a tenth of the clusters, and two more at least than
 * the file has space for.  Never so on a block device.
 *
 * Return: 1, 0, or an error, reported, if the refcounts cannot be read.
 */
int image_is_preallocated(const struct image *image);

/**
 * image_need() - how long a file can get when the whole image is written
 * @image: a qcow2 image; an external data file is not counted
 *
 * Return: bytes, @image->length at least.
 */
uint64_t image_need(const struct image *image);

/** round_up() - next multiple of @unit, a power of two */
static inline uint64_t round_up(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) & ~(unit - 1);
}

#endif /* IMAGE_H */
