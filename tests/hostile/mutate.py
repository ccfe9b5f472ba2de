# SPDX-License-Identifier: GPL-2.0-only
"""Makes broken images: one field after another, then random ones by seed."""

import os
import random
import struct
import subprocess

# Header fields: name, offset, struct format.
HEADER = [
    ("magic", 0, "I"), ("version", 4, "I"), ("backing_file_offset", 8, "Q"),
    ("backing_file_size", 16, "I"), ("cluster_bits", 20, "I"),
    ("size", 24, "Q"), ("crypt_method", 32, "I"), ("l1_size", 36, "I"),
    ("l1_table_offset", 40, "Q"), ("refcount_table_offset", 48, "Q"),
    ("refcount_table_clusters", 56, "I"), ("nb_snapshots", 60, "I"),
    ("snapshots_offset", 64, "Q"), ("incompatible_features", 72, "Q"),
    ("compatible_features", 80, "Q"), ("autoclear_features", 88, "Q"),
    ("refcount_order", 96, "I"), ("header_length", 100, "I"),
    ("compression_type", 104, "B")]

# Values that must be refused, with a message that names the field.
REFUSED = {
    "magic": [0, 0x514649fa], "version": [0, 1, 4, 0xffffffff],
    "cluster_bits": [0, 8, 22, 31, 63, 0xffffffff],
    "size": [1 << 63, 0xffffffffffffffff],
    "crypt_method": [3, 0xffffffff],
    "l1_size": [0, 0x7fffffff, 0xffffffff],
    "l1_table_offset": [0, 1, 0x7ffffffffffffe00, 0xffffffffffffffff],
    "refcount_table_offset": [0, 1, 0x7ffffffffffffe00, 0xffffffffffffffff],
    "refcount_table_clusters": [0, 0x7fffffff, 0xffffffff],
    "nb_snapshots": [65537, 0xffffffff],
    "snapshots_offset": [1, 0x7ffffffffffffe00, 0xffffffffffffffff],
    "refcount_order": [7, 32, 0xffffffff],
    "compression_type": [2, 255],
    "header_length": [0, 71, 105, 0x10000000, 0xfffffff8]}

KINDS = {
    "small": ["-o", "cluster_size=4096"],
    "tiny": ["-o", "cluster_size=512,refcount_bits=64"],
    "old": ["-o", "compat=0.10,cluster_size=4096"],
    "bits": ["-o", "cluster_size=4096,refcount_bits=1"],
    "zlib": ["-o", "cluster_size=4096"],
    "zstd": ["-o", "cluster_size=4096,compression_type=zstd"],
    "subclusters": ["-o", "cluster_size=16384,extended_l2=on"]}

# These hold compressed clusters, too.
PACKED = {"zlib", "zstd", "subclusters"}


def values(rng, length, cluster):
    """What an attacker puts into a table entry or an offset."""
    near = rng.randrange(0, length, cluster)
    return rng.choice([
        0, near, near | 1 << 63, near | 1, near + 512, near + 1, cluster,
        cluster | 1 << 63, length, length - cluster, length - 512,
        near | 1 << 62, near | 3 << 62, near + rng.randrange(cluster) |
        1 << 62 | rng.getrandbits(4) << 58, length - 1 | 1 << 62, 1 << 55, (1 << 56) - 512,
        1 << 63, (1 << 64) - 1, rng.getrandbits(64), 1 << rng.randrange(64),
        rng.getrandbits(32), rng.getrandbits(32) << 32])


