# SPDX-License-Identifier: GPL-2.0-only
"""Does the replay find what it is there to find?

A model of a qcow2 writer makes logs as dm-log-writes would have recorded them
from it. One model makes no mistake, the others one each, and the replay must
tell them apart.
"""

import os
import random
import struct
import subprocess

SECTOR = 512
CLUSTER = 4096
PER_CLUSTER = CLUSTER // SECTOR
GUEST_CLUSTERS = 64
HOST_CLUSTERS = 192
GUEST_SECTORS = GUEST_CLUSTERS * PER_CLUSTER
SEED = 7
MASK = (1 << 64) - 1
ZERO_FLAG = 1
COPIED = 1 << 63

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SUBMIT, COMPLETE = 1, 2
WRITE, ZERO = 1, 2

# Name, the mistake, and what the replay must count; None: nothing wrong.
CASES = [
    ("no mistake", None, None),
    ("no flush before the mapping", "no-flush-1", "wrong"),
    ("no flush after the mapping", "no-flush-2", "lost"),
    ("a write that never happens", "lost-write", "lost"),
    ("a FUA write that is not durable", "no-fua", "lost"),
    ("another sector's data", "foreign", "alien"),
    ("what the device held before", "no-fill", "alien"),
    ("a freed cluster reused too early", "early-reuse", "alien"),
    ("a refcount dropped too early", "early-drop", "corrupt"),
]


def mix(x):
    x ^= x >> 31
    x = x * 0x9e3779b97f4a7c15 & MASK
    return x ^ x >> 29


