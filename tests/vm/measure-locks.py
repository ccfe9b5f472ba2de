#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What locks two jobs on one device take, beside dm-linear. KTAP.

For the debug kernel, which counts them (CONFIG_LOCK_STAT). Overwrites and reads
of what is allocated, the metadata in memory: where a lock is taken for each I/O
that dm-linear does not take, two CPUs share it.
"""

import contextlib
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import MIB  # noqa: E402

SIZE = 32 * MIB
JOBS, IOS = 2, 4000
STAT, SWITCH = "/proc/lock_stat", "/proc/sys/kernel/lock_stat"
# A reader of RCU waits for nobody, nor does anybody for it. Of the rest, what has
# to do with fio's memory, what looks at the clock, and the local lock of a CPU's
# own slabs (mm/slub.c), taken for each new slab: more often for larger objects
NO_LOCKS = re.compile(r"rcu_|srcu|&mm->|&vma|vm_lock|ptlock|.*seqcount|&c->lock$")
# Times an I/O; half of them are reads. Timers and the scheduler vary from run to run.
LIMIT = 0.25


def counts():
    """Times taken and times waited for, of each class of locks"""
    found = {}
    for line in blk.get(STAT).splitlines():
        match = re.match(r"\s*(\S.*?):((?:\s+[\d.]+){12})\s*$", line)
        if match and not NO_LOCKS.match(match[1]):
            numbers = match[2].split()
            # Each queue has classes of its own.
            name = re.sub(r"#\d+", "", match[1])
            taken, waited = found.get(name, (0, 0))
            found[name] = (taken + int(numbers[7]),
                           waited + int(numbers[1]))
    return found


def fio(path, ios):
    fx.run("fio", "--name=locks", f"--filename={path}", "--rw=randrw",
           "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=16",
           f"--numjobs={JOBS}", f"--size={SIZE}", f"--io_size={ios * 4096}",
           "--norandommap")


def counted(path):
    fio(path, 500)
    blk.put(STAT, "0")
    blk.put(SWITCH, "1")
    try:
        fio(path, IOS)
    finally:
        blk.put(SWITCH, "0")
    return counts()


def compare(ours, linear):
    for name, (taken, waited) in sorted(ours.items(), key=lambda x: -x[1][0]):
        more = (taken - linear.get(name, (0, 0))[0]) / (JOBS * IOS)
        if more > 0.01 or waited:
            ktap.note(f"{name}: taken {more:+.3f} times an I/O beside "
                      f"dm-linear, waited for {waited} times")
        ktap.check(more <= LIMIT, f"{name} is taken for each I/O")


@ktap.test
def no_lock_that_dm_linear_does_not_take():
    fx.run("modprobe", "brd", "rd_nr=2", f"rd_size={2 * SIZE >> 10}")
    with contextlib.ExitStack() as stack:
        stack.callback(fx.run, "rmmod", "brd")
        fx.qemu_img("create", "-q", "-f", "qcow2", "-o",
                    "preallocation=metadata", "/dev/ram0", str(SIZE))
        found = {}
        for target, words in (("linear", "/dev/ram1 0"),
                              ("qcow2", "1 qcow2 /dev/ram0 -")):
            dm = blk.Dm(target)
            path = dm.create(SIZE // 512, words, target=target)
            stack.callback(dm.remove)
            dev = blk.Device(path)
            for at in range(0, SIZE, MIB):
                dev.write(at, fx.pattern("full", MIB))
            dev.flush()
            dev.close()
            found[target] = counted(path)
        ktap.check(len(found["qcow2"]) > 10, f"cannot read {STAT}")
        compare(found["qcow2"], found["linear"])


if __name__ == "__main__":
    fx.main()