class Image:
    """A sound image in memory and where its structures are."""

    def __init__(self, kind, directory):
        path = os.path.join(directory, "sound")
        run = lambda *c: subprocess.run(     # noqa: E731
            c, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        run("qemu-img", "create", "-q", "-f", "qcow2", *KINDS[kind], path, "1M")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "-c",
            "write -P 2 300k 9k", "-c", "write -P 3 1020k 4k", path)
        if kind in PACKED:
            unit = 16 if kind == "subclusters" else 4
            run("qemu-io", "-f", "qcow2",
                "-c", f"write -c -P 5 400k {unit}k",
                "-c", f"write -c -P 6 {500 // unit * unit}k {6 * unit}k",
                "-c", f"write -c -P 7 {700 // unit * unit}k {unit}k", path)
        if kind not in ("bits", "old"):
            run("qemu-img", "snapshot", "-c", "one", path)
            run("qemu-io", "-f", "qcow2", "-c", "write -P 4 8k 20k", "-c",
                "write -z 100k 32k", path)
            run("qemu-img", "bitmap", "--add", path, "bits")
        with open(path, "rb") as f:
            self.data = bytearray(f.read())
        os.unlink(path)
        self.data += bytes(-len(self.data) % 4096)
        self.kind = kind
        self.entry_bytes = 16 if kind == "subclusters" else 8
        self.cluster = 1 << self.get(20, "I")
        self.l1 = self.get(40, "Q")
        self.reftable = self.get(48, "Q")
        self.snapshots = self.get(64, "Q")
        self.refblock = self.get(self.reftable, "Q")
        self.l2 = [self.get(self.l1 + 8 * n, "Q") & (1 << 56) - 512
                   for n in range(self.get(36, "I"))]
        self.l2 = [offset for offset in self.l2 if offset]

    def get(self, offset, fmt):
        return struct.unpack_from(">" + fmt, self.data, offset)[0]

    def structures(self):
        """(name, offset, bytes) of all metadata."""
        out = [("header", 0, 112), ("extensions", 104, 200),
               ("L1", self.l1, 8 * self.get(36, "I")),
               ("refcount table", self.reftable, 64),
               ("refcount block", self.refblock, self.cluster)]
        used = self.entry_bytes * ((1 << 20) // self.cluster)
        out += [("L2", offset, min(used, self.cluster)) for offset in self.l2]
        if self.snapshots:
            out.append(("snapshot table", self.snapshots, 80))
        out += [("compressed data", offset, 32)
                for offset in self.packed_data()]
        return out

    def packed_data(self):
        """Where compressed data is that the first L2 table refers to."""
        if self.kind not in PACKED:
            return []
        entries = [self.get(self.l2[0] + n, "Q")
                   for n in range(0, self.cluster, self.entry_bytes)]
        bits = self.get(20, "I")
        return [entry & (1 << 62 - (bits - 8)) - 1 for entry in entries
                if entry & 1 << 62]


def put(data, offset, fmt, value):
    size = struct.calcsize(fmt)
    struct.pack_into(">" + fmt, data, offset, value & ((1 << 8 * size) - 1))


def single_fields(image, rng):
    """One field of the header at a time."""
    for name, offset, fmt in HEADER:
        if image.kind == "old" and offset >= 72:
            continue
        for value in REFUSED.get(name, []):
            if name == "snapshots_offset" and not image.snapshots:
                continue
            data = bytearray(image.data)
            put(data, offset, fmt, value)
            yield f"{name} = {value:#x}", name, data
        for _ in range(2):
            data = bytearray(image.data)
            value = values(rng, len(data), image.cluster)
            put(data, offset, fmt, value)
            yield f"{name} is random", None, data


def single_entries(image, rng):
    """One table entry at a time, each with what tables must never hold."""
    cluster, end = image.cluster, len(image.data)
    bad = [1, 0x200, 1 << 62, 1 << 56, end, end - 512, (1 << 56) - 512,
           (1 << 64) - 1, 0, image.l1, image.reftable, image.refblock,
           image.l2[0], image.l2[0] | 1 << 63, cluster | 1 << 63]
    places = [("L1 entry", image.l1), ("L2 entry", image.l2[0]),
              ("refcount table entry", image.reftable)]
    if image.snapshots:
        places.append(("snapshot's L1 offset", image.snapshots))
    if image.entry_bytes == 16:
        places.append(("L2 bitmap", image.l2[0] + 8))
        bad += [1 << 32 | 1, 1 << 63 | 1 << 31, (1 << 32) - 1, 1 << 31]
    for name, offset in places:
        for value in bad:
            data = bytearray(image.data)
            put(data, offset, "Q", value)
            yield f"{name} = {value:#x}", None, data
    for value in (0, (1 << 64) - 1):
        data = bytearray(image.data)
        for offset in range(image.refblock, image.refblock + cluster, 8):
            put(data, offset, "Q", value)
        yield f"all refcounts {value:#x}", None, data


def random_one(image, rng):
    data = bytearray(image.data)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        _, start, length = rng.choice(image.structures())
        way = rng.random()
        if way < 0.5:
            offset = start + rng.randrange(0, max(length // 8, 1)) * 8
            put(data, offset, "Q", values(rng, len(data), image.cluster))
        elif way < 0.8:
            data[start + rng.randrange(length)] = rng.getrandbits(8)
        elif way < 0.9:
            put(data, start + rng.randrange(0, max(length // 4, 1)) * 4, "I",
                rng.choice([0, 1, 0x7fffffff, 0xffffffff]))
        else:
            data[start + rng.randrange(length)] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        del data[rng.randrange(1, len(data) // 512) * 512:]
    return data


def everything(directory, count, first, kinds=tuple(KINDS)):
    """Yields (title, field that the message must name or None, data)."""
    for kind in kinds:
        image = Image(kind, directory)
        rng = random.Random(kind)
        for title, field, data in single_fields(image, rng):
            yield f"{kind}: {title}", field, data
        for title, field, data in single_entries(image, rng):
            yield f"{kind}: {title}", field, data
    images = [Image(kind, directory) for kind in kinds]
    for seed in range(first, first + count):
        rng = random.Random(f"hostile {seed}")
        yield f"random, seed {seed}", None, random_one(rng.choice(images), rng)
