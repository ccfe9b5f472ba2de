#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Small writes that allocate and need not wait: one work item takes them all.

The device below takes its time with writes, so that many are under way at once.
"""

import contextlib
import errno
import os
import random
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB  # noqa: E402

SIZE = 64 * MIB
SUBCLUSTERS = {"cluster_size": 128 * KIB, "extended_l2": "on"}
# What a write takes below, in ms
SLOW = 300


class Slow(fx.Stacked):
    """A loop device where each write takes its time."""

    def __init__(self, path):
        super().__init__(path, f"delay {{0}} 0 0 {{0}} 0 {SLOW}")


@contextlib.contextmanager
def slowly(features=(), base=None, **options):
    """An image whose first L2 table is there, on such a device"""
    fx.run("modprobe", "dm-delay")
    fx.create("image", SIZE, backing=base, fmt="raw", **options)
    fx.qemu_io("image", "write -P 1 0 512")
    fx.pad("image")
    zero_from = os.path.getsize("image") // 512
    fx.grow("image", 2 * SIZE)
    layers = [("qcow2", "image")] + ([("raw", base)] if base else [])
    chain = fx.Chain(layers, SIZE,
                     ["zero_from", str(zero_from), *features])
    chain.loops = {"image": Slow("image")}
    if base:
        chain.loops[base] = blk.Loop(base, read_only=True)
    dev = chain.open()
    # The slice is in memory then.
    dev.read(0, 4096)
    try:
        yield chain, dev
    finally:
        if chain.loops:
            chain.close()


class Team:
    """Threads that each do one thing, and what became of it"""

    def __init__(self):
        self.threads = []
        self.errors = []

    def start(self, do, *args):
        def run():
            try:
                do(*args)
            except OSError as e:
                self.errors.append(e.errno)

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def join(self):
        for thread in self.threads:
            thread.join()


def begin_writes(dev, tag, count, fua=False):
    """4 KiB to each of the clusters behind the first; gives the team and the model"""
    team = Team()
    model = beginning()
    for n in range(1, count + 1):
        at = n * 64 * KIB
        model[at:at + 4096] = fx.pattern(f"{tag}{n}", 4096)
        team.start(dev.write, at, fx.pattern(f"{tag}{n}", 4096), fua)
    return team, model


def beginning():
    """What slowly() has written there"""
    model = bytearray(SIZE)
    model[:512] = b"\1" * 512
    return model


def as_it_was_written(model):
    fx.check("image")
    ktap.same_bytes(fx.content("image"), bytes(model), "as QEMU reads it")


def many_at_once(count, options):
    """Each to a cluster of its own, more than the one work item takes at once"""
    model = beginning()
    with slowly(**options) as (chain, dev):
        team = Team()
        cluster = options.get("cluster_size", 64 * KIB)
        for n in range(1, count + 1):
            at = n * cluster + n % 8 * 4096 % cluster
            data = fx.pattern(f"m{n}", 4096)
            model[at:at + 4096] = data
            team.start(dev.write, at, data)
        team.join()
        ktap.equal(team.errors, [], "errors")
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    as_it_was_written(model)


ktap.case("many at once: 64 KiB clusters", many_at_once, 200, {})
ktap.case("many at once: 4 KiB clusters", many_at_once, 200,
          {"cluster_size": 4 * KIB})
ktap.case("many at once: subclusters", many_at_once, 200, SUBCLUSTERS)


def sharing_clusters(options):
    """The first of them allocates, the others wait for it, and some overlap."""
    rng = random.Random(7)
    with slowly(**options) as (_, dev):
        team = Team()
        spots = [rng.randrange(1, 512) * 1024 for _ in range(120)]
        datas = [fx.pattern(f"s{n}", rng.choice((512, 1024, 4096, 12288)))
                 for n in range(120)]
        for at, data in zip(spots, datas):
            team.start(dev.write, at, data)
        team.join()
        ktap.equal(team.errors, [], "errors")
        got = bytes(dev.read_all())
    writers = {}
    for at, data in zip(spots, datas):
        for n in range(0, len(data), 512):
            writers.setdefault(at + n, []).append(data[n:n + 512])
    old = bytes(beginning())
    for at in range(0, MIB, 512):
        may_be = writers.get(at, [old[at:at + 512]])
        ktap.check(got[at:at + 512] in may_be, f"what is read at {at}")
    as_it_was_written(got)


ktap.case("several in one cluster", sharing_clusters, {})
ktap.case("several in one cluster: subclusters", sharing_clusters,
          SUBCLUSTERS)


def a_write_that_fails(options, broken):
    """Its cluster is given back, and the next one tries again."""
    cluster = options.get("cluster_size", 64 * KIB)
    with slowly(**options) as (chain, dev):
        below = chain.loops["image"]
        # Where the image ends so far: there the next clusters are.
        end = chain.status()[2].split("/")[0]
        first = int(end) * cluster // 512
        below.reload(bad=(first, first + broken * cluster // 512))
        team = Team()
        for n in range(1, 9):
            team.start(dev.write, n * cluster, fx.pattern(f"f{n}", 4096))
        team.join()
        ktap.equal(set(team.errors), {errno.EIO}, "errors")
        ktap.equal(chain.status()[0], "rw", "mode")
        below.reload()
        model = beginning()
        for n in range(1, 9):
            at = n * cluster
            data = fx.pattern(f"g{n}", 4096)
            dev.write(at, data)
            model[at:at + 4096] = data
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    as_it_was_written(model)


ktap.case("writes that fail", a_write_that_fails, {}, 4)
ktap.case("writes that fail: subclusters", a_write_that_fails, SUBCLUSTERS, 8)


@contextlib.contextmanager
def small_file_system():
    """Where a sparse file can be longer than there is room for"""
    with open("disk", "wb") as f:
        f.truncate(24 * MIB)
    fx.run("mkfs.ext4", "-q", "-F", "-m", "0", "disk")
    os.mkdir("small")
    fx.run("mount", "-o", "loop", "disk", "small")
    try:
        yield
    finally:
        fx.run("umount", "small")


@ktap.test
def a_write_waits_for_room_below():
    """The device below is as long as it is to be, but its file system is full."""
    with small_file_system():
        fx.create("small/image", SIZE)
        fx.qemu_io("small/image", "write -P 1 0 512")
        fx.pad("small/image")
        zero_from = os.path.getsize("small/image") // 512
        with fx.opened([("qcow2", "small/image")], SIZE,
                       ["zero_from", str(zero_from)]) as (chain, dev):
            dev.read(0, 4096)
            fx.run("dd", "if=/dev/zero", "of=small/filler", "bs=64k",
                   "oflag=direct", ok=(1,))
            team, model = begin_writes(dev, "r", 8)
            for _ in range(200):
                if chain.status()[0] == "no_space":
                    break
                time.sleep(0.05)
            ktap.equal(chain.status()[0], "no_space", "mode")
            ktap.equal(team.errors, [], "errors while it waits")
            os.unlink("small/filler")
            team.join()
            ktap.equal(team.errors, [], "errors")
            ktap.same_bytes(dev.read_all(), bytes(model), "device")
        fx.check("small/image")


@ktap.test
def what_surrounds_it_is_copied():
    """Over a base nothing is light but what fills whole clusters."""
    base = fx.pattern("base", SIZE // 2)
    with open("base", "wb") as f:
        f.write(base)
    model = bytearray(SIZE)
    model[:SIZE // 2] = base
    with slowly(base="base") as (_, dev):
        model[:512] = b"\1" * 512
        team = Team()
        for n in range(1, 40):
            at = n * MIB + n % 3 * 512
            length = 64 * KIB if n % 3 == 0 else 4096
            data = fx.pattern(f"b{n}", length)
            model[at:at + length] = data
            team.start(dev.write, at, data)
        team.join()
        ktap.equal(team.errors, [], "errors")
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    fx.check("image")


@ktap.test
def a_flush_and_fua_wait_for_their_commit():
    with slowly() as (_, dev):
        team, model = begin_writes(dev, "u", 59, True)
        team.join()
        ktap.equal(team.errors, [], "errors")
        fx.run("cp", "--sparse=always", "image", "copy")
        ktap.same_bytes(fx.content("copy"), bytes(model), "after FUA writes")
        fx.qemu_img("check", "copy", ok=(0, 3))
    as_it_was_written(model)


@ktap.test
def the_table_goes_while_the_data_is_under_way():
    """A slice that was dropped meanwhile is read again."""
    with slowly() as (chain, dev), fx.metadata_limit(256):
        team, model = begin_writes(dev, "t", 39)
        for _ in range(3):
            blk.drop_caches()
        team.join()
        ktap.equal(team.errors, [], "errors")
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    as_it_was_written(model)


@ktap.test
def a_suspend_waits_for_what_is_under_way():
    with slowly() as (chain, dev):
        team, model = begin_writes(dev, "p", 49)
        time.sleep(SLOW / 3000)
        chain.dm.suspend()
        fx.run("cp", "--sparse=always", "image", "copy")
        fx.check("copy")
        chain.dm.resume()
        team.join()
        ktap.equal(team.errors, [], "errors")
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    as_it_was_written(model)


@ktap.test
def a_take_over_waits_for_what_is_under_way():
    """Before the next writer has the image, the last one has let go of it."""
    with slowly(["yield"]) as (chain, dev):
        team, _ = begin_writes(dev, "y", 49)
        time.sleep(SLOW / 3000)
        # A device sees only what has come to an end when it was opened.
        second = blk.Dm("second")
        path = second.create(SIZE // 512,
                             f"1 qcow2 {chain.loops['image'].dev} -")
        other = blk.Device(path)
        got = bytes(other.read_all())
        time.sleep(2 * SLOW / 1000)
        ktap.same_bytes(other.read_all(), got, "some time later")
        team.join()
        # Each one is there as a whole, or has failed.
        there = sum(got[n * 64 * KIB:n * 64 * KIB + 4096] ==
                    fx.pattern(f"y{n}", 4096) for n in range(1, 50))
        ktap.equal(set(team.errors) - {errno.EIO}, set(), "errors")
        ktap.equal(there + len(team.errors), 49, "writes")
        other.close()
        second.remove()
    fx.check("image")
    ktap.same_bytes(fx.content("image"), got, "as QEMU reads it")


fx.main()
