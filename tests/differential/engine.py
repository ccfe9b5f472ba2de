#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the guest: random operations on a device, beside a model in memory.

engine.py [--ops N] [--jobs N] [--device qcow2|nbd] SHARE SCRATCH

SHARE/list holds the runs: SEED, or SEED.N for the Nth time. For each run the
images are taken from SHARE/RUN/start, which run made, and what the host
compares with QEMU's view is left in SHARE/RUN/check*: the whole chain and the
model. SHARE/RUN/result is "ok", or what went wrong and the operations that led
there.
"""

import argparse
import concurrent.futures
import fcntl
import json
import os
import random
import subprocess
import sys
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
import blk  # noqa: E402
import luks  # noqa: E402
from options import (MIB, PASSPHRASE, SECRET, SECTOR, Options,  # noqa: E402
                     node, source)

TOKEN = 16  # bytes of a seed in the queue


class Mismatch(Exception):
    pass


def pattern(op, length):
    """Contents that name the operation and the sector within it."""
    n = length // SECTOR
    out = bytearray((b"op%06d-" % op + bytes(7)) * (length // 16))
    out[9::SECTOR] = bytes(s & 255 for s in range(n))
    out[10::SECTOR] = bytes(s >> 8 & 255 for s in range(n))
    return out


class Qcow2Device:
    """The chain as a device of the target."""

    can_suspend = True

    def __init__(self, name, options, scratch):
        self.options = options
        self.scratch = scratch
        self.layers = list(options.layers)
        self.loops = {}
        self.crypts = {}
        self.dm = blk.Dm(name)
        self.zero_from = {}
        for layer in self.layers[:1] + options.overlays:
            self._grow(layer)

    def file(self, layer):
        return os.path.join(self.scratch, layer.name)

    def files(self, layer):
        return [os.path.join(self.scratch, f) for f in layer.files()]

    def _grow(self, layer):
        """A file can become as long as its image needs."""
        path = self.file(layer)
        length = -(-os.path.getsize(path) // SECTOR) * SECTOR
        self.zero_from[layer.name] = length // SECTOR
        os.truncate(path, length + 4 * layer.size + 64 * MIB)

    def params(self):
        words = [str(len(self.layers))]
        for layer in self.layers:
            words += [layer.fmt, self.loops[layer.name].dev]
            words.append(self.data_device(layer))
        if self.options.zero_from and self.layers[0].name in self.zero_from:
            words += ["2", "zero_from",
                      str(self.zero_from[self.layers[0].name])]
        return " ".join(words)

    def data_device(self, layer):
        if layer.luks:
            return self.crypts[layer.name].path
        return self.loops[layer.data_name()].dev if layer.data_name() else "-"

    def _loop(self, layer, read_only):
        for name, path in zip(layer.files(), self.files(layer)):
            self.loops[name] = blk.Loop(path, read_only)
        if layer.luks:
            self._decrypt(layer, read_only)

    def _decrypt(self, layer, read_only):
        """A device over the data, as it is when the layer is attached"""
        cipher, key = luks.volume_key(luks.header_of(self.file(layer)),
                                      PASSPHRASE.encode())
        below = self.loops[layer.data_name() or layer.name].dev
        sectors = blk.sectors(below)
        self.crypts[layer.name] = blk.Dm(f"{self.dm.name}-{layer.name}")
        self.crypts[layer.name].create(
            sectors, f"{cipher} {key.hex()} 0 {below} 0", read_only,
            target="crypt")

    def open(self):
        for n, layer in enumerate(self.layers):
            self._loop(layer, n > 0)
        path = self.dm.create(self.options.length // SECTOR, self.params())
        self.zero_from = {}
        return path

    def close(self):
        self.dm.remove()
        for crypt in self.crypts.values():
            crypt.remove()
        for loop in self.loops.values():
            loop.detach()
        self.crypts, self.loops = {}, {}

    def snapshot(self):
        """Live, by loading a longer table. Returns the old top."""
        overlay = self.options.overlays[
            len(self.layers) - len(self.options.layers)]
        self.layers.insert(0, overlay)
        self._loop(overlay, False)
        self.dm.load(self.options.length // SECTOR, self.params())
        self.dm.resume()
        return self.layers[1]

    def top_json(self):
        dev = self.loops[self.layers[0].name].dev
        return "json:" + json.dumps(node(self.layers[:1], dev))


class NbdDevice:
    """The chain served by qemu-nbd: to test the test."""

    can_suspend = False

    def __init__(self, name, options, scratch):
        self.node = "/dev/nbd" + name[-1]
        self.layers = list(options.layers)
        self.scratch = scratch

    def file(self, layer):
        return os.path.join(self.scratch, layer.name)

    def files(self, layer):
        return [os.path.join(self.scratch, f) for f in layer.files()]

    def open(self):
        self.pid_file = f"{self.scratch}/pid"
        subprocess.run(["qemu-nbd", *SECRET, "-c", self.node, "--fork",
                        "--pid-file", self.pid_file, "--cache=none",
                        "--discard=unmap", *source(self.layers)],
                       cwd=self.scratch, check=True)
        with open(self.pid_file) as f:
            self.pid = int(f.read())
        for _ in range(500):
            if blk.sectors(self.node):
                return self.node
            time.sleep(0.01)
        raise RuntimeError("qemu-nbd does not start")

    def close(self):
        subprocess.run(["qemu-nbd", "-d", self.node], check=True,
                       stdout=subprocess.DEVNULL)
        # it writes its metadata after the device is gone
        while os.path.exists(f"/proc/{self.pid}"):
            time.sleep(0.01)


DEVICES = {"qcow2": Qcow2Device, "nbd": NbdDevice}


class Run:
    """One seed."""

    def __init__(self, token, args, name):
        seed = int(token.split(".")[0])
        self.args = args
        self.options = Options(seed)
        self.rng = random.Random(f"operations {seed}")
        self.share = os.path.join(args.share, token)
        self.scratch = os.path.join(args.scratch, token)
        os.mkdir(self.scratch)
        start = os.path.join(self.share, "start")
        for file in os.listdir(start):
            blk.copy_sparse(f"{start}/{file}", f"{self.scratch}/{file}")
        with open(f"{self.scratch}/model", "rb") as f:
            self.model = bytearray(f.read())
        os.unlink(f"{self.scratch}/model")
        self.chain = DEVICES[args.device](name, self.options, self.scratch)
        self.pool = concurrent.futures.ThreadPoolExecutor(4)
        self.log = []
        self.frozen = []
        self.snapshots = []
        self.checks = 0
        self.op = 0

    # The life of the device

    def open(self):
        self.dev = blk.Device(self.chain.open())
        if self.dev.size < len(self.model):
            self.model = self.model[:self.dev.size]

    def close(self):
        self.dev.close()
        self.chain.close()

    def suspended(self, action):
        """Calls action while the device is suspended."""
        self.chain.dm.suspend()
        try:
            action()
        finally:
            self.chain.dm.resume()

    def go(self):
        self.open()
        while self.op < self.args.ops:
            self.step()
        self.compare_all("at the end")
        self.close()
        self.export()
        self.pool.shutdown()

    # Choice of operations

    WEIGHTS = {"write": 50, "fua": 9, "discard": 9, "zeroout": 5, "punch": 5,
               "read": 14, "flush": 4, "suspend": 1.2, "snapshot": 1.2,
               "internal": 0.8, "reopen": 1.2, "shrink": 0.6}
    RANGED = {"write", "fua", "discard", "zeroout", "punch", "read"}

    def step(self):
        """One operation, or a few beside each other on separate sectors."""
        names, weights = zip(*self.WEIGHTS.items())
        batch, used = [], []
        for _ in range(self.rng.choice([1, 1, 1, 2, 4, 6])):
            name = self.rng.choices(names, weights)[0]
            if name not in self.RANGED:
                if not batch:
                    self.op += 1
                    self.log.append(name)
                    getattr(self, name)()
                    return
                continue
            offset, length = self.range()
            if any(offset < e and s < offset + length for s, e in used):
                continue
            used.append((offset, offset + length))
            self.op += 1
            batch.append((self.op, name, offset, length))
        self.log.append(" | ".join(f"{op} {name} {offset}+{length}"
                                   for op, name, offset, length in batch))
        for done in [self.pool.submit(self.ranged, *b) for b in batch]:
            done.result()
        # Discarded sectors may read as before or as zeroes, but not otherwise
        # and not sometimes so, sometimes so.
        for op, name, offset, length in batch:
            if name == "discard":
                self.after_discard(offset, length)

    def range(self):
        rng, size = self.rng, self.dev.size
        cluster = self.chain.layers[0].cluster_size
        kind = rng.random()
        if kind < 0.35:
            length = SECTOR * rng.randint(1, 16)
        elif kind < 0.6:
            length = SECTOR * rng.randint(1, min(2 * cluster, MIB) // SECTOR)
        elif kind < 0.75:
            length = cluster * rng.randint(1, 3 if cluster < MIB else 1)
        else:
            length = SECTOR * rng.randint(1, 512)
        length = min(length, 5 * MIB, size)
        if rng.random() < 0.3 and cluster < MIB:
            length = min(-(-length // cluster) * cluster, size)
        spot = rng.randrange(0, size - length + 1)
        if rng.random() < 0.5:
            # where the action is, and at the end
            spot = rng.choice([size // 3, size // 2, size - length])
            spot += cluster * rng.randint(-3, 3) + \
                SECTOR * rng.randint(-4, 4)
        if rng.random() < 0.4:
            spot = spot // cluster * cluster
        spot = max(0, min(spot, size - length))
        return spot // SECTOR * SECTOR, length // SECTOR * SECTOR

    # Operations on a range; these run in threads

    def ranged(self, op, name, offset, length):
        end = offset + length
        if name in ("write", "fua"):
            data = pattern(op, length)
            self.dev.write(offset, data, name == "fua")
            self.model[offset:end] = data
        elif name == "read":
            self.compare(offset, self.dev.read(offset, length), "read")
        elif name == "discard":
            self.dev.discard(offset, length)
        else:
            getattr(self.dev, name)(offset, length)
            self.model[offset:end] = bytes(length)

    def after_discard(self, offset, length):
        got = self.dev.read(offset, length)
        end = offset + length
        if got == self.model[offset:end]:
            return
        for s in range(offset, end, SECTOR):
            now = got[s - offset:s - offset + SECTOR]
            if now != self.model[s:s + SECTOR]:
                if any(now):
                    raise Mismatch(f"discarded sector at {s} has become "
                                   f"{now[:16].hex()}")
                self.model[s:s + SECTOR] = now

    # Other operations

    def flush(self):
        self.dev.flush()

    def shrink(self):
        blk.drop_caches()

    def suspend(self):
        if self.chain.can_suspend:
            self.suspended(lambda: None)

    def snapshot(self):
        used = len(self.chain.layers) - len(self.options.layers)
        if not self.chain.can_suspend or used == len(self.options.overlays):
            return
        old = self.chain.snapshot()
        self.snapshots = []
        for path in self.chain.files(old):
            blk.copy_sparse(path, os.path.join(
                self.share, f"frozen-{os.path.basename(path)}"))
        self.frozen.append(old.name)

    def internal(self):
        """An internal snapshot of the suspended device's top image."""
        top = self.chain.layers[0]
        if not self.chain.can_suspend or len(self.snapshots) == 2 or \
                top.data_name() or \
                (top.compat == "1.1" and top.refcount_bits == 1):
            return
        name = f"internal-{top.name}-{self.op}"

        def take():
            for command in (["check", "-q"], ["snapshot", "-c", name]):
                done = subprocess.run(
                    ["qemu-img", command[0], *SECRET, *command[1:],
                     self.chain.top_json()],
                    capture_output=True, text=True)
                if done.returncode:
                    raise Mismatch(f"suspended: qemu-img {command[0]}: "
                                   f"{done.stdout}{done.stderr}")

        self.suspended(take)
        self.snapshots.append(name)
        blk.save_sparse(os.path.join(self.share, name), self.model)

    def reopen(self):
        self.close()
        if self.checks < 2:
            self.export()
        self.open()
        self.compare_all("after reopening")

    # Comparing

    def compare(self, offset, got, when):
        want = self.model[offset:offset + len(got)]
        if got == want:
            return
        bad = [s for s in range(0, len(got), SECTOR)
               if got[s:s + SECTOR] != want[s:s + SECTOR]]
        s = bad[0]
        again = self.dev.read(offset, len(got))
        raise Mismatch(f"{when}: sectors {self.ranges(offset, bad)} differ: "
                       f"at {offset + s} device {got[s:s + 16].hex()}, "
                       f"model {want[s:s + 16].hex()}; read again it is "
                       f"{'right' if again == want else 'wrong'}")

    @staticmethod
    def ranges(offset, bad):
        """Runs of sectors as byte ranges."""
        out = []
        for s in bad:
            if out and out[-1][1] == offset + s:
                out[-1][1] += SECTOR
            else:
                out.append([offset + s, offset + s + SECTOR])
        return " ".join(f"{a}-{b}" for a, b in out)

    def compare_all(self, when):
        self.compare(0, self.dev.read_all(), when)

    def export(self):
        """Leaves the closed chain and the model for the host."""
        target = os.path.join(self.share, f"check{self.checks}")
        self.checks += 1
        os.mkdir(target)
        for layer in self.chain.layers:
            for path in self.chain.files(layer):
                blk.copy_sparse(path, f"{target}/{os.path.basename(path)}")
        blk.save_sparse(f"{target}/model", self.model)


