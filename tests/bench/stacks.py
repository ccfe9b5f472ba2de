# SPDX-License-Identifier: GPL-2.0-only
"""What is compared: ways from a RAM disk, or a file on it, to a block device.

Each stack is a context manager that gives the path to do I/O to. All begin with RAM
disks whose every page is there: a missing one costs more than the write that
brings it in, and no disk has that cost.
"""

import contextlib
import os
import random
import subprocess
import time

import blk
import fixture as fx
from fixture import KIB, MIB

SIZE = 256 * MIB            # of every device
DISK = SIZE + 64 * MIB      # image, journal of ext4
MOUNT = "/bench"
FILE = f"{MOUNT}/image"
SECTORS = SIZE // 512


@contextlib.contextmanager
def ram_disks():
    """Two, /dev/ram0 and /dev/ram1."""
    fx.run("modprobe", "brd", "rd_nr=2", f"rd_size={DISK // KIB}")
    try:
        for disk in "/dev/ram0", "/dev/ram1":
            fx.run("dd", "if=/dev/zero", f"of={disk}", "bs=1M",
                   f"count={DISK // MIB}", "oflag=direct", "status=none")
        yield
    finally:
        fx.run("rmmod", "brd")


@contextlib.contextmanager
def ram_file():
    """An ext4 on a RAM disk."""
    os.makedirs(MOUNT, exist_ok=True)
    with ram_disks():
        fx.run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "/dev/ram0")
        fx.run("mount", "/dev/ram0", MOUNT)
        try:
            yield FILE
        finally:
            fx.run("umount", MOUNT)


@contextlib.contextmanager
def mapped(name, *lines):
    """A device-mapper device; lines: of its table."""
    fx.run("dmsetup", "create", name, "--table", "\n".join(lines))
    try:
        yield f"/dev/mapper/{name}"
    finally:
        fx.run("dmsetup", "remove", "--retry", name)


@contextlib.contextmanager
def loop_on(path):
    loop = blk.Loop(path)
    try:
        yield loop.dev
    finally:
        loop.detach()


def make_file(path, full):
    """As long as the device; full: its blocks are there."""
    fx.run("truncate", "-s", str(SIZE), path)
    if full:
        fill(path)


def fill(path):
    fx.run("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={SIZE // MIB}",
           "oflag=direct", "conv=notrunc", "status=none")


@contextlib.contextmanager
def opened(path, name="image"):
    fx.run("qcow2setup", "open", path, name)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        fx.run("qcow2setup", "close", name)


def image(path, full, options=""):
    """A qcow2 image; full: with all clusters allocated."""
    words = ["preallocation=metadata"] if full else []
    words += [options] if options else []
    fx.qemu_img("create", "-q", "-f", "qcow2",
                *(["-o", ",".join(words)] if words else []), path, str(SIZE))


@contextlib.contextmanager
def brd(full):
    with ram_disks():
        yield "/dev/ram0"


@contextlib.contextmanager
def linear(full):
    with ram_disks(), mapped("linear",
                             f"0 {SECTORS} linear /dev/ram0 0") as path:
        yield path


@contextlib.contextmanager
def thin(full):
    """Blocks of 64 KiB that are not zeroed, with metadata on the second disk"""
    pool = f"0 {DISK // 512} thin-pool /dev/ram1 /dev/ram0 128 0 1 " \
        "skip_block_zeroing"
    with ram_disks(), mapped("pool", pool):
        fx.run("dmsetup", "message", "pool", "0", "create_thin 0")
        with mapped("thin", f"0 {SECTORS} thin /dev/mapper/pool 0") as path:
            if full:
                fill(path)
            yield path


@contextlib.contextmanager
def snapshot(full):
    """Chunks of 64 KiB; full: none has been copied"""
    with ram_disks(), mapped("snapshot", f"0 {SECTORS} snapshot /dev/ram0 "
                             "/dev/ram1 N 128") as path:
        yield path


@contextlib.contextmanager
def loop(full):
    with ram_file() as path:
        make_file(path, full)
        with loop_on(path) as dev:
            yield dev


@contextlib.contextmanager
def qcow2(full, options=""):
    with ram_disks():
        image("/dev/ram0", full, options)
        with opened("/dev/ram0") as path:
            if full:
                fill(path)
            yield path


def subclusters(full):
    return qcow2(full, "extended_l2=on,cluster_size=128k")


@contextlib.contextmanager
def qcow2_file(full):
    with ram_file() as file:
        image(file, full)
        with opened(file) as path:
            if full:
                fill(path)
            yield path


@contextlib.contextmanager
def linear_file(full):
    """Full: on the very file of qcow2_file(), which is laid out as images are"""
    with ram_file() as file:
        if full:
            image(file, True)
            with opened(file) as path:
                fill(path)
        else:
            make_file(file, False)
        with loop_on(file) as dev, mapped(
                "linear", f"0 {SECTORS} linear {dev} 0") as path:
            yield path


def wait_for(condition, what):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise RuntimeError(f"{what} does not come")


def size_of(path):
    try:
        with open(path, "rb") as f:
            return f.seek(0, os.SEEK_END)
    except OSError:
        return 0


