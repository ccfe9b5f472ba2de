#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Reading: versions, cluster sizes, refcount widths, bottoms, chains."""

import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB  # noqa: E402


def some_content(name, size, seed, fmt="qcow2"):
    """Data, zeroes and holes at random places; the ends are data."""
    rng = random.Random(seed)
    commands = ["write -P 0x11 0 512", f"write -P 0x12 {size - 512} 512"]
    for n in range(8):
        length = rng.randint(1, min(size // 512, 700)) * 512
        offset = rng.randint(0, (size - length) // 512) * 512
        kind = ["write -P %d" % (n + 1), "write -z", "discard"][
            rng.choice([0, 0, 0, 1, 2])]
        commands.append(f"{kind} {offset} {length}")
    fx.qemu_io(name, *commands, fmt=fmt)


def reads_as_qemu(layers, length):
    """The device, opened both ways, reads as QEMU reads the image."""
    want = fx.content(layers[0][1], layers[0][0])[:length]
    for path in {path for _, path in layers}:
        fx.pad(path)
    before = [fx.file_bytes(path) for _, path in layers]
    with fx.opened(layers, length, read_only=True) as (_, dev):
        ktap.same_bytes(dev.read_all(), want, "read-only")
        rng = random.Random(1)
        for _ in range(50):
            n = rng.randint(1, min(length // 512, 300)) * 512
            at = rng.randint(0, (length - n) // 512) * 512
            ktap.same_bytes(dev.read(at, n), want[at:at + n], f"at {at}")
    for (_, path), data in zip(layers, before):
        ktap.same_bytes(fx.file_bytes(path), data, f"{path}, only read")


def one_image(size, options):
    fx.create("image", size, **options)
    some_content("image", size, str(options))
    reads_as_qemu([("qcow2", "image")], size)


for bits in range(9, 22):
    size = {9: MIB, 10: 2 * MIB, 21: 12 * MIB}.get(bits, 5 * MIB) + 512
    ktap.case(f"cluster size {1 << bits}", one_image, size,
              {"cluster_size": 1 << bits})
    if bits in (9, 12, 16, 21):
        ktap.case(f"version 2, cluster size {1 << bits}", one_image, size,
                  {"cluster_size": 1 << bits, "compat": "0.10"})
for width in (1, 2, 4, 8, 32, 64):
    ktap.case(f"refcounts of {width} bits", one_image, 3 * MIB,
              {"refcount_bits": width, "cluster_size": 4096})
ktap.case("preallocated metadata", one_image, 3 * MIB,
          {"preallocation": "metadata"})


@ktap.test
def a_raw_layer_alone():
    fx.run("truncate", "-s", "3M", "raw")
    some_content("raw", 3 * MIB, 1, "raw")
    reads_as_qemu([("raw", "raw")], 3 * MIB)


@ktap.test
def raw_bottom():
    fx.run("truncate", "-s", "3M", "raw")
    some_content("raw", 3 * MIB, 2, "raw")
    fx.create("top", 4 * MIB, backing="raw", fmt="raw")
    some_content("top", 4 * MIB, 3)
    reads_as_qemu([("qcow2", "top"), ("raw", "raw")], 4 * MIB)


@ktap.test
def a_raw_bottom_that_looks_like_qcow2():
    fx.create("raw", MIB)
    os.truncate("raw", 2 * MIB)
    fx.create("top", 2 * MIB, backing="raw", fmt="raw")
    reads_as_qemu([("qcow2", "top"), ("raw", "raw")], 2 * MIB)


@ktap.test
def layers_of_different_cluster_and_virtual_size():
    layers = []
    below, fmt = None, "qcow2"
    # bottom first; the shorter ones hide what is below their ends
    for name, size, cluster in (("a", 8 * MIB, 65536), ("b", 3 * MIB, 512),
                                ("c", 6 * MIB + 512, 2 * MIB),
                                ("d", 5 * MIB - 1024, 4096),
                                ("e", 9 * MIB, 16384)):
        fx.create(name, size, backing=below, fmt=fmt, cluster_size=cluster)
        some_content(name, size, name)
        layers.insert(0, ("qcow2", name))
        below = name
    reads_as_qemu(layers, 9 * MIB)


@ktap.test
def past_its_end_a_layer_owns_zeroes():
    fx.create("base", 4 * MIB)
    fx.qemu_io("base", "write -P 1 0 4M")
    fx.create("middle", MIB + 512, backing="base")
    fx.create("top", 4 * MIB, backing="middle")
    layers = [("qcow2", "top"), ("qcow2", "middle"), ("qcow2", "base")]
    with fx.opened(layers, 4 * MIB, read_only=True) as (_, dev):
        ktap.same_bytes(dev.read_all(), b"\1" * (MIB + 512) +
                        bytes(3 * MIB - 512), "device")


def behind_the_end(options, cut, far=None):
    """Data of which the file lacks some reads as zeroes, as by QEMU.

    cut: how many bytes of the last 128 KiB of data the file lacks; far: an offset
    that no file reaches, which one entry has then
    """
    fx.kernel_log()
    fx.create("base", MIB, **options)
    fx.qemu_io("base", "write -P 1 0 1M")
    os.truncate("base", os.path.getsize("base") - cut)
    if far:
        where, entry = fx.entry_at("base", 128 * KIB)
        fx.poke("base", where, "Q", entry & 1 << 63 | far)
    # Of what is below nothing is to be seen through it.
    fx.create("bottom", MIB)
    fx.qemu_io("bottom", "write -P 2 0 1M")
    fx.qemu_img("rebase", "-u", "-b", "bottom", "-F", "qcow2", "base")
    want = fx.content("base")
    zeroes = cut + (64 * KIB if far else 0)
    ktap.equal(want.count(b"\0"), zeroes, "zeroes that QEMU reads")
    reads_as_qemu([("qcow2", "base"), ("qcow2", "bottom")], MIB)
    # A lower layer, of which clusters are copied
    fx.create("top", MIB, backing="base")
    layers = [("qcow2", "top"), ("qcow2", "base"), ("qcow2", "bottom")]
    model = bytearray(want)
    with fx.opened(layers, MIB) as (_, dev):
        for at in (MIB - 64 * KIB, MIB - 512, 128 * KIB):
            data = fx.pattern(f"new{at}", 512)
            dev.write(at, data)
            model[at:at + 512] = data
        ktap.same_bytes(dev.read_all(), bytes(model), "written")
    ktap.same_bytes(fx.content("top"), bytes(model), "as QEMU reads it")
    ktap.check("beyond" not in fx.kernel_log(), "the device was left")


for title, args in {
        "within a cluster": ({}, 4096),
        "a cluster": ({}, 64 * KIB),
        "a cluster and a half": ({}, 96 * KIB),
        "subclusters": ({"extended_l2": "on"}, 96 * KIB + 512),
        "an entry far outside": ({}, 0, (1 << 56) - 64 * KIB),
        "version 2": ({"compat": "0.10", "cluster_size": 4096}, 65 * KIB),
        }.items():
    ktap.case(f"data behind the end of the device: {title}", behind_the_end,
              *args)


@ktap.test
def what_a_file_lacks_of_its_last_cluster():
    """reads as zeroes, and so does a copy of the cluster."""
    size = 4 * MIB
    fx.create("base", size)
    fx.qemu_io("base", "write -P 1 0 64k")
    os.truncate("base", os.path.getsize("base") - 32 * KIB)
    reads_as_qemu([("qcow2", "base")], size)
    model = bytearray(fx.content("base"))
    fx.create("top", size, backing="base")
    with fx.opened([("qcow2", "top"), ("qcow2", "base")], size) as (_, dev):
        ktap.same_bytes(dev.read_all(), bytes(model), "as a lower layer")
        dev.write(48 * KIB, b"\2" * 4 * KIB)
        model[48 * KIB:52 * KIB] = b"\2" * 4 * KIB
        ktap.same_bytes(dev.read_all(), bytes(model), "copied")
    fx.check("top")
    ktap.same_bytes(fx.content("top"), bytes(model), "what QEMU reads")


@ktap.test
def a_chain_of_64_layers():
    layers = []
    below = None
    for n in range(64):
        name = f"layer{n}"
        fx.create(name, MIB, backing=below, cluster_size=4 * KIB)
        at = n * 16 * KIB
        fx.qemu_io(name, f"write -P {n + 1} {at} {min(24 * KIB, MIB - at)}")
        layers.insert(0, ("qcow2", name))
        below = name
    want = b"".join(bytes([n + 1]) * (16 * KIB) for n in range(64))
    with fx.opened(layers, MIB) as (chain, dev):
        ktap.same_bytes(dev.read_all(), want, "device")
        ktap.equal(chain.status()[8], "64", "layers in status")
        dev.write(10 * KIB, b"x" * 512)
        ktap.same_bytes(dev.read_all(), want[:10 * KIB] + b"x" * 512 +
                        want[10 * KIB + 512:], "after a write")
    fx.check("layer63")


@ktap.test
def a_table_shorter_than_the_image():
    fx.create("image", 4 * MIB)
    some_content("image", 4 * MIB, 9)
    want = fx.content("image")
    with fx.opened([("qcow2", "image")], MIB + 512, read_only=True) as (_, dev):
        ktap.equal(dev.size, MIB + 512, "size")
        ktap.same_bytes(dev.read_all(), want[:MIB + 512], "device")


@ktap.test
def two_chains_share_a_base():
    fx.create("base", 4 * MIB)
    some_content("base", 4 * MIB, 5)
    base = fx.file_bytes("base")
    want = fx.content("base")
    chains = []
    for name in ("one", "two"):
        fx.create(name, 4 * MIB, backing="base")
        fx.grow(name, 64 * MIB)
    shared = fx.blk.Loop("base", True)
    try:
        for name in ("one", "two"):
            chain = fx.Chain([("qcow2", name), ("qcow2", "base")], 4 * MIB)
            chain.loops = {"base": shared}
            chains.append((chain, chain.open()))
        for n, (_, dev) in enumerate(chains):
            dev.write(n * MIB, fx.pattern(f"chain{n}", MIB))
        for n, (_, dev) in enumerate(chains):
            data = bytearray(want)
            data[n * MIB:(n + 1) * MIB] = fx.pattern(f"chain{n}", MIB)
            ktap.same_bytes(dev.read_all(), bytes(data), f"chain {n}")
    finally:
        for chain, dev in chains:
            chain.loops.pop("base")
            chain.close()
        shared.detach()
    ktap.same_bytes(fx.file_bytes("base"), base, "the base")
    for name in ("one", "two"):
        fx.check(name)


@ktap.test
def memory_is_aligned_as_every_layer_needs_it():
    """dm-crypt wants it aligned to its blocks, the top image's device does not."""
    with fx.opened_over_crypt(4 * MIB, block=4096) as (base, want, dev):
        needed = fx.blk.queue_limit(base, "dma_alignment")
        ktap.equal(needed, 4095, "alignment of dm-crypt")
        ktap.equal(fx.blk.queue_limit(dev.path, "dma_alignment"), needed,
                   "alignment of the device")
        ktap.same_bytes(dev.read_all(), want, "device")


if __name__ == "__main__":
    fx.main()
