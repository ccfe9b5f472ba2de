#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Writing: allocation, copy-on-write, zeroes, discards, snapshots, growth."""

import errno
import os
import random
import struct
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB  # noqa: E402

COPIED = 1 << 63


def blocks(path):
    return os.stat(path).st_blocks * 512


def write_both(dev, model, offset, data):
    dev.write(offset, data)
    model[offset:offset + len(data)] = data


def written_correctly(layers, model, chain_check=None):
    """After the close: QEMU reads what was written, and finds no leak."""
    fx.check(layers[0][1])
    ktap.same_bytes(fx.content(layers[0][1])[:len(model)], bytes(model),
                    "as QEMU reads it")


def scattered_writes(size, options, backing):
    layers = [("qcow2", "top")]
    model = bytearray(size)
    if backing:
        with open("base", "wb") as f:
            f.write(fx.pattern("base", size))
        layers.append((backing, "base"))
        model[:] = fx.pattern("base", size)
        if backing == "qcow2":
            fx.qemu_img("convert", "-O", "qcow2", "base", "base.qcow2")
            os.rename("base.qcow2", "base")
            fx.pad("base")
        before = fx.file_bytes("base")
    fx.create("top", size, backing="base" if backing else None,
              fmt=backing or "qcow2", **options)
    rng = random.Random(str(options))
    with fx.opened(layers, size, room=4 * size + 64 * MIB) as (_, dev):
        for n in range(40):
            length = rng.choice([1, 1, 2, 7, 8, 64, 200]) * 512
            offset = rng.randint(0, (size - length) // 512) * 512
            write_both(dev, model, offset, fx.pattern(f"w{n}", length))
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
        dev.flush()
    written_correctly(layers, model)
    if backing:
        ktap.same_bytes(fx.file_bytes("base"), before, "the base")


for bits, compat, bottom in (
        (9, "1.1", None), (9, "1.1", "raw"), (9, "0.10", "qcow2"),
        (10, "1.1", "qcow2"), (12, "1.1", None), (12, "0.10", "raw"),
        (14, "1.1", "raw"), (16, "1.1", None), (16, "1.1", "qcow2"),
        (16, "0.10", "raw"), (18, "1.1", "qcow2"), (21, "1.1", "raw"),
        (21, "0.10", "qcow2")):
    ktap.case(f"writes: {1 << bits} byte clusters, {compat}, over {bottom}",
              scattered_writes, 2 * MIB + 1536,
              {"cluster_size": 1 << bits, "compat": compat}, bottom)
for width in (1, 2, 4, 8, 32, 64):
    ktap.case(f"writes: refcounts of {width} bits", scattered_writes, 2 * MIB,
              {"cluster_size": 512, "refcount_bits": width}, None)
ktap.case("writes: preallocated metadata", scattered_writes, 2 * MIB,
          {"preallocation": "metadata"}, None)
ktap.case("writes: preallocated data", scattered_writes, 2 * MIB,
          {"preallocation": "full"}, None)
for bottom in (None, "raw", "qcow2"):
    ktap.case(f"writes: subclusters, over {bottom}", scattered_writes,
              2 * MIB + 1536, {"extended_l2": "on"}, bottom)


@ktap.test
def the_refcount_table_grows():
    """64-bit refcounts, 512 byte clusters: a block covers 32 KiB, a cluster of
    the table 2 MiB, so that 24 MiB move the table several times."""
    size = 24 * MIB
    fx.create("image", size, cluster_size=512, refcount_bits=64)
    data = fx.pattern("grow", size)
    with fx.opened([("qcow2", "image")], size, room=128 * MIB) as (_, dev):
        for at in range(0, size, MIB):
            dev.write(at, data[at:at + MIB])
        ktap.same_bytes(dev.read_all(), data, "device")
    written_correctly([("qcow2", "image")], data)


@ktap.test
def zero_clusters_are_read_and_written():
    fx.create("base", 2 * MIB)
    fx.qemu_io("base", "write -P 1 0 2M")
    fx.create("top", 2 * MIB, backing="base")
    fx.qemu_io("top", "write -P 2 512k 128k", "write -z 0 1M")
    model = bytearray(MIB) + bytearray(b"\1" * MIB)
    layers = [("qcow2", "top"), ("qcow2", "base")]
    with fx.opened(layers, 2 * MIB) as (_, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "before")
        write_both(dev, model, 4096, b"3" * 512)
        write_both(dev, model, 600 * KIB, b"4" * 1024)
        write_both(dev, model, MIB - 512, b"5" * 1024)
        ktap.same_bytes(dev.read_all(), bytes(model), "after")
    written_correctly(layers, model)


def zeroes(compat, backing, cluster):
    """Zeroing across partial clusters over data, holes and a base."""
    size = 2 * MIB
    layers = [("qcow2", "top")]
    model = bytearray(size)
    if backing:
        with open("base", "wb") as f:
            f.write(fx.pattern("base", size))
        model[:] = fx.pattern("base", size)
        layers.append(("raw", "base"))
    fx.create("top", size, backing="base" if backing else None, fmt="raw",
              compat=compat, cluster_size=cluster)
    with fx.opened(layers, size) as (_, dev):
        write_both(dev, model, 256 * KIB, fx.pattern("data", MIB))
        for n, (offset, length) in enumerate((
                (0, 64 * KIB), (100 * KIB + 512, 5 * 512),
                (255 * KIB, 300 * KIB), (700 * KIB, 1024),
                (800 * KIB, 256 * KIB), (1000 * KIB, 70 * KIB),
                (1100 * KIB, 512), (size - 1536, 1536))):
            (dev.punch if n % 2 else dev.zeroout)(offset, length)
            model[offset:offset + length] = bytes(length)
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
        write_both(dev, model, 320 * KIB + 512, b"n" * 512)
        ktap.same_bytes(dev.read_all(), bytes(model), "written again")
    written_correctly(layers, model)


for compat in ("1.1", "0.10"):
    for backing in (False, True):
        for cluster in (4 * KIB, 64 * KIB):
            ktap.case(f"zeroing: {compat}, {cluster} byte clusters, "
                      f"{'over a base' if backing else 'alone'}",
                      zeroes, compat, backing, cluster)


def zeroes_over_less(compat, entries):
    """The device below cannot write zeroes; entries: the format can say them."""
    size = 4 * MIB
    with open("base", "wb") as f:
        f.write(fx.pattern("base", size))
    fx.create("top", size, backing="base", fmt="raw", compat=compat)
    fx.grow("top", 32 * MIB)
    model = bytearray(fx.pattern("base", size))
    chain = fx.Chain([("qcow2", "top"), ("raw", "base")], size)
    below = chain.loops["top"] = fx.Stacked("top", "flakey {} 0 60 0")
    ktap.equal(blk.queue_limit(below.dev, "write_zeroes_max_bytes"), 0,
               "the device below")
    dev = chain.open()
    try:
        for _ in range(2):
            most = blk.queue_limit(dev.path, "write_zeroes_max_bytes")
            ktap.equal(bool(most), entries, f"{most} bytes at most")
            # Another table, which may change it
            chain.reload()
        write_both(dev, model, MIB, fx.pattern("data", MIB))
        dev.flush()
        before = int(chain.status()[6])
        for offset, length in ((0, 2 * MIB), (3 * MIB, 512 * KIB)):
            dev.zeroout(offset, length)
            model[offset:offset + length] = bytes(length)
        if entries:
            ktap.equal(int(chain.status()[6]), before, "clusters allocated")
        # Parts of clusters have no other way than to be written.
        dev.zeroout(3 * MIB + 600 * KIB + 512, 1024)
        model[3 * MIB + 600 * KIB + 512:3 * MIB + 601 * KIB + 512] = bytes(1024)
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    finally:
        chain.close()
    written_correctly([("qcow2", "top")], model)


ktap.case("zeroing over a device that cannot: 1.1", zeroes_over_less, "1.1",
          True)
ktap.case("zeroing over a device that cannot: 0.10", zeroes_over_less, "0.10",
          False)


def discards(compat, backing):
    """Whole clusters read as zeroes afterwards (or as before in version 2
    over a base, which has no way to say zero), and are free again."""
    size = 4 * MIB
    layers = [("qcow2", "top")]
    if backing:
        with open("base", "wb") as f:
            f.write(b"b" * size)
        layers.append(("raw", "base"))
    fx.create("top", size, backing="base" if backing else None, fmt="raw",
              compat=compat)
    with fx.opened(layers, size) as (chain, dev):
        dev.write(0, fx.pattern("data", size))
        dev.flush()
        full = blocks("top")
        dev.discard(MIB, 2 * MIB)
        got = dev.read(MIB, 2 * MIB)
        data = fx.pattern("data", size)
        if compat == "1.1" or not backing:
            ktap.same_bytes(got, bytes(2 * MIB), "discarded")
        else:
            ktap.check(got == bytes(2 * MIB) or got == data[MIB:3 * MIB],
                       "neither zeroes nor the old content")
        # once the commit is durable the file has holes there
        dev.flush()
        if compat == "1.1" or not backing:
            for _ in range(50):
                if blocks("top") <= full - MIB * 3 // 2:
                    break
                fx.run("sleep", "0.1")
                dev.flush()
            ktap.check(blocks("top") <= full - MIB * 3 // 2,
                       f"no holes: {full} bytes before, {blocks('top')} after")
            # and freed clusters are used again
            before = int(chain.status()[2].split("/")[0])
            dev.write(MIB, fx.pattern("again", MIB))
            dev.flush()
            after = int(chain.status()[2].split("/")[0])
            ktap.check(after <= before + 1,
                       f"the image grew from {before} to {after} clusters")
            ktap.same_bytes(dev.read(MIB, MIB), fx.pattern("again", MIB),
                            "written again")
        model = bytearray(dev.read_all())
        ktap.same_bytes(bytes(model[:MIB]), data[:MIB], "in front of it")
        ktap.same_bytes(bytes(model[3 * MIB:]), data[3 * MIB:], "behind it")
    written_correctly(layers, model)


for compat in ("1.1", "0.10"):
    for backing in (False, True):
        ktap.case(f"discard: {compat}, "
                  f"{'over a base' if backing else 'alone'}",
                  discards, compat, backing)


@ktap.test
def no_discard_passdown_keeps_the_space():
    size = 4 * MIB
    fx.create("image", size)
    with fx.opened([("qcow2", "image")], size,
                   ["no_discard_passdown"]) as (_, dev):
        dev.write(0, fx.pattern("data", size))
        dev.flush()
        full = blocks("image")
        dev.discard(0, size)
        dev.flush()
        fx.run("sleep", "2")
        ktap.same_bytes(dev.read_all(), bytes(size), "discarded")
        ktap.check(blocks("image") >= full - 256 * KIB,
                   f"space given back: {full} before, {blocks('image')} after")
    fx.check("image")


def with_snapshots(options, size=2 * MIB):
    """Shared clusters and L2 tables are copied, refcounts are right."""
    fx.create("image", size, **options)
    cluster = options.get("cluster_size", 65536)
    fx.qemu_io("image", "write -P 1 0 1M", "write -z 1M 256k")
    fx.qemu_img("snapshot", "-c", "first", "image")
    fx.qemu_io("image", "write -P 2 512k 256k")
    fx.qemu_img("snapshot", "-c", "second", "image")
    fx.pad("image")
    old = {s: fx.content("image", snapshot=s) for s in ("first", "second")}
    model = bytearray(fx.content("image"))
    with fx.opened([("qcow2", "image")], size, room=64 * MIB) as (_, dev):
        for n, offset in enumerate((0, 512, cluster + 512, 500 * KIB, 700 * KIB,
                                    MIB - 512, MIB + 128 * KIB, 2 * MIB - 512)):
            write_both(dev, model, offset, fx.pattern(f"s{n}", 512))
        dev.discard(256 * KIB, 128 * KIB)
        model[256 * KIB:384 * KIB] = dev.read(256 * KIB, 128 * KIB)
        dev.zeroout(600 * KIB + 512, 70 * KIB)
        model[600 * KIB + 512:670 * KIB + 512] = bytes(70 * KIB)
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    written_correctly([("qcow2", "image")], model)
    for name, data in old.items():
        ktap.same_bytes(fx.content("image", snapshot=name), data,
                        f"snapshot {name}")
    # and QEMU can delete them without a trace
    fx.qemu_img("snapshot", "-d", "first", "image")
    fx.qemu_img("snapshot", "-d", "second", "image")
    written_correctly([("qcow2", "image")], model)


for cluster, compat in ((512, "1.1"), (4 * KIB, "0.10"), (64 * KIB, "1.1")):
    ktap.case(f"internal snapshots: {cluster} byte clusters, {compat}",
              with_snapshots, {"cluster_size": cluster, "compat": compat})
ktap.case("internal snapshots: refcounts of 2 bits", with_snapshots,
          {"refcount_bits": 2})
ktap.case("internal snapshots: refcounts of 64 bits", with_snapshots,
          {"refcount_bits": 64, "cluster_size": 512})
ktap.case("internal snapshots: subclusters", with_snapshots,
          {"extended_l2": "on"})


def ends_in_a_cluster(change):
    """An image whose file ends in the host cluster of its last 64 KiB.

    change: what that one's L2 entry becomes. Returns its host offset; there is
    one free cluster before it.
    """
    fx.create("image", 256 * KIB)
    fx.qemu_io("image", "write -P 1 0 256k", "discard 0 64k")
    where, entry = fx.entry_at("image", 192 * KIB)
    host = entry & (1 << 56) - 512
    ktap.equal(os.path.getsize("image"), host + 64 * KIB, "the file's length")
    fx.poke("image", where, "Q", change(entry))
    os.truncate("image", host + 4096)
    return host


@ktap.test
def a_shared_cluster_that_the_device_ends_in():
    """What the device lacks reads as zeroes, and is not there to be written."""
    host = ends_in_a_cluster(lambda entry: entry & ~COPIED)
    fx.set_refcount("image", host, 2)
    model = bytearray(64 * KIB) + b"\1" * (128 * KIB + 4096) + bytes(60 * KIB)
    layers = [("qcow2", "image")]
    with fx.opened(layers, len(model), ["error_if_no_space"],
                   room=512) as (_, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
        write_both(dev, model, 224 * KIB, fx.pattern("new", 512))
        ktap.same_bytes(dev.read_all(), bytes(model), "written")
    # The second reference was one by hand.
    fx.qemu_img("check", "image", ok=(3,))
    ktap.same_bytes(fx.content("image"), bytes(model), "as QEMU reads it")


def an_owned_cluster_that_the_device_ends_in(options, change):
    """What it lacks is zeroes until it is written: elsewhere, with the rest."""
    fx.kernel_log()
    fx.create("image", 256 * KIB, **options)
    fx.qemu_io("image", "write -P 1 0 256k", "discard 0 64k")
    end = os.path.getsize("image") - 60 * KIB
    os.truncate("image", end)
    model = bytearray(64 * KIB) + b"\1" * (128 * KIB + 4096) + bytes(60 * KIB)
    layers = [("qcow2", "image")]
    with fx.opened(layers, len(model), ["error_if_no_space"],
                   room=512) as (chain, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
        change(dev, model)
        ktap.same_bytes(dev.read_all(), bytes(model), "changed")
        dev.flush()
        ktap.equal(chain.status()[0], "rw", "mode")
        # What the device gets is not the image's.
        with open("image", "r+b") as f:
            f.seek(end)
            f.write(b"stale" * 12 * KIB)
        chain.loops["image"].set_capacity()
        ktap.same_bytes(dev.read_all(), bytes(model), "device longer")
    ktap.check("beyond" not in fx.kernel_log(), "the device was left")
    written_correctly(layers, model)


def written_behind(dev, model):
    write_both(dev, model, 224 * KIB, fx.pattern("new", 512))


def zeroed_behind(dev, model):
    dev.zeroout(224 * KIB, 512)
    ktap.check(not any(model[224 * KIB:]), "no zeroes")


def zeroed_whole(dev, model):
    dev.zeroout(192 * KIB, 64 * KIB)
    model[192 * KIB:] = bytes(64 * KIB)


def discarded_whole(dev, model):
    dev.discard(192 * KIB, 64 * KIB)
    model[192 * KIB:] = bytes(64 * KIB)


for what in written_behind, zeroed_behind, zeroed_whole, discarded_whole:
    for title, options in ("standard", {}), ("subclusters",
                                             {"extended_l2": "on"}):
        ktap.case(f"an owned cluster that the device ends in: {what.__name__}, {title}",
                  an_owned_cluster_that_the_device_ends_in, options, what)


def a_write_across_the_end_of_the_device(options):
    """Its first part is still on its way to where the cluster is when the rest
    gets that another place, with all that it has."""
    fx.run("modprobe", "dm-delay")
    fx.create("image", 256 * KIB, **options)
    fx.qemu_io("image", "write -P 1 0 256k", "discard 0 64k")
    os.truncate("image", os.path.getsize("image") - 60 * KIB)
    model = bytearray(64 * KIB) + b"\1" * (128 * KIB + 4096) + bytes(60 * KIB)
    layers = [("qcow2", "image")]
    chain = fx.Chain(layers, len(model), ["error_if_no_space"])
    # Writes take their time.
    chain.loops = {"image": fx.Stacked("image", "delay {0} 0 0 {0} 0 300")}
    dev = chain.open()
    try:
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
        write_both(dev, model, 194 * KIB, fx.pattern("new", 4 * KIB))
        ktap.same_bytes(dev.read_all(), bytes(model), "written")
        dev.flush()
    finally:
        chain.close()
    written_correctly(layers, model)


for title, options in ("standard", {}), ("subclusters", {"extended_l2": "on"}):
    ktap.case(f"a write across the end of the device: {title}",
              a_write_across_the_end_of_the_device, options)


def a_cluster_that_the_device_ends_in_over_a_base(change):
    """It goes as a whole: what it hides behind the end is not to be seen."""
    fx.create("base", 256 * KIB, cluster_size=4096)
    fx.qemu_io("base", "write -P 2 0 192k", "write -P 3 196k 60k")
    fx.pad("base")
    fx.create("top", 256 * KIB, backing="base")
    fx.qemu_io("top", "write -P 1 0 256k", "discard 0 64k")
    os.truncate("top", os.path.getsize("top") - 60 * KIB)
    model = bytearray(64 * KIB) + b"\1" * (128 * KIB + 4096) + bytes(60 * KIB)
    layers = [("qcow2", "top"), ("qcow2", "base")]
    with fx.opened(layers, len(model), ["error_if_no_space"],
                   room=512) as (_, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
        change(dev, model)
        ktap.same_bytes(dev.read_all(), bytes(model), "changed")
    written_correctly(layers, model)


for what in zeroed_whole, discarded_whole:
    ktap.case(f"a cluster that the device ends in, over a base: {what.__name__}",
              a_cluster_that_the_device_ends_in_over_a_base, what)


@ktap.test
def a_kept_cluster_that_the_device_ends_in():
    """It can be written when the device is as long as the image needs it."""
    host = ends_in_a_cluster(lambda entry: entry | 1)
    model = bytearray(64 * KIB) + b"\1" * 128 * KIB + bytes(64 * KIB)
    layers = [("qcow2", "image")]
    with fx.opened(layers, len(model), ["error_if_no_space"],
                   room=512) as (chain, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
        try:
            dev.write(200 * KIB, fx.pattern("lost", 512))
            raise ktap.Failure("written beyond the device")
        except OSError as e:
            ktap.equal(e.errno, errno.ENOSPC, "errno")
        ktap.equal(chain.status()[0], "no_space", "mode")
        os.truncate("image", host + 64 * KIB)
        chain.loops["image"].set_capacity()
        write_both(dev, model, 200 * KIB, fx.pattern("new", 512))
        ktap.equal(chain.status()[0], "rw", "mode")
        ktap.same_bytes(dev.read_all(), bytes(model), "written")
    written_correctly(layers, model)


def allocates(chain, dev, offset):
    """A write that has its cluster, but waits for what the base has around it.

    Returns the thread, and where its error will be.
    """
    before = int(chain.status()[6])
    errors = []

    def write():
        try:
            dev.write(offset, fx.pattern("lost", 512))
        except OSError as e:
            errors.append(e.errno)

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(200):
        if int(chain.status()[6]) > before:
            break
        time.sleep(0.05)
    time.sleep(0.5)
    return thread, errors


@ktap.test
def a_cluster_that_cannot_be_mapped_does_not_leak():
    """Its slice of the L2 table goes while it is filled, and is not read again."""
    size, step = 96 * MIB, 2 * MIB
    with open("base", "wb") as f:
        f.write(fx.pattern("base", MIB))
        f.truncate(size)
    fx.create("top", size, backing="base", fmt="raw", cluster_size=4096)
    # More slices than are kept in memory in any case
    fx.qemu_io("top", *(f"write -P 1 {at} 4k" for at in range(0, size, step)))
    fx.grow("top", 2 * size)
    table = (fx.entry_at("top", 0)[0] & -4096) // 512
    chain = fx.Chain([("qcow2", "top"), ("raw", "base")], size)
    top, base = fx.Stacked("top"), fx.Stacked("base")
    chain.loops = {"top": top, "base": base}
    dev = chain.open()
    try:
        for at in range(0, size, step):
            dev.read(at, 4096)
        base.dm.suspend()
        thread, errors = allocates(chain, dev, 4096)
        top.reload(bad=(table, table + 8))
        for _ in range(3):
            blk.drop_caches()
        base.dm.resume()
        thread.join()
        ktap.equal(errors, [errno.EIO], "errors of the write")
        ktap.equal(chain.status()[0], "rw", "mode")
        top.reload()
        new = fx.pattern("new", 512)
        dev.write(4096, new)
        ktap.same_bytes(dev.read(4096, 4096),
                        new + fx.pattern("base", MIB)[4608:8192], "written")
    finally:
        chain.close()
    fx.check("top")


@ktap.test
def what_a_flush_acknowledged_is_in_the_file():
    """QEMU reads a copy of the file taken while the device runs."""
    fx.create("image", 4 * MIB)
    with fx.opened([("qcow2", "image")], 4 * MIB) as (_, dev):
        model = bytearray(4 * MIB)
        for n in range(4):
            write_both(dev, model, n * 900 * KIB, fx.pattern(f"f{n}", 70 * KIB))
        dev.flush()
        fx.run("cp", "--sparse=always", "image", "copy")
        ktap.same_bytes(fx.content("copy"), bytes(model), "after a flush")
        fx.qemu_img("check", "copy", ok=(0, 3))
        data = fx.pattern("fua", 5 * KIB)
        dev.write(3 * MIB + 512, data, fua=True)
        model[3 * MIB + 512:3 * MIB + 512 + len(data)] = data
        fx.run("cp", "--sparse=always", "image", "copy")
        ktap.same_bytes(fx.content("copy"), bytes(model), "after a FUA write")
        fx.qemu_img("check", "copy", ok=(0, 3))


@ktap.test
def it_commits_by_itself():
    fx.create("image", 4 * MIB)
    with fx.opened([("qcow2", "image")], 4 * MIB) as (chain, dev):
        dev.write(MIB, fx.pattern("data", 64 * KIB))
        # A commit that has begun has no dirty blocks: it counts at its end.
        for _ in range(100):
            if chain.status()[5] != "0":
                break
            time.sleep(0.1)
        ktap.equal(chain.status()[3], "0", "dirty blocks after 10 s")
        fx.run("cp", "--sparse=always", "image", "copy")
        ktap.same_bytes(fx.content("copy")[MIB:MIB + 64 * KIB],
                        fx.pattern("data", 64 * KIB), "the file")


@ktap.test
def a_new_cluster_never_shows_what_the_device_held():
    """The room above the image is full of old data."""
    fx.create("image", 4 * MIB)
    end = os.path.getsize("image")
    with open("image", "r+b") as f:
        f.seek(end)
        f.write(b"S" * (16 * MIB))
    model = bytearray(4 * MIB)
    with fx.opened([("qcow2", "image")], 4 * MIB) as (_, dev):
        for n in range(8):
            write_both(dev, model, n * 500 * KIB + 512, b"w" * 512)
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    written_correctly([("qcow2", "image")], model)


@ktap.test
def zero_from_spares_the_zeroing():
    fx.create("image", 4 * MIB)
    end = os.path.getsize("image") // 512
    model = bytearray(4 * MIB)
    with fx.opened([("qcow2", "image")], 4 * MIB,
                   ["zero_from", str(end)]) as (_, dev):
        for n in range(8):
            write_both(dev, model, n * 500 * KIB + 512, b"w" * 512)
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
        # a freed cluster used again is not zero any more
        dev.discard(0, 4 * MIB)
        dev.flush()
        model = bytearray(dev.read_all())
        for n in range(8):
            write_both(dev, model, n * 500 * KIB + 1536, b"x" * 512)
        ktap.same_bytes(dev.read_all(), bytes(model), "used again")
    written_correctly([("qcow2", "image")], model)


@ktap.test
def a_read_only_table_writes_nothing():
    fx.create("image", 2 * MIB)
    fx.qemu_io("image", "write -P 1 0 1M")
    fx.pad("image")
    before = fx.file_bytes("image")
    with fx.opened([("qcow2", "image")], 2 * MIB,
                   read_only=True) as (chain, dev):
        ktap.equal(chain.status()[0], "ro", "mode")
        try:
            with open(dev.path, "r+b", buffering=0) as f:
                f.write(b"x" * 512)
            raise ktap.Failure("the write succeeded")
        except OSError as e:
            ktap.check(e.errno in (errno.EPERM, errno.EACCES, errno.EROFS),
                       f"wrong error: {e}")
    ktap.same_bytes(fx.file_bytes("image"), before, "the file")


def _edited_beside_a_reader(dev, chain, edit):
    """Edits the image while a reader has it in memory; it is resumed only when
    that reader is gone."""
    reader = blk.Dm("reader")
    path = reader.create(chain.length // 512, chain.params(), read_only=True)
    beside = blk.Device(path, os.O_RDONLY)
    beside.read(0, 4096)
    chain.dm.suspend()
    before = fx.content("image")
    edit()
    fx.kernel_log()
    try:
        chain.dm.resume()
        raise ktap.Failure("it was resumed")
    except OSError as e:
        ktap.equal(e.errno, errno.EBUSY, "errno")
    ktap.check("edited while" in fx.kernel_log(), "nothing in the log")
    beside.close()
    reader.remove()
    chain.dm.resume()
    dev.write(0, b"\3" * MIB)
    return before


@ktap.test
def an_edit_beside_a_reader():
    """What it changed is not in the memory that both devices share."""
    size = 4 * MIB
    fx.create("image", size)
    fx.qemu_io("image", "write -P 1 0 4M")
    with fx.opened([("qcow2", "image")], size, room=16 * MIB) as (chain, dev):
        dev.write(0, b"\2" * 4096)
        before = _edited_beside_a_reader(dev, chain, lambda: fx.qemu_img(
            "snapshot", "-c", "one", "image"))
    fx.check("image")
    ktap.same_bytes(fx.content("image", snapshot="one"), before, "snapshot")
    ktap.same_bytes(fx.content("image"), b"\3" * MIB + before[MIB:], "image")


@ktap.test
def a_table_edited_beside_a_reader():
    """The header as before: of the L1 table alone, a flag."""
    size = 4 * MIB
    fx.create("image", size)
    fx.qemu_io("image", "write -P 1 0 4M")

    def shared():
        table = fx.peek("image", 40, "Q")
        entry = fx.peek("image", table, "Q")
        fx.poke("image", table, "Q", entry & ~(1 << 63))
        os.sync()

    with fx.opened([("qcow2", "image")], size, room=16 * MIB) as (chain, dev):
        dev.write(0, b"\2" * 4096)
        before = _edited_beside_a_reader(dev, chain, shared)
    ktap.same_bytes(fx.content("image"), b"\3" * MIB + before[MIB:], "image")


@ktap.test
def a_bitmap_added_beside_a_reader():
    """It would go on as if it knew of all writes."""
    size = 4 * MIB
    fx.create("image", size)
    with fx.opened([("qcow2", "image")], size, room=16 * MIB) as (chain, dev):
        dev.write(0, b"\2" * 4096)
        _edited_beside_a_reader(dev, chain, lambda: fx.qemu_img(
            "bitmap", "--add", "image", "b"))
    fx.check("image")
    ktap.check("in-use" in fx.qemu_img("info", "image"),
               "the bitmap is taken for complete")


@ktap.test
def a_failed_image_beside_a_reader():
    """What could not be committed is forgotten before the image is written again."""
    size = 4 * MIB
    fx.create("image", size)
    fx.qemu_io("image", "write -P 1 0 1M")
    fx.grow("image", 16 * MIB)
    refcounts = fx.peek("image", fx.peek("image", 48, "Q"), "Q") // 512
    model = bytearray(b"\1" * MIB + bytes(size - MIB))
    layers = [("qcow2", "image")]
    chain = fx.Chain(layers, size)
    below = fx.Stacked("image")
    chain.loops = {"image": below}
    dev = chain.open()
    reader = blk.Dm("reader")
    reader.create(size // 512, chain.params(), read_only=True)
    try:
        below.reload(bad=(refcounts, refcounts + 8))
        dev.write(2 * MIB, b"\2" * 64 * KIB)
        try:
            dev.flush()
            raise ktap.Failure("the flush succeeded")
        except OSError as e:
            ktap.equal(e.errno, errno.EIO, "errno of the flush")
        ktap.equal(chain.status()[0], "failed", "mode")
        below.reload()
        chain.dm.suspend()
        try:
            chain.dm.resume()
            raise ktap.Failure("it was resumed")
        except OSError as e:
            ktap.equal(e.errno, errno.EBUSY, "errno of the resume")
        reader.remove()
        reader = None
        chain.dm.resume()
        ktap.equal(chain.status()[0], "rw", "mode when resumed")
        ktap.equal(chain.status()[3], "0", "dirty blocks")
        write_both(dev, model, 3 * MIB, b"\3" * 64 * KIB)
        dev.flush()
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    finally:
        if reader:
            reader.remove()
        chain.close()
    written_correctly(layers, model)


@ktap.test
def refcount_blocks_in_holes():
    """Those of clusters that the device does not have are not read: a million of
    them take hours, and the device is suspended."""
    size = 4 * MIB
    fx.create("image", size, cluster_size=2 * MIB, refcount_bits=64)
    table, first, count = fx.peek("image", 48, "Q"), 32 * MIB, 64
    for n in range(count):
        fx.poke("image", table + 8 + 8 * n, "Q", first + n * 2 * MIB)
    os.sync()
    fx.grow("image", first + (count + 1) * 2 * MIB)
    chain = fx.Chain([("qcow2", "image")], size)
    chain.attach()
    loop = chain.loops["image"].dev
    # A loop device goes on counting whatever it is attached to.
    before = blk.disk_stat(loop)[2]
    dev = chain.open()
    try:
        read = (blk.disk_stat(loop)[2] - before) * 512
        ktap.check(read < 32 * MIB, f"{read} bytes were read")
        dev.write(0, fx.pattern("w", size))
        ktap.same_bytes(dev.read_all(), fx.pattern("w", size), "contents")
    finally:
        chain.close()


@ktap.test
def a_table_that_is_resumed_in_part():
    """Its first target is resumed, the second is not: what tools write then
    counts, and another table need not be loaded twice."""
    size = 4 * MIB
    loops = []
    for name in ("a", "b"):
        fx.create(name, size)
        fx.grow(name, 16 * MIB)
        loops.append(blk.Loop(name))
    lines = [(size // 512, "qcow2", f"1 qcow2 {loop.dev} -")
             for loop in loops]
    dm = blk.Dm("parts")
    dm.create(size // 512, lines[0][2])

    def resume_fails():
        try:
            dm.resume()
        except OSError as e:
            ktap.equal(e.errno, errno.EROFS, "errno")
            return
        raise ktap.Failure("it was resumed")

    # The dirty bit
    fx.poke("b", 79, "B", 1)
    os.sync()
    dm.load_table(lines)
    resume_fails()
    fx.qemu_io("a", "write -P 1 0 64k")
    resume_fails()
    fx.qemu_io("a", "write -P 2 64k 64k")
    fx.poke("b", 79, "B", 0)
    os.sync()
    dm.load_table(lines)
    dm.resume()
    dev = blk.Device(dm.path)
    ktap.same_bytes(dev.read(0, 128 * KIB), b"\1" * 64 * KIB +
                    b"\2" * 64 * KIB, "the first part")
    dev.write(128 * KIB, b"\3" * 64 * KIB)
    dev.write(size, b"\4" * 64 * KIB)
    dev.close()
    dm.remove()
    for loop in loops:
        loop.detach()
    fx.check("a")
    fx.check("b")
    ktap.same_bytes(fx.content("a")[:192 * KIB], b"\1" * 64 * KIB +
                    b"\2" * 64 * KIB + b"\3" * 64 * KIB, "the first image")


@ktap.test
def shrinker_and_metadata_limit():
    """A small limit and dropped caches cost time, not correctness."""
    size = 16 * MIB
    fx.create("image", size, cluster_size=512)
    data = fx.pattern("limit", size)
    with fx.metadata_limit(128), \
            fx.opened([("qcow2", "image")], size,
                      room=96 * MIB) as (chain, dev):
        for at in range(0, size, MIB):
            dev.write(at, data[at:at + MIB])
            blk.drop_caches()
        ktap.same_bytes(dev.read_all(), data, "device")
        dev.flush()
        blk.drop_caches()
        used, limit = (int(v) for v in chain.status()[4].split("/"))
        ktap.equal(limit, 128, "limit in status")
        # what cannot be dropped (the L1 tables) comes on top
        ktap.check(used <= 128 + 512, f"uses {used} KiB")
    written_correctly([("qcow2", "image")], data)


@ktap.test
def a_huge_image_takes_memory_for_what_it_has():
    """The L1 table alone has 1 MiB on disk."""
    size = 64 << 40
    fx.create("image", size)
    places = {0: 1, 300 << 30: 2, 31 << 40: 3, size - 64 * KIB: 4}
    for _ in range(2):
        with fx.opened([("qcow2", "image")], size,
                       room=64 * MIB) as (chain, dev):
            used = int(chain.status()[4].split("/")[0])
            ktap.check(used < 256, f"{used} KiB of metadata in memory")
            for at, value in places.items():
                dev.write(at, bytes([value]) * 4096)
                ktap.same_bytes(dev.read(at, 8192),
                                bytes([value]) * 4096 + bytes(4096), f"at {at}")
                ktap.same_bytes(dev.read(at ^ 1 << 39, 4096), bytes(4096),
                                f"beside {at}")
    fx.check("image")
    fx.qemu_io("image", *(f"read -P {value} {at} 4096"
                          for at, value in places.items()))


@ktap.test
def autoclear_bits_are_cleared_and_bitmaps_marked():
    fx.create("image", 2 * MIB)
    fx.qemu_img("bitmap", "--add", "image", "bits")
    fx.pad("image")
    with fx.opened([("qcow2", "image")], 2 * MIB) as (_, dev):
        dev.write(0, b"x" * 4096)
    fx.check("image")
    info = fx.qemu_img("info", "image")
    ktap.check("in-use" in info, f"the bitmap looks good: {info}")
    ktap.equal(fx.peek("image", 88, "Q"), 1, "autoclear features")


def a_bitmap_that_is_not_known(offset, fmt, value, message):
    """Nobody may change it, nor write to the image beside it; QEMU opens no such
    image at all.

    offset: of what is changed in the entry of the directory, or less than 0: in the
    extension of the header; two bitmaps, the second is bad.
    """
    fx.create("image", 2 * MIB)
    for name in "one", "two":
        fx.qemu_img("bitmap", "--add", "image", name)
    fx.pad("image")
    header = fx.file_bytes("image")[:64 * KIB]
    extension = header.index(b"\x23\x85\x28\x75") + 8
    directory = fx.peek("image", extension + 16, "Q")
    # 24 bytes and the name, in multiples of 8
    fx.poke("image", directory + 32 + offset if offset >= 0 else
            extension - offset, fmt, value)
    fx.qemu_img("info", "image", ok=(1,))
    before = fx.file_bytes("image")
    layers = [("qcow2", "image")]
    fx.refused(layers, 2 * MIB, message)
    ktap.same_bytes(fx.file_bytes("image")[:len(before)], before, "refused")
    with fx.opened(layers, 2 * MIB, read_only=True) as (_, dev):
        ktap.check(not any(dev.read_all()), "not zeroes")


for title, args in {
        "flags": (12, "I", 4, "unknown flags"),
        "type": (16, "B", 2, "unknown type"),
        "granularity": (17, "B", 8, "granularity"),
        "extra data": (20, "I", 4, "extra data|beyond the directory"),
        "size of its table": (8, "I", 0, "too large"),
        "place of its table": (0, "Q", 512, "table offset"),
        "a reserved field": (-4, "I", 1, "reserved"),
        }.items():
    ktap.case(f"a bitmap that is not known: {title}",
              a_bitmap_that_is_not_known, *args)


def add_unknown_parts(name):
    """A field and an extension from the future, and bits of features that do
    not keep anybody from writing. Returns the first cluster."""
    data = bytearray(fx.file_bytes(name))
    extensions = data[fx.peek(name, 100, "I"):2048]
    data[80:96] = struct.pack(">QQ", 1 << 50 | 1, 1 << 40)
    data[100:104] = struct.pack(">I", 120)
    data[112:120] = b"a field "
    unknown = struct.pack(">II", 0x6e6f6e65, 13) + b"thirteen byte..."
    data[120:120 + len(unknown) + len(extensions)] = unknown + extensions
    with open(name, "wb") as f:
        f.write(data)
    fx.check(name)
    return data[:64 * KIB]


@ktap.test
def what_is_not_known_is_kept():
    fx.create("image", 2 * MIB, lazy_refcounts="on")
    want = add_unknown_parts("image")
    want[88:96] = bytes(8)
    layers, model = [("qcow2", "image")], bytearray(2 * MIB)
    with fx.opened(layers, 2 * MIB) as (_, dev):
        write_both(dev, model, 4096, fx.pattern("new", MIB))
        dev.flush()
        # Refcounts are right at any time, and the image is never dirty.
        ktap.same_bytes(fx.file_bytes("image")[:64 * KIB], want, "in use")
    ktap.same_bytes(fx.file_bytes("image")[:64 * KIB], want, "closed")
    written_correctly(layers, model)


@ktap.test
def raw_external_data_without_a_data_file():
    """The specification forbids the bit then, and QEMU opens no such image until
    it has been cleared."""
    fx.create("image", 2 * MIB)
    fx.poke("image", 88, "Q", 2)
    out = fx.qemu_img("check", "-f", "qcow2", "image", ok=(1,))
    ktap.check("data-file-raw" in out, f"QEMU says: {out}")
    layers, model = [("qcow2", "image")], bytearray(2 * MIB)
    with fx.opened(layers, 2 * MIB) as (_, dev):
        write_both(dev, model, 4096, b"x" * 4096)
    ktap.equal(fx.peek("image", 88, "Q"), 0, "autoclear features")
    written_correctly(layers, model)


@ktap.test
def status_and_table():
    fx.create("base", 2 * MIB)
    fx.create("top", 4 * MIB, backing="base", cluster_size=4096)
    layers = [("qcow2", "top"), ("qcow2", "base")]
    with fx.opened(layers, 4 * MIB, ["no_discard_passdown",
                                     "error_if_no_space"]) as (chain, dev):
        table = chain.dm.table()
        words = table.split()
        ktap.equal(len(words), 7 + 3, "words of the table line")
        # the line can be loaded again and comes out the same
        chain.dm.load(chain.length // 512, table)
        chain.dm.resume()
        ktap.equal(chain.dm.table(), table, "table line")
        status = chain.dm.status().split()
        ktap.equal(len(status), 11, f"words of the status line {status}")
        ktap.equal(status[0], "rw", "mode")
        ktap.equal(status[1], "8", "cluster size")
        ktap.equal(status[8], "2", "layers")
        ktap.equal(status[9], "-", "reason")
        ktap.equal(status[10], "-", "mirror")
        allocated = int(status[6])
        dev.write(0, b"x" * 8192)
        dev.flush()
        status = chain.dm.status().split()
        ktap.check(int(status[6]) > allocated, "allocated does not count")
        ktap.check(int(status[5]) >= 1, "commits do not count")


if __name__ == "__main__":
    fx.main()
