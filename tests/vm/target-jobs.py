#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What the chain operations ask of the target: mirror, populate, relink, grow."""

import contextlib
import errno
import os
import random
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB  # noqa: E402
from guest import Guest  # noqa: E402

SUBCLUSTERS = {"cluster_size": 128 * KIB, "extended_l2": "on"}


@contextlib.contextmanager
def destination(chain, first, features=("yield", "error_if_no_space"),
                length=None, backing=None):
    """A second device, writable, over layers of a chain."""
    layers = chain.layers[first:first + 1] + \
        (chain.layers[first + 1:] if backing is None else backing)
    words = [str(len(layers))]
    for fmt, path in layers:
        words += [fmt, chain.loops[path].dev, "-"]
    words += [str(len(features)), *features]
    dm = blk.Dm(chain.dm.name + "-d")
    path = dm.create((length or chain.length) // 512, " ".join(words))
    dev = blk.Device(path)
    try:
        yield dm, dev
    finally:
        dev.close()
        dm.remove()


def work(dm, verb, sectors, rest):
    """Repeats a message over the whole device; returns sectors copied."""
    pos = copied = 0
    while pos < sectors:
        done, n = map(int, dm.message(
            f"{verb} {pos} {sectors - pos} {rest}").split())
        pos += done
        copied += n
    return copied


def in_threads(dm, verb, sectors, rest, threads=3):
    """The same by several at once, each with a share."""
    errors = []

    def share(start, end):
        try:
            while start < end:
                start += int(dm.message(
                    f"{verb} {start} {end - start} {rest}").split()[0])
        except Exception as e:
            errors.append(e)

    step = -(-sectors // threads)
    team = [threading.Thread(target=share, args=(n, min(n + step, sectors)))
            for n in range(0, sectors, step)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    if errors:
        raise errors[0]


def raw(name, size, tag):
    data = fx.pattern(tag, size)
    with open(name, "wb") as f:
        f.write(data)
    return bytearray(data)


def scatter(name, size, tag, count=12):
    """Random contents in a qcow2 image, by QEMU."""
    rng = random.Random(tag)
    commands = []
    for _ in range(count):
        length = rng.randint(1, min(size // 512, 300)) * 512
        offset = rng.randint(0, (size - length) // 512) * 512
        kind = rng.choice(["write -P %d" % rng.randint(1, 255)] * 3 +
                          ["write -z"])
        commands.append(f"{kind} {offset} {length}")
    fx.qemu_io(name, *commands)
    fx.pad(name)


def attach_writable(chain, index):
    """The layer's loop device becomes a writable one."""
    path = chain.layers[index][1]
    fx.grow(path, 4 * chain.length + 64 * MIB)
    chain.loops[path] = blk.Loop(path)


# The active image, committed

def commit_active(size, top, bottom):
    """A chain of two; the guest writes on through all of it."""
    chain_layers = [("qcow2", "top"),
                    ("raw" if bottom is None else "qcow2", "base")]
    if bottom is None:
        raw("base", size, "base")
    else:
        fx.create("base", size, **bottom)
        scatter("base", size, "base")
    fx.create("top", size, backing="base", fmt=chain_layers[1][0], **top)
    scatter("top", size, "top")
    model = bytearray(fx.content("top"))
    fx.grow("top", 4 * size + 64 * MIB)
    chain = fx.Chain(chain_layers, size)
    attach_writable(chain, 1)
    dev = chain.open()
    guest = Guest(dev, model, str(top))
    try:
        guest.start()
        with destination(chain, 1) as (_, mirror):
            chain.features = ["mirror", mirror.path]
            chain.reload()
            in_threads(chain.dm, "copy", size // 512, "1")
            time.sleep(0.3)
            mirror.flush()
            chain.dm.message("final")
            chain.features = []
            chain.layers = chain_layers[1:]
            chain.reload()
            time.sleep(0.3)
        guest.stop()
        ktap.note(f"{guest.count} guest operations")
        ktap.same_bytes(dev.read_all(), bytes(model), "after the pivot")
    finally:
        guest.done = True
        guest.join()
        chain.close()
    if bottom is not None:
        fx.check("base")
    ktap.same_bytes(fx.content("base", chain_layers[1][0])[:size],
                    bytes(model), "as QEMU reads the base")
    # Who opens the old name after a crash finds the same.
    ktap.same_bytes(fx.content("top"), bytes(model), "as QEMU reads the top")
    fx.qemu_img("check", "top", ok=(3,))


for top, bottom in (({"cluster_size": 65536}, {"cluster_size": 65536}),
                    ({"cluster_size": 512}, {"cluster_size": 65536}),
                    ({"cluster_size": 65536}, {"cluster_size": 512}),
                    ({"cluster_size": 4096, "compat": "0.10"},
                     {"cluster_size": 2097152, "compat": "0.10"}),
                    ({"cluster_size": 65536}, None),
                    (SUBCLUSTERS, {"cluster_size": 65536}),
                    ({"cluster_size": 512}, SUBCLUSTERS)):
    ktap.case(f"commit of the active image: {top} into {bottom or 'raw'}",
              commit_active, 6 * MIB + 1536, top, bottom)


def numbers(path):
    """major:minor of a device"""
    dev = os.stat(path).st_rdev
    return f"{os.major(dev)}:{os.minor(dev)}"


@ktap.test
def the_mirror_is_a_layer_itself():
    size = 2 * MIB
    raw("base", size, "base")
    fx.create("top", size, backing="base", fmt="raw")
    scatter("top", size, "top")
    model = fx.content("top")
    fx.grow("top", 16 * MIB)
    chain = fx.Chain([("qcow2", "top"), ("raw", "base")], size)
    loop = blk.Loop("base")
    chain.loops["base"] = loop
    dev = chain.open()
    try:
        chain.features = ["mirror", loop.dev]
        chain.reload()
        # dm has opened it for reading, then for writing.
        words = chain.dm.table().split()
        ktap.equal(words[4:6], ["raw", numbers(loop.dev)], "the layer")
        ktap.equal(words[-2:], ["mirror", numbers(loop.dev)], "the mirror")
        in_threads(chain.dm, "copy", size // 512, "1")
        chain.dm.message("final")
        chain.features = []
        chain.layers = chain.layers[1:]
        chain.reload()
        ktap.same_bytes(dev.read_all(), model, "after the pivot")
    finally:
        chain.close()
    ktap.same_bytes(fx.content("base", "raw"), model, "the raw image")


@ktap.test
def both_ends_agree_on_overlapping_writes():
    size = 2 * MIB
    raw("base", size, "base")
    fx.create("top", size, backing="base", fmt="raw")
    with fx.opened([("qcow2", "top"), ("raw", "base")], size) as (chain, dev):
        raw("copy", size, "copy")
        chain.loops["copy"] = blk.Loop("copy")
        chain.features = ["mirror", chain.loops["copy"].dev]
        chain.reload()
        # all of them in the same few sectors
        guests = [Guest(dev, bytearray(64 * KIB), f"{n}", n % 2)
                  for n in range(4)]
        for guest in guests:
            guest.one = lambda g=guest: overlapping(g)
            guest.start()
        for _ in range(20):
            in_threads(chain.dm, "copy", size // 512, "2")
        for guest in guests:
            guest.stop()
        have = dev.read_all()
        chain.features = []
        chain.reload()
    ktap.same_bytes(fx.file_bytes("copy"), bytes(have), "the mirror")


def overlapping(guest):
    length = guest.rng.choice([1, 8, 16, 100]) * 512
    offset = guest.rng.randint(0, (64 * KIB - length) // 512) * 512
    if guest.zeroes and guest.rng.random() < 0.3:
        guest.dev.punch(offset, length)
    else:
        guest.dev.write(offset, fx.pattern(
            f"{guest.rng.random()}"[2:10], length))


@ktap.test
def a_mirror_that_fails():
    size = 4 * MIB
    fx.create("top", size)
    with open("copy", "wb") as f:
        os.truncate("copy", size)
    with fx.opened([("qcow2", "top")], size) as (chain, dev):
        loop = chain.loops["copy"] = blk.Loop("copy")
        bad = blk.Dm("bad")
        path = bad.create(size // 512, f"{loop.dev} 0", target="linear")
        chain.features = ["mirror", path]
        chain.reload()
        dev.write(0, fx.pattern("one", 64 * KIB))
        ktap.equal(chain.status()[-1], "mirror", "status")
        bad.load(size // 512, "", target="error")
        bad.resume()
        events = chain.dm.event_nr()
        dev.write(64 * KIB, fx.pattern("two", 64 * KIB))
        dev.write(0, fx.pattern("three", 4 * KIB))
        ktap.equal(chain.status()[-1], "mirror_failed", "status")
        time.sleep(0.5)
        ktap.check(chain.dm.event_nr() > events, "no dm event")
        refused(lambda: chain.dm.message("final"), errno.EINVAL)
        refused(lambda: chain.dm.message("final keep"), errno.EIO)
        refused(lambda: work(chain.dm, "copy", size // 512, "1"), errno.EIO)
        # A new table with the mirror, repaired
        bad.load(size // 512, f"{loop.dev} 0", target="linear")
        bad.resume()
        chain.reload()
        work(chain.dm, "copy", size // 512, "1")
        chain.dm.message("final keep")
        # From here on the guest hears of it
        bad.load(size // 512, "", target="error")
        bad.resume()
        try:
            dev.write(128 * KIB, bytes(512))
            raise ktap.Failure("a write that the mirror lacks succeeded")
        except OSError as e:
            ktap.equal(e.errno, errno.EIO, "errno")
        chain.features = []
        chain.reload()
        bad.remove()
    ktap.same_bytes(fx.file_bytes("copy")[:128 * KIB],
                    fx.content("top")[:128 * KIB], "the mirror")


def refused(call, code):
    try:
        call()
    except OSError as e:
        ktap.equal(e.errno, code, "errno")
        return
    raise ktap.Failure("was not refused")


@ktap.test
def a_mirror_that_has_failed_cannot_end():
    """The empty L1 table that the top image was to get is given back."""
    size = 4 * MIB
    raw("base", size, "base")
    fx.create("top", size, backing="base", fmt="raw")
    with open("copy", "wb") as f:
        os.truncate("copy", size)
    with fx.opened([("qcow2", "top"), ("raw", "base")], size) as (chain, dev):
        loop = chain.loops["copy"] = blk.Loop("copy")
        bad = blk.Dm("bad")
        path = bad.create(size // 512, f"{loop.dev} 0", target="linear")
        chain.features = ["mirror", path]
        chain.reload()
        work(chain.dm, "copy", size // 512, "1")
        bad.load(size // 512, "", target="error")
        bad.resume()
        dev.write(0, fx.pattern("one", 64 * KIB))
        refused(lambda: chain.dm.message("final"), errno.EIO)
        chain.features = []
        chain.reload()
        bad.remove()
    fx.check("top")


@ktap.test
def the_end_of_a_mirror_where_all_has_been_in_use():
    """There is space for the empty L1 table, but not behind the last cluster."""
    size = 4 * MIB
    raw("base", size, "base")
    fx.create("top", size, backing="base", fmt="raw")
    # Header, refcount table and block, L1 and L2 table, all data
    room = (5 + 64) * 64 * KIB
    with fx.opened([("qcow2", "top"), ("raw", "base")], size,
                   ["error_if_no_space"], room=room) as (chain, dev):
        old = chain.loops["base"]
        attach_writable(chain, 1)
        chain.reload()
        old.detach()
        for at in range(0, size, MIB):
            dev.write(at, fx.pattern(f"t{at}", MIB))
        dev.punch(0, MIB)
        dev.flush()
        with destination(chain, 1) as (_, mirror):
            chain.features = ["mirror", mirror.path]
            chain.reload()
            work(chain.dm, "copy", size // 512, "1")
            mirror.flush()
            chain.dm.message("final")
            chain.features = []
            chain.layers = chain.layers[1:]
            chain.reload()
    ktap.same_bytes(fx.file_bytes("base")[:size], bytes(MIB) + b"".join(
        fx.pattern(f"t{at}", MIB) for at in range(MIB, size, MIB)), "the base")


@ktap.test
def a_writer_that_does_not_yield_keeps_the_image():
    size = 4 * MIB
    fx.create("base", size)
    fx.create("top", size, backing="base")
    with fx.opened([("qcow2", "top"), ("qcow2", "base")], size) as (chain, _):
        old = chain.loops["base"]
        attach_writable(chain, 1)
        chain.reload()
        old.detach()
        with destination(chain, 1, ["error_if_no_space"]) as (_, dev):
            dev.write(0, fx.pattern("d", 4 * KIB))
            other = blk.Dm("other")
            refused(lambda: other.create(
                size // 512, f"1 qcow2 {chain.loops['base'].dev} -"),
                errno.EBUSY)
            dev.write(4 * KIB, fx.pattern("e", 4 * KIB))


@ktap.test
def what_was_taken_over_is_written_no_more():
    size = 4 * MIB
    fx.create("base", size)
    fx.grow("base", 32 * MIB)
    loop = blk.Loop("base")
    first, second = blk.Dm("first"), blk.Dm("second")
    a = blk.Device(first.create(size // 512,
                                f"1 qcow2 {loop.dev} - 1 yield"))
    a.write(0, fx.pattern("a", 64 * KIB))
    b = blk.Device(second.create(size // 512, f"1 qcow2 {loop.dev} -"))
    refused(lambda: a.write(0, bytes(4096)), errno.EIO)
    b.write(64 * KIB, fx.pattern("b", 64 * KIB))
    ktap.equal(first.status().split()[0], "ro", "status")
    a.close()
    first.remove()
    b.write(128 * KIB, fx.pattern("c", 64 * KIB))
    b.close()
    second.remove()
    loop.detach()
    fx.check("base")
    ktap.same_bytes(fx.content("base")[:192 * KIB],
                    fx.pattern("a", 64 * KIB) + fx.pattern("b", 64 * KIB) +
                    fx.pattern("c", 64 * KIB), "contents")


@ktap.test
def what_was_taken_over_is_not_taken_back():
    """Suspended and resumed, the first one reads; the second goes on writing."""
    size = 4 * MIB
    fx.create("base", size)
    fx.grow("base", 32 * MIB)
    loop = blk.Loop("base")
    line = f"1 qcow2 {loop.dev} - 1 yield"
    first, second = blk.Dm("first"), blk.Dm("second")
    first.create(size // 512, line)
    b = blk.Device(second.create(size // 512, line))
    first.suspend()
    first.resume()
    ktap.equal([dm.status().split()[0] for dm in (first, second)],
               ["ro", "rw"], "status")
    b.write(0, fx.pattern("b", 64 * KIB))
    first.remove()
    b.write(64 * KIB, fx.pattern("c", 64 * KIB))
    b.close()
    second.remove()
    loop.detach()
    fx.check("base")
    ktap.same_bytes(fx.content("base")[:128 * KIB], fx.pattern("b", 64 * KIB) +
                    fx.pattern("c", 64 * KIB), "contents")


def retiring_and_taken_over(early):
    """What another device writes by now does not become an empty overlay."""
    size = 4 * MIB
    fx.create("base", size)
    fx.create("top", size, backing="base")
    with open("copy", "wb") as f:
        os.truncate("copy", size)
    layers = [("qcow2", "top"), ("qcow2", "base")]
    with fx.opened(layers, size) as (chain, dev):
        chain.loops["copy"] = blk.Loop("copy")
        chain.features = ["yield", "mirror", chain.loops["copy"].dev]
        chain.reload()
        dev.write(0, fx.pattern("a", 64 * KIB))
        work(chain.dm, "copy", size // 512, "1")
        if early:
            chain.dm.message("final")
        with destination(chain, 0) as (_, other):
            if not early:
                refused(lambda: chain.dm.message("final"), errno.EROFS)
            other.write(64 * KIB, fx.pattern("b", 64 * KIB))
            chain.dm.suspend()
            chain.dm.resume()
            other.write(128 * KIB, fx.pattern("c", 64 * KIB))
            other.flush()
    fx.check("top")
    ktap.same_bytes(fx.content("top")[:192 * KIB],
                    fx.pattern("a", 64 * KIB) + fx.pattern("b", 64 * KIB) +
                    fx.pattern("c", 64 * KIB), "contents")


@ktap.test
def one_that_was_to_retire_is_taken_over():
    retiring_and_taken_over(True)


@ktap.test
def one_that_was_taken_over_does_not_retire():
    retiring_and_taken_over(False)


# Pull into the active image

def populate(size, top, middle, middle_size, zeroes):
    raw("base", size + MIB, "base")
    fx.create("middle", middle_size, backing="base", fmt="raw", **middle)
    scatter("middle", middle_size, "middle", 20)
    fx.create("top", size, backing="middle", **top)
    scatter("top", size, "top", 4)
    model = bytearray(fx.content("top"))
    layers = [("qcow2", "top"), ("qcow2", "middle"), ("raw", "base")]
    with fx.opened(layers, size, ["explicit_zeroes"]) as (chain, dev):
        guest = Guest(dev, model, str(top))
        guest.start()
        in_threads(chain.dm, "populate", size // 512, "2" + zeroes)
        chain.dm.message("backing raw base")
        chain.layers = [layers[0], layers[2]]
        chain.features = []
        chain.reload()
        time.sleep(0.2)
        guest.stop()
        ktap.note(f"{guest.count} guest operations")
        ktap.same_bytes(dev.read_all(), bytes(model), "after the pivot")
    os.unlink("middle")
    fx.check("top")
    ktap.same_bytes(fx.content("top"), bytes(model), "as QEMU reads it")


for top, middle, length, zeroes in (
        ({"cluster_size": 65536}, {"cluster_size": 65536}, 6 * MIB, ""),
        ({"cluster_size": 512}, {"cluster_size": 65536}, 3 * MIB, ""),
        ({"cluster_size": 65536}, {"cluster_size": 512}, 3 * MIB + 512, ""),
        ({"cluster_size": 65536, "compat": "0.10"}, {"cluster_size": 4096},
         3 * MIB, ""),
        ({"cluster_size": 4096}, {"cluster_size": 65536}, 5 * MIB,
         " zeroes"),
        (SUBCLUSTERS, {"cluster_size": 4096}, 3 * MIB + 512, ""),
        (SUBCLUSTERS, SUBCLUSTERS, 4 * MIB, " zeroes")):
    ktap.case(f"populate: {top} from {middle} of {length}{zeroes}", populate,
              5 * MIB + 512, top, middle, length, zeroes)


@ktap.test
def another_chain_below():
    """Zeroes that nobody owns hide what the new chain has there."""
    size = 4 * MIB
    fx.create("base", 3 * MIB)
    scatter("base", 3 * MIB, "base", 6)
    raw("other", size, "other")
    fx.create("top", size, backing="base")
    scatter("top", size, "top", 4)
    want = fx.content("top")
    with fx.opened([("qcow2", "top"), ("qcow2", "base")], size,
                   ["explicit_zeroes"]) as (chain, dev):
        work(chain.dm, "populate", size // 512, "2 zeroes")
        chain.dm.message("backing raw other")
        chain.layers = [chain.layers[0], ("raw", "other")]
        chain.features = []
        chain.reload()
        ktap.same_bytes(dev.read_all(), want, "after the pivot")
    fx.check("top")
    ktap.same_bytes(fx.content("top"), want, "as QEMU reads it")


@ktap.test
def flatten():
    size = 4 * MIB
    raw("base", 3 * MIB, "base")
    fx.create("top", size, backing="base", fmt="raw")
    scatter("top", size, "top")
    want = fx.content("top")
    with fx.opened([("qcow2", "top"), ("raw", "base")], size,
                   ["explicit_zeroes"]) as (chain, dev):
        refused(lambda: chain.dm.message("populate 0 8 3"), errno.EINVAL)
        refused(lambda: chain.dm.message("populate 8 99999999 2"),
                errno.EINVAL)
        work(chain.dm, "populate", size // 512, "2")
        chain.dm.message("backing none")
        chain.layers = chain.layers[:1]
        chain.features = []
        chain.reload()
        ktap.same_bytes(dev.read_all(), want, "after the pivot")
    os.unlink("base")
    fx.check("top")
    ktap.same_bytes(fx.content("top"), want, "as QEMU reads it")
    ktap.check("backing" not in fx.qemu_img("info", "top"), "a backing file")


# Growing

def grow(size, old, options, below):
    """Longer, over a base that has something there."""
    raw("base", below, "base")
    fx.create("image", old, backing="base", fmt="raw", **options)
    scatter("image", old, "image")
    want = fx.content("image") + bytes(size - old)
    layers = [("qcow2", "image"), ("raw", "base")]
    # Not finished: nothing has happened.
    with fx.opened(layers, size, ["grow"], room=32 * MIB) as (chain, dev):
        dev.write(size - 4096, fx.pattern("lost", 4096))
    fx.check("image")
    ktap.same_bytes(fx.content("image"), want[:old], "unfinished")
    with fx.opened(layers, size, ["grow"], room=32 * MIB) as (chain, dev):
        dev.punch(old, size - old)
        chain.dm.message("resize")
        ktap.same_bytes(dev.read_all(), want, "device")
        dev.write(size - 4096, fx.pattern("new", 4096))
    fx.check("image")
    ktap.same_bytes(fx.content("image"),
                    want[:size - 4096] + fx.pattern("new", 4096), "QEMU")


for options in ({"cluster_size": 512}, {"cluster_size": 4096},
                {"cluster_size": 65536}, {"cluster_size": 65536,
                                          "compat": "0.10"},
                {"cluster_size": 512, "refcount_bits": 64}, SUBCLUSTERS):
    ktap.case(f"grow: {options}", grow, 8 * MIB + 512, MIB + 1024, options,
              6 * MIB)


@ktap.test
def readers_of_what_grows():
    """Until its new part is zeroes they have the size that it had."""
    size = 2 * MIB
    raw("base", size, "base")
    fx.create("middle", MIB, backing="base", fmt="raw")
    fx.create("top", size, backing="middle")
    want = fx.content("top")
    with fx.opened([("qcow2", "top"), ("qcow2", "middle"), ("raw", "base")],
                   size) as (chain, dev):
        old = chain.loops["middle"]
        attach_writable(chain, 1)
        chain.reload()
        old.detach()
        with destination(chain, 1, ["yield", "grow"], size) as (dm, job):
            chain.dm.suspend()
            chain.dm.resume()
            ktap.same_bytes(dev.read_all(), want, "while it grows")
            job.punch(MIB, MIB)
            dm.message("resize")
            chain.dm.suspend()
            chain.dm.resume()
            ktap.same_bytes(dev.read_all(), want, "afterwards")


@ktap.test
def grow_of_a_raw_data_file():
    """What is behind the image on the data device is no part of it."""
    fx.qemu_img("create", "-q", "-f", "qcow2", "-o",
                "data_file=data,data_file_raw=on", "image", str(MIB))
    fx.qemu_io("image", "write -P 3 0 1M")
    with open("data", "ab") as f:
        f.write(fx.pattern("left", MIB))
    fx.pad("image")
    want = b"\3" * MIB + bytes(MIB)
    with fx.opened([("qcow2", "image", "data")], 2 * MIB, ["grow"],
                   room=MIB) as (chain, dev):
        dev.punch(MIB, MIB)
        chain.dm.message("resize")
        ktap.same_bytes(dev.read_all(), want, "device")
    ktap.same_bytes(fx.file_bytes("data"), want, "the data file")
    ktap.same_bytes(fx.content("image"), want, "QEMU")
    fx.check("image")


def header_size(path):
    with open(path, "rb") as f:
        return int.from_bytes(f.read(32)[24:], "big")


def extend_live(chain, size):
    chain.length = size
    chain.features = ["extend"]
    chain.reload()


def extend(size, old, options):
    """Longer at one blow, and to last. What was there before the image became
    shorter is gone."""
    raw("base", old, "base")
    fx.create("image", size, backing="base", fmt="raw", **options)
    fx.qemu_io("image", f"write -P 9 {old - 4096} 64k")
    fx.qemu_img("resize", "--shrink", "image", str(old))
    fx.pad("image")
    scatter("image", old, "image")
    want = bytearray(fx.content("image") + bytes(size - old))
    first, last = fx.pattern("first", 4096), fx.pattern("last", 4096)
    with fx.opened([("qcow2", "image"), ("raw", "base")], old,
                   room=32 * MIB) as (chain, dev):
        dev.write(0, first)
        extend_live(chain, size)
        ktap.equal(header_size("image"), size, "size in the header")
        longer = blk.Device(dev.path)
        want[:4096] = first
        ktap.equal(longer.size, size, "size of the device")
        ktap.same_bytes(longer.read_all(), want, "device")
        longer.write(size - 4096, last)
        longer.close()
        # Once is enough; what is longer stays so.
        chain.reload()
    want[-4096:] = last
    fx.check("image")
    ktap.same_bytes(fx.content("image"), want, "QEMU")


for options in ({"cluster_size": 512}, {"cluster_size": 65536},
                {"cluster_size": 2 * MIB},
                {"cluster_size": 65536, "compat": "0.10"}):
    ktap.case(f"extend: {options}", extend, 8 * MIB, MIB + 1024, options)


@ktap.test
def extend_with_refcount_blocks_in_between():
    """The L1 table takes more clusters than a refcount block counts, and some of
    the blocks behind the end are there already."""
    size, old = 192 * MIB, MIB
    fx.create("image", old, cluster_size=512, refcount_bits=64)
    fx.qemu_io("image", "write -P 1 0 1M")
    fx.qemu_img("resize", "image", "64M")
    fx.qemu_io("image", "write -P 2 1M 512k", "discard 1M 512k")
    fx.qemu_img("resize", "--shrink", "image", str(old))
    fx.pad("image")
    with fx.opened([("qcow2", "image")], old, room=64 * MIB) as (chain, dev):
        extend_live(chain, size)
        dev.write(0, b"\3" * 4096)
    ktap.equal(header_size("image"), size, "size in the header")
    ktap.same_bytes(fx.content("image")[:2 * MIB], b"\3" * 4096 +
                    b"\1" * (MIB - 4096) + bytes(MIB), "contents")
    fx.check("image")


def extend_refused(prepare, below):
    """The device goes on with the table it had."""
    old = MIB + 1024
    raw("base", below, "base")
    fx.create("image", old, backing="base", fmt="raw")
    prepare()
    fx.pad("image")
    want = fx.content("image")
    with fx.opened([("qcow2", "image"), ("raw", "base")], old,
                   room=32 * MIB) as (chain, dev):
        refused(lambda: extend_live(chain, 4 * MIB), errno.EOPNOTSUPP)
        chain.length = old
        chain.features = []
        chain.reload()
        ktap.same_bytes(dev.read_all(), want, "device")
        dev.write(0, want[:4096])
    ktap.equal(header_size("image"), old, "size in the header")
    fx.check("image")
    ktap.same_bytes(fx.content("image"), want, "QEMU")


def state_behind_the_end():
    """Of a virtual machine; in memory at least an L2 table away."""
    fx.create("image", MIB + 1024, backing="base", fmt="raw",
              cluster_size=4096)
    fx.qemu_io("image", "write -b -P 7 0 64k")


def snapshot_of_the_last_cluster():
    fx.qemu_io("image", "write -P 3 1M 1k")
    fx.qemu_img("snapshot", "-c", "one", "image")


ktap.case("extend: a longer base", extend_refused, lambda: None, 2 * MIB)
ktap.case("extend: something behind the end", extend_refused,
          state_behind_the_end, MIB)
ktap.case("extend: a shared last cluster", extend_refused,
          snapshot_of_the_last_cluster, MIB)
ktap.case("extend: a compressed last cluster", extend_refused,
          lambda: fx.qemu_io("image", "write -c -P 3 1M 1k"), MIB)


@ktap.test
def messages_and_suspend():
    """A suspend does not wait for a long job, and a job for no suspend."""
    size = 64 * MIB
    with open("base", "wb") as f:
        for n in range(size // MIB):
            f.write(fx.pattern(f"b{n}", MIB))
    fx.create("top", size, backing="base", fmt="raw")
    with fx.opened([("qcow2", "top"), ("raw", "base")], size,
                   ["explicit_zeroes"]) as (chain, dev):
        chain.dm.suspend(blk.Dm.NOFLUSH | blk.Dm.SKIP_LOCKFS)
        refused(lambda: chain.dm.message("populate 0 8 2"), errno.EAGAIN)
        chain.dm.resume()
        stop = threading.Event()
        longest = [0.0]

        def suspends():
            while not stop.is_set():
                start = time.monotonic()
                chain.dm.suspend(blk.Dm.NOFLUSH | blk.Dm.SKIP_LOCKFS)
                chain.dm.resume()
                longest[0] = max(longest[0], time.monotonic() - start)

        thread = threading.Thread(target=suspends)
        thread.start()
        pos, end = 0, size // 512
        while pos < end:
            try:
                pos += int(chain.dm.message(
                    f"populate {pos} {end - pos} 2").split()[0])
            except OSError as e:
                ktap.equal(e.errno, errno.EAGAIN, "errno")
        stop.set()
        thread.join()
        ktap.note(f"longest suspend and resume: {longest[0]:.2f} s")
        ktap.check(longest[0] < 5, "a suspend took long")
        ktap.equal(bytes(dev.read(size - 512, 512)),
                   fx.pattern(f"b{size // MIB - 1}", MIB)[-512:], "content")
    fx.check("top")


# Messages and a resume that fails

@ktap.test
def messages_while_a_resume_is_tried_again():
    """A table of two targets, of which the second cannot be resumed."""
    size = 16 * MIB
    raw("base", size, "base")
    fx.create("top", size, backing="base", fmt="raw")
    fx.grow("top", 64 * MIB)
    fx.create("bad", size)
    loops = [blk.Loop(name) for name in ("top", "base", "bad")]
    line = f"2 qcow2 {loops[0].dev} - raw {loops[1].dev} - 1 explicit_zeroes"
    dm = blk.Dm("parts")
    dm.create(size // 512, line)
    fx.poke("bad", 79, "B", 1)
    os.sync()
    dm.load_table([(size // 512, "qcow2", line),
                   (size // 512, "qcow2", f"1 qcow2 {loops[2].dev} -")])
    stop, said = threading.Event(), set()

    def send():
        pos = 0
        while not stop.is_set():
            try:
                done = dm.message(f"populate {pos} {size // 512 - pos} 2")
                said.add(0)
                pos = (pos + int(done.split()[0])) % (size // 512)
            except OSError as e:
                said.add(e.errno)

    refused(dm.resume, errno.EROFS)
    team = [threading.Thread(target=send) for _ in range(3)]
    for thread in team:
        thread.start()
    for _ in range(30):
        refused(dm.resume, errno.EROFS)
        time.sleep(0.02)
    stop.set()
    for thread in team:
        thread.join()
    ktap.note(f"errors: {sorted(said)}")
    ktap.check(said <= {0, errno.EAGAIN}, "a message was at work")
    dm.remove()
    for loop in loops:
        loop.detach()
    fx.check("top")


if __name__ == "__main__":
    fx.main()
