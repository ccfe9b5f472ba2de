#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""External data files: guest data on a device of its own."""

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

COPIED = 1 << 63
RAW = 2
TOP = ("qcow2", "image", "data")


def create(size, raw=False, backing=None, fmt="raw", name="image", data="data",
           **options):
    if raw:
        options["data_file_raw"] = "on"
    fx.create(name, size, backing=backing, fmt=fmt, data_file=data, **options)
    fx.pad(data)


def blocks(path):
    return os.stat(path).st_blocks * 512


def change(dev, model, ops, seed):
    rng = random.Random(seed)
    size = len(model)
    for _ in range(ops):
        length = rng.choice([1, 2, 7, 8, 64, 100, 300, 600]) * 512
        at = rng.randint(0, (size - length) // 512) * 512
        # The first cluster and the last one
        at = rng.choice([at, at, at, 0, 512, size - length])
        fx.change_one(dev, model,
                      rng.choice(["write", "write", "write", "zeroout",
                                  "punch", "discard"]), at, length)


def as_qemu_reads_it(model, raw=False):
    fx.check("image")
    ktap.same_bytes(fx.content("image")[:len(model)], bytes(model),
                    "as QEMU reads it")
    if raw:
        ktap.equal(fx.peek("image", 88, "Q") & RAW, RAW, "autoclear bit")
        ktap.same_bytes(fx.file_bytes("data")[:len(model)], bytes(model),
                        "the data file alone")


def written(raw, backing, options, size=4 * MIB + 1536):
    layers = [TOP]
    model = bytearray(size)
    if backing:
        blk.save_sparse("base", fx.pattern("base", size))
        model[:] = fx.pattern("base", size)
        layers.append(("raw", "base"))
    create(size, raw, "base" if backing else None, **options)
    fx.qemu_io("image", "write -P 1 300k 200k", "write -z 600k 200k",
               "write -P 2 900k 10k")
    model[:] = fx.content("image")
    if not raw and "preallocation" not in options:
        # What the data file holds behind an entry that says otherwise
        with open("data", "r+b") as f:
            f.seek(2 * MIB)
            f.write(b"S" * 64 * KIB)
    with fx.opened(layers, size) as (_, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "before")
        change(dev, model, 80, f"{raw} {backing} {options}")
        ktap.same_bytes(dev.read_all(), bytes(model), "after")
        dev.flush()
    as_qemu_reads_it(model, raw)
    with fx.opened(layers, size) as (_, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "opened again")
        change(dev, model, 30, "again")
        ktap.same_bytes(dev.read_all(), bytes(model), "after it")
    as_qemu_reads_it(model, raw)
    if backing:
        ktap.same_bytes(fx.file_bytes("base"), fx.pattern("base", size),
                        "the base")


for cluster in (512, 4 * KIB, 64 * KIB, 2 * MIB):
    for backing in (False, True):
        ktap.case(f"changes: {cluster} byte clusters, "
                  f"{'over a base' if backing else 'alone'}", written, False,
                  backing, {"cluster_size": cluster})
    ktap.case(f"changes: {cluster} byte clusters, a raw data file", written,
              True, False, {"cluster_size": cluster})
for backing in (False, True):
    ktap.case(f"changes: subclusters, {'over a base' if backing else 'alone'}",
              written, False, backing, {"extended_l2": "on"})
    ktap.case("changes: small subclusters, "
              f"{'over a base' if backing else 'alone'}", written, False,
              backing, {"extended_l2": "on", "cluster_size": 16 * KIB})
ktap.case("changes: subclusters, a raw data file", written, True, False,
          {"extended_l2": "on"})
ktap.case("changes: preallocated", written, False, False,
          {"preallocation": "metadata"})


@ktap.test
def a_raw_data_file_with_nothing_allocated():
    """As qemu-img before 6.0 left it: entries become durable before data."""
    size = 2 * MIB
    create(size)
    fx.poke("image", 88, "Q", RAW)
    model = bytearray(size)
    with fx.opened([TOP], size) as (_, dev):
        for n in range(0, 12):
            fx.change_one(dev, model, "write", n * 150 * KIB + 512, 3 * 512)
            fx.run("cp", "--sparse=always", "image", "copy")
            where, entry = fx.entry_at("copy", (n * 150 * KIB + 512))
            ktap.equal(entry & COPIED, COPIED, "entry on the disk")
        dev.punch(150 * KIB, 300 * KIB)
        model[150 * KIB:450 * KIB] = bytes(300 * KIB)
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    as_qemu_reads_it(model, True)


def gives_back(raw):
    size = 8 * MIB
    create(size, raw)
    with fx.opened([TOP], size) as (_, dev):
        dev.write(0, fx.pattern("d", size))
        dev.flush()
        full = blocks("data")
        dev.discard(MIB, 4 * MIB)
        dev.flush()
        ktap.check(blocks("data") <= full - 3 * MIB,
                   f"{full} bytes before, {blocks('data')} after")
        ktap.same_bytes(dev.read(MIB, 4 * MIB), bytes(4 * MIB), "discarded")
        before = blocks("data")
        dev.zeroout(6 * MIB, MIB)
        ktap.check(blocks("data") >= before - 64 * KIB, "given back")
    with fx.opened([TOP], size, ["no_discard_passdown"]) as (_, dev):
        before = blocks("data")
        dev.discard(0, MIB)
        dev.punch(7 * MIB, MIB)
        dev.flush()
        ktap.check(blocks("data") >= before - 64 * KIB, "given back")
        model = dev.read_all()
    as_qemu_reads_it(model, raw)


ktap.case("discards give space back", gives_back, False)
ktap.case("discards give space back: a raw data file", gives_back, True)


@ktap.test
def nothing_is_allocated_in_the_image():
    size = 32 * MIB
    create(size)
    before = os.path.getsize("image")
    data = fx.pattern("d", size)
    with fx.opened([TOP], size) as (test, dev):
        # Where a longer write is split depends on how its memory lies.
        for at in range(0, size, 64 * KIB):
            dev.write(at, data[at:at + 64 * KIB])
        dev.flush()
        # An L2 table
        ktap.equal(test.status()[6], "1", "clusters allocated")
        ktap.equal(test.status()[7], "0", "clusters copied")
    ktap.check(blocks("image") < before + MIB, f"{blocks('image')} bytes")
    as_qemu_reads_it(fx.pattern("d", size))
    ktap.same_bytes(fx.file_bytes("data"), fx.pattern("d", size), "data file")


@ktap.test
def what_a_flush_acknowledged_is_in_the_files():
    size = 4 * MIB
    create(size)
    with fx.opened([TOP], size) as (_, dev):
        model = bytearray(size)
        for n in range(4):
            fx.change_one(dev, model, "write", n * 900 * KIB, 70 * KIB)
        dev.flush()
        for step in ("flush", "FUA write"):
            for name in ("image", "data"):
                fx.run("cp", "--sparse=always", name, f"copy-{name}")
            os.rename("data", "real")
            os.rename("copy-data", "data")
            ktap.same_bytes(fx.content("copy-image"), bytes(model), step)
            fx.qemu_img("check", "copy-image", ok=(0, 3))
            os.rename("real", "data")
            data = fx.pattern("fua", 5 * KIB)
            dev.write(3 * MIB + 512, data, fua=True)
            model[3 * MIB + 512:3 * MIB + 512 + len(data)] = data
    as_qemu_reads_it(model)


def lower_layer(features):
    size = 3 * MIB + 1024
    create(size)
    fx.qemu_io("image", "write -P 1 0 300k", "write -P 2 1M 64k",
               f"write -P 3 {size - 4096} 4k")
    fx.create("top", size, backing="image", cluster_size=4096)
    model = bytearray(fx.content("top"))
    before = fx.file_bytes("image"), fx.file_bytes("data")
    with fx.opened([("qcow2", "top"), TOP], size, features) as (_, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "before")
        change(dev, model, 60, "top")
        ktap.same_bytes(dev.read_all(), bytes(model), "after")
    fx.check("top")
    ktap.same_bytes(fx.content("top"), bytes(model), "as QEMU reads it")
    ktap.check(before == (fx.file_bytes("image"), fx.file_bytes("data")),
               "the lower layer has changed")


ktap.case("a lower layer", lower_layer, [])
ktap.case("a lower layer, copy on read", lower_layer, ["copy_on_read"])


@ktap.test
def two_layers_with_data_files_and_a_live_snapshot():
    size = 2 * MIB
    create(size, name="lower", data="lower-data")
    create(size, backing="lower", fmt="qcow2")
    lower = ("qcow2", "lower", "lower-data")
    model = bytearray(size)
    with fx.opened([lower], size) as (test, dev):
        change(dev, model, 30, "lower")
        fx.grow("image", 16 * MIB)
        test.layers = [TOP, lower]
        test.reload()
        change(dev, model, 50, "top")
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    fx.check("lower")
    as_qemu_reads_it(model)


@ktap.test
def jobs():
    """A mirror, populate and the layers of a table with data files."""
    size = 3 * MIB
    create(size, name="lower", data="lower-data")
    fx.qemu_io("lower", "write -P 1 0 300k", "write -P 2 1M 1M")
    create(size)
    layers = [TOP, ("qcow2", "lower", "lower-data")]
    # What no layer owns is not copied.
    with open("mirror", "wb") as f:
        f.truncate(size)
    model = bytearray(fx.content("lower"))
    mirror = blk.Loop("mirror")
    try:
        with fx.opened(layers, size, ["mirror", mirror.dev]) as (test, dev):
            change(dev, model, 20, "jobs")
            for message in ("copy {} {} 2", "populate {} {} 2 zeroes"):
                at = 0
                while at < size // 512:
                    answer = test.dm.message(
                        message.format(at, size // 512 - at))
                    at += int(answer.split()[0])
            change(dev, model, 20, "jobs again")
            ktap.equal(test.status()[-1], "mirror", "mirror")
            words = test.dm.table().split()
            ktap.check("-" not in words[1:7], f"table {words}")
            ktap.same_bytes(dev.read_all(), bytes(model), "device")
        with open("mirror", "rb") as f:
            ktap.same_bytes(f.read(), bytes(model), "mirror")
    finally:
        mirror.detach()
    as_qemu_reads_it(model)


def neighbours(options):
    """Everyone changes sectors of its own; clusters come and go meanwhile."""
    size = MIB
    create(size, **options)
    model = bytearray(size)
    errors = []

    def neighbour(dev, number, end):
        rng = random.Random(number)
        try:
            while time.monotonic() < end:
                at = (rng.randrange(size // 4096 // 4) * 4 + number) * 4096
                kind = rng.choice(["write", "write", "punch", "zeroout",
                                   "read"])
                if kind == "read":
                    ktap.same_bytes(dev.read(at, 4096),
                                    bytes(model[at:at + 4096]), f"at {at}")
                else:
                    fx.change_one(dev, model, kind, at, 4096)
        except Exception as e:
            errors.append(e)

    with fx.opened([TOP], size) as (_, dev):
        end = time.monotonic() + 12
        team = [threading.Thread(target=neighbour, args=(dev, n, end))
                for n in range(4)]
        for thread in team:
            thread.start()
        while team[0].is_alive():
            dev.flush()
            time.sleep(0.2)
        for thread in team:
            thread.join()
        if errors:
            raise errors[0]
        ktap.same_bytes(dev.read_all(), bytes(model), "at the end")
    as_qemu_reads_it(model)


ktap.case("neighbours: 4 KiB clusters", neighbours, {"cluster_size": 4 * KIB})
ktap.case("neighbours: subclusters", neighbours, {"extended_l2": "on"})


def fails(want, call, *args):
    try:
        call(*args)
    except OSError as e:
        ktap.equal(e.errno, want, "errno")
        return
    raise ktap.Failure("it did not fail")


def refused(layers, message, size=MIB, read_only=False, features=()):
    fx.refused(layers, size, message, features, read_only)


@ktap.test
def refused_tables():
    create(MIB)
    refused([("qcow2", "image")], "external data file", read_only=True)
    fx.create("plain", MIB)
    refused([("qcow2", "plain", "data")], "data device must be -")
    refused([("raw", "data", "plain")], "raw image")
    refused([("qcow2", "image", "image")], "twice|itself")
    refused([TOP, ("raw", "data")], "twice")
    refused([TOP], "snapshot", read_only=True, features=["snapshot", "1"])
    os.truncate("data", MIB - 512)
    refused([TOP], "fewer than the image", read_only=True)


@ktap.test
def another_data_file_for_an_image_in_use():
    create(MIB)
    fx.run("cp", "data", "other")
    with fx.opened([TOP], MIB, read_only=True) as (test, _):
        other = blk.Loop("other", True)
        second = blk.Dm("second")
        fx.kernel_log()
        try:
            fails(errno.EBUSY, second.create, MIB // 512,
                  f"1 qcow2 {test.loops['image'].dev} {other.dev}", True)
        finally:
            other.detach()
        ktap.check("another data device" in fx.kernel_log(), "no message")


@ktap.test
def a_raw_data_file_and_layers_below():
    create(MIB, True)
    fx.run("truncate", "-s", "1M", "base")
    refused([TOP, ("raw", "base")], "no layer below")
    with fx.opened([TOP], MIB) as (test, _):
        fails(errno.EINVAL, test.dm.message, "backing raw base")
        test.dm.message("backing none")
    fx.qemu_img("check", "image")
    # Both, as no program should leave it
    create(MIB, backing="base")
    fx.poke("image", 88, "Q", RAW)
    refused([TOP, ("raw", "base")], "not fit for writing|no layer below")


@ktap.test
def internal_snapshots_are_not_written_to():
    create(MIB)
    fx.poke("image", 60, "I", 1)
    fx.poke("image", 64, "Q", 64 * KIB)
    refused([TOP], "internal snapshots and an external data file")


def bad_entry(change, guest, message, extended="off"):
    create(MIB, extended_l2=extended)
    fx.qemu_io("image", "write -P 1 0 256k")
    where, entry = fx.entry_at("image", guest)
    fx.poke("image", where, "Q", change(entry))
    fx.pad("image")
    fx.kernel_log()
    with fx.opened([TOP], MIB) as (test, dev):
        fails(errno.EIO, dev.read, guest, 4096)
        ktap.equal(test.status()[0], "failed", "mode")
        ktap.same_bytes(dev.read(192 * KIB, 64 * KIB), b"\1" * 64 * KIB,
                        "others")
    ktap.check(message in fx.kernel_log(), f"no {message!r} in the log")
    ktap.check("corrupt: true" in fx.qemu_img("info", "image"),
               "no corrupt bit")


ktap.case("another place", bad_entry, lambda entry: entry + 64 * KIB,
          64 * KIB, "place in the external data file")
ktap.case("another place for the first cluster", bad_entry,
          lambda entry: entry + 64 * KIB, 0, "place in the external data file")
ktap.case("the first place for another cluster", bad_entry,
          lambda entry: COPIED, 64 * KIB, "place in the external data file")
ktap.case("a compressed cluster", bad_entry,
          lambda entry: 1 << 62 | 128 * KIB, 64 * KIB, "compressed")


@ktap.test
def no_data_before_its_entry_is_durable():
    """Of a raw data file, whoever wrote the entry: as both read after a crash."""
    size = 4 * MIB
    # Nothing is allocated, as QEMU would have it from the start.
    create(size, cluster_size=MIB)
    fx.poke("image", 88, "Q", RAW)
    fx.grow("image", 8 * MIB)
    fx.run("modprobe", "dm-delay")
    chain = fx.Chain([TOP], size)
    # A commit takes seconds.
    chain.loops = {
        "image": fx.Stacked("image", "delay {0} 0 0 {0} 0 2000"),
        "data": blk.Loop("data")}
    dev = chain.open()
    team = [threading.Thread(target=dev.write, args=(at, b"\1" * 4096))
            for at in (0, 512 * KIB)]
    # So that there is an L2 table
    dev.write(3 * MIB, bytes(4096))
    dev.flush()
    try:
        for thread in team:
            thread.start()
            time.sleep(0.5)
        # The second one finds the entry that the first has made.
        ktap.check(team[0].is_alive(), "the commit does not take long")
        ktap.same_bytes(fx.file_bytes("data")[:size], bytes(size),
                        "the data file before the commit")
        for thread in team:
            thread.join()
    finally:
        for thread in team:
            thread.join()
        chain.close()
    model = bytearray(size)
    for at in 0, 512 * KIB:
        model[at:at + 4096] = b"\1" * 4096
    as_qemu_reads_it(model, True)


if __name__ == "__main__":
    fx.main()
