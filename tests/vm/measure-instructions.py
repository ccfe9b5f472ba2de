#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What an I/O costs, beside dm-linear: in instructions.

To be run with scripts/vm --icount, where the clock of the only CPU advances 1 ns an
instruction: what fio tells is the same on every host, however busy. All is in
it, fio and the copy of the data included. KTAP, the figures as comments.
"""

import contextlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import MIB  # noqa: E402

SIZE = 256 * MIB
IOS = 20000
MOST = 1.25


@contextlib.contextmanager
def devices():
    """A preallocated image on one RAM disk, dm-linear on the other, all of both
    written once: a RAM disk allocates its pages with the first write."""
    fx.run("modprobe", "brd", "rd_nr=2", f"rd_size={(SIZE + 16 * MIB) // 1024}")
    fx.qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata",
                "/dev/ram0", str(SIZE))
    fx.run("qcow2setup", "open", "/dev/ram0", "image")
    fx.run("dmsetup", "create", "linear", "--table",
           f"0 {SIZE // 512} linear /dev/ram1 0")
    try:
        for name in ("image", "linear"):
            fx.run("dd", "if=/dev/zero", f"of=/dev/mapper/{name}", "bs=1M",
                   f"count={SIZE // MIB}", "oflag=direct", "status=none")
        yield
    finally:
        fx.run("dmsetup", "remove", "linear")
        fx.run("qcow2setup", "close", "image")
        fx.run("rmmod", "brd")


def instructions(name, rw):
    out = fx.run("fio", "--name=x", f"--filename=/dev/mapper/{name}",
                 f"--rw={rw}", "--bs=4k", "--direct=1", "--ioengine=libaio",
                 "--iodepth=32", f"--io_size={4096 * IOS}",
                 f"--size={SIZE}", "--output-format=json")
    job = json.loads(out[out.index("{"):])["jobs"][0]
    ktap.equal(job["error"], 0, "fio's error")
    return 1e9 / max(job["read"]["iops"], job["write"]["iops"])


def beside_linear(rw):
    ktap.equal(os.environ.get("DMQCOW2_ICOUNT"), "1", "scripts/vm --icount")
    with devices():
        # The first run reads the mapping.
        instructions("image", rw)
        ours, linear = instructions("image", rw), instructions("linear", rw)
    ktap.note(f"{ours:.0f} instructions, {ours / linear:.2f} of dm-linear "
              f"({linear:.0f})")
    ktap.check(ours <= MOST * linear, f"more than {MOST} of dm-linear")


ktap.case("4 KiB random reads", beside_linear, "randread")
ktap.case("4 KiB random overwrites", beside_linear, "randwrite")

fx.main()
