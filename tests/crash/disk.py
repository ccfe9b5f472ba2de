# SPDX-License-Identifier: GPL-2.0-only
"""In the virtual machine: disks in memory under dm-log-writes."""

import os
import subprocess

CONFIGFS = "/sys/kernel/config"
LOG = "crashlog"
LOG_MIB = 4096      # pages are taken when they are written
LATENCY_NS = 200000


class Failed(Exception):
    pass


def run(*argv, **more):
    done = subprocess.run(argv, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False,
                          **more)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: {done.stdout.strip()}")
    return done.stdout.strip()


def put(path, value):
    with open(path, "w", encoding="ascii") as f:
        f.write(str(value))


class Disk:
    """A disk in memory whose requests take time, so that they overlap."""

    used = 0

    def __init__(self, mib, latency):
        self.dir = f"{CONFIGFS}/nullb/nullb{Disk.used}"
        self.path = f"/dev/nullb{Disk.used}"
        Disk.used += 1
        os.mkdir(self.dir)
        for name, value in (("size", mib), ("blocksize", 512),
                            ("memory_backed", 1), ("queue_mode", 2),
                            ("discard", 1),
                            ("irqmode", 2 if latency else 0),
                            ("completion_nsec", latency), ("power", 1)):
            put(f"{self.dir}/{name}", value)
        self.sectors = int(run("blockdev", "--getsz", self.path))

    def remove(self):
        put(f"{self.dir}/power", 0)
        os.rmdir(self.dir)
        Disk.used -= 1


def load_modules(*more):
    run("modprobe", "configfs")
    run("modprobe", "null_blk", "nr_devices=0")
    if not os.path.isdir(f"{CONFIGFS}/nullb"):
        run("mount", "-t", "configfs", "configfs", CONFIGFS)
    run("modprobe", "-a", "loop", "dm-log-writes", *more)
