#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Who submits I/O does not wait: NOWAIT, io_uring, polled I/O."""

import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB  # noqa: E402

SIZE = 8 * MIB


def fio(device, **options):
    """A job of io_uring with direct I/O; its threads are fio's own."""
    options.setdefault("bs", "4k")
    words = [f"--{key}={value}" for key, value in options.items()]
    return ["fio", "--name=x", f"--filename={device}", "--thread", "--direct=1",
            "--ioengine=io_uring", f"--size={SIZE}", "--iodepth=32",
            *words]


@ktap.test
def nowait():
    """Where metadata has to be read, clusters to be allocated or decompressed,
    others do that: it is done, and EAGAIN is for devices below."""
    fx.run("truncate", "-s", str(SIZE), "plain")
    want = bytearray(fx.pattern("base", SIZE))
    with open("plain", "r+b") as f:
        f.write(want[:SIZE // 2])
    want[SIZE // 2:] = bytes(SIZE // 2)
    fx.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "plain", "base")
    fx.pad("base")
    fx.create("top", SIZE, backing="base")
    with fx.opened([("qcow2", "top"), ("qcow2", "base")], SIZE) as (_, dev):
        for at in range(0, SIZE, MIB):
            data = fx.pattern(f"new{at}", 4 * KIB)
            dev.write(at, data, flags=os.RWF_NOWAIT)
            want[at:at + len(data)] = data
        for at in range(0, SIZE, 256 * KIB):
            ktap.same_bytes(dev.read(at, 64 * KIB, flags=os.RWF_NOWAIT),
                            want[at:at + 64 * KIB], f"at {at}")


def scatter(dev, start):
    """More pieces than the device below takes at once, of which no two can be
    merged. Returns what is there."""
    data = fx.pattern("scattered", MIB)
    for i in range(256):
        at = i * 97 % 256 * 4 * KIB
        dev.write(start + at, data[at:at + 4 * KIB])
    return data


@ktap.test
def nowait_in_pieces():
    """One EAGAIN of many pieces would end all of it, and late."""
    fx.create("image", SIZE, cluster_size="4k")
    with fx.opened([("qcow2", "image")], SIZE) as (_, dev):
        want = scatter(dev, 0)
        ktap.same_bytes(dev.read(0, MIB, flags=os.RWF_NOWAIT), want, "read")
        want = fx.pattern("again", MIB)
        dev.write(0, want, flags=os.RWF_NOWAIT)
        ktap.same_bytes(dev.read(0, MIB), want, "written")
        fx.run(*fio(dev.path, rw="rw", bs="1M", verify="crc32c"))


@ktap.test
def nowait_compressed_in_pieces():
    """Compressed clusters with pieces of an overlay between and behind them"""
    want = bytearray(fx.pattern("base", SIZE))
    with open("plain", "wb") as f:
        f.write(want)
    fx.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "plain", "base")
    fx.pad("base")
    fx.create("top", SIZE, backing="base", cluster_size="4k")
    with fx.opened([("qcow2", "top"), ("qcow2", "base")], SIZE) as (_, dev):
        want[MIB:2 * MIB] = scatter(dev, MIB)
        for _ in range(2):
            ktap.equal(subprocess.run(fio(dev.path, rw="read", bs="2M"),
                                      stdout=subprocess.DEVNULL).returncode, 0,
                       "fio's exit status")
        ktap.same_bytes(dev.read(0, 2 * MIB), bytes(want[:2 * MIB]), "read")


@ktap.test
def nowait_over_devices_without_it():
    """dm-crypt, as a lower layer"""
    with fx.opened_over_crypt(4 * MIB) as (_, want, dev):
        for at in (0, MIB, 0):
            ktap.same_bytes(dev.read(at, 64 * KIB, flags=os.RWF_NOWAIT),
                            want[at:at + 64 * KIB], f"at {at}")


def workers(pid):
    """io_uring's threads for what it could not submit without waiting"""
    names = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/comm") as f:
                names.append(f.read().strip())
        except OSError:
            pass
    return [name for name in names if name.startswith("iou-wrk")]


@ktap.test
def io_uring_submits_all_by_itself():
    fx.create("image", SIZE)
    with fx.opened([("qcow2", "image")], SIZE) as (_, dev):
        for at in range(0, SIZE, MIB):
            dev.write(at, fx.pattern("data", MIB))
        job = subprocess.Popen(fio(dev.path, rw="randrw", time_based=1,
                                   runtime=3), stdout=subprocess.DEVNULL)
        found = []
        while job.poll() is None:
            found += workers(job.pid)
            time.sleep(0.1)
        ktap.equal(job.returncode, 0, "fio's exit status")
        ktap.equal(found, [], "io_uring's worker threads")


@ktap.test
def polled():
    """First writes, which are deferred, overwrites and reads."""
    fx.run("modprobe", "null_blk", "nr_devices=1", "memory_backed=1", "gb=1",
           "submit_queues=1", "poll_queues=1", "queue_mode=2")
    try:
        fx.qemu_img("create", "-q", "-f", "qcow2", "/dev/nullb0", str(SIZE))
        dm = fx.blk.Dm("polled")
        path = dm.create(SIZE // 512, "1 qcow2 /dev/nullb0 -")
        try:
            ktap.equal(fx.blk.queue_limit(path, "io_poll"), 1, "io_poll")
            for seed in (1, 2):
                fx.run(*fio(path, rw="randwrite", hipri=1, verify="crc32c",
                            randseed=seed))
        finally:
            dm.remove()
        fx.qemu_img("check", "-q", "/dev/nullb0")
    finally:
        fx.run("rmmod", "null_blk")


if __name__ == "__main__":
    fx.main()
