/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Big endian numbers at any address.
 */
#ifndef BYTES_H
#define BYTES_H

#include <stdint.h>

/** get() - read a number of @bytes bytes */
static inline uint64_t get(const uint8_t *p, unsigned int bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | *p++;
	return value;
}

/** put() - write one */
static inline void put(uint8_t *p, unsigned int bytes, uint64_t value)
{
	while (bytes--) {
		p[bytes] = value;
		value >>= 8;
	}
}

#endif /* BYTES_H */
