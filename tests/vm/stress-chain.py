#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Random chain operations on a device that is in use all the time. KTAP.

Snapshots, commits, pulls, deletes and copies, some of them cancelled, some
killed and run again, for the given time. Meanwhile fio writes and verifies one
part of the device, a thread writes, discards and zeroes another and knows what
must be there, and a third part is left alone.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB  # noqa: E402
from guest import Guest  # noqa: E402

# The thread's part, the one that is left alone, and fio's
SPLIT, STILL, SIZE = 3 * MIB, 6 * MIB, 16 * MIB
LAYERS_MAX = 6
CLUSTERS = ["512", "4k", "16k", "64k", "2M"]
NAME = "stress"


def setup(*words, ok=(0,)):
    return fx.run("qcow2setup", *words, ok=ok)


class Fio:
    """fio on the last part of the device."""

    def __init__(self, path):
        self.log = open("fio.log", "w")
        self.process = subprocess.Popen(
            ["fio", "--name=guest", f"--filename={path}", "--direct=1",
             "--rw=randrw", "--bsrange=512-64k", "--blockalign=512",
             f"--offset={STILL}", f"--size={SIZE - STILL}",
             "--ioengine=libaio", "--iodepth=8", "--verify=crc32c",
             "--verify_backlog=64", "--verify_fatal=1", "--time_based",
             "--runtime=100000"], stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=subprocess.STDOUT)

    def said(self):
        with open("fio.log") as f:
            return f.read()

    def check(self):
        ktap.check(self.process.poll() is None,
                   f"fio has ended: {self.said()}")

    def stop(self):
        self.check()
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        self.log.close()
        for word in ("verify:", "bad magic", "error="):
            ktap.check(word not in self.said(), self.said())


