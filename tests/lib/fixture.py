# SPDX-License-Identifier: GPL-2.0-only
"""For VM tests in Python: scratch space, images, and chains opened by hand."""

import contextlib
import os
import re
import shutil
import struct
import subprocess

import blk
import ktap

SCRATCH = "/scratch"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def prepare():
    """An ext4 on the first disk, as tests/vm/lib.sh makes it."""
    subprocess.run(["modprobe", "-a", "loop", "dm_mod"], check=True)
    os.makedirs(SCRATCH, exist_ok=True)
    if not os.path.ismount(SCRATCH):
        run("mkfs.ext4", "-q", "-F", "/dev/vda")
        run("mount", "-o", "discard", "/dev/vda", SCRATCH)
    os.chdir(SCRATCH)


def after_each():
    """Nothing may be left of a test."""
    left = run("dmsetup", "ls").split("\n") if os.path.exists(
        "/dev/mapper/control") and _dm_devices() else []
    loops = [d for d in os.listdir("/sys/block")
             if os.path.exists(f"/sys/block/{d}/loop")]
    for entry in os.listdir(SCRATCH):
        path = os.path.join(SCRATCH, entry)
        if entry != "lost+found":
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    ktap.check(not left, f"device-mapper devices left: {left}")
    ktap.check(not loops, f"loop devices left: {loops}")


def _dm_devices():
    return [d for d in os.listdir("/sys/block") if d.startswith("dm-")]


