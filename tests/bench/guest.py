#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""guest.py cost|clock [--quick]: measures in a virtual machine, prints JSON.

cost, with scripts/vm --icount: the clock of the only CPU advances 1 ns an
instruction, so what fio tells is the same on every host, however busy. All is in
it: fio, system calls, the copy of the data.

clock: I/Os a second on two CPUs, the stacks in turn, a few rounds. Only what
stands in one row or one round compares.
"""

import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib")]
import fixture as fx  # noqa: E402
import stacks  # noqa: E402
from fio import nanoseconds  # noqa: E402
from fixture import KIB, MIB  # noqa: E402

# Name, fio's rw, bytes of an I/O, I/Os in flight
STEADY = (("4k read", "randread", 4 * KIB, 32),
          ("4k write", "randwrite", 4 * KIB, 32),
          ("512k read", "read", 512 * KIB, 8),
          ("512k write", "write", 512 * KIB, 8))

FULL = {
    "brd": stacks.brd,
    "dm-linear": stacks.linear,
    "dm-qcow2": stacks.qcow2,
    "dm-qcow2, subclusters": stacks.subclusters,
    "dm-thin": stacks.thin,
    "dm-snapshot": stacks.snapshot,
    "loop": stacks.loop,
    "dm-linear on loop": stacks.linear_file,
    "dm-qcow2 on loop": stacks.qcow2_file,
    "qemu-nbd": stacks.nbd,
    "vduse": stacks.vduse,
    "fuse": stacks.fuse,
}
# Writes to it are copies: see FIRST.
READ_ONLY = {"dm-snapshot"}

# With what a first write is aligned to: each one is a first one.
FIRST = {
    "dm-qcow2, subclusters": (stacks.subclusters, 128 * KIB),
    "dm-qcow2": (stacks.qcow2, 64 * KIB),
    "dm-thin": (stacks.thin, 64 * KIB),
    "dm-snapshot": (stacks.snapshot, 64 * KIB),
    "dm-linear on loop": (stacks.linear_file, 64 * KIB),
    "dm-qcow2 on loop": (stacks.qcow2_file, 64 * KIB),
    "qemu-nbd": (stacks.nbd, 64 * KIB),
    "vduse": (stacks.vduse, 64 * KIB),
    "fuse": (stacks.fuse, 64 * KIB),
}

# By the clock: what the peers of a device are, and the floor below them
CLOCK = ("dm-linear", "dm-qcow2", "dm-thin", "dm-linear on loop",
         "dm-qcow2 on loop", "qemu-nbd", "vduse")

# Sequential reads of compressed clusters: bytes of an I/O, I/Os in flight, options
UNPACK = {"4k": (4 * KIB, 1), "64k": (64 * KIB, 1), "1M, 8 at once": (MIB, 8),
          "buffered": (128 * KIB, 1, "--direct=0", "--ioengine=psync",
                       "--invalidate=1")}

FLUSHES = 2000


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def cost(path, rw, size, depth, quick):
    """Instructions of an I/O, as they are once all is warm."""
    def run(ios):
        return nanoseconds(path, rw, size, depth, stacks.SIZE,
                           f"--io_size={ios * size}")

    # fio counts milliseconds: enough I/Os that one of them says nothing
    first = run(64)
    ios = int((1e8 if quick else 6e8) / first)
    ios = max(64, min(ios, 4 * stacks.SIZE // size))
    return round(min(run(ios) for _ in range(2)))


def steady_costs(quick):
    out = {}
    for name, stack in FULL.items():
        say(f"cost: {name}")
        with stack(True) as path:
            out[name] = {
                what: cost(path, rw, size, depth, quick)
                for what, rw, size, depth in STEADY
                if "write" not in rw or name not in READ_ONLY}
    return out


def first_writes(path, align):
    """Nanoseconds of a write of 4 KiB, each to another unit, in random order"""
    units = list(range(stacks.SIZE // align))
    random.Random(1).shuffle(units)
    log = "/run/bench.iolog"
    with open(log, "w") as f:
        f.write(f"fio version 2 iolog\n{path} add\n{path} open\n")
        f.writelines(f"{path} write {n * align} 4096\n" for n in units)
        f.write(f"{path} close\n")
    return nanoseconds(path, "randwrite", 4 * KIB, 32, stacks.SIZE,
                       f"--read_iolog={log}")


def first_costs():
    out = {}
    for name, (stack, align) in FIRST.items():
        say(f"first write: {name}")
        with stack(False) as path:
            out[name] = round(first_writes(path, align))
    return out


def depth_costs(quick):
    out = {}
    for depth in 1, 16:
        say(f"reads under {depth} overlays")
        with stacks.chain(depth) as path:
            out[str(depth)] = cost(path, "randread", 4 * KIB, 32, quick)
    return out


def flush_costs():
    """With nothing dirty, on a disk with a write cache"""
    out = {}
    for name, stack in (("dm-linear", stacks.flush_linear),
                        ("dm-qcow2", stacks.flush_qcow2)):
        say(f"flush: {name}")
        with stack() as path:
            fd = os.open(path, os.O_RDWR)
            os.fsync(fd)
            start = time.monotonic_ns()
            for _ in range(FLUSHES):
                os.fsync(fd)
            out[name] = (time.monotonic_ns() - start) // FLUSHES
            os.close(fd)
    return out


def fsync_costs():
    """Random writes into an image with all clusters, each made durable"""
    out = {}
    for name in "dm-qcow2 on loop", "qemu-nbd":
        say(f"fsync a write: {name}")
        with FULL[name](True) as path:
            out[name] = round(nanoseconds(
                path, "randwrite", 4 * KIB, 1, stacks.SIZE, "--fsync=1",
                f"--io_size={4 * MIB}"))
    return out


def costs(quick):
    return {"steady": steady_costs(quick), "first": first_costs(),
            "depth": depth_costs(quick), "flush": flush_costs(),
            "fsync": fsync_costs()}


def rate(path, rw, size, depth, seconds, jobs=1):
    return 1e9 / nanoseconds(path, rw, size, depth, stacks.SIZE,
                             "--time_based", f"--runtime={seconds}",
                             f"--numjobs={jobs}")


def medians(rounds):
    """The same keys in each of the rounds"""
    return {key: round(statistics.median(r[key] for r in rounds))
            for key in rounds[0]}


def rates(rounds, seconds):
    seen = {name: [] for name in CLOCK}
    for n in range(rounds):
        for name in CLOCK:
            say(f"clock, round {n + 1} of {rounds}: {name}")
            with FULL[name](True) as path:
                seen[name].append({
                    what: rate(path, rw, size, depth, seconds)
                    for what, rw, size, depth in STEADY})
    return {name: medians(found) for name, found in seen.items()}


def scaling(rounds, seconds):
    """How much two jobs do of one job's I/Os, both devices in each round"""
    seen = {"dm-linear": [], "dm-qcow2": []}
    with stacks.two() as devices:
        for n in range(rounds):
            say(f"two jobs, round {n + 1} of {rounds}")
            for name, path in devices.items():
                seen[name].append({
                    f"{what}, {jobs}": rate(path, rw, size, 16, seconds, jobs)
                    for what, rw, size, _ in STEADY[:2] for jobs in (1, 2)})
    return {name: medians(found) for name, found in seen.items()}


