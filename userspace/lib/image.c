// SPDX-License-Identifier: GPL-2.0-only
/*
 * One image.
 */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "link.h"
#include "report.h"

const char *format_name(enum image_format format)
{
	static const char * const names[] = {
		[FORMAT_UNKNOWN] = "unknown",
		[FORMAT_QCOW2] = "qcow2",
		[FORMAT_RAW] = "raw",
	};

	return names[format];
}

enum image_format format_of_name(const char *name)
{
	if (!strcmp(name, "qcow2"))
		return FORMAT_QCOW2;
	return strcmp(name, "raw") ? FORMAT_UNKNOWN : FORMAT_RAW;
}

char *absolute_path(const char *path)
{
	char *cwd, *result;

	if (path[0] == '/')
		return text_copy(path);
	cwd = getcwd(NULL, 0);
	while (!strncmp(path, "./", 2))
		path += 2;
	/* Where it was deleted nothing is found, nor made, by this name. */
	result = text("%s/%s", !cwd ? "/proc/self/cwd" :
		      !strcmp(cwd, "/") ? "" : cwd, path);
	free(cwd);
	return result;
}

char *directory_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return text_copy(".");
	return text("%.*s", slash == path ? 1 : (int)(slash - path), path);
}

/* Reads @len bytes; what lies behind the end of the image reads as zeroes. */
static int read_at(const struct image *image, void *buf, size_t len,
		   uint64_t offset)
{
	ssize_t n;

	memset(buf, 0, len);
	while (len) {
		n = pread(image->fd, buf, len, offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return report_errno(errno, "Cannot read %s", image->path);
		if (n == 0)
			return 0;
		buf = (char *)buf + n;
		offset += n;
		len -= n;
	}
	return 0;
}

void *image_read(const struct image *image, size_t len, uint64_t offset)
{
	void *buf = malloc(len ? len : 1);

	if (!buf) {
		report_memory();
	} else if (read_at(image, buf, len, offset) < 0) {
		free(buf);
		buf = NULL;
	}
	return buf;
}

int image_fault(const struct image *image, const struct qcow2_fault *fault)
{
	return report_fail(EMEDIUMTYPE,
			   "%s: %s at offset %llu is %llu (0x%llx): %s.",
			   image->path, fault->field,
			   (unsigned long long)fault->where,
			   (unsigned long long)fault->value,
			   (unsigned long long)fault->value, fault->why);
}

static char *string_at(const void *area, uint32_t offset, uint32_t len)
{
	char *string;

	if (!len)
		return NULL;
	string = text("%.*s", (int)len, (const char *)area + offset);
	if (!*string) {
		free(string);
		return NULL;
	}
	return string;
}

static char *feature_text(const uint8_t *table, uint32_t len, unsigned int bit)
{
	for (; table && len >= QCOW2_FEATURE_BYTES; len -= QCOW2_FEATURE_BYTES) {
		if (table[0] == 0 && table[1] == bit && table[2])
			return text("'%.46s' (bit %u)", table + 2, bit);
		table += QCOW2_FEATURE_BYTES;
	}
	return text("bit %u", bit);
}

static char *unknown_features(const struct qcow2_header *h,
			      const uint8_t *table, uint32_t len)
{
	uint64_t unknown = h->incompatible & ~QCOW2_INCOMPAT_KNOWN;
	char *all = NULL, *one, *joined;
	unsigned int bit;

	for (bit = 0; bit < 64; bit++) {
		if (!(unknown >> bit & 1))
			continue;
		one = feature_text(table, len, bit);
		joined = all ? text("%s, %s", all, one) : text_copy(one);
		free(one);
		free(all);
		all = joined;
	}
	return all;
}

static int read_extensions(struct image *image, const uint8_t *area)
{
	const struct qcow2_header *h = &image->header;
	const uint8_t *features = NULL;
	uint32_t offset = h->header_length;
	uint32_t features_len = 0;
	struct qcow2_fault fault;
	struct qcow2_ext ext;
	int r;

	while ((r = qcow2_ext_next(area, h->cluster_size, offset, h, &ext,
				   &fault)) > 0) {
		if (ext.type == QCOW2_EXT_BACKING_FORMAT) {
			free(image->backing_format);
			image->backing_format = string_at(area, ext.data_offset,
							  ext.len);
		} else if (ext.type == QCOW2_EXT_DATA_FILE) {
			free(image->data_file);
			image->data_file = string_at(area, ext.data_offset,
						     ext.len);
		} else if (ext.type == QCOW2_EXT_FEATURE_TABLE) {
			features = area + ext.data_offset;
			features_len = ext.len;
		}
		offset = ext.next_offset;
	}
	if (r < 0)
		return image_fault(image, &fault);
	image->unknown_features = unknown_features(h, features, features_len);
	return 0;
}

void *image_extension(const struct image *image, uint32_t type,
		      struct qcow2_ext *ext)
{
	const struct qcow2_header *h = &image->header;
	uint32_t offset = h->header_length;
	struct qcow2_fault fault;
	uint8_t *area, *data = NULL;
	int r;

	area = image_read(image, h->cluster_size, 0);
	if (!area)
		return NULL;
	while ((r = qcow2_ext_next(area, h->cluster_size, offset, h, ext,
				   &fault)) > 0 && ext->type != type)
		offset = ext->next_offset;
	if (r < 0)
		image_fault(image, &fault);
	else if (r)
		data = image_read(image, ext->len, ext->data_offset);
	free(area);
	return data;
}

/* More than any header known, and a sector */
#define HEADER_READ	512

/* Of the refcounts and the snapshots, what QEMU repairs */
static void overlook(uint8_t *start)
{
	struct qcow2_disk_header *d = (void *)start;

	if (!d->refcount_table_clusters)
		d->refcount_table_clusters = __cpu_to_be32(1);
	if (__be32_to_cpu(d->nb_snapshots) > QCOW2_MAX_SNAPSHOTS)
		d->nb_snapshots = 0;
}

static int read_header(struct image *image, bool damaged)
{
	uint8_t start[HEADER_READ];
	struct qcow2_header *h = &image->header;
	struct qcow2_fault fault;
	uint8_t *area;
	int r;

	r = read_at(image, start, sizeof(start), 0);
	if (r < 0)
		return r;
	if (!qcow2_probe(start, sizeof(start)))
		return report_fail(EMEDIUMTYPE, "%s is not a qcow2 image.",
				   image->path);
	if (damaged)
		overlook(start);
	if (qcow2_header_decode(start, sizeof(start), h, &fault) < 0)
		return image_fault(image, &fault);
	image->size = h->size;
	area = image_read(image, h->cluster_size, 0);
	if (!area)
		return -EIO;
	if (h->backing_file_offset)
		image->backing = string_at(area, h->backing_file_offset,
					   h->backing_file_size);
	r = read_extensions(image, area);
	free(area);
	return r;
}

static int refuse_type(const struct image *image)
{
	return report_fail(ENOTBLK, "%s is neither a file nor a block device.",
			   image->path);
}

static bool has_type(const struct stat *st)
{
	return S_ISREG(st->st_mode) || S_ISBLK(st->st_mode);
}

static int open_file(struct image *image)
{
	struct stat st;

	/* An image may name what does something when it is but opened: a watchdog. */
	if (stat(image->path, &st) == 0 && !has_type(&st))
		return refuse_type(image);
	/* O_NONBLOCK: a fifo must not make us wait. */
	image->fd = open(image->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (image->fd < 0 && errno == ENOENT)
		return report_fail(ENOENT, "%s does not exist.", image->path);
	if (image->fd < 0)
		return report_errno(errno, "Cannot open %s", image->path);
	if (fstat(image->fd, &st) < 0)
		return report_errno(errno, "Cannot stat %s", image->path);
	if (!has_type(&st))
		return refuse_type(image);
	image->is_device = S_ISBLK(st.st_mode);
	image->id = image_id_of(&st);
	image->length = st.st_size;
	image->allocated = (uint64_t)st.st_blocks * 512;
	/* The kernel writes to the device past this cache. */
	if (image->is_device)
		posix_fadvise(image->fd, 0, 0, POSIX_FADV_DONTNEED);
	if (image->is_device &&
	    ioctl(image->fd, BLKGETSIZE64, &image->length) < 0)
		return report_errno(errno, "Cannot get the size of %s",
				    image->path);
	return 0;
}

static int open_as(const char *path, enum image_format format,
		   struct image *image)
{
	memset(image, 0, sizeof(*image));
	image->fd = -1;
	image->path = absolute_path(path);
	image->format = format == FORMAT_UNKNOWN ? FORMAT_QCOW2 : format;
	return open_file(image);
}

int image_open(const char *path, enum image_format format, struct image *image)
{
	int r = open_as(path, format, image);

	if (r < 0)
		return r;
	if (image->format == FORMAT_QCOW2)
		return read_header(image, false);
	image->size = image->length;
	return 0;
}

int image_open_damaged(const char *path, struct image *image)
{
	int r = open_as(path, FORMAT_QCOW2, image);

	return r < 0 ? r : read_header(image, true);
}

int image_reopen(const struct image *image, int flags)
{
	struct image_id id;
	struct stat st;
	int fd;

	fd = open(image->path, flags | O_DIRECT | O_CLOEXEC);
	/* Old kernels know no O_DIRECT in memory; see loop_attach() */
	if (fd < 0 && errno == EINVAL)
		fd = open(image->path, flags | O_CLOEXEC);
	if (fd < 0)
		return report_errno(errno, "Cannot open %s", image->path);
	if (fstat(fd, &st) == 0) {
		id = image_id_of(&st);
		if (image_id_equal(&id, &image->id))
			return fd;
	}
	close(fd);
	return report_fail(EBUSY, "%s was replaced while it was being opened.",
			   image->path);
}

void image_close(struct image *image)
{
	if (image->fd >= 0)
		close(image->fd);
	image->fd = -1;
	free(image->path);
	free(image->backing);
	free(image->backing_format);
	free(image->data_file);
	free(image->unknown_features);
	image->path = NULL;
	image->backing = NULL;
	image->backing_format = NULL;
	image->data_file = NULL;
	image->unknown_features = NULL;
}

int image_data_path(const struct image *image, char **path)
{
	*path = NULL;
	if (!image_external(image))
		return 0;
	if (!image->data_file)
		return report_fail(EMEDIUMTYPE,
				   "%s does not record the name of its external data file: note it with 'qemu-img amend -o data_file=NAME'.",
				   image->path);
	/* Nobody looks at it as at a backing link: QEMU takes no protocol from it. */
	*path = link_beside(image->path, image->data_file);
	return 0;
}

int image_open_data(const struct image *image, struct image *data)
{
	char *path;
	int r;

	memset(data, 0, sizeof(*data));
	data->fd = -1;
	r = image_data_path(image, &path);
	if (!r && access(path, F_OK) < 0)
		r = report_errno(errno, "External data file %s of %s", path,
				 image->path);
	if (!r)
		r = image_open(path, FORMAT_RAW, data);
	free(path);
	return r;
}

/* A file that is to be written can be made longer. */
static int check_data_file(const struct image *image, bool role_write)
{
	struct image data;
	int r;

	r = image_open_data(image, &data);
	if (!r && image_id_equal(&data.id, &image->id))
		r = report_fail(EMEDIUMTYPE,
				"%s names itself as its external data file.",
				image->path);
	if (!r && round_up(data.length, 512) < round_up(image->size, 512) &&
	    (data.is_device || !role_write))
		r = report_fail(EMEDIUMTYPE,
				"External data file %s of %s is too short: %llu bytes for a virtual size of %llu.",
				data.path, image->path,
				(unsigned long long)data.length,
				(unsigned long long)image->size);
	image_close(&data);
	return r;
}

static int check_data(const struct image *image, bool role_write)
{
	const struct qcow2_header *h = &image->header;

	if (!image_external(image))
		return 0;
	if (role_write && h->nb_snapshots)
		return report_fail(EOPNOTSUPP,
				   "%s has internal snapshots and an external data file: writing would change the snapshots.",
				   image->path);
	if (role_write && qcow2_raw_data(h) && image->backing)
		return report_fail(EMEDIUMTYPE,
				   "%s has a backing file, and an external data file that is to be readable as a raw image (data_file_raw): not both can be.",
				   image->path);
	return check_data_file(image, role_write);
}

static int check_clean(const struct image *image)
{
	uint64_t bits = image->header.incompatible;

	if (bits & QCOW2_INCOMPAT_CORRUPT)
		return report_fail(EUCLEAN,
				   "%s is marked as corrupt: repair it with 'qcow2setup check --repair %s', or open it with --read-only.",
				   image->path, image->path);
	if (bits & QCOW2_INCOMPAT_DIRTY)
		return report_fail(EUCLEAN,
				   "%s is marked as dirty (it was not closed properly): repair it with 'qcow2setup check --repair %s', or open it with --repair or --read-only.",
				   image->path, image->path);
	return 0;
}

int image_bitmaps(const struct image *image, struct qcow2_bitmaps *bitmaps,
		  uint8_t **directory)
{
	struct qcow2_fault fault;
	struct qcow2_ext ext;
	void *data;
	int r;

	*directory = NULL;
	/* Without the bit the extension is a relic (spec, bitmaps extension). */
	if (!(image->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	data = image_extension(image, QCOW2_EXT_BITMAPS, &ext);
	if (!data)
		return 0;
	r = qcow2_bitmaps_decode(data, &ext, &image->header, bitmaps, &fault);
	free(data);
	if (r < 0)
		return image_fault(image, &fault);
	*directory = image_read(image, bitmaps->directory_size,
				bitmaps->directory_offset);
	return *directory ? 0 : -EIO;
}

int image_bitmap_next(const struct image *image,
		      const struct qcow2_bitmaps *bitmaps,
		      const uint8_t *directory, uint64_t *pos,
		      struct qcow2_bitmap *bitmap)
{
	struct qcow2_fault fault;

	if (qcow2_bitmap_decode(directory + *pos, bitmaps->directory_size - *pos,
				bitmaps->directory_offset + *pos, bitmap,
				&fault) < 0)
		return image_fault(image, &fault);
	*pos += bitmap->entry_len;
	return 0;
}

static int bitmap_refused(const struct image *image, const char *what,
			  const char *why)
{
	return report_fail(EMEDIUMTYPE,
			   "%s: %s %s. QEMU does not open such an image; with --read-only its data can be read.",
			   image->path, what, why);
}

/* What the kernel would not mark as in use, and QEMU not open */
static int check_directory(const struct image *image,
			   const struct qcow2_bitmaps *bitmaps,
			   const uint8_t *directory)
{
	struct qcow2_bitmap bitmap;
	const uint8_t *entry;
	uint64_t pos = 0;
	const char *why;
	char name[64];
	uint32_t i;
	int r;

	for (i = 0; i < bitmaps->nb; i++) {
		entry = directory + pos;
		r = image_bitmap_next(image, bitmaps, directory, &pos, &bitmap);
		if (r < 0)
			return r;
		why = qcow2_bitmap_check(&image->header, &bitmap);
		snprintf(name, sizeof(name), "bitmap '%.*s'",
			 bitmap.name_len > 48 ? 48 : (int)bitmap.name_len,
			 (const char *)entry + bitmap.name_offset);
		if (why)
			return bitmap_refused(image, name, why);
	}
	return pos == bitmaps->directory_size ? 0 :
		bitmap_refused(image, "the bitmap directory",
			       "is longer than its entries");
}

static int check_bitmaps(const struct image *image)
{
	struct qcow2_bitmaps bitmaps;
	uint8_t *directory;
	int r;

	r = image_bitmaps(image, &bitmaps, &directory);
	if (!r && directory)
		r = check_directory(image, &bitmaps, directory);
	free(directory);
	return r;
}

int image_check_usable(const struct image *image, bool role_write)
{
	struct qcow2_fault fault;
	uint64_t bytes = image->length;
	int r;

	if (image->format != FORMAT_QCOW2)
		return 0;
	if (image->unknown_features)
		return report_fail(EOPNOTSUPP,
				   "%s needs an incompatible feature that is not known here: %s.",
				   image->path, image->unknown_features);
	if (image->header.crypt_method == QCOW2_CRYPT_AES)
		return report_fail(EOPNOTSUPP,
				   "%s is encrypted with the legacy AES of qcow2, which is not supported, as its IVs can be predicted: convert it with 'qemu-img convert' to an image with LUKS encryption.",
				   image->path);
	/* The last sector of a file is completed by whoever attaches it. */
	if (!image->is_device)
		bytes = round_up(bytes, 512);
	if (qcow2_header_check_bounds(&image->header, bytes, &fault) < 0)
		return image_fault(image, &fault);
	r = check_data(image, role_write);
	if (!r && role_write)
		r = check_clean(image);
	return !r && role_write ? check_bitmaps(image) : r;
}

int image_check_device(const struct image *image)
{
	if (image->size)
		return 0;
	return report_fail(EMEDIUMTYPE,
			   "%s has a virtual size of 0, and no block device can: make it longer with 'qcow2setup resize %s SIZE'.",
			   image->path, image->path);
}

static uint64_t be64_at(const void *table, uint64_t index)
{
	__be64 entry;

	memcpy(&entry, (const char *)table + index * 8, 8);
	return __be64_to_cpu(entry);
}

static int table_fault(const struct image *image, const char *table,
		       uint64_t index, uint64_t entry, const char *why)
{
	return report_fail(EUCLEAN, "%s: %s entry %llu (0x%llx) %s.",
			   image->path, table, (unsigned long long)index,
			   (unsigned long long)entry, why);
}

/* Return: 1 + index of the last refcount of a block that is not 0; 0: none. */
static int64_t refblock_used(const struct image *image, uint64_t offset)
{
	const struct qcow2_header *h = &image->header;
	void *block = image_read(image, h->cluster_size, offset);
	uint64_t count = 1ULL << h->refblock_bits;

	if (!block)
		return -EIO;
	while (count && !qcow2_refcount_get(block, count - 1, h->refcount_order))
		count--;
	free(block);
	return count;
}

static int used_end_of_table(const struct image *image, const void *table,
			     uint64_t *end)
{
	const struct qcow2_header *h = &image->header;
	uint64_t index = (uint64_t)h->refcount_table_clusters <<
		(h->cluster_bits - 3);
	const char *why;
	uint64_t entry;
	int64_t used;

	while (index--) {
		entry = be64_at(table, index);
		if (!entry)
			continue;
		/* The file may end within the block: what is missing is 0. */
		why = qcow2_reftable_entry_check(h, entry,
						 round_up(image->length,
							  h->cluster_size));
		if (why)
			return table_fault(image, "refcount table", index,
					   entry, why);
		used = refblock_used(image, entry & QCOW2_REFTABLE_OFFSET_MASK);
		if (used < 0)
			return used;
		if (used) {
			*end = ((index << h->refblock_bits) + used) <<
				h->cluster_bits;
			return 0;
		}
	}
	return report_fail(EUCLEAN, "%s: no cluster is in use.", image->path);
}

int image_used_end(const struct image *image, uint64_t *end)
{
	const struct qcow2_header *h = &image->header;
	void *table;
	int r;

	table = image_read(image,
			   (size_t)h->refcount_table_clusters << h->cluster_bits,
			   h->refcount_table_offset);
	if (!table)
		return -EIO;
	r = used_end_of_table(image, table, end);
	free(table);
	return r;
}

/* Adds the refcounts of a block that are not 0, up to @limit of them. */
static int count_block(const struct image *image, uint64_t offset,
		       uint64_t limit, uint64_t *count)
{
	const struct qcow2_header *h = &image->header;
	void *block = image_read(image, h->cluster_size, offset);
	uint64_t entries = 1ULL << h->refblock_bits, i;

	if (!block)
		return -EIO;
	for (i = 0; i < entries && *count < limit; i++)
		*count += !!qcow2_refcount_get(block, i, h->refcount_order);
	free(block);
	return 0;
}

static int count_clusters(const struct image *image, const void *table,
			  uint64_t limit, uint64_t *count)
{
	const struct qcow2_header *h = &image->header;
	uint64_t entries = (uint64_t)h->refcount_table_clusters <<
		(h->cluster_bits - 3);
	uint64_t length = round_up(image->length, h->cluster_size);
	uint64_t i, entry;
	const char *why;
	int r = 0;

	for (i = 0; i < entries && *count < limit && !r; i++) {
		entry = be64_at(table, i);
		if (!entry)
			continue;
		why = qcow2_reftable_entry_check(h, entry, length);
		r = why ? table_fault(image, "refcount table", i, entry, why) :
			count_block(image, entry & QCOW2_REFTABLE_OFFSET_MASK,
				    limit, count);
	}
	return r;
}

int image_is_preallocated(const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	uint64_t clusters = image->allocated >> h->cluster_bits;
	uint64_t limit = clusters * 10 / 9, count = 0;
	void *table;
	int r;

	if (limit < clusters + 2)
		limit = clusters + 2;
	/* So many the file has room for at all. */
	if (image->is_device || image->length >> h->cluster_bits < limit - 1)
		return 0;
	table = image_read(image,
			   (size_t)h->refcount_table_clusters << h->cluster_bits,
			   h->refcount_table_offset);
	if (!table)
		return -EIO;
	r = count_clusters(image, table, limit, &count);
	free(table);
	return r < 0 ? r : count >= limit;
}

/*
 * With extended L2 tables a host cluster may be there, as preallocation leaves it,
 * of which no subcluster is used: the images below are read.
 */
static bool entry_is_empty(const struct qcow2_header *h, const void *table,
			   uint32_t index)
{
	if (h->l2_entry_bytes == 8)
		return !be64_at(table, index);
	return !(be64_at(table, 2 * index) &
		 ~(QCOW2_OFLAG_COPIED | QCOW2_OFFSET_MASK | QCOW2_OFLAG_ZERO)) &&
		!be64_at(table, 2 * index + 1);
}

static int l2_is_empty(const struct image *image, uint64_t offset)
{
	const struct qcow2_header *h = &image->header;
	void *table = image_read(image, h->cluster_size, offset);
	uint32_t i;
	int empty = 1;

	if (!table)
		return -EIO;
	for (i = 0; i < 1U << h->l2_bits && empty; i++)
		empty = entry_is_empty(h, table, i);
	free(table);
	return empty;
}

int image_is_empty(const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	uint64_t entry;
	void *l1;
	uint32_t i;
	int r = 1;

	if (h->nb_snapshots)
		return 0;
	l1 = image_read(image, (size_t)h->l1_size * 8, h->l1_table_offset);
	if (!l1)
		return -EIO;
	for (i = 0; i < h->l1_size && r > 0; i++) {
		entry = be64_at(l1, i) & QCOW2_OFFSET_MASK;
		if (entry)
			r = l2_is_empty(image, entry);
	}
	free(l1);
	return r;
}

bool image_is_empty_at(const char *path)
{
	struct image image;
	bool empty;

	empty = image_open(path, FORMAT_QCOW2, &image) == 0 &&
		image_is_empty(&image) > 0;
	image_close(&image);
	return empty;
}

/* Has the L2 table that the disk ends in entries behind its last cluster? */
static int l2_has_more(const struct image *image, const void *l1)
{
	const struct qcow2_header *h = &image->header;
	uint64_t end = round_up(h->size, h->cluster_size);
	uint64_t index = qcow2_l1_index(h, end), offset;
	uint32_t i = qcow2_l2_index(h, end);
	bool more = false;
	void *table;

	offset = i && index < h->l1_size ?
		be64_at(l1, index) & QCOW2_OFFSET_MASK : 0;
	if (!offset)
		return 0;
	table = image_read(image, h->cluster_size, offset);
	if (!table)
		return -EIO;
	for (; i < 1U << h->l2_bits && !more; i++)
		more = !entry_is_empty(h, table, i);
	free(table);
	return more;
}

int image_has_more(const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	uint32_t first = qcow2_l1_entries(h, h->size), i;
	bool more = false;
	void *l1;
	int r;

	l1 = image_read(image, (size_t)h->l1_size * 8, h->l1_table_offset);
	if (!l1)
		return -EIO;
	for (i = first; i < h->l1_size && !more; i++)
		more = be64_at(l1, i) & QCOW2_OFFSET_MASK;
	r = more ? 1 : l2_has_more(image, l1);
	free(l1);
	return r;
}

static int read_entry(const struct image *image, uint64_t offset,
		      uint64_t *entry)
{
	__be64 raw;
	int r = read_at(image, &raw, sizeof(raw), offset);

	*entry = __be64_to_cpu(raw);
	return r;
}

static int read_l2_entry(const struct image *image, uint64_t guest,
			 struct image_entry *entry)
{
	const struct qcow2_header *h = &image->header;
	uint64_t bytes = round_up(image->length, 512);
	uint32_t index = qcow2_l2_index(h, guest);
	uint64_t offset = (entry->l1 & QCOW2_OFFSET_MASK) +
		(uint64_t)index * h->l2_entry_bytes;
	const char *why;
	int r;

	r = read_entry(image, offset, &entry->l2);
	if (!r && h->l2_entry_bytes > 8)
		r = read_entry(image, offset + 8, &entry->bitmap);
	if (r < 0)
		return r;
	why = qcow2_l2_entry_check(h, entry->l2,
				   guest & ~(h->cluster_size - 1ULL),
				   qcow2_read_limit(entry->l2, bytes));
	if (!why && h->l2_entry_bytes > 8)
		why = qcow2_l2_bitmap_check(entry->l2, entry->bitmap);
	return why ? table_fault(image, "L2", index, entry->l2, why) : 0;
}

int image_entry_at(const struct image *image, uint64_t guest,
		   struct image_entry *entry)
{
	const struct qcow2_header *h = &image->header;
	uint64_t index = qcow2_l1_index(h, guest);
	const char *why;
	int r;

	memset(entry, 0, sizeof(*entry));
	if (index >= h->l1_size)
		return 0;
	r = read_entry(image, h->l1_table_offset + index * 8, &entry->l1);
	if (r < 0 || !(entry->l1 & QCOW2_OFFSET_MASK))
		return r;
	why = qcow2_l1_entry_check(h, entry->l1, round_up(image->length, 512));
	return why ? table_fault(image, "L1", index, entry->l1, why) :
		read_l2_entry(image, guest, entry);
}

static uint64_t div_up(uint64_t value, uint64_t by)
{
	return value / by + !!(value % by);
}

/*
 * Every guest cluster newly allocated beside all that there is (of which
 * internal snapshots may hold each), with new tables above them. Clusters that
 * get free are used again, so that it can only be less.
 */
uint64_t image_need(const struct image *image)
{
	const struct qcow2_header *h = &image->header;
	uint64_t cluster = h->cluster_size;
	uint64_t data = image_external(image) ? 0 :
		div_up(image->size, cluster);
	uint64_t l2 = qcow2_l1_entries(h, image->size);
	uint64_t l1 = div_up((uint64_t)h->l1_size * 8, cluster);
	uint64_t total, blocks = 0, table = 0, before;

	do {
		before = blocks + table;
		total = div_up(image->length, cluster) + data + l2 + 2 * l1 +
			blocks + table;
		blocks = div_up(total, 1ULL << h->refblock_bits);
		/* A table that moves is there twice, and grows by half. */
		table = 3 * div_up(blocks * 8, cluster);
	} while (blocks + table != before);
	/* Metadata is copied before its old place is free. */
	total += total / 128 + 64;
	if (total > QCOW2_MAX_OFFSET >> h->cluster_bits)
		total = QCOW2_MAX_OFFSET >> h->cluster_bits;
	return total << h->cluster_bits;
}

static int check_room(const struct image *file, uint64_t size)
{
	if (!file->is_device || size <= file->length)
		return 0;
	return report_fail(ENOSPC,
			   "%s has %llu bytes: make it longer first.",
			   file->path, (unsigned long long)file->length);
}

static int check_data_room(const struct image *image, uint64_t size)
{
	struct image data;
	int r;

	if (!image_external(image))
		return 0;
	r = image_open_data(image, &data);
	if (!r)
		r = check_room(&data, size);
	image_close(&data);
	return r;
}

int image_check_grow(const struct image *image, uint64_t size)
{
	const struct qcow2_header *h = &image->header;

	if (size <= image->size)
		return 0;
	if (image->format != FORMAT_QCOW2)
		return check_room(image, size);
	if (h->version < 3 && h->nb_snapshots)
		return report_fail(EOPNOTSUPP,
				   "%s has internal snapshots, and is of version 2: these have the size of the image, which cannot change.",
				   image->path);
	if (qcow2_l1_entries(h, size) > QCOW2_MAX_L1_BYTES / 8)
		return report_fail(EFBIG,
				   "%s has clusters of %u bytes, too small for an image of %llu bytes.",
				   image->path, h->cluster_size,
				   (unsigned long long)size);
	return check_data_room(image, size);
}