def run(*command, ok=(0,)):
    done = subprocess.run(command, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode not in ok:
        raise ktap.Failure(f"{' '.join(command)}: exit {done.returncode}: "
                           f"{done.stdout}")
    return done.stdout


def qemu_img(*args, ok=(0,)):
    return run("qemu-img", *args, ok=ok)


def create(name, size, backing=None, fmt="qcow2", **options):
    """A qcow2 image; its length is made a whole number of sectors."""
    args = ["create", "-q", "-f", "qcow2"]
    if options:
        args += ["-o", ",".join(f"{k}={v}" for k, v in options.items())]
    if backing:
        args += ["-u", "-b", backing, "-F", fmt]
    qemu_img(*args, name, str(size))
    pad(name)
    return name


def pad(name):
    os.truncate(name, -(-os.path.getsize(name) // 512) * 512)


def grow(name, length):
    """A file can become as long as its image needs."""
    if os.path.getsize(name) < length:
        os.truncate(name, length)


def qemu_io(name, *commands, fmt="qcow2"):
    args = ["qemu-io", "-f", fmt, "-d", "unmap"]
    for command in commands:
        args += ["-c", command]
    out = run(*args, name)
    ktap.check("failed" not in out, out)


def content(name, fmt="qcow2", snapshot=None):
    """What QEMU reads of an image."""
    source = ["-f", fmt] + (["-l", f"snapshot.name={snapshot}"]
                            if snapshot else [])
    qemu_img("convert", *source, "-O", "raw", name, "content.raw")
    with open("content.raw", "rb") as f:
        data = f.read()
    os.unlink("content.raw")
    return data


def check(name):
    """No errors, no leaks."""
    qemu_img("check", "-f", "qcow2", name)


def file_bytes(name):
    with open(name, "rb") as f:
        return f.read()


def poke(name, offset, fmt, value):
    """Changes a big-endian number in a file; fmt: as of struct."""
    with open(name, "r+b") as f:
        f.seek(offset)
        f.write(struct.pack(">" + fmt, value))


def peek(name, offset, fmt):
    with open(name, "rb") as f:
        f.seek(offset)
        return struct.unpack(">" + fmt, f.read(struct.calcsize(fmt)))[0]


def entry_at(name, guest):
    """Where the L2 entry of a guest offset is, and the entry; the bitmap of an
    extended one is behind it."""
    bits = peek(name, 20, "I")
    extended = peek(name, 4, "I") > 2 and peek(name, 72, "Q") & 16
    table_bits = bits - (4 if extended else 3)
    index = guest >> bits
    table = peek(name, peek(name, 40, "Q") + (index >> table_bits) * 8, "Q")
    where = (table & (1 << 56) - 512) + \
        (index & (1 << table_bits) - 1) * (16 if extended else 8)
    return where, peek(name, where, "Q")


def set_refcount(name, host, count):
    """Of 16 bits, counted by the first refcount block."""
    cluster = host >> peek(name, 20, "I")
    block = peek(name, peek(name, 48, "Q"), "Q")
    poke(name, block + 2 * cluster, "H", count)


class Stacked:
    """A loop device with another device over it, in place of which it can stand;
    line: target and parameters, where {} is the loop device."""

    number = 0

    def __init__(self, path, line="linear {} 0", **loop):
        Stacked.number += 1
        self.loop = blk.Loop(path, **loop)
        self.dm = blk.Dm(f"stacked{Stacked.number}")
        self.sectors = os.path.getsize(path) // 512
        target, params = line.format(self.loop.dev).split(" ", 1)
        try:
            self.dev = self.dm.create(self.sectors, params,
                                      loop.get("read_only", False), target)
        except BaseException:
            self.loop.detach()
            raise

    def reload(self, bad=None):
        """A linear one; bad: sectors that fail, (first, behind the last)"""
        first, end = bad or (self.sectors, self.sectors)
        lines = [(first, "linear", f"{self.loop.dev} 0"),
                 (end - first, "error", ""),
                 (self.sectors - end, "linear", f"{self.loop.dev} {end}")]
        self.dm.load_table([line for line in lines if line[0]])
        self.dm.resume()

    def detach(self):
        self.dm.remove()
        self.loop.detach()


class Chain:
    """A chain opened with a table made by hand; layers: (format, file), or
    (format, file, data file)."""

    counter = 0

    def __init__(self, layers, length, features=(), read_only=False):
        Chain.counter += 1
        self.layers = layers
        self.length = length
        self.features = list(features)
        self.read_only = read_only
        self.loops = {}
        self.dm = blk.Dm(f"test{Chain.counter}")
        self.dev = None

    def attach(self):
        for n, (_, *paths) in enumerate(self.layers):
            for path in paths:
                if path not in self.loops:
                    self.loops[path] = blk.Loop(path, n > 0 or self.read_only)

    def params(self):
        words = [str(len(self.layers))]
        for fmt, path, *data in self.layers:
            words += [fmt, self.loops[path].dev,
                      self.loops[data[0]].dev if data else "-"]
        if self.features:
            words += [str(len(self.features))] + self.features
        return " ".join(words)

    def open(self):
        try:
            self.attach()
            path = self.dm.create(self.length // 512, self.params(),
                                  self.read_only)
        except BaseException:
            self.detach()
            raise
        flags = os.O_RDONLY if self.read_only else os.O_RDWR
        self.dev = blk.Device(path, flags)
        return self.dev

    def close(self):
        if self.dev:
            self.dev.close()
            self.dev = None
        self.dm.remove()
        self.detach()

    def detach(self):
        for loop in self.loops.values():
            loop.detach()
        self.loops = {}

    def reload(self):
        """Loads the present layers' table and swaps."""
        self.attach()
        self.dm.load(self.length // 512, self.params(), self.read_only)
        self.dm.resume()

    def status(self):
        return self.dm.status().split()


@contextlib.contextmanager
def opened(layers, length, features=(), read_only=False, room=None):
    """Opens a chain and gives (chain, device)."""
    if not read_only and layers[0][0] == "qcow2":
        grow(layers[0][1], room or 2 * length + 16 * MIB)
    chain = Chain(layers, length, features, read_only)
    try:
        yield chain, chain.open()
    finally:
        if chain.loops:
            chain.close()


@contextlib.contextmanager
def opened_over_crypt(size, block=0):
    """A raw base below dm-crypt under an empty image; block: bytes of a logical
    block of the loop devices. Gives the base's device, what it reads, and the
    device of the chain."""
    with open("base", "wb") as f:
        f.write(pattern("base", size))
    create("top", size, backing="base", fmt="raw")
    grow("top", 16 * MIB)
    key = bytes(range(64)).hex()
    base = Stacked("base", f"crypt aes-xts-plain64 {key} 0 {{}} 0",
                   read_only=True, block=block)
    chain = Chain([("qcow2", "top"), ("raw", "base")], size)
    chain.loops = {"base": base, "top": blk.Loop("top", block=block)}
    below = blk.Device(base.dev, os.O_RDONLY)
    want = below.read_all()
    below.close()
    dev = chain.open()
    try:
        yield base.dev, want, dev
    finally:
        chain.close()


@contextlib.contextmanager
def metadata_limit(kib):
    """The module's, for all images together"""
    path = "/sys/module/dm_qcow2/parameters/metadata_limit_kib"
    old = blk.get(path)
    blk.put(path, kib)
    try:
        yield
    finally:
        blk.put(path, old)


_log_mark = [0]


def kernel_log():
    """Kernel messages since the last call."""
    lines = run("dmesg").splitlines()
    new = lines[_log_mark[0]:]
    _log_mark[0] = len(lines)
    return "\n".join(new)


def pattern(tag, length):
    """Contents that differ from sector to sector."""
    n = length // 512
    out = bytearray((b"%-8s" % tag.encode()[:8] + bytes(8)) * (length // 16))
    out[8::512] = bytes(s & 255 for s in range(n))
    out[9::512] = bytes(s >> 8 & 255 for s in range(n))
    return bytes(out)


def change_one(dev, model, kind, at, length):
    """Writes to the device, zeroes or discards, and what the model says then."""
    if kind == "write":
        data = pattern(f"w{at}", length)
        dev.write(at, data)
    else:
        data = bytes(length)
        getattr(dev, kind)(at, length)
        # A discard promises nothing.
        if kind == "discard":
            data = _discarded(model[at:at + length], dev.read(at, length))
    model[at:at + length] = data


def _discarded(old, new):
    """What is read then: every sector as before, or zeroes."""
    for n in range(0, len(new), 512):
        sector = new[n:n + 512]
        ktap.check(sector in (old[n:n + 512], bytes(512)),
                   f"a discard made {bytes(sector[:16])}")
    return new


def refused(layers, length, message, features=(), read_only=False):
    """The chain does not open and the kernel log matches message."""
    kernel_log()
    try:
        with opened(layers, length, features, read_only):
            pass
    except OSError:
        log = kernel_log()
        ktap.check(re.search(message, log, re.I),
                   f"no {message!r} in the kernel log:\n{log}")
        return
    raise ktap.Failure("it was opened")


def main():
    ktap.main(prepare, after_each=after_each)
