#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""seeds.py DIR: has qemu-img make images of all kinds, and writes what they say
of themselves to DIR, a file each, in the form of sparse.h: the seeds of the
fuzzer. Their data is not among it."""

import os
import struct
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
import qemuimg  # noqa: E402

SECRET = ["--object", "secret,id=key,data=abc"]
LUKS = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
OFFSET = (1 << 56) - 512
# Of one table: more than the fuzzer looks at
TABLE_BYTES = 768
TABLES = 6


class Kind:
    """How an image is made: options and size of qemu-img create, arguments before
    them; then, by turns, commands of qemu-io and arguments of qemu-img."""

    def __init__(self, options="", size="8M", arguments=(), steps=()):
        self.options = options
        self.size = size
        self.arguments = arguments
        self.steps = steps


def io(*commands):
    return ("io", commands)


def img(*arguments):
    return ("img", arguments)


# Data, zero clusters, holes; @ is the image
WRITTEN = (io("write -P 1 0 300k", "write -z 100k 70k", "write -P 2 5M 3k",
              "discard 64k 64k", "write -z 6M 200k"),)
PACKED = (io("write -P 1 0 300k"), io("write -c -P 3 1M 128k"),
          io("write -c -P 4 1280k 64k"))
SNAPSHOTS = WRITTEN + (img("snapshot", "-c", "one", "@"), io("write -P 5 1M 2M"),
                       img("snapshot", "-c", "a name of two", "@"),
                       io("discard 0 2M"))
BITMAPS = (img("bitmap", "--add", "@", "one"),
           img("bitmap", "--add", "-g", "4k", "--disable", "@", "second"))

KINDS = {
    "default": Kind(),
    "written": Kind(steps=WRITTEN),
    "version-2": Kind("compat=0.10", steps=SNAPSHOTS),
    "version-2-512": Kind("compat=0.10,cluster_size=512", "1M"),
    "lazy-refcounts": Kind("lazy_refcounts=on", steps=WRITTEN),
    "zlib": Kind(steps=PACKED),
    "zlib-4k": Kind("cluster_size=4k", steps=(
        io("write -P 1 0 64k", "write -c -P 3 1M 4k", "write -c -P 9 1028k 4k"),)),
    "zstd": Kind("compression_type=zstd", steps=PACKED),
    "zstd-2M": Kind("compression_type=zstd,cluster_size=2M",
                    steps=(io("write -c -P 3 2M 2M"),)),
    "subclusters": Kind("extended_l2=on", steps=WRITTEN),
    "subclusters-16k": Kind("extended_l2=on,cluster_size=16k", steps=WRITTEN),
    "subclusters-2M": Kind("extended_l2=on,cluster_size=2M", "64M",
                           steps=WRITTEN),
    "subclusters-zstd": Kind("extended_l2=on,compression_type=zstd",
                             steps=PACKED),
    "subclusters-snapshots": Kind("extended_l2=on,cluster_size=128k",
                                  steps=SNAPSHOTS),
    "data-file": Kind("data_file=@.data", steps=WRITTEN),
    "data-file-raw": Kind("data_file=@.data,data_file_raw=on", steps=WRITTEN),
    "data-file-subclusters": Kind("data_file=@.data,extended_l2=on",
                                  steps=WRITTEN),
    "bitmaps": Kind(steps=WRITTEN + BITMAPS),
    "bitmaps-4k": Kind("cluster_size=4k", steps=BITMAPS),
    "luks": Kind(LUKS, arguments=SECRET),
    "luks-4k": Kind(LUKS + ",cluster_size=4k", "1M", SECRET),
    "aes": Kind("encrypt.format=aes,encrypt.key-secret=key", arguments=SECRET),
    "snapshots": Kind(steps=SNAPSHOTS),
    "snapshots-4k": Kind("cluster_size=4k", steps=SNAPSHOTS),
    "snapshots-sizes": Kind(steps=SNAPSHOTS + (img("resize", "@", "20M"),
                                               img("snapshot", "-c", "long",
                                                   "@"))),
    "backing": Kind(arguments=["-u", "-b", "base.qcow2", "-F", "qcow2"]),
    "backing-raw": Kind("cluster_size=512", "1M",
                        ["-u", "-b", "/a/rather/long/name/of/a/base.raw",
                         "-F", "raw"]),
    "backing-4k": Kind("cluster_size=4k", "1M",
                       ["-u", "-b", 30 * "long/name/" + "base", "-F", "raw"]),
    "backing-v2": Kind("compat=0.10", "8M",
                       ["-u", "-b", "base", "-F", "qcow2"]),
    "preallocated": Kind("preallocation=metadata"),
    "tiny": Kind(size="512"),
    "nothing": Kind(size="0"),
    "huge": Kind("cluster_size=2M", "64T"),
    "everything": Kind("compression_type=zstd,extended_l2=on,cluster_size=32k,"
                       "refcount_bits=32,lazy_refcounts=on", "32M",
                       ["-u", "-b", "base", "-F", "raw"],
                       SNAPSHOTS + BITMAPS),
}
for n in (512, 1024, 4096, 65536, 2 << 20):
    KINDS[f"clusters-{n}"] = Kind(f"cluster_size={n}", steps=WRITTEN)
for n in (1, 2, 4, 8, 16, 32, 64):
    KINDS[f"refcounts-{n}"] = Kind(f"refcount_bits={n},cluster_size=4k",
                                   steps=WRITTEN)


def run(command, directory):
    out, code = qemuimg.run(*command, directory=directory)
    if code:
        sys.exit(f"seeds: {' '.join(command)}: {out}")


def make(name, kind, directory):
    """The image, as bytes."""
    options = ["-o", kind.options.replace("@", name)] if kind.options else []
    run(["qemu-img", "create", "-q", "-f", "qcow2", *kind.arguments, *options,
         name, kind.size], directory)
    for what, words in kind.steps:
        if what == "img":
            run(["qemu-img", words[0], *[name if w == "@" else w
                                         for w in words[1:]]], directory)
        else:
            run(["qemu-io", "-f", "qcow2", "-d", "unmap"] +
                [a for w in words for a in ("-c", w)] + [name], directory)
    with open(os.path.join(directory, name), "rb") as f:
        return f.read()


def number(data, offset, fmt):
    return struct.unpack_from(">" + fmt, data, offset)[0]


def entries(data, offset, count):
    """Where the tables are that a table names"""
    end = min(offset + 8 * count, len(data) // 8 * 8)
    found = [number(data, at, "Q") & OFFSET for at in range(offset, end, 8)]
    return [o for o in found if o][:TABLES]


def snapshots(data):
    """(offset, length) of the entries, and where their L1 tables are"""
    at, tables = number(data, 64, "Q"), []
    start = at
    for _ in range(number(data, 60, "I")):
        tables.append((number(data, at, "Q"), number(data, at + 8, "I")))
        length = 40 + number(data, at + 36, "I") + \
            number(data, at + 12, "H") + number(data, at + 14, "H")
        at += -(-length // 8) * 8
    return (start, at - start), tables


def header_area(data):
    """What stands in front of the tables, and the bitmaps' directory"""
    at = 72 if number(data, 4, "I") == 2 else number(data, 100, "I")
    directory, name = None, number(data, 8, "Q")
    while number(data, at, "I"):
        if number(data, at, "I") == 0x23852875:
            directory = (number(data, at + 24, "Q"), number(data, at + 16, "Q"))
        at += 8 + -(-number(data, at + 4, "I") // 8) * 8
    at = max(at + 8, name + number(data, 16, "I"))
    return at, directory


def pieces(data):
    """(offset, bytes) of all metadata"""
    cluster = 1 << number(data, 20, "I")
    length, directory = header_area(data)
    table, maps = snapshots(data)
    maps.append((number(data, 40, "Q"), number(data, 36, "I")))
    reftable = number(data, 48, "Q")
    out = {0: length}

    def add(offset, size):
        out[offset] = max(out.get(offset, 0), size)

    add(*table)
    if directory:
        add(*directory)
    for offset, count in maps:
        add(offset, min(8 * count, TABLE_BYTES))
        for l2 in entries(data, offset, count):
            add(l2, min(cluster, TABLE_BYTES))
    add(reftable, min(cluster, TABLE_BYTES))
    for block in entries(data, reftable, cluster // 8):
        add(block, min(cluster, TABLE_BYTES))
    return [(offset, data[offset:offset + size].rstrip(b"\0"))
            for offset, size in sorted(out.items())]


def seed(data):
    out = struct.pack(">Q", len(data))
    for offset, content in pieces(data):
        content += bytes(-len(content) % 8)
        out += (offset // 512).to_bytes(6, "big") + \
            struct.pack(">H", len(content)) + content
    return out


def main():
    target = sys.argv[1]
    os.makedirs(target, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        run(["truncate", "-s", "32M", "base"], directory)
        for name, kind in KINDS.items():
            data = make(name, kind, directory)
            with open(os.path.join(target, name), "wb") as f:
                f.write(seed(data))
            os.unlink(os.path.join(directory, name))


main()
