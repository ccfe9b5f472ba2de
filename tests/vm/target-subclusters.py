#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Extended L2 entries: subclusters read, allocated, dropped, shared."""

import errno
import os
import random
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB  # noqa: E402

CLUSTERS = (16 * KIB, 64 * KIB, 128 * KIB, 2 * MIB)
COPIED = 1 << 63


def create(name, size, backing=None, cluster=128 * KIB, **options):
    fx.create(name, size, backing=backing, cluster_size=cluster,
              extended_l2="on", **options)


def some_content(name, size, seed):
    """Data, zeroes, holes and compressed clusters, by subclusters."""
    rng = random.Random(seed)
    commands = []
    for n in range(30):
        length = rng.randint(1, 100) * 512
        at = rng.randint(0, (size - length) // 512) * 512
        kind = rng.choice([f"write -P {n + 1}", f"write -P {n + 1}",
                           "write -z", "write -z -u", "discard"])
        commands.append(f"{kind} {at} {length}")
    fx.qemu_io(name, *commands)
    fx.pad(name)


def change(dev, model, ops, seed):
    rng = random.Random(seed)
    size = len(model)
    for _ in range(ops):
        length = rng.choice([1, 2, 4, 8, 8, 8, 64, 100, 300, 600]) * 512
        at = rng.randint(0, (size - length) // 512) * 512
        if rng.random() < 0.6:
            at = at // 4096 * 4096
        fx.change_one(dev, model,
                      rng.choice(["write", "write", "write", "zeroout",
                                  "punch", "discard"]), at, length)


def compare(dev, want):
    ktap.same_bytes(dev.read_all(), bytes(want), "end to end")
    rng = random.Random(len(want))
    for _ in range(50):
        n = rng.choice([1, 8, 100]) * 512
        at = rng.randint(0, (len(want) - n) // 512) * 512
        ktap.same_bytes(dev.read(at, n), bytes(want[at:at + n]), f"at {at}")


def fails(code, function, *args):
    try:
        function(*args)
    except OSError as e:
        ktap.equal(e.errno, code, "errno")
        return
    raise ktap.Failure("it did not fail")


def written(name, model):
    fx.check(name)
    ktap.same_bytes(fx.content(name)[:len(model)], bytes(model),
                    "as QEMU reads it")


def base_and_layers(size, cluster, backing, **options):
    if not backing:
        create("image", size, cluster=cluster, **options)
        return [("qcow2", "image")]
    fx.create("base", size, cluster_size=65536)
    fx.qemu_io("base", f"write -P 0xbb 0 {size // 2}",
               f"write -P 0xbc {size // 4 * 3} 64k")
    fx.pad("base")
    create("image", size, "base", cluster, **options)
    return [("qcow2", "image"), ("qcow2", "base")]


def reads_and_writes(cluster, backing, **options):
    size = 6 * MIB + 3 * 512
    layers = base_and_layers(size, cluster, backing, **options)
    some_content("image", size, cluster)
    model = bytearray(fx.content("image"))
    with fx.opened(layers, size) as (_, dev):
        compare(dev, model)
        change(dev, model, 80, f"{cluster}{backing}")
        compare(dev, model)
        dev.flush()
        change(dev, model, 40, "again")
        compare(dev, model)
    written("image", model)


for cluster in CLUSTERS:
    for backing in (False, True):
        ktap.case(f"{cluster} byte clusters, "
                  f"{'over a base' if backing else 'alone'}",
                  reads_and_writes, cluster, backing)


@ktap.test
def host_clusters_without_subclusters():
    """Preallocated: nothing is allocated, so the base shows through."""
    reads_and_writes(64 * KIB, True, preallocation="metadata")


# What a subcluster can be, in a cluster that has a host cluster or none; what
# is done to one and a half of them
STATES = ("none", "zero", "data")
OPERATIONS = ("write", "discard", "zeroout", "punch")


def all_states(name, cluster, hosts):
    """Changes the first clusters of an image that is full of data: some lose
    their host cluster, and the subclusters of all get any state."""
    rng = random.Random(7)
    bits = {"none": 0, "zero": 1 << 32, "data": 1}
    for n, has_host in enumerate(hosts):
        where, entry = fx.entry_at(name, n * cluster)
        if not has_host:
            fx.set_refcount(name, entry & (1 << 56) - 512, 0)
            fx.poke(name, where, "Q", 0)
        states = STATES if has_host else STATES[:2]
        fx.poke(name, where + 8, "Q",
                sum(bits[rng.choice(states)] << sub for sub in range(32)))


def operations_on_states(backing, shared):
    cluster, sub = 64 * KIB, 2 * KIB
    hosts = [True, True, False] * len(OPERATIONS)
    size = cluster * len(hosts)
    layers = [("qcow2", "image")]
    if backing:
        fx.create("base", size)
        fx.qemu_io("base", f"write -P 0xbb 0 {size}")
        fx.pad("base")
        layers.append(("qcow2", "base"))
    create("image", size, "base" if backing else None, cluster)
    fx.qemu_io("image", f"write -P 1 0 {size}")
    all_states("image", cluster, hosts)
    fx.check("image")
    before = fx.content("image")
    if shared:
        fx.qemu_img("snapshot", "-c", "one", "image")
        fx.pad("image")
    model = bytearray(before)
    with fx.opened(layers, size) as (_, dev):
        compare(dev, model)
        for n in range(len(hosts)):
            for first in range(0, 32, 4):
                # Whole ones, and parts at both ends
                at = n * cluster + first * sub + (first // 4 % 3) * 512
                length = 2 * sub + (first // 8 % 2) * 512
                fx.change_one(dev, model, OPERATIONS[n // 3], at, length)
        compare(dev, model)
        dev.flush()
        compare(dev, model)
    written("image", model)
    if shared:
        ktap.same_bytes(fx.content("image", snapshot="one"), before,
                        "snapshot")
        fx.qemu_img("snapshot", "-d", "one", "image")
        written("image", model)


for backing in (False, True):
    for shared in (False, True):
        ktap.case(f"all states, {'over a base' if backing else 'alone'}, "
                  f"{'shared' if shared else 'owned'}",
                  operations_on_states, backing, shared)


@ktap.test
def a_subcluster_is_written_without_copying():
    """4 KiB into a new cluster of 128 KiB: nothing else is read or written."""
    layers = base_and_layers(8 * MIB, 128 * KIB, True)
    model = bytearray(fx.content("image"))
    with fx.opened(layers, 8 * MIB) as (test, dev):
        for at in range(0, 8 * MIB, 132 * KIB):
            dev.write(at, fx.pattern(f"{at}", 4096))
            model[at:at + 4096] = fx.pattern(f"{at}", 4096)
        ktap.equal(test.status()[7], "0", "clusters copied")
        dev.write(4 * MIB + 512, b"x" * 512)
        model[4 * MIB + 512:4 * MIB + 1024] = b"x" * 512
        ktap.equal(test.status()[7], "1", "clusters copied")
        compare(dev, model)
    written("image", model)
    used = os.stat("image").st_blocks * 512
    ktap.check(used < 2 * MIB, f"{used} bytes on disk")


@ktap.test
def the_cluster_goes_with_its_last_subcluster():
    create("image", 4 * MIB)
    with fx.opened([("qcow2", "image")], 4 * MIB) as (test, dev):
        dev.write(0, fx.pattern("s", 2 * MIB))
        dev.flush()
        for at in range(0, 2 * MIB, 4096):
            dev.punch(at, 4096)
        dev.flush()
        ktap.same_bytes(dev.read_all(), bytes(4 * MIB), "punched")
    fx.check("image")
    out = fx.qemu_img("map", "--output=json", "image")
    ktap.check('"data": true' not in out, out)


@ktap.test
def internal_snapshots():
    size = 4 * MIB
    layers = base_and_layers(size, 64 * KIB, True)
    some_content("image", size, "first")
    first = fx.content("image")
    fx.qemu_img("snapshot", "-c", "one", "image")
    fx.pad("image")
    model = bytearray(first)
    with fx.opened(layers, size) as (_, dev):
        change(dev, model, 120, "one")
        compare(dev, model)
    written("image", model)
    ktap.same_bytes(fx.content("image", snapshot="one"), first, "snapshot")
    with fx.opened(layers, size, ["snapshot", "1"], read_only=True) as (_, dev):
        compare(dev, first)
    fx.qemu_img("snapshot", "-d", "one", "image")
    written("image", model)


def compressed(kind):
    """Subclusters over compressed clusters, which have none."""
    size = 4 * MIB
    create("image", size, cluster=64 * KIB, compression_type=kind)
    fx.qemu_io("image", "write -c -P 1 0 1M", "write -c -P 2 2M 512k",
               "write -P 3 1M 20k")
    fx.pad("image")
    model = bytearray(fx.content("image"))
    with fx.opened([("qcow2", "image")], size) as (_, dev):
        compare(dev, model)
        change(dev, model, 80, kind)
        compare(dev, model)
    written("image", model)


ktap.case("compressed clusters: zlib", compressed, "zlib")
ktap.case("compressed clusters: zstd", compressed, "zstd")


@ktap.test
def discarding_compressed_clusters():
    """As a whole, even where the base has zeroes in the middle."""
    size = MIB
    fx.create("base", size)
    fx.qemu_io("base", "write -P 0xbb 0 1M", "write -z 0 40k",
               "write -z 256k 8k", "write -z 320k 64k")
    fx.pad("base")
    create("image", size, "base", 64 * KIB)
    fx.qemu_io("image", "write -c -P 1 0 512k")
    fx.pad("image")
    model = bytearray(fx.content("image"))
    layers = [("qcow2", "image"), ("qcow2", "base")]
    with fx.opened(layers, size) as (test, dev):
        dev.discard(0, 64 * KIB)
        dev.punch(256 * KIB, 192 * KIB)
        for at, length in ((0, 64 * KIB), (256 * KIB, 192 * KIB)):
            model[at:at + length] = bytes(length)
        compare(dev, model)
        ktap.equal(test.status()[6], "0", "clusters allocated")
        # A part of one: decompressed, once
        dev.punch(128 * KIB + 2048, 32 * KIB)
        model[130 * KIB:162 * KIB] = bytes(32 * KIB)
        compare(dev, model)
        ktap.equal(test.status()[6], "1", "clusters allocated")
    written("image", model)


@ktap.test
def neighbours_in_a_cluster():
    """Everyone has subclusters of its own in the same host clusters, which come
    and go with the last one."""
    size, sub = 512 * KIB, 4 * KIB
    layers = base_and_layers(size, 128 * KIB, True)
    fx.qemu_img("snapshot", "-c", "one", "image")
    fx.pad("image")
    model = bytearray(fx.content("image"))
    errors = []

    def neighbour(dev, number, end):
        rng = random.Random(number)
        try:
            while time.monotonic() < end:
                at = (rng.randrange(size // sub // 4) * 4 + number) * sub
                kind = rng.choice(["write", "punch", "punch", "zeroout",
                                   "read"])
                if kind == "read":
                    ktap.same_bytes(dev.read(at, sub),
                                    bytes(model[at:at + sub]), f"at {at}")
                else:
                    part = rng.choice([0, 0, 512])
                    fx.change_one(dev, model, kind, at + part, sub - 2 * part)
        except Exception as e:
            errors.append(e)

    with fx.opened(layers, size) as (_, dev):
        end = time.monotonic() + 20
        team = [threading.Thread(target=neighbour, args=(dev, n, end))
                for n in range(4)]
        for thread in team:
            thread.start()
        while team[0].is_alive():
            dev.flush()
            time.sleep(0.2)
        for thread in team:
            thread.join()
        if errors:
            raise errors[0]
        compare(dev, model)
    written("image", model)


def ends_in_a_cluster(bitmap, flags):
    """The file ends in the host cluster of the last 64 KiB, behind its second
    subcluster; a host cluster before it is free."""
    create("image", 256 * KIB, cluster=64 * KIB)
    fx.qemu_io("image", "write -P 1 0 256k", "discard 0 64k")
    where, entry = fx.entry_at("image", 192 * KIB)
    host = entry & (1 << 56) - 512
    ktap.equal(os.path.getsize("image"), host + 64 * KIB, "the file's length")
    fx.poke("image", where, "Q", host | flags)
    fx.poke("image", where + 8, "Q", bitmap)
    os.truncate("image", host + 4096)
    return host


@ktap.test
def a_shared_cluster_that_the_device_ends_in():
    """What the device lacks is allocated: so is it in the copy, as zeroes."""
    host = ends_in_a_cluster((1 << 32) - 1, 0)
    fx.set_refcount("image", host, 2)
    # What the free cluster holds is not to be seen again.
    with open("image", "r+b") as f:
        f.seek(host - 192 * KIB)
        f.write(b"S" * 64 * KIB)
    model = bytearray(64 * KIB) + b"\1" * (128 * KIB + 4096) + bytes(60 * KIB)
    with fx.opened([("qcow2", "image")], len(model), ["error_if_no_space"],
                   room=512) as (_, dev):
        compare(dev, model)
        fx.change_one(dev, model, "write", 224 * KIB, 2048)
        compare(dev, model)
    # The second reference was one by hand.
    fx.qemu_img("check", "image", ok=(3,))
    ktap.same_bytes(fx.content("image"), bytes(model), "as QEMU reads it")


@ktap.test
def an_owned_cluster_that_the_device_ends_in():
    """Subclusters on the device can be allocated, the others when it grows."""
    host = ends_in_a_cluster(1, COPIED)
    model = bytearray(64 * KIB) + b"\1" * (128 * KIB + 2048) + bytes(62 * KIB)
    with fx.opened([("qcow2", "image")], len(model), ["error_if_no_space"],
                   room=512) as (test, dev):
        compare(dev, model)
        fx.change_one(dev, model, "write", 194 * KIB, 512)
        fails(errno.ENOSPC, dev.write, 224 * KIB, fx.pattern("lost", 512))
        ktap.equal(test.status()[0], "no_space", "mode")
        compare(dev, model)
        os.truncate("image", host + 64 * KIB)
        test.loops["image"].set_capacity()
        fx.change_one(dev, model, "write", 224 * KIB, 512)
        ktap.equal(test.status()[0], "rw", "mode")
        compare(dev, model)
    written("image", model)


@ktap.test
def a_lower_layer_and_copy_on_read():
    size = 4 * MIB
    base_and_layers(size, 128 * KIB, True)
    some_content("image", size, "lower")
    fx.create("top", size, backing="image", cluster_size=4096)
    layers = [("qcow2", "top"), ("qcow2", "image"), ("qcow2", "base")]
    model = bytearray(fx.content("top"))
    with fx.opened(layers, size, ["copy_on_read"]) as (_, dev):
        compare(dev, model)
        change(dev, model, 40, "top")
        compare(dev, model)
    written("top", model)


def bad_entry(change, bitmap, message):
    """EIO for what it maps, and the image is not written to."""
    create("image", MIB, cluster=16 * KIB)
    fx.qemu_io("image", "write -P 1 0 64k")
    where, entry = fx.entry_at("image", 32 * KIB)
    fx.poke("image", where, "Q", change(entry))
    fx.poke("image", where + 8, "Q", bitmap)
    fx.pad("image")
    fx.kernel_log()
    with fx.opened([("qcow2", "image")], MIB) as (test, dev):
        fails(errno.EIO, dev.read, 32 * KIB, 4096)
        ktap.equal(test.status()[0], "failed", "mode")
        ktap.same_bytes(dev.read(0, 16 * KIB), b"\1" * 16 * KIB, "others")
        fails(errno.EIO, dev.write, 0, bytes(4096))
    ktap.check(message in fx.kernel_log(), f"no {message!r} in the log")
    ktap.check("corrupt: true" in fx.qemu_img("info", "image"),
               "no corrupt bit")


ktap.case("allocated and zero", bad_entry, lambda entry: entry, 1 << 32 | 1,
          "both allocated")
ktap.case("the last one allocated and zero", bad_entry, lambda entry: entry,
          1 << 63 | 1 << 31, "both allocated")
ktap.case("allocated without a cluster", bad_entry, lambda entry: 0, 1,
          "names no cluster")


@ktap.test
def bits_that_mean_nothing():
    """Bit 0 of an entry, and the bitmap of a compressed cluster."""
    every = (1 << 32) - 1
    create("image", MIB, cluster=64 * KIB)
    fx.qemu_io("image", "write -P 1 0 100k", "write -c -P 2 128k 192k")
    for at, flag, bitmap in ((64, 1, None), (512, 1, 0), (128, 0, 1 << 32 | 1),
                             (192, 0, every), (256, 0, every << 32)):
        where, entry = fx.entry_at("image", at * KIB)
        fx.poke("image", where, "Q", entry | flag)
        if bitmap is not None:
            fx.poke("image", where + 8, "Q", bitmap)
    fx.pad("image")
    model = bytearray(fx.content("image"))
    ktap.same_bytes(model[64 * KIB:320 * KIB], b"\1" * 36 * KIB +
                    bytes(28 * KIB) + b"\2" * 192 * KIB, "what QEMU reads")
    with fx.opened([("qcow2", "image")], MIB) as (test, dev):
        compare(dev, model)
        for at, length in ((96, 16), (516, 4), (130, 4), (192, 64)):
            model[at * KIB:(at + length) * KIB] = b"\3" * length * KIB
            dev.write(at * KIB, b"\3" * length * KIB)
        dev.punch(256 * KIB, 64 * KIB)
        model[256 * KIB:320 * KIB] = bytes(64 * KIB)
        compare(dev, model)
        ktap.equal(test.status()[0], "rw", "mode")
    written("image", model)


if __name__ == "__main__":
    fx.main()
