#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the guest: opens, reads, writes every broken image of a directory.

An error is welcome; a hang, a report of the kernel, an access beyond the end of
the device is not. Prints KTAP.
"""

import json
import os
import re
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
import blk  # noqa: E402

SCRATCH = "/scratch"
REPORT = re.compile(r"\bBUG\b|WARNING|KASAN|UBSAN|beyond end of device|"
                    r"Call Trace|circular|suspicious RCU|divide error|Oops")


class Log:
    """Kernel messages, from where we last read."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        self.new()

    def new(self):
        lines = []
        while True:
            try:
                record = os.read(self.fd, 8192).decode(errors="replace")
                lines.append(record.split(";", 1)[1].splitlines()[0])
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                lines.append("(messages lost)")


class Hang(Exception):
    pass


def on_alarm(_signal, _frame):
    raise Hang("took more than a minute")


def attempt(function, *args):
    try:
        function(*args)
        return 0
    except OSError:
        return 1


def exercise(dev):
    """Reads end to end in large and small pieces; writes here and there."""
    errors = 0
    for at in range(0, dev.size, 256 << 10):
        length = min(256 << 10, dev.size - at)
        if attempt(dev.read, at, length):
            errors += 1
            for small in range(at, min(at + length, at + (64 << 10)), 4096):
                attempt(dev.read, small, min(4096, dev.size - small))
    for at in (0, 8 << 10, 104 << 10, 303 << 10, 512 << 10, 1020 << 10):
        if at + 6144 <= dev.size:
            errors += attempt(dev.write, at + 512, b"w" * 5120)
    errors += attempt(dev.flush)
    if dev.size >= 1 << 20:
        errors += attempt(dev.discard, 0, 128 << 10)
        errors += attempt(dev.zeroout, 300 << 10, 20 << 10)
        errors += attempt(dev.write, 0, b"x" * 65536)
    errors += attempt(dev.flush)
    for at in range(0, dev.size, 256 << 10):
        errors += attempt(dev.read, at, min(256 << 10, dev.size - at))
    return errors


def one(path, name, room):
    """Returns what happened. The size asked for is the image's own or 1 MiB."""
    blk.copy_sparse(path, f"{SCRATCH}/image")
    if room:
        os.truncate(f"{SCRATCH}/image",
                    os.path.getsize(f"{SCRATCH}/image") + (8 << 20))
    loop = blk.Loop(f"{SCRATCH}/image")
    dm = blk.Dm(name)
    try:
        try:
            dev_path = dm.create(
                2048, f"1 qcow2 {loop.dev} - 1 error_if_no_space")
        except OSError:
            return "refused"
        try:
            dev = blk.Device(dev_path)
            try:
                errors = exercise(dev)
            finally:
                dev.close()
            dm.status()
        finally:
            dm.remove()
        return f"opened, {errors} errors"
    finally:
        loop.detach()


def main():
    share = sys.argv[1]
    subprocess.run(["modprobe", "-a", "loop", "dm_mod"], check=True)
    os.makedirs(SCRATCH, exist_ok=True)
    subprocess.run("mkfs.ext4 -q -O ^has_journal /dev/vda && mount /dev/vda "
                   + SCRATCH, shell=True, check=True)
    with open(os.path.join(share, "list")) as f:
        images = json.load(f)
    print("KTAP version 1")
    print(f"1..{len(images)}")
    signal.signal(signal.SIGALRM, on_alarm)
    log = Log()
    failed = 0
    for n, (title, field) in enumerate(images, 1):
        problem = None
        signal.alarm(60)
        try:
            what = one(os.path.join(share, f"{n}"), f"hostile{n}", n % 2)
        except (Hang, RuntimeError, OSError) as e:
            what = problem = f"{type(e).__name__}: {e}"
        signal.alarm(0)
        lines = log.new()
        bad = [line for line in lines if REPORT.search(line)]
        if bad:
            problem = bad[0]
        elif field and what != "refused":
            problem = f"not refused: {what}"
        elif field and not any(field in line for line in lines):
            problem = f"no message names {field}"
        elif what == "refused" and not any("qcow2" in line for line in lines):
            problem = "refused without a reason"
        if problem:
            failed += 1
            print(f"# {problem}")
            for line in lines[:10]:
                print(f"# kernel: {line}")
        print(f"{'not ok' if problem else 'ok'} {n} {title} "
              f"({what})".replace("#", "no."), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
