/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who keeps a block device open?
 */
#ifndef HOLDERS_H
#define HOLDERS_H

#include <sys/types.h>

/**
 * holders_text() - name mounts, swap, devices and processes
 * @device: the block device
 *
 * What other name spaces do is not seen.
 *
 * Return: text, empty if nobody is found; free() it.
 */
char *holders_text(dev_t device);

/**
 * holders_check() - refuse a device that somebody has open
 * @name: the device
 *
 * Return: 0, or -EBUSY, reported with who it is.
 */
int holders_check(const char *name);

#endif /* HOLDERS_H */
