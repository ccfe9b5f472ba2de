# SPDX-License-Identifier: GPL-2.0-only
"""What a crash may leave of a device whose writes dm-log-writes recorded.

dm-log-writes enters a write with the flush that makes it durable, and one with
FUA when it ends (log.h has the format). So at a place in the log all that stands
before the last flush is on the device, and so is what had FUA; of each sector
written since it has any version, or the old one.
"""

import struct

SECTOR = 512
MAGIC = 0x6a736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


class Entry:
    def __init__(self, sector, count, flags, data):
        self.sector = sector
        self.count = count
        self.flags = flags
        self.data = data    # of a mark, its text


def read_log(path):
    with open(path, "rb") as f:
        magic, _, entries, size = struct.unpack("<QQQI", f.read(28))
        if magic != MAGIC or size != SECTOR:
            raise ValueError(f"{path} is not a log")
        f.seek(SECTOR)
        for _ in range(entries):
            head = f.read(SECTOR)
            sector, count, flags, length = struct.unpack("<QQQQ", head[:32])
            data = None
            if flags & MARK:
                data = head[32:32 + length].rstrip(b"\0").decode()
            elif not flags & DISCARD:
                data = f.read(count * SECTOR)
            yield Entry(sector, count, flags, data)


def apply(device, entry):
    """All of it, to an open file"""
    if entry.flags & MARK or not entry.count:
        return
    device.seek(entry.sector * SECTOR)
    device.write(entry.data if entry.data is not None
                 else bytes(entry.count * SECTOR))


def tear(device, entry, rng, lucky, whole):
    """Some sectors of it; all or none of those below @whole."""
    if entry.flags & MARK or not entry.count:
        return
    data = entry.data if entry.data is not None else bytes(
        entry.count * SECTOR)
    all_of_it = rng.random() < lucky
    for n in range(entry.count):
        if all_of_it if entry.sector + n < whole else rng.random() < lucky:
            device.seek((entry.sector + n) * SECTOR)
            device.write(data[n * SECTOR:(n + 1) * SECTOR])
