/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Checking and repairing images that are not open.
 */
#ifndef CHECK_H
#define CHECK_H

#include <json-c/json.h>

#include "image.h"
#include "unlock.h"

/**
 * enum check_outcome - exit codes of 'qemu-img check', see qemu-img(1)
 * @CHECK_CLEAN: the image is consistent (now)
 * @CHECK_FAILED: the check could not be completed
 * @CHECK_CORRUPT: it is corrupt
 * @CHECK_LEAKS: clusters are leaked, nothing worse
 * @CHECK_UNSUPPORTED: it is no qcow2 image
 */
enum check_outcome {
	CHECK_CLEAN = 0,
	CHECK_FAILED = 1,
	CHECK_CORRUPT = 2,
	CHECK_LEAKS = 3,
	CHECK_UNSUPPORTED = 63,
};

/**
 * struct check_result - what a check found
 * @outcome: the state of the image now
 * @report: of qemu-img, see qemu_check(); put it; NULL after an error
 * @tail: bytes of the file behind the last cluster in use that are there now
 * @cut: bytes that were cut off there
 */
struct check_result {
	enum check_outcome outcome;
	struct json_object *report;
	uint64_t tail;
	uint64_t cut;
};

/**
 * check_image() - check an image
 * @path: the image
 * @unlock: passphrases; NULL: encrypted images cannot be checked
 * @repair: repair what is wrong, and cut a tail that nothing uses
 * @result: what was found
 *
 * Refuses images that are in use.  Call it with the state lock held.
 *
 * Return: 0; -ENOKEY, see unlock_image(); or an error, reported, if the check could
 * not be completed; it is CHECK_FAILED then, or CHECK_UNSUPPORTED.
 */
int check_image(const char *path, struct unlock *unlock, bool repair,
		struct check_result *result);

/**
 * check_needs_repair() - must this image be repaired before it is written?
 * @image: the image
 *
 * It was marked as dirty, and the program that wrote it did not end well.
 */
bool check_needs_repair(const struct image *image);

#endif /* CHECK_H */