def unpacking_rates(path):
    """MiB a second, each kind of read once through all of the device"""
    return {what: size / MIB * 1e9 / nanoseconds(
        path, "read", size, depth, stacks.TEXT, *more)
        for what, (size, depth, *more) in UNPACK.items()}


def unpacking(rounds):
    """Sequential reads of compressed clusters"""
    out = {}
    for kind in "zlib", "zstd":
        say(f"compressed: {kind}")
        seen = {"dm-qcow2 on loop": [], "qemu-nbd": []}
        with stacks.compressed(kind) as file:
            for _ in range(rounds):
                for name, stack in (("dm-qcow2 on loop", stacks.opened),
                                    ("qemu-nbd", served)):
                    with stack(file) as path:
                        seen[name].append(unpacking_rates(path))
        out[kind] = {name: medians(found) for name, found in seen.items()}
    return out


def served(file):
    return stacks.served(file, stacks.TEXT)


def clocks(quick):
    rounds, seconds = (1, 1) if quick else (3, 2)
    return {"rates": rates(rounds, seconds),
            "two jobs": scaling(rounds if quick else 7, seconds),
            "compressed": unpacking(rounds)}


def version(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[0]


def main():
    what, quick = sys.argv[1], "--quick" in sys.argv
    if what == "cost" and os.environ.get("DMQCOW2_ICOUNT") != "1":
        sys.exit("guest.py: run it with scripts/vm --icount")
    fx.run("modprobe", "-a", "loop", "dm_mod", "configfs")
    with contextlib.suppress(fx.ktap.Failure):
        fx.run("mount", "-t", "configfs", "configfs", "/sys/kernel/config")
    found = costs(quick) if what == "cost" else clocks(quick)
    found["versions"] = {"kernel": platform.release(),
                         "fio": version("fio", "--version"),
                         "qemu": version("qemu-nbd", "--version")}
    json.dump(found, sys.stdout)


main()
