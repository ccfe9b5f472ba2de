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
 * holders_refuse() - report who has a device open
 * @device: the block device
 * @kind: of it, for the message
 * @name: its name
 * @state: what it is, "still in use" for instance
 *
 * Return: -EBUSY, reported.
 */
int holders_refuse(dev_t device, const char *kind, const char *name,
		   const char *state);

/**
 * holders_check() - refuse a device that somebody has open
 * @name: the device
 *
 * Return: 0, or -EBUSY, reported with who it is.
 */
int holders_check(const char *name);

#endif /* HOLDERS_H */
