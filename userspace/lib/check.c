// SPDX-License-Identifier: GPL-2.0-only
/*
 * Checking and repairing images that are not open.
 */
#include "check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "attach.h"
#include "qemu.h"
#include "quiet.h"
#include "report.h"
#include "trim.h"

static int check_possible(const struct image *image)
{
	if (image->header.crypt_method == QCOW2_CRYPT_AES)
		return report_fail(EOPNOTSUPP,
				   "%s is encrypted with the legacy AES of qcow2: qemu-img cannot check it without its key. Give it that: 'qemu-img check --object secret,id=key,file=FILE --image-opts driver=qcow2,encrypt.key-secret=key,file.filename=%s'.",
				   image->path, image->path);
	return 0;
}

/* Of an image that is not sound, refcounts say nothing of what is in use. */
static bool has_tail(const struct image *image, uint64_t *bytes)
{
	uint64_t end;

	*bytes = 0;
	if (image->is_device || image_used_end(image, &end) < 0 ||
	    end >= image->length)
		return false;
	*bytes = image->length - end;
	return true;
}

static int cut_tail(const char *path, struct check_result *result)
{
	uint64_t before = result->tail;
	struct image image;
	struct trim trim;
	int r;

	r = image_open(path, FORMAT_QCOW2, &image);
	if (!r) {
		trim_prepare(image.path, &image.id, 0, &trim);
		trim_finish(&trim, true);
		image_close(&image);
		r = image_open(path, FORMAT_QCOW2, &image);
	}
	if (!r)
		has_tail(&image, &result->tail);
	if (!r)
		result->cut = before - result->tail;
	image_close(&image);
	return r;
}

static int look_at_tail(const char *path, bool repair,
			struct check_result *result)
{
	struct image image;
	bool tail = false;
	int r;

	/* Repairing has changed the header. */
	r = image_open(path, FORMAT_QCOW2, &image);
	if (!r)
		tail = has_tail(&image, &result->tail);
	image_close(&image);
	return !r && tail && repair && result->outcome == CHECK_CLEAN ?
		cut_tail(path, result) : r;
}

/* Can qemu-img open it as it is? Then it can without its bitmaps, too. */
static bool can_check(const struct image *image, const struct unlock *unlock)
{
	bool muted = report_muted(), can;
	struct json_object *report;

	report_mute(true);
	qemu_check(image, unlock, false, &report);
	report_mute(muted);
	can = report;
	json_object_put(report);
	return can;
}

/* Return: as qemu_check() */
static int repair_image(const struct image *image, const struct unlock *unlock,
			struct json_object **report)
{
	int needed = quiet_needed(image), r, end;
	struct quiet quiet;

	if (needed <= 0)
		return needed ? needed : qemu_check(image, unlock, true, report);
	/* What cannot be opened is not changed; again, as it says why. */
	if (!can_check(image, unlock))
		return qemu_check(image, unlock, false, report);
	r = quiet_begin(image, &quiet);
	if (!r)
		r = qemu_check(image, unlock, true, report);
	end = quiet_end(image, &quiet);
	return r < 0 || !end ? r : end;
}

static int run_check(const struct image *image, const struct unlock *unlock,
		     bool repair, struct check_result *result)
{
	int r = repair ? repair_image(image, unlock, &result->report) :
		qemu_check(image, unlock, false, &result->report);

	if (r < 0)
		return r;
	if (!result->report || r == CHECK_FAILED)
		return report_fail(EIO, "%s: the check could not be completed.",
				   image->path);
	result->outcome = r;
	json_set_string(result->report, "filename", image->path);
	if (r != CHECK_CLEAN && r != CHECK_LEAKS)
		return 0;
	r = look_at_tail(image->path, repair, result);
	/* It was clean as far as it was looked at. */
	if (r < 0 && result->outcome == CHECK_CLEAN)
		result->outcome = CHECK_FAILED;
	return r;
}

static bool is_qcow2(const struct image *image)
{
	uint8_t *start = image_read(image, 4, 0);
	bool result = start && qcow2_probe(start, 4);

	free(start);
	return result;
}

int check_image(const char *path, struct unlock *unlock, bool repair,
		struct check_result *result)
{
	struct image image;
	int r;

	memset(result, 0, sizeof(*result));
	result->outcome = CHECK_FAILED;
	r = image_open_damaged(path, &image);
	/* It could be read, but has no header, or no good one. */
	if (r == -EMEDIUMTYPE && !is_qcow2(&image))
		result->outcome = CHECK_UNSUPPORTED;
	if (!r)
		r = check_possible(&image);
	if (!r)
		r = unlock ? unlock_image(unlock, &image) :
			image_encrypted(&image) ? -ENOKEY : 0;
	if (!r)
		r = attach_check_unused(&image, repair ? ROLE_WRITE :
					ROLE_READ);
	if (!r)
		r = run_check(&image, unlock, repair, result);
	image_close(&image);
	if (r < 0) {
		json_object_put(result->report);
		result->report = NULL;
	}
	return r;
}

bool check_needs_repair(const struct image *image)
{
	return image->format == FORMAT_QCOW2 &&
		image->header.incompatible & QCOW2_INCOMPAT_DIRTY;
}
