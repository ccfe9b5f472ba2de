#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How fast a merge is, and how long a device stands still for another table.

Both beside what costs the same without us, in the same run: dd between the same
devices and qemu-img commit; a suspend and a resume of the same device. KTAP, the
figures as comments.
"""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import MIB  # noqa: E402

TIB = 1 << 40
DATA = 384 * MIB
DISK = DATA + 32 * MIB
TRACING = "/sys/kernel/tracing"


def setup(*words):
    return fx.run("qcow2setup", *words)


def seconds(*command):
    start = time.monotonic()
    fx.run(*command)
    return time.monotonic() - start


@contextlib.contextmanager
def ram_disks(count):
    fx.run("modprobe", "brd", f"rd_nr={count}", f"rd_size={DISK // 1024}")
    try:
        yield [f"/dev/ram{n}" for n in range(count)]
    finally:
        fx.run("rmmod", "brd")


def qemu_create(path, size, backing=None, fmt="qcow2", options=""):
    words = ["create", "-q", "-f", "qcow2"]
    if options:
        words += ["-o", options]
    if backing:
        words += ["-u", "-b", backing, "-F", fmt]
    fx.qemu_img(*words, path, str(size))


def fill(path):
    fx.qemu_io(path, *(f"write -P {1 + at // MIB % 250} {at} {16 * MIB}"
                       for at in range(0, DATA, 16 * MIB)))


class Merge:
    """base <- sn1, each on a RAM disk, and sn1 <- active in a file"""

    def __init__(self, disks, options):
        self.base, self.sn1 = disks
        self.options = options

    def blank(self):
        for disk in self.base, self.sn1:
            fx.run("dd", "if=/dev/zero", f"of={disk}", "bs=1M", "count=1",
                   "status=none")

    def make(self):
        self.blank()
        qemu_create(self.base, DATA, options=self.options)
        qemu_create(self.sn1, DATA, self.base)
        fill(self.sn1)
        qemu_create("active", DATA, self.sn1)

    def dd(self):
        return seconds("dd", f"if={self.sn1}", f"of={self.base}", "bs=1M",
                       f"count={DATA // MIB}", "iflag=direct", "oflag=direct",
                       "status=none")

    def commit(self):
        self.make()
        setup("open", "./active", "vm")
        took = seconds("qcow2setup", "commit", "vm", "--top", self.sn1)
        setup("close", "vm")
        return took

    def pull(self):
        self.blank()
        qemu_create(self.base, DATA)
        fill(self.base)
        qemu_create(self.sn1, DATA, self.base, options=self.options)
        setup("open", self.sn1, "vm")
        took = seconds("qcow2setup", "flatten", "vm")
        setup("close", "vm")
        return took

    def qemu(self, cache):
        self.make()
        return seconds("qemu-img", "commit", "-q", "-d", "-t", cache, "-b",
                       self.base, self.sn1)


def merge_speed(options):
    with ram_disks(2) as disks:
        merge = Merge(disks, options)
        dd = min(merge.dd(), merge.dd())
        commit, pull = merge.commit(), merge.pull()
        qemu = min(merge.qemu("none"), merge.qemu("writeback"))

    def rate(took):
        return f"{DATA / took / MIB:.0f} MiB/s"

    ktap.note(f"dd {rate(dd)}; commit {rate(commit)}, {dd / commit:.2f} of dd, "
              f"{qemu / commit:.2f} of qemu-img commit ({rate(qemu)}); "
              f"pull {rate(pull)}, {dd / pull:.2f} of dd, "
              f"{qemu / pull:.2f} of qemu-img commit")
    ktap.check(dd / commit >= 0.7, "commit is slow beside dd")
    ktap.check(dd / pull >= 0.7, "pull is slow beside dd")
    ktap.check(qemu / commit >= 2, "commit is slow beside qemu-img commit")
    ktap.check(qemu / pull >= 2, "pull is slow beside qemu-img commit")


def write_to(name, text):
    with open(f"{TRACING}/{name}", "w") as f:
        f.write(text)


def trace_pauses():
    """The tracer stays: it patches the scheduler as it comes and goes, and an
    emulated CPU may run into that."""
    if not os.path.exists(f"{TRACING}/trace"):
        fx.run("mount", "-t", "tracefs", "tracefs", TRACING)
    with open(f"{TRACING}/current_tracer") as f:
        if f.read().strip() == "function_graph":
            return
    write_to("set_ftrace_filter", "dev_suspend\nqc_postsuspend")
    write_to("options/funcgraph-tail", "1")
    write_to("current_tracer", "function_graph")


@contextlib.contextmanager
def traced():
    """How long the calls of some functions take."""
    trace_pauses()
    write_to("trace", "")
    calls = []
    yield calls
    with open(f"{TRACING}/trace") as f:
        calls += re.findall(
            r"([\d.]+) us +\| +(?:(\w+)(?: \[\w+\])?\(\);|\} /\* (\w+))",
            f.read())


def stands_still(action):
    """Returns for each ioctl that suspends or resumes the microseconds without
    what is written out meanwhile, and those of that."""
    with traced() as calls:
        action()
    ioctls, flushed = [], 0.0
    for took, leaf, end in calls:
        if (leaf or end) == "qc_postsuspend":
            flushed += float(took)
        else:
            ioctls.append((float(took) - flushed, flushed))
            flushed = 0.0
    ktap.check(ioctls, "nothing traced")
    return ioctls


def bare():
    fx.run("dmsetup", "suspend", "--noflush", "--nolockfs", "vm")
    fx.run("dmsetup", "resume", "vm")


class Writer:
    """fio writes as fast as it can."""

    def __enter__(self):
        self.process = subprocess.Popen(
            ["fio", "--name=w", "--filename=/dev/mapper/vm", "--direct=1",
             "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--size=64M",
             "--iodepth=16", "--time_based", "--runtime=600"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(3)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


# What ends in another table, on base <- ... <- s3 <- s4
PIVOTS = (
    ("commit of the active image", ("commit", "vm")),
    ("pull", ("pull", "vm", "--base", "s1")),
    ("commit below", ("commit", "vm", "--top", "s1", "--base", "s0")),
    ("rebase", ("rebase", "vm", "-b", "l1", "-F", "qcow2")),
    ("copy", ("copy", "vm", "copy", "--pivot")),
)


def check_pause(what, base, net, flushed):
    ktap.note(f"{what}: {net:.0f} us ({net / base:.2f}), and {flushed:.0f} us "
              "of writing out")
    ktap.check(net <= 3 * base, f"{what} stands still for too long")


def pauses(layers, busy, size):
    qemu_create("l1", size)
    for n in range(2, layers + 1):
        qemu_create(f"l{n}", size, f"l{n - 1}")
    setup("open", f"./l{layers}", "vm")
    with Writer() if busy else contextlib.nullcontext():
        plain = [sum(net for net, _ in stands_still(bare)) for _ in range(7)]
        snaps = [max(stands_still(lambda n=n: setup("snapshot", "vm", f"s{n}")))
                 for n in range(5)]
        pivots = [max(stands_still(lambda words=words: setup(*words)))
                  for _, words in PIVOTS]
    setup("close", "vm")
    base = statistics.median(plain)
    ktap.note(f"suspend and resume: {base:.0f} us")
    check_pause("snapshot", base, statistics.median(net for net, _ in snaps),
                statistics.median(flushed for _, flushed in snaps))
    for (what, _), pause in zip(PIVOTS, pivots):
        check_pause(what, base, *pause)


for name, options in (("64 KiB clusters", ""),
                      ("preallocated", "extended_l2=on,preallocation=metadata")):
    ktap.case(f"merge into an image: {name}", merge_speed, options)
for count, length, size_name in ((1, 64 * MIB, "64 MiB"), (8, 64 * MIB, "64 MiB"),
                                 (8, 4 * TIB, "4 TiB"),
                                 (32, 64 * MIB, "64 MiB")):
    for is_busy in (False, True):
        ktap.case(f"pause: {count} layers of {size_name}, "
                  f"{'full-speed writes' if is_busy else 'idle'}", pauses,
                  count, is_busy, length)

fx.main()