def run_seed(token, args, name):
    run = None
    start = time.monotonic()
    try:
        run = Run(token, args, name)
        run.go()
        result = "ok"
    except Exception as e:
        text = str(e) if isinstance(e, Mismatch) else traceback.format_exc()
        log = "\n".join(run.log) if run else ""
        result = f"{text}\noperations:\n{log}"
    with open(os.path.join(args.share, token, "result"), "w") as f:
        f.write(result + "\n")
    print(f"# seed {token}: {result.splitlines()[0]} "
          f"({time.monotonic() - start:.1f} s)", flush=True)
    subprocess.run(["rm", "-rf", os.path.join(args.scratch, token)])
    return result == "ok"


def worker(number, args, queue):
    """Takes seeds until none is left. A device that failed may stay: go on
    beside it."""
    failures = 0
    while token := os.read(queue, TOKEN):
        name = f"diff-{failures}-{number}"
        if not run_seed(token.decode().strip(), args, name):
            failures += 1
    return failures


def queue_of(tokens):
    """A pipe from which whoever is free reads the next token."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, max(1 << 16, TOKEN * len(tokens)))
    for token in tokens:
        os.write(writer, token.encode().ljust(TOKEN))
    os.close(writer)
    return reader


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ops", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="qcow2")
    parser.add_argument("share")
    parser.add_argument("scratch")
    args = parser.parse_args()
    with open(os.path.join(args.share, "list")) as f:
        queue = queue_of(f.read().split())
    subprocess.run(["modprobe", "-a", "loop", "nbd" if args.device == "nbd"
                    else "dm_mod"], check=True)
    os.makedirs("/run/lock", exist_ok=True)  # qemu-nbd's
    children = []
    for number in range(args.jobs):
        pid = os.fork()
        if not pid:
            os._exit(1 if worker(number, args, queue) else 0)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in children]
    sys.exit(1 if any(codes) else 0)


if __name__ == "__main__":
    main()