@contextlib.contextmanager
def server(*command):
    """A process that runs meanwhile."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def served(file, size=SIZE):
    """By qemu-nbd"""
    fx.run("modprobe", "nbd")
    fx.run("qemu-nbd", "--cache=none", "--aio=native", "-f", "qcow2",
           "--socket=/run/qemu-nbd-bench", "-c", "/dev/nbd0", file)
    try:
        wait_for(lambda: size_of("/dev/nbd0") == size, "/dev/nbd0")
        yield "/dev/nbd0"
    finally:
        fx.run("qemu-nbd", "-d", "/dev/nbd0")
        wait_for(lambda: not os.path.exists("/sys/block/nbd0/pid"),
                 "the end of qemu-nbd")
        # It closes the image after it has disconnected.
        fx.run("killall", "-w", "qemu-nbd", ok=(0, 1))


@contextlib.contextmanager
def nbd(full):
    with ram_file() as file:
        image(file, full)
        with served(file) as path:
            if full:
                fill(path)
            yield path


def daemon(file, *export):
    return server("qemu-storage-daemon", "--blockdev",
                  "driver=file,node-name=file,cache.direct=on,aio=native,"
                  f"filename={file}", "--blockdev",
                  "driver=qcow2,node-name=image,file=file", "--export",
                  ",".join(export) + ",id=export,node-name=image,writable=on")


@contextlib.contextmanager
def fuse(full):
    fx.run("modprobe", "fuse")
    with ram_file() as file:
        image(file, full)
        with open("/run/export", "wb"):
            pass
        with daemon(file, "type=fuse", "mountpoint=/run/export"):
            wait_for(lambda: size_of("/run/export") == SIZE, "the export")
            if full:
                fill("/run/export")
            yield "/run/export"


@contextlib.contextmanager
def vduse(full):
    fx.run("modprobe", "-a", "vduse", "virtio_vdpa")
    before = set(os.listdir("/sys/block"))
    with ram_file() as file:
        image(file, full)
        with daemon(file, "type=vduse-blk", "name=bench"):
            wait_for(lambda: os.path.exists("/dev/vduse/bench"), "vduse")
            fx.run("vdpa", "dev", "add", "name", "bench", "mgmtdev", "vduse")
            try:
                new = sorted(d for d in set(os.listdir("/sys/block")) - before
                             if d.startswith("vd"))
                path = f"/dev/{new[0]}"
                wait_for(lambda: size_of(path) == SIZE, path)
                if full:
                    fill(path)
                yield path
            finally:
                fx.run("vdpa", "dev", "del", "bench")


@contextlib.contextmanager
def chain(depth):
    """A full base below so many overlays that have nothing"""
    with ram_file() as file:
        image(file, True)
        with opened(file) as path:
            fill(path)
        for n in range(1, depth + 1):
            fx.qemu_img("create", "-q", "-f", "qcow2", "-u", "-F", "qcow2",
                        "-b", file + (str(n - 1) if n > 1 else ""),
                        f"{file}{n}", str(SIZE))
        with opened(f"{file}{depth}") as path:
            yield path


TEXT = 32 * MIB     # of what is compressed


def text(path):
    """A file that compresses as text does, the same each time"""
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(1, 9)))
             for _ in range(4096)]
    with open(path, "w", encoding="ascii") as f:
        while f.tell() < TEXT:
            f.write(" ".join(rng.choices(words, k=8192)) + "\n")
        f.truncate(TEXT)


@contextlib.contextmanager
def compressed(kind):
    """A file with an image of compressed text"""
    with ram_file() as file:
        text("/run/text")
        fx.qemu_img("convert", "-c", "-O", "qcow2", "-o",
                    f"compression_type={kind}", "/run/text", file)
        os.unlink("/run/text")
        yield file


@contextlib.contextmanager
def cached_disk():
    """A disk with a write cache, which a flush has to reach"""
    fx.run("modprobe", "null_blk", "nr_devices=0")
    base = "/sys/kernel/config/nullb/bench"
    before = set(os.listdir("/sys/block"))
    os.makedirs(base)
    try:
        for key, value in (("size", DISK // MIB), ("memory_backed", 1),
                           ("cache_size", 64), ("power", 1)):
            blk.put(f"{base}/{key}", value)
        # Named by its number or, in newer kernels, as its directory
        yield "/dev/" + (set(os.listdir("/sys/block")) - before).pop()
    finally:
        os.rmdir(base)
        fx.run("rmmod", "null_blk")


@contextlib.contextmanager
def flush_linear():
    with cached_disk() as disk, mapped("linear",
                                       f"0 {SECTORS} linear {disk} 0") as path:
        yield path


@contextlib.contextmanager
def flush_qcow2():
    with cached_disk() as disk:
        image(disk, False)
        with opened(disk) as path:
            yield path


@contextlib.contextmanager
def two():
    """An image and dm-linear, one beside the other"""
    with ram_disks():
        image("/dev/ram0", True)
        with opened("/dev/ram0") as path, mapped(
                "linear", f"0 {SECTORS} linear /dev/ram1 0") as other:
            fill(path)
            yield {"dm-linear": other, "dm-qcow2": path}