def sector(number, op):
    """sector_make() of sector.h for guest data."""
    magic = int.from_bytes(b"DMQGUEST", "little")
    x = mix(magic + number * 0xd6e8feb86659fd93 + (op << 32 | SEED) & MASK)
    words = [magic, number, SEED << 32 | op]
    for _ in range(SECTOR // 8 - len(words)):
        x = x * 6364136223846793005 + 1442695040888963407 & MASK
        words.append(x)
    return struct.pack("<64Q", *words)


class Log:
    """The log of dm-log-writes, and the journal of the workload."""

    def __init__(self):
        self.entries = []
        self.unflushed = []
        self.journal = []

    def write(self, sector_number, data):
        self.unflushed.append((sector_number, data, 0))

    def write_fua(self, sector_number, data):
        self.entries.append((sector_number, data, FUA))

    def flush(self):
        self.entries += self.unflushed + [(0, b"", FLUSH)]
        self.unflushed = []

    def mark(self, text):
        self.entries.append((0, f"{text}:{len(self.journal)}".encode(), MARK))

    def record(self, what, op, where, count, kind):
        self.journal.append(struct.pack("<IIQIHH", what, op, where, count,
                                        kind, 0))

    def save(self, directory):
        with open(f"{directory}/log", "wb") as f:
            f.write(struct.pack("<QQQI", 0x6a736677736872, 1,
                                len(self.entries), SECTOR).ljust(SECTOR, b"\0"))
            for where, data, flags in self.entries:
                if flags & MARK:
                    head = struct.pack("<QQQQ", 0, 0, flags, len(data)) + data
                    data = b""
                else:
                    head = struct.pack("<QQQQ", where, len(data) // SECTOR,
                                       flags, 0)
                f.write(head.ljust(SECTOR, b"\0") + data)
        with open(f"{directory}/journal", "wb") as f:
            f.write(b"".join(self.journal))


class Writer:
    """Writes a qcow2 image as the module would: data and refcounts, flush,
    mapping, flush, and only then the refcounts that drop."""

    def __init__(self, image, mistake):
        self.log = Log()
        self.mistake = mistake
        self.random = random.Random(4)
        header = struct.unpack(">IIQIIQIIQQ", image[:56])
        self.l1 = header[8]
        refcount_table = header[9]
        self.refcounts_at = self.get(image, refcount_table)
        # The first L2 table is there, since the first cluster was written to.
        self.l2_at = self.get(image, self.l1) & ~COPIED
        self.l2 = [self.get(image, self.l2_at + 8 * i)
                   for i in range(CLUSTER // 8)]
        self.refcounts = list(struct.unpack(
            f">{CLUSTER // 2}H",
            image[self.refcounts_at:self.refcounts_at + CLUSTER]))
        self.content = {}
        self.dirty_l2 = set()
        self.dirty_refcounts = set()
        self.dropped = []
        self.op = 0

    @staticmethod
    def get(image, offset):
        return struct.unpack(">Q", image[offset:offset + 8])[0]

    def allocate(self):
        free = [i for i in range(HOST_CLUSTERS) if not self.refcounts[i]]
        cluster = self.random.choice(free[:4])
        if self.mistake == "early-reuse" and self.dropped:
            cluster = self.dropped.pop()
        self.refcounts[cluster] = 1
        self.dirty_refcounts.add(cluster * 2 // SECTOR)
        return cluster

    def content_of(self, number):
        op = self.content.get(number)
        return sector(number, op) if op else bytes(SECTOR)

    def write(self, first, count, fua):
        self.op += 1
        op = self.op
        self.log.record(SUBMIT, op, first, count, WRITE)
        for number in range(first, first + count):
            self.content[number] = op
        cluster = first // PER_CLUSTER
        data = b"".join(sector(n, op) for n in range(first, first + count))
        if self.mistake == "foreign" and op == 20:
            data = b"".join(sector(n + PER_CLUSTER, op)
                            for n in range(first, first + count))
        if self.l2[cluster] & ~(COPIED | ZERO_FLAG):
            where = (self.l2[cluster] & ~COPIED) // SECTOR
            self.overwrite(where + first % PER_CLUSTER, data, fua)
        else:
            self.write_new(cluster, first, count, data)
            if fua:
                self.commit()
        self.log.record(COMPLETE, op, first, count, WRITE)
        if fua:
            self.log.mark(f"U:{op}")

    def overwrite(self, where, data, fua):
        if self.mistake == "lost-write" and self.op % 16 == 0:
            return
        if fua and self.mistake != "no-fua":
            self.log.write_fua(where, data)
        else:
            self.log.write(where, data)

    def write_new(self, cluster, first, count, data):
        new = self.allocate()
        where = new * PER_CLUSTER
        start = cluster * PER_CLUSTER
        if self.mistake != "no-fill":
            before = b"".join(map(self.content_of, range(start, first)))
            after = b"".join(map(self.content_of, range(
                first + count, start + PER_CLUSTER)))
            if before:
                self.log.write(where, before)
            if after:
                self.log.write(where + first + count - start, after)
        self.log.write(where + first - start, data)
        self.l2[cluster] = new * CLUSTER | COPIED
        self.dirty_l2.add(cluster * 8 // SECTOR)

    def zero(self, cluster):
        self.op += 1
        first = cluster * PER_CLUSTER
        self.log.record(SUBMIT, self.op, first, PER_CLUSTER, ZERO)
        old = (self.l2[cluster] & ~(COPIED | ZERO_FLAG)) // CLUSTER
        if old:
            self.dropped.append(old)
        self.l2[cluster] = ZERO_FLAG
        self.dirty_l2.add(cluster * 8 // SECTOR)
        for number in range(first, first + PER_CLUSTER):
            self.content.pop(number, None)
        self.log.record(COMPLETE, self.op, first, PER_CLUSTER, ZERO)

    def zero_in_place(self, first, count):
        """Of sectors that are written to: the cluster stays."""
        self.op += 1
        self.log.record(SUBMIT, self.op, first, count, ZERO)
        where = (self.l2[first // PER_CLUSTER] & ~COPIED) // SECTOR
        self.log.write(where + first % PER_CLUSTER, bytes(count * SECTOR))
        for number in range(first, first + count):
            self.content.pop(number, None)
        self.log.record(COMPLETE, self.op, first, count, ZERO)

    def one_place(self, first, count):
        """Zeroes and FUA writes of the same sectors between two flushes."""
        self.write(first, count, False)
        self.guest_flush()
        for what in self.random.choice(("zw", "wz", "zwz", "wzw")):
            if what == "z":
                self.zero_in_place(first, count)
            else:
                self.write(first, count, True)

    def put_refcounts(self):
        data = struct.pack(f">{CLUSTER // 2}H", *self.refcounts)
        for i in sorted(self.dirty_refcounts):
            self.log.write(self.refcounts_at // SECTOR + i,
                           data[i * SECTOR:(i + 1) * SECTOR])
        self.dirty_refcounts.clear()

    def drop_refcounts(self):
        for cluster in self.dropped:
            self.refcounts[cluster] = 0
            self.dirty_refcounts.add(cluster * 2 // SECTOR)
        self.dropped = []

    def commit(self):
        if self.mistake == "early-drop":
            self.drop_refcounts()
        self.put_refcounts()
        if self.mistake != "no-flush-1":
            self.log.flush()
        data = struct.pack(f">{CLUSTER // 8}Q", *self.l2)
        for i in sorted(self.dirty_l2):
            self.log.write(self.l2_at // SECTOR + i,
                           data[i * SECTOR:(i + 1) * SECTOR])
        self.dirty_l2.clear()
        if self.mistake != "no-flush-2":
            self.log.flush()
        self.drop_refcounts()

    def guest_flush(self):
        durable = len(self.log.journal)
        self.commit()
        self.log.mark(f"D:{durable}")

    def work(self, operations):
        for _ in range(operations):
            dice = self.random.random()
            cluster = self.random.randrange(GUEST_CLUSTERS)
            if dice < 0.15:
                self.guest_flush()
            elif dice < 0.35:
                self.zero(cluster)
            else:
                start = self.random.randrange(PER_CLUSTER)
                count = self.random.randint(1, PER_CLUSTER - start)
                where = cluster * PER_CLUSTER + start
                if dice < 0.45 and not self.mistake:
                    self.one_place(where, count)
                else:
                    self.write(where, count, dice > 0.9)
        self.guest_flush()


def make_image(path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    f"cluster_size={CLUSTER}", path,
                    str(GUEST_CLUSTERS * CLUSTER)], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -z 0 4k", path],
                   check=True, stdout=subprocess.DEVNULL)
    with open(path, "rb") as f:
        return f.read()


def run(case, work):
    """Returns: is it as it must be, name of the test, lines of comment."""
    name, mistake, wanted = case
    directory = f"{work}/selftest-{mistake}"
    os.mkdir(directory)
    image = make_image(f"{directory}/selftest.qcow2")
    with open(f"{directory}/initial", "wb") as f:
        f.truncate(2 * GUEST_SECTORS * SECTOR)
    writer = Writer(image, mistake)
    writer.work(250)
    writer.log.save(directory)
    done = subprocess.run(
        [f"{work}/replay", "--image", f"{directory}/selftest.qcow2",
         "--sectors", str(HOST_CLUSTERS * PER_CLUSTER), "--initial",
         f"{directory}/initial", "--log", f"{directory}/log", "--journal",
         f"{directory}/journal", "--run-seed", str(SEED), "--state",
         f"{directory}/selftest.state", "--points", "100"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False)
    lines = done.stdout.splitlines()
    words = lines[-1].split() if done.returncode in (0, 1) else []
    figures = dict(zip(words[::2], map(int, words[1::2])))
    if mistake:
        good = figures.get(wanted, 0) > 0
    else:
        good = bool(figures) and not figures["wrong"]
    return good, f"replay: {name}", lines[-1:] if good else lines
