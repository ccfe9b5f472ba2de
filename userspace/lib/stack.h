/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Block devices that are made of others: who waits while a device stands still?
 */
#ifndef STACK_H
#define STACK_H

#include <stdbool.h>
#include <sys/types.h>

/**
 * stack_has() - is a block device made of another one, or that one itself?
 *
 * By way of other devices, partitions, and files under loop devices as well.
 *
 * @device: number of the device, or of a file system
 * @part: the other one
 */
bool stack_has(dev_t device, dev_t part);

/**
 * stack_place() - the device of a file system, or that a node stands for
 * @path: a file, which may have to be made yet, or a block device
 *
 * Return: its number; 0 where there is not even the directory.
 */
dev_t stack_place(const char *path);

/**
 * stack_system_on() - does what every program needs lie on a device?
 * @device: the device
 *
 * Such as the root file system, our own program, or swap space.
 *
 * Return: what it is, or NULL; free() it.
 */
char *stack_system_on(dev_t device);

#endif /* STACK_H */
