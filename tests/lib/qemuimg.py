# SPDX-License-Identifier: GPL-2.0-only
"""qemu-img, which on some machines makes encrypted images not every time.

It measures how fast the CPU derives a key. Some versions (7.2.22 of Debian 12,
9.2.0) fail where the first measurement is over before the kernel has accounted
for its time: QEMU commit 145f12ea885c, "crypto: fix bogus error benchmarking
pbkdf on fast machines".
"""

import subprocess

FLAW = "Unable to get accurate CPU usage"


def run(*command, directory=None):
    """Returns what it printed, errors as well, and its exit code."""
    for _ in range(20):
        done = subprocess.run(command, cwd=directory, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if not done.returncode or FLAW not in done.stdout:
            break
    return done.stdout, done.returncode
