// SPDX-License-Identifier: GPL-2.0-only
/*
 * Partitions of an open device.
 */
#include "partition.h"

#include <blkid.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "device.h"
#include "holders.h"
#include "report.h"

static const char *disk_part_of_uuid(const struct dm_state *disk)
{
	return disk->uuid + strlen(DM_UUID_DISK);
}

struct listing {
	const struct dm_state *disk;
	struct json_object *names;
};

static bool visit_partition(const char *name, void *data)
{
	const struct listing *listing = data;
	struct dm_state state = dm_query(name);
	const char *rest;

	if (!state.exists || !dm_uuid_is(&state, DM_UUID_PART))
		return false;
	rest = strchr(state.uuid + strlen(DM_UUID_PART), '-');
	if (rest && !strcmp(rest + 1, disk_part_of_uuid(listing->disk)))
		json_object_array_add(listing->names,
				      json_object_new_string(name));
	return false;
}

struct json_object *partitions_of(const struct dm_state *disk)
{
	struct listing listing = { disk, json_object_new_array() };

	if (dm_uuid_is(disk, DM_UUID_DISK))
		dm_each(visit_partition, &listing);
	return listing.names;
}

static const char *name_at(struct json_object *names, unsigned int i)
{
	return json_object_get_string(json_object_array_get_idx(names, i));
}

static int check_unused(const char *name)
{
	struct dm_state state = dm_query(name);

	return state.open_count ?
		holders_refuse(state.device, "Partition", name,
			       "still in use") : 0;
}

int partitions_unmap(const struct dm_state *disk)
{
	struct json_object *names = partitions_of(disk);
	unsigned int i, count = json_object_array_length(names);
	int r = 0;

	for (i = 0; i < count && !r; i++)
		r = check_unused(name_at(names, i));
	for (i = 0; i < count && !r; i++) {
		r = dm_remove(name_at(names, i), false);
		if (r == -EBUSY)
			check_unused(name_at(names, i));
	}
	json_object_put(names);
	return r;
}

static int map_one(const char *name, const struct dm_state *disk,
		   blkid_partition partition)
{
	int number = blkid_partition_get_partno(partition);
	char part_name[DM_NAME_MAX], uuid[DM_UUID_MAX];
	struct dm_segment segment = {
		.length = blkid_partition_get_size(partition),
		.target = "linear",
	};
	size_t len = strlen(name);
	int r;

	if (snprintf(part_name, sizeof(part_name), "%s%s%d", name,
		     isdigit(name[len - 1]) ? "p" : "", number) >=
	    (int)sizeof(part_name))
		return report_fail(EINVAL,
				   "The name %s is too long for partitions.",
				   name);
	if (dm_query(part_name).exists)
		return report_fail(EEXIST, "Device %s already exists.",
				   part_name);
	snprintf(uuid, sizeof(uuid), DM_UUID_PART "%d-%s", number,
		 disk_part_of_uuid(disk));
	segment.params = text("%u:%u %llu", major(disk->device),
			      minor(disk->device),
			      (unsigned long long)
			      blkid_partition_get_start(partition));
	r = dm_create(part_name, uuid, disk->read_only, &segment, 1);
	free(segment.params);
	return r;
}

/* An extended partition only holds others; so does one with a table of its own */
static bool is_plain(blkid_partition partition)
{
	blkid_parttable table = blkid_partition_get_table(partition);

	return !blkid_partition_is_extended(partition) &&
		(!table || !blkid_parttable_get_parent(table)) &&
		blkid_partition_get_size(partition) > 0;
}

static int map_all(const char *name, const struct dm_state *disk,
		   blkid_partlist list)
{
	int i, count = list ? blkid_partlist_numof_partitions(list) : 0;
	blkid_partition partition;
	int r = 0;

	if (!count)
		report_warn("Device %s has no partition table.", name);
	for (i = 0; i < count && !r; i++) {
		partition = blkid_partlist_get_partition(list, i);
		if (is_plain(partition))
			r = map_one(name, disk, partition);
	}
	return r;
}

/* The probe has the device open: it is closed before anything is undone. */
static int probe_and_map(const char *name, const struct dm_state *disk)
{
	blkid_probe probe;
	char *path;
	int r;

	path = text("/dev/dm-%u", minor(disk->device));
	probe = blkid_new_probe_from_filename(path);
	free(path);
	if (!probe)
		return report_errno(errno, "Cannot read device %s", name);
	blkid_probe_enable_superblocks(probe, 0);
	blkid_probe_enable_partitions(probe, 1);
	r = map_all(name, disk, blkid_probe_get_partitions(probe));
	blkid_free_probe(probe);
	return r;
}

int partitions_map(const char *name)
{
	struct dm_state disk = dm_query(name);
	int r = probe_and_map(name, &disk);

	if (r < 0)
		partitions_unmap(&disk);
	return r;
}
