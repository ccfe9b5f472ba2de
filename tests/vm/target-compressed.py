#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Compressed clusters: reading, writing over them, dropping, sharing, damage."""

import concurrent.futures
import errno
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB, entry_at, peek, poke  # noqa: E402

COMPRESSED = 1 << 62
COPIED = 1 << 63


def contents(tag, size):
    """Compressible data, some that is not, and zeroes."""
    rng = random.Random(tag)
    data = bytearray(fx.pattern(tag, -(-size // 512) * 512)[:size])
    for _ in range(6):
        length = min(rng.randint(1, 200) * 512, size)
        at = rng.randint(0, (size - length) // 512) * 512
        data[at:at + length] = rng.choice([rng.randbytes(length),
                                           bytes(length)])
    return bytes(data)


def packed(name, size, data=None, **options):
    """An image of compressed clusters; returns what it contains."""
    data = data or contents(name, size)
    with open("source", "wb") as f:
        f.write(data)
    text = ",".join(f"{k}={v}" for k, v in options.items())
    fx.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2",
                *(["-o", text] if text else []), "source", name)
    os.unlink("source")
    fx.pad(name)
    return data


def data_at(name, guest):
    """Where the compressed data of a guest offset starts."""
    entry = entry_at(name, guest)[1]
    ktap.check(entry & COMPRESSED, f"{guest} is not compressed: {entry:#x}")
    return entry & (1 << 62 - (peek(name, 20, "I") - 8)) - 1


def compare(dev, want, threads=3):
    """End to end, small pieces, and pieces beside each other."""
    ktap.same_bytes(dev.read_all(), want, "end to end")
    rng = random.Random(len(want))
    places = []
    for _ in range(60):
        n = rng.choice([1, 2, 8, 8, 200]) * 512
        places.append((rng.randint(0, (len(want) - n) // 512) * 512, n))

    def one(place):
        at, n = place
        ktap.same_bytes(dev.read(at, n), want[at:at + n], f"at {at}")

    blk.drop_caches()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, places))
    for at in range(0, min(len(want), 128 * KIB), 4096):
        ktap.same_bytes(dev.read(at, 4096), want[at:at + 4096], f"at {at}")


def reads(size, options):
    want = packed("image", size, **options)
    before = fx.file_bytes("image")
    with fx.opened([("qcow2", "image")], size, read_only=True) as (_, dev):
        compare(dev, want)
    ktap.same_bytes(fx.file_bytes("image"), before, "the image, only read")


SIZES = {512: MIB + 512, 4096: 3 * MIB + 1536, 65536: 5 * MIB + 512,
         2 * MIB: 9 * MIB + 512}
for cluster, size in SIZES.items():
    for kind in ("zlib", "zstd"):
        ktap.case(f"reads: {kind}, cluster size {cluster}", reads, size,
                  {"cluster_size": cluster, "compression_type": kind})
ktap.case("reads: version 2", reads, 3 * MIB,
          {"cluster_size": 65536, "compat": "0.10"})


def write_both(dev, model, offset, data):
    dev.write(offset, data)
    model[offset:offset + len(data)] = data


def change(dev, model, ops, seed, discard_is_zero=True):
    """Random writes, zeroes and discards, some beside each other."""
    rng = random.Random(seed)
    size = len(model)
    for n in range(ops):
        length = rng.choice([1, 2, 8, 8, 100, 300]) * 512
        at = rng.randint(0, (size - length) // 512) * 512
        kind = rng.choice(["write", "write", "write", "zero", "punch",
                           "discard"])
        if kind == "write":
            write_both(dev, model, at, fx.pattern(f"w{n}", length))
        elif kind == "discard":
            dev.discard(at, length)
            model[at:at + length] = dev.read(at, length)
        else:
            (dev.zeroout if kind == "zero" else dev.punch)(at, length)
            model[at:at + length] = bytes(length)


def written(layers, model):
    fx.check(layers[0][1])
    ktap.same_bytes(fx.content(layers[0][1])[:len(model)], bytes(model),
                    "as QEMU reads it")


def writes(size, options):
    layers = [("qcow2", "image")]
    model = bytearray(packed("image", size, **options))
    with fx.opened(layers, size) as (_, dev):
        change(dev, model, 40, str(options))
        compare(dev, bytes(model))
        dev.flush()
        change(dev, model, 20, "again")
        compare(dev, bytes(model))
    written(layers, model)


for cluster, size in SIZES.items():
    for kind in ("zlib", "zstd"):
        ktap.case(f"writes: {kind}, cluster size {cluster}", writes, size,
                  {"cluster_size": cluster, "compression_type": kind})
ktap.case("writes: version 2", writes, 3 * MIB,
          {"cluster_size": 65536, "compat": "0.10"})
ktap.case("writes: refcounts of 64 bits", writes, MIB,
          {"cluster_size": 512, "refcount_bits": 64})


@ktap.test
def neighbours_in_a_host_cluster():
    """A hundred compressed clusters share a few host clusters."""
    size = 8 * MIB
    model = bytearray(packed("image", size, fx.pattern("n", size)))
    used = os.path.getsize("image")
    layers = [("qcow2", "image")]
    with fx.opened(layers, size) as (_, dev):
        for at in range(0, size, 128 * KIB):
            if at % (512 * KIB):
                write_both(dev, model, at + 4096, b"n" * 4096)
            else:
                dev.punch(at, 64 * KIB)
                model[at:at + 64 * KIB] = bytes(64 * KIB)
        dev.flush()
        compare(dev, bytes(model))
        for at in range(0, size, 64 * KIB):
            write_both(dev, model, at, fx.pattern(f"{at}", 64 * KIB))
        dev.flush()
        compare(dev, bytes(model))
    ktap.check(used < 2 * MIB, f"{used} bytes: not compressed")
    written(layers, model)


@ktap.test
def host_clusters_are_reused():
    """Room for one more copy of the data only: what is dropped comes back."""
    size = 4 * MIB
    rng = random.Random(3)
    half = b"".join(rng.randbytes(256) + bytes(256) for _ in range(size // 512))
    model = bytearray(packed("image", size, half))
    layers = [("qcow2", "image")]
    room = -(-os.path.getsize("image") // MIB) * MIB + size + MIB
    with fx.opened(layers, size, ["error_if_no_space"], room=room) as (_, dev):
        for turn in range(3):
            for at in range(0, size, 64 * KIB):
                write_both(dev, model, at, fx.pattern(f"{turn}{at}", 64 * KIB))
            dev.flush()
            compare(dev, bytes(model))
            dev.discard(0, size)
            ktap.same_bytes(dev.read_all(), bytes(size), "discarded")
            model[:] = bytes(size)
            dev.flush()
    written(layers, model)


def chain(options):
    """Compressed and plain layers of different sizes, the top is mixed."""
    size = 4 * MIB
    layers = [("qcow2", "top"), ("qcow2", "middle"), ("qcow2", "base")]
    packed("base", size + MIB)
    fx.create("middle", size - MIB, backing="base", cluster_size=4096)
    fx.qemu_io("middle", "write -P 1 100k 50k", "write -c -P 2 512k 4k",
               "write -c -P 3 1M 4k", "write -z 2M 100k")
    fx.pad("middle")
    fx.create("top", size, backing="middle", **options)
    fx.qemu_io("top", "write -P 4 300k 70k", "write -c -P 5 640k 64k",
               "write -c -P 6 3M 64k")
    fx.pad("top")
    model = bytearray(fx.content("top"))
    lower = [fx.file_bytes("middle"), fx.file_bytes("base")]
    return layers, model, lower


def mixed_chain(options, features):
    layers, model, lower = chain(options)
    with fx.opened(layers, len(model), features) as (_, dev):
        compare(dev, bytes(model))
        change(dev, model, 60, str(options))
        compare(dev, bytes(model))
    written(layers, model)
    ktap.check(lower == [fx.file_bytes("middle"), fx.file_bytes("base")],
               "a lower layer has changed")


for options in ({"compression_type": "zstd"}, {"cluster_size": 16 * KIB},
                {"compat": "0.10"}):
    name = ",".join(f"{k}={v}" for k, v in options.items())
    ktap.case(f"a mixed chain: {name}", mixed_chain, options, [])
ktap.case("a mixed chain: copy_on_read", mixed_chain, {}, ["copy_on_read"])


@ktap.test
def populate_from_compressed_layers():
    layers, model, _ = chain({})
    size = len(model)
    with fx.opened(layers, size, ["explicit_zeroes"]) as (test, dev):
        at = 0
        while at < size // 512:
            done, _ = test.dm.message(
                f"populate {at} {size // 512 - at} 3 zeroes").split()
            at += int(done)
        test.dm.message("backing none")
        ktap.same_bytes(dev.read_all(), bytes(model), "populated")
    written([("qcow2", "top")], model)


@ktap.test
def a_mirror_of_compressed_layers():
    layers, model, _ = chain({})
    size = len(model)
    with open("copy", "wb") as f:
        os.truncate(f.fileno(), size)
    mirror = blk.Loop("copy")
    try:
        with fx.opened(layers, size, ["mirror", mirror.dev]) as (test, dev):
            write_both(dev, model, 650 * KIB, b"m" * 4096)
            at = 0
            while at < size // 512:
                done, _ = test.dm.message(
                    f"copy {at} {size // 512 - at} 3").split()
                at += int(done)
            write_both(dev, model, 3 * MIB + 512, b"o" * 512)
            ktap.equal(test.status()[-1], "mirror", "the mirror's status")
            dev.flush()
    finally:
        mirror.detach()
    ktap.same_bytes(fx.file_bytes("copy"), bytes(model), "the copy")
    written(layers, model)


@ktap.test
def internal_snapshots():
    size = 4 * MIB
    first = packed("image", size)
    fx.qemu_img("snapshot", "-c", "one", "image")
    fx.pad("image")
    layers = [("qcow2", "image")]
    model = bytearray(first)
    with fx.opened(layers, size) as (_, dev):
        change(dev, model, 40, "one")
        compare(dev, bytes(model))
    written(layers, model)
    second = bytes(model)
    fx.qemu_img("snapshot", "-c", "two", "image")
    fx.qemu_img("snapshot", "-d", "one", "image")
    with fx.opened(layers, size) as (_, dev):
        change(dev, model, 40, "two")
        compare(dev, bytes(model))
    written(layers, model)
    ktap.same_bytes(fx.content("image", snapshot="two"), second, "snapshot two")


@ktap.test
def a_snapshot_beside_the_live_device():
    size = 2 * MIB
    first = packed("image", size)
    fx.qemu_img("snapshot", "-c", "one", "image")
    layers = [("qcow2", "image")]
    model = bytearray(first)
    with fx.opened(layers, size) as (live, dev):
        view = fx.Chain(layers, size, ["snapshot", "1"], read_only=True)
        view.loops = live.loops
        old = view.open()
        try:
            change(dev, model, 40, "live")
            dev.flush()
            compare(old, first)
            compare(dev, bytes(model))
        finally:
            view.loops = {}
            view.close()
    written(layers, model)


def fails(function, *args):
    try:
        function(*args)
    except OSError as e:
        ktap.equal(e.errno, errno.EIO, "errno")
        return
    raise ktap.Failure("it did not fail")


def damaged_data(kind):
    size = 2 * MIB
    model = bytearray(packed("image", size, fx.pattern("d", size),
                             compression_type=kind))
    bad = 1024 * KIB
    cluster = 64 * KIB
    for n in range(0, 64, 8):
        poke("image", data_at("image", bad) + n, "Q", (1 << 64) - 1)
    layers = [("qcow2", "image")]
    fx.kernel_log()
    with fx.opened(layers, size) as (test, dev):
        fails(dev.read, bad, 4096)
        fails(dev.read, bad + 32 * KIB, 512)
        ktap.check("compressed data" in fx.kernel_log(), "nothing in the log")
        for at in (0, bad - cluster, bad + cluster):
            ktap.same_bytes(dev.read(at, cluster),
                            bytes(model[at:at + cluster]), f"at {at}")
        # a part of it needs the rest
        fails(dev.write, bad + 4096, b"x" * 4096)
        fails(dev.zeroout, bad + 4096, 4096)
        ktap.equal(test.status()[0], "rw", "mode")
        write_both(dev, model, bad, b"y" * cluster)
        compare(dev, bytes(model))
    written(layers, model)


ktap.case("damaged data: zlib", damaged_data, "zlib")
ktap.case("damaged data: zstd", damaged_data, "zstd")


def bad_entry(change_entry, message):
    """An entry that no image has: EIO, and the image is not written to."""
    size = MIB
    want = packed("image", size, fx.pattern("e", size))
    where, entry = entry_at("image", 512 * KIB)
    poke("image", where, "Q", change_entry(entry))
    fx.kernel_log()
    with fx.opened([("qcow2", "image")], size, read_only=True) as (_, dev):
        fails(dev.read, 512 * KIB, 4096)
        ktap.check(message in fx.kernel_log(), f"no {message!r} in the log")
        ktap.same_bytes(dev.read(0, 64 * KIB), want[:64 * KIB], "others")
    with fx.opened([("qcow2", "image")], size) as (test, dev):
        fails(dev.read, 512 * KIB, 4096)
        ktap.equal(test.status()[0], "failed", "mode")
        fails(dev.write, 0, b"x" * 4096)


SECTORS = 0xff << 54
ktap.case("an entry flagged as owned", bad_entry,
          lambda entry: entry | COPIED, "compressed")
ktap.case("an entry beyond the device", bad_entry,
          lambda entry: COMPRESSED | 1 << 40, "beyond the device")
ktap.case("an entry in the header", bad_entry,
          lambda entry: COMPRESSED | 512, "header")


@ktap.test
def an_entry_that_spans_metadata():
    """Its first byte is data, its last in the refcount block: never freed."""
    size = MIB
    packed("image", size, fx.pattern("e", size))
    block = peek("image", peek("image", 48, "Q"), "Q")
    where, _ = entry_at("image", 512 * KIB)
    poke("image", where, "Q", COMPRESSED | SECTORS | block - 512)
    fx.kernel_log()
    with fx.opened([("qcow2", "image")], size) as (test, dev):
        fails(dev.write, 512 * KIB, b"x" * 65536)
        ktap.equal(test.status()[0], "failed", "mode")
    ktap.check("points to metadata" in fx.kernel_log(), "nothing in the log")


@ktap.test
def as_many_sectors_as_there_can_be():
    """What the entry counts may end behind the data, and behind the device."""
    size = MIB
    want = packed("image", size, fx.pattern("s", size))
    for at in range(0, size, 64 * KIB):
        where, entry = entry_at("image", at)
        poke("image", where, "Q", entry | SECTORS)
    with fx.opened([("qcow2", "image")], size, read_only=True) as (_, dev):
        compare(dev, want)


@ktap.test
def an_unknown_compression_type():
    packed("image", MIB, compression_type="zstd")
    poke("image", 104, "B", 2)
    fx.kernel_log()
    try:
        with fx.opened([("qcow2", "image")], MIB, read_only=True):
            raise ktap.Failure("it was opened")
    except OSError:
        ktap.check("compression_type" in fx.kernel_log(), "nothing in the log")


@ktap.test
def the_cache_stays_within_the_limit():
    size = 6 * MIB
    want = packed("image", size, cluster_size=MIB)
    layers = [("qcow2", "image")]
    with fx.opened(layers, size, read_only=True) as (test, dev):
        compare(dev, want)
        used = int(test.status()[4].split("/")[0])
        ktap.check(used > 5 * KIB, f"{used} KiB used: nothing is cached")
        with fx.metadata_limit(2048):
            compare(dev, want)
            used = int(test.status()[4].split("/")[0])
            # two clusters stay, and what it takes to decompress another
            ktap.check(used < 3 * (KIB + 100),
                       f"{used} KiB used with a limit of 2048")
        blk.drop_caches()
        used = int(test.status()[4].split("/")[0])
        ktap.check(used < 512, f"{used} KiB used after shrinking")


if __name__ == "__main__":
    fx.main()
