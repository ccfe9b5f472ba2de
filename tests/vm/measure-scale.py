#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Very large, very many, very deep: what it costs in time and memory.

To be run with scripts/vm --memory 8192 --disk 4G --disk 16G. KTAP, the figures as
comments.
"""

import contextlib
import os
import random
import resource
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import GIB, KIB, MIB  # noqa: E402

TIB = 1 << 40
OVERLAYS = 1000
BEYOND_LINEAR = 64      # KiB of a device
OPENED = 64             # at once, as memory in use varies by some MiB
LAYERS = 256


@contextlib.contextmanager
def xfs():
    """On the second disk; gives its directory."""
    where = os.path.join(fx.SCRATCH, "xfs")
    fx.run("mkfs.xfs", "-q", "-f", "/dev/vdb")
    os.makedirs(where)
    fx.run("mount", "/dev/vdb", where)
    try:
        yield where
    finally:
        fx.run("umount", where)


def meminfo():
    return {name: int(value.split()[0]) for name, value in
            (line.split(":") for line in
             blk.get("/proc/meminfo").splitlines())}


def memory():
    """KiB in use, without what the kernel can do without"""
    os.sync()
    for _ in range(2):
        blk.drop_caches(blk.PAGES)
        time.sleep(0.5)
    found = meminfo()
    return found["MemTotal"] - found["MemFree"] - found["Cached"] - \
        found["Buffers"] - found["SReclaimable"] - found["AnonPages"]


def metadata(dm):
    """KiB of all images, and their limit"""
    used, limit = dm.status().split()[4].split("/")
    return int(used), int(limit)


def open_and_close(images, read):
    """Returns seconds and KiB of one of them."""
    before = memory()
    took = []
    for n, path in enumerate(images):
        start = time.monotonic()
        fx.run("qcow2setup", "open", path, f"scale{n}")
        took.append(time.monotonic() - start)
        dev = blk.Device(f"/dev/mapper/scale{n}")
        dev.write(read, fx.pattern("scale", 4096))
        dev.close()
    used = (memory() - before) / len(images)
    for n, _ in enumerate(images):
        fx.run("qcow2setup", "close", f"scale{n}")
    return statistics.median(took), used


@ktap.test
def an_image_of_64_TiB_opens_as_one_of_1_GiB():
    found = {}
    with xfs() as where:
        for name, size in (("1 GiB", GIB), ("64 TiB", 64 * TIB)):
            images = [f"{where}/{name}{n}".replace(" ", "") for n in range(OPENED)]
            for path in images:
                fx.qemu_img("create", "-q", "-f", "qcow2", path, str(size))
            # The first time fills caches of all kinds.
            open_and_close(images, 0)
            found[name] = open_and_close(images, size // 2)
    (small, small_kib), (large, large_kib) = found.values()
    ktap.note(f"1 GiB: {1000 * small:.0f} ms, {small_kib:.0f} KiB; 64 TiB: "
              f"{1000 * large:.0f} ms, {large_kib:.0f} KiB")
    ktap.check(large <= 2 * small, "opening takes too long")
    ktap.check(large_kib <= 2 * small_kib, "too much memory")


class Many:
    """Overlays of one base on loop devices"""

    def __init__(self, stack):
        fx.create("base", 64 * MIB)
        fx.qemu_io("base", "write -P 7 0 64k")
        fx.create("overlay0", 64 * MIB, backing="base")
        fx.grow("overlay0", 66 * MIB)
        for n in range(1, OVERLAYS):
            blk.copy_sparse("overlay0", f"overlay{n}")
        self.base = blk.Loop("base", read_only=True)
        stack.callback(self.base.detach)
        self.loops = []
        for n in range(OVERLAYS):
            self.loops.append(blk.Loop(f"overlay{n}"))
            stack.callback(self.loops[-1].detach)

    @contextlib.contextmanager
    def devices(self, target, params, action):
        """On each loop device; gives them."""
        made = []
        try:
            for n, loop in enumerate(self.loops):
                dm = blk.Dm(f"many{n}")
                dev = blk.Device(dm.create(64 * MIB // 512, params(loop.dev),
                                           target=target))
                made.append((dm, dev))
                action(dev)
            yield [dm for dm, _ in made]
        finally:
            for dm, dev in made:
                dev.close()
                dm.remove()


def read_one(dev):
    dev.read(0, 4096)


def read_and_write(dev):
    ktap.check(dev.read(0, 4096) == bytes([7]) * 4096, "not what the base has")
    dev.write(MIB, fx.pattern("many", 4096))


@ktap.test
def a_thousand_overlays_of_one_base():
    with contextlib.ExitStack() as stack:
        many = Many(stack)
        before = memory()
        with many.devices("linear", lambda dev: f"{dev} 0", read_one):
            linear = (memory() - before) / OVERLAYS
        before, parts = memory(), meminfo()
        with many.devices("qcow2", lambda dev:
                          f"2 qcow2 {dev} - qcow2 {many.base.dev} -",
                          read_and_write) as dms:
            ours = (memory() - before) / OVERLAYS
            now = meminfo()
            own = metadata(dms[0])[0] / OVERLAYS
    ktap.note(f"KiB of a device: dm-linear {linear:.0f}, dm-qcow2 {ours:.0f}, of "
              f"which {own:.0f} metadata: {ours - linear - own:.0f} beyond")
    ktap.note("KiB of a device: " + ", ".join(
        f"{name} {(now[name] - parts[name]) / OVERLAYS:.0f}"
        for name in ("KernelStack", "SUnreclaim", "Percpu")))
    ktap.check(ours - linear - own <= BEYOND_LINEAR, "too much")


@ktap.test
def a_chain_of_256_layers():
    fx.create("layer0", 16 * MIB)
    fx.qemu_io("layer0", "write -P 1 0 1M")
    for n in range(1, LAYERS):
        fx.create(f"layer{n}", 16 * MIB, backing=f"layer{n - 1}")
        if n % 16 == 0:
            fx.qemu_io(f"layer{n}", f"write -P {n % 250 + 1} {n * 64 * KIB} 4k")
    start = time.monotonic()
    fx.run("qcow2setup", "open", f"./layer{LAYERS - 1}", "deep")
    took = time.monotonic() - start
    dev = blk.Device("/dev/mapper/deep")
    for n in range(0, LAYERS, 16):
        want = n % 250 + 1
        ktap.equal(dev.read(n * 64 * KIB, 512)[:1], bytes([want]), f"layer {n}")
    for at in range(0, 16 * MIB, MIB):
        dev.write(at, fx.pattern(f"d{at}", 64 * KIB))
    for at in range(0, 16 * MIB, MIB):
        ktap.same_bytes(dev.read(at, 64 * KIB), fx.pattern(f"d{at}", 64 * KIB),
                        f"at {at}")
    dev.close()
    start = time.monotonic()
    fx.run("qcow2setup", "close", "deep")
    ktap.note(f"opened in {took:.1f} s, closed in "
              f"{time.monotonic() - start:.1f} s")
    fx.check(f"layer{LAYERS - 1}")


def reads(loop):
    """I/Os read from a loop device so far"""
    return blk.disk_stat(loop.dev)[0]


@ktap.test
def tables_of_ten_times_the_limit():
    # Tables of 4 KiB, each for 2 MiB of the image
    size, limit, count = 1536 * MIB, 256, 2000
    fx.create("large", size, cluster_size=4096, preallocation="metadata")
    ktap.check(size // (2 * MIB) * 4 >= 10 * limit, "not ten times the limit")
    rng = random.Random(5)
    places = [rng.randrange(size // 4096) * 4096 for _ in range(count)]
    with fx.metadata_limit(limit), \
            fx.opened([("qcow2", "large")], size) as (chain, dev):
        for at in places:
            dev.write(at, fx.pattern(f"{at >> 12}", 4096))
        dev.flush()
        before, most = reads(chain.loops["large"]), 0
        for at in places:
            ktap.same_bytes(dev.read(at, 4096), fx.pattern(f"{at >> 12}", 4096),
                            f"at {at}")
            most = max(most, metadata(chain.dm)[0])
        found = reads(chain.loops["large"]) - before - count
    ktap.note(f"{count} reads: {found} of metadata, at most {most} KiB of "
              f"{limit}")
    ktap.check(found <= count, "more than one metadata read a miss")
    ktap.check(most <= limit, "the limit is exceeded")


# Each loop device and each device on it is held open here.
resource.setrlimit(resource.RLIMIT_NOFILE, (4 * OVERLAYS, 4 * OVERLAYS))
fx.main()
