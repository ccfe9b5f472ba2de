/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The QEMU guest agent, at the UNIX socket of its channel: file systems in the
 * guest are frozen, its applications told beforehand.
 */
#ifndef QGA_H
#define QGA_H

/* All return 0 or a negative errno, unreported. */

/** qga_ping() - does an agent answer at this socket? */
int qga_ping(const char *path);

/** qga_freeze() - freeze the file systems of the guest */
int qga_freeze(const char *path);

/** qga_thaw() - thaw them, if they are frozen */
int qga_thaw(const char *path);

#endif /* QGA_H */
