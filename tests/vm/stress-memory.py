#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A file system on the device, written and read while memory is short. KTAP.

fio writes and verifies within a memory cgroup of 256 MiB, another one reads
what lies compressed in the base, a third process takes what memory is left,
and one in ten of the module's own allocations fails. For the debug kernel:
scripts/vm --debug --memory 1024.
"""

import argparse
import contextlib
import hashlib
import os
import random
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from blk import disk_stat, get, put  # noqa: E402
from fixture import KIB, MIB  # noqa: E402

SIZE, OLD = 1024 * MIB, 48 * MIB
CGROUP, LIMIT = "/sys/fs/cgroup/fio", 256 * MIB
DEBUGFS = "/sys/kernel/debug"
MANY = 1000000000
NAME = "tight"
WINDOW = 60     # seconds in which something must have been written and read


def module_text():
    """First and last address of the module's functions"""
    found = [int(line.split()[0], 16)
             for line in get("/proc/kallsyms").splitlines()
             if line.endswith("[dm_qcow2]") and line.split()[1] in "tT"]
    return min(found), max(found) + 2 * KIB


@contextlib.contextmanager
def faults(percent):
    """Allocations of the module fail; gives a function that counts them."""
    kinds = [f"{DEBUGFS}/{kind}" for kind in ("failslab", "fail_page_alloc")]
    first, last = module_text()
    for kind in kinds:
        put(f"{kind}/ignore-gfp-wait", "N")
        put(f"{kind}/verbose", 0)
        put(f"{kind}/interval", 1)
        put(f"{kind}/times", MANY)
        put(f"{kind}/stacktrace-depth", 32)
        put(f"{kind}/require-start", hex(first))
        put(f"{kind}/require-end", hex(last))
    put(f"{DEBUGFS}/fail_page_alloc/min-order", 0)
    for kind in kinds:
        put(f"{kind}/probability", percent)
    try:
        yield lambda: [MANY - int(get(f"{kind}/times"), 0) for kind in kinds]
    finally:
        for kind in kinds:
            put(f"{kind}/probability", 0)


def hog():
    """Leaves some 32 MiB of memory to all others, and uses what it has."""
    put("/proc/self/oom_score_adj", 1000)
    taken = []
    while True:
        fields = dict(line.split(":") for line in
                      get("/proc/meminfo").splitlines())
        left = int(fields["MemAvailable"].split()[0]) * KIB
        if left > 40 * MIB:
            taken.append(bytearray(MIB))
        elif left < 24 * MIB and taken:
            taken.pop()
        else:
            time.sleep(0.1)
        if taken:
            random.choice(taken)[::4096] = bytes(MIB // 4096)


class Hog:
    """hog() in a process; whenever memory is gone, it is the first to be killed"""

    def __init__(self):
        self.killed = -1
        self.start()

    def start(self):
        self.killed += 1
        self.process = subprocess.Popen([sys.executable, __file__, "--hog"],
                                        stdin=subprocess.DEVNULL)

    def look(self):
        if self.process.poll() is not None:
            self.start()

    def stop(self):
        self.process.kill()
        self.process.wait()


def enter_cgroup():
    put(f"{CGROUP}/cgroup.procs", os.getpid())


def make_cgroup():
    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        fx.run("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    put("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
    os.makedirs(CGROUP, exist_ok=True)
    put(f"{CGROUP}/memory.max", LIMIT)


class Fio:
    def __init__(self, name, seconds, *words, **more):
        self.name = name
        self.log = open(f"{name}.log", "w+")
        self.process = subprocess.Popen(
            ["fio", f"--name={name}", "--time_based", f"--runtime={seconds}",
             *words], stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=subprocess.STDOUT, **more)

    def running(self):
        return self.process.poll() is None

    def finish(self):
        code = self.process.wait()
        self.log.seek(0)
        ktap.check(code == 0, f"fio {self.name}: {code}: {self.log.read()}")
        self.log.close()


def make_chain():
    """An overlay of a compressed base that has a file system with a file in it"""
    with open("raw", "wb") as f:
        f.truncate(SIZE)
    fx.run("mkfs.ext4", "-q", "-F", "raw")
    os.makedirs("mnt")
    fx.run("mount", "-o", "loop", "raw", "mnt")
    total = hashlib.sha256()
    with open("mnt/old", "wb") as f:
        for n in range(OLD // (64 * KIB)):
            data = fx.pattern(f"old{n}", 16 * KIB) + bytes([n % 256]) * 48 * KIB
            total.update(data)
            f.write(data)
    fx.run("umount", "mnt")
    fx.qemu_img("convert", "-c", "-O", "qcow2", "raw", "base")
    os.unlink("raw")
    fx.create("top", SIZE, backing="base")
    return total.hexdigest()


def file_sum(path):
    total = hashlib.sha256()
    with open(path, "rb") as f:
        while data := f.read(MIB):
            total.update(data)
    return total.hexdigest()


def moved(disk):
    """KiB read and written so far"""
    fields = disk_stat(disk)
    return fields[2] // 2, fields[6] // 2


def watch(disk, fios, memory_hog):
    """Until all have ended; returns the least moved within a window."""
    least, before = [None, None], moved(disk)
    end = time.monotonic() + WINDOW
    while all(fio.running() for fio in fios):
        time.sleep(1)
        memory_hog.look()
        if time.monotonic() < end:
            continue
        now = moved(disk)
        least = [b - a if old is None else min(old, b - a)
                 for old, a, b in zip(least, before, now)]
        ktap.check(min(least) > 0, f"no progress in {WINDOW} s: {least}")
        before, end = now, time.monotonic() + WINDOW
    return least


def pressure(seconds):
    want = make_chain()
    make_cgroup()
    fx.run("qcow2setup", "open", "./top", NAME)
    disk = f"dm-{os.minor(os.stat(f'/dev/mapper/{NAME}').st_rdev)}"
    fx.run("mount", f"/dev/mapper/{NAME}", "mnt")
    memory_hog = Hog()
    try:
        with faults(10) as count:
            fios = [Fio("write", seconds, "--directory=mnt", "--rw=randrw",
                        "--bsrange=4k-64k", "--size=160M", "--numjobs=2",
                        "--fsync=64", "--verify=crc32c", "--verify_fatal=1",
                        "--verify_backlog=256", preexec_fn=enter_cgroup),
                    Fio("read", seconds, "--filename=mnt/old", "--rw=randread",
                        "--bs=16k", f"--size={OLD}", "--readonly",
                        "--ioengine=psync", preexec_fn=enter_cgroup)]
            least = watch(disk, fios, memory_hog)
            for fio in fios:
                fio.finish()
            slabs, pages = count()
    finally:
        memory_hog.stop()
    ktap.note(f"in each {WINDOW} s at least {least[0]} KiB read, {least[1]} KiB "
              f"written; failed: {slabs} slab and {pages} page allocations; "
              f"out of memory: {memory_hog.killed} times")
    ktap.check(slabs and pages, "no allocation failed")
    fx.run("umount", "mnt")
    fx.run("mount", f"/dev/mapper/{NAME}", "mnt")
    ktap.equal(file_sum("mnt/old"), want, "the file of the base")
    fx.run("umount", "mnt")
    fx.run("fsck.ext4", "-f", "-n", f"/dev/mapper/{NAME}")
    fx.run("qcow2setup", "close", NAME)
    fx.check("top")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--hog", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hog:
        hog()
    sys.argv[1:] = []
    ktap.case(f"{args.minutes:g} minutes", pressure, int(args.minutes * 60))
    fx.main()


if __name__ == "__main__":
    main()