class Stress:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.number = 0
        self.counts = {}
        self.layers = []

    def name(self, suffix="qcow2"):
        self.number += 1
        return f"i{self.number}.{suffix}"

    def start(self):
        base, top = self.name("raw"), self.name()
        with open(base, "wb") as f:
            f.write(fx.pattern("base", SIZE - 700 * KIB))
        self.make(top, base, "raw")
        setup("open", f"./{top}", NAME)
        self.look()
        path = f"/dev/mapper/{NAME}"
        self.dev = blk.Device(path)
        self.model = bytearray(self.dev.read_all()[:SPLIT])
        self.still = self.still_sum()
        self.guest = self.new_guest()
        self.fio = Fio(path)

    def make(self, name, backing, fmt):
        fx.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o",
               "cluster_size=" + self.rng.choice(CLUSTERS), "-b", backing,
               "-F", fmt, name, str(SIZE))

    def new_guest(self):
        guest = Guest(self.dev, self.model, self.rng.random())
        guest.start()
        return guest

    def still_sum(self):
        return hashlib.sha256(
            self.dev.read(SPLIT, STILL - SPLIT)).hexdigest()

    def look(self):
        """The chain as the device has it, the top first."""
        status = json.loads(setup("status", NAME, "--json"))
        self.layers = [os.path.basename(layer["image"])
                       for layer in status["layers"]]
        self.formats = [layer["format"] for layer in status["layers"]]

    # Operations: each returns the words of a command, or None where the chain
    # has not what it takes.

    def snapshot(self):
        if len(self.layers) >= LAYERS_MAX:
            return None
        new = self.name()
        if self.rng.random() < 0.5:
            return ["snapshot", NAME, new]
        self.make(new, self.layers[0], self.formats[0])
        return ["snapshot", NAME, new, "--existing"]

    def commit(self):
        n = len(self.layers)
        if n < 2:
            return None
        top = self.rng.randint(0, n - 2)
        base = self.rng.randint(top + 1, n - 1)
        return ["commit", NAME, "--top", f"{NAME}[{top}]", "--base",
                f"{NAME}[{base}]"] + self.rng.choice([[], ["--delete"]])

    def pull(self):
        n = len(self.layers)
        if n < 2:
            return None
        into = self.rng.randint(0, n - 2)
        base = self.rng.randint(into + 2, n) if into + 2 <= n else n
        words = ["pull", NAME, "--into", f"{NAME}[{into}]"]
        return words if base == n else words + ["--base", f"{NAME}[{base}]"]

    def delete(self):
        n = len(self.layers)
        if n < 3:
            return None
        return ["delete", NAME, f"{NAME}[{self.rng.randint(1, n - 2)}]",
                self.rng.choice(["--up", "--down"])]

    def copy(self):
        words = ["copy", NAME]
        shallow = len(self.layers) > 1 and self.rng.random() < 0.5
        if shallow:
            return words + [self.name(), "--shallow",
                            self.rng.choice(["--pivot", "--finish"])]
        fmt = self.rng.choice(["raw", "qcow2"])
        return words + [self.name(fmt), "--format", fmt,
                        self.rng.choice(["--pivot", "--finish"])]

    def carry_out(self, words):
        """Runs it; perhaps to its end only the second time."""
        how = self.rng.random() if words[0] != "snapshot" else 1
        if how < 0.15:
            self.cancel(words)
            return "cancelled"
        if how < 0.3:
            self.kill(words)
            return "killed"
        setup(*words)
        return "done"

    def cancel(self, words):
        setup(*words, "--detach", "--bandwidth", "200K")
        time.sleep(self.rng.random())
        # It may be over by then.
        setup("cancel", NAME, ok=(0, 1, 4, 5))
        setup("wait", NAME, ok=(0, 1, 4))

    def kill(self, words):
        job = subprocess.Popen(["qcow2setup", *words], text=True,
                               stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
        try:
            job.wait(self.rng.random() * 4)
        except subprocess.TimeoutExpired:
            job.kill()
        job.communicate()
        setup("jobs", "--clean")

    def verify(self):
        self.guest.stop()
        ktap.same_bytes(self.dev.read(0, SPLIT), self.model,
                        "what the thread wrote")
        ktap.equal(self.still_sum(), self.still, "what nobody writes")
        self.fio.check()
        ktap.equal(fx.run("dmsetup", "ls").split()[::2], [NAME], "devices")
        self.guest = self.new_guest()

    def remove_others(self):
        """Images that are not of the chain any more."""
        for name in os.listdir("."):
            if name.endswith((".qcow2", ".raw")) and name not in self.layers:
                os.unlink(name)

    def step(self):
        operation = self.rng.choice(
            [self.snapshot] * 4 + [self.commit] * 3 +
            [self.pull, self.delete, self.copy])
        words = operation()
        if not words:
            return
        try:
            end = self.carry_out(words)
            self.look()
            self.verify()
        except Exception:
            ktap.note(f"{' '.join(words)}, on {self.layers}")
            raise
        self.remove_others()
        key = f"{words[0]} {end}"
        self.counts[key] = self.counts.get(key, 0) + 1

    def finish(self):
        self.guest.stop()
        self.fio.stop()
        want = self.dev.read_all()
        self.dev.close()
        setup("close", NAME)
        for name, fmt in zip(self.layers, self.formats):
            if fmt == "qcow2":
                fx.check(name)
        ktap.same_bytes(fx.content(self.layers[0], self.formats[0])[:SIZE],
                        want, "what QEMU reads")


def stress(seed, seconds):
    run = Stress(seed)
    run.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run.step()
    ktap.note(f"{run.guest.count} operations of the last thread; " + ", ".join(
        f"{n} {key}" for key, n in sorted(run.counts.items())))
    run.finish()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sys.argv[1:] = []
    ktap.case(f"{args.minutes:g} minutes, seed {args.seed}", stress, args.seed,
              args.minutes * 60)
    fx.main()


if __name__ == "__main__":
    main()
