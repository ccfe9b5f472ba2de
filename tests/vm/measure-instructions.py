#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What an I/O costs, beside dm-linear: in instructions.

To be run with scripts/vm --icount, where the clock of the only CPU advances 1 ns an
instruction: what fio tells is the same on every host, however busy. All is in
it, fio and the copy of the data included. KTAP, the figures as comments.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", part) for part in ("lib", "bench")]
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
import stacks  # noqa: E402
from fio import nanoseconds  # noqa: E402
from fixture import KIB  # noqa: E402

IOS = 20000
MOST = 1.25


def instructions(path, rw):
    return nanoseconds(path, rw, 4 * KIB, 32, stacks.SIZE,
                       f"--io_size={IOS * 4 * KIB}")


def beside_linear(rw):
    ktap.equal(os.environ.get("DMQCOW2_ICOUNT"), "1", "scripts/vm --icount")
    with stacks.two() as path:
        # The first run reads the mapping.
        instructions(path["dm-qcow2"], rw)
        ours, linear = (instructions(path[name], rw)
                        for name in ("dm-qcow2", "dm-linear"))
    ktap.note(f"{ours:.0f} instructions, {ours / linear:.2f} of dm-linear "
              f"({linear:.0f})")
    ktap.check(ours <= MOST * linear, f"more than {MOST} of dm-linear")


ktap.case("4 KiB random reads", beside_linear, "randread")
ktap.case("4 KiB random overwrites", beside_linear, "randwrite")

fx.main()
