#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""map beside qemu-img map, over random chains."""

import json
import os
import random
import subprocess

import host  # before the modules of lib
from host import KIB, MIB

import ktap

SEEDS = 40


def random_options(rng, name, bottom, cluster):
    """Options of qemu-img create for a layer."""
    options = [f"cluster_size={cluster}"]
    if rng.random() < 0.3:
        options.append("compat=0.10")
    else:
        if cluster >= 16 * KIB and rng.random() < 0.7:
            options.append("extended_l2=on")
        if rng.random() < 0.3:
            options.append("compression_type=zstd")
        if rng.random() < 0.3:
            options.append(f"refcount_bits={rng.choice([1, 8, 32, 64])}")
        if rng.random() < 0.2:
            options.append(f"data_file={name}.data")
            if bottom:
                options.append(f"data_file_raw={rng.choice(['on', 'off'])}")
    if bottom and rng.random() < 0.5:
        options.append("preallocation=" +
                       rng.choice(["metadata", "falloc", "full"]))
    return options


def random_command(rng, size, cluster):
    """A command for qemu-io that changes what is mapped."""
    verb = rng.choice(["write", "write", "write -z", "write -z -u", "write -c",
                       "discard"])
    unit = cluster if verb == "write -c" else 512
    start = rng.randrange(size // unit or 1) * unit
    left = size - start
    if verb == "write -c":
        length = cluster * rng.randint(1, 3)
    else:
        length = rng.randrange(1, min(left, 8 * cluster) // 512 + 1) * 512
    return f"{verb} {start} {min(length, left)}"


def make_raw(rng, name, size):
    with open(name, "wb") as f:
        f.truncate(size - rng.choice([0, 0, 300]))
        for _ in range(rng.randint(0, 4)):
            f.seek(rng.randrange(size // 4096) * 4096)
            f.write(b"raw" * rng.randint(1, 5000))


def make_layer(rng, name, size, backing):
    cluster = rng.choice([512, 4 * KIB, 64 * KIB, 64 * KIB, 2 * MIB])
    args = ["-o", ",".join(random_options(rng, name, not backing, cluster))]
    if backing:
        args += ["-b", backing[0], "-F", backing[1]]
    host.qemu_img("create", "-q", "-f", "qcow2", *args, name, str(size))
    host.qemu_io(name, *(random_command(rng, size, cluster)
                         for _ in range(rng.randint(0, 12))))
    if rng.random() < 0.2:
        # Refused where refcounts have one bit
        host.run("qemu-img", "snapshot", "-c", "one", name)
        host.qemu_io(name, *(random_command(rng, size, cluster)
                             for _ in range(3)))


def make_chain(rng):
    """Returns path and format of the top."""
    backing = None
    for n in range(rng.randint(1, 4)):
        size = rng.choice([1, 3, 4, 8]) * MIB
        name = f"{host.directory}/layer{n}"
        if not n and rng.random() < 0.3:
            make_raw(rng, name, size)
            backing = (name, "raw")
        else:
            make_layer(rng, name, size, backing)
            backing = (name, "qcow2")
    return backing


def check_json(top, formats):
    want = json.loads(host.qemu_img("map", "--output=json", "-f", top[1],
                                    top[0]))
    got = json.loads(host.qcow2setup("map", top[0], "--json", *formats))
    ktap.equal(len(got), len(want), f"number of entries: {got} {want}")
    for ours, theirs in zip(got, want):
        ktap.check("offset" not in ours or "filename" in ours, ours)
        ktap.equal({key: ours.get(key) for key in theirs}, theirs, "entry")
        ktap.equal("offset" in ours, "offset" in theirs, f"offset in {ours}")


def check_text(top, formats):
    """qemu-img gives up where data has no offset."""
    got = host.qcow2setup("map", top[0], *formats)
    want, code = host.run("qemu-img", "map", "-f", top[1], top[0])
    if code:
        ktap.check("compressed" in got, got)
    else:
        ktap.equal(got, want, "text")


def random_chain(seed):
    top = make_chain(random.Random(seed))
    formats = ["--backing-format", f"{top[0]}={top[1]}"]
    check_json(top, formats)
    check_text(top, formats)


for number in range(SEEDS):
    ktap.case(f"map: chain {number}", random_chain, number)


@ktap.test
def map_of_layers_of_no_bytes():
    base, mid, top = (f"{host.directory}/{name}" for name in "bmt")
    host.qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    host.qemu_io(base, "write 0 1M")
    host.qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2",
                  mid, "0")
    host.qemu_img("create", "-q", "-f", "qcow2", "-b", mid, "-F", "qcow2", top,
                  "2M")
    check_json((top, "qcow2"), [])
    ktap.equal(json.loads(host.qcow2setup("map", mid, "--json")), [], "map")


def encrypted(backing, options, more):
    """What is in the file where it lies is not what the guest has."""
    path, base = f"{host.directory}/image", f"{host.directory}/base"
    key = ["--object", "secret,id=key,data=abc"]
    node = json.dumps({"driver": "qcow2", "encrypt.key-secret": "key",
                       "file": {"driver": "file", "filename": path}})
    host.qemu_img("create", "-q", "-f", "qcow2", base, "3M")
    host.qemu_io(base, "write 2M 64k")
    host.qemu_img("create", "-q", *key, "-f", "qcow2",
                  *(["-b", base, "-F", "qcow2"] if backing else []),
                  "-o", "encrypt.format=luks,encrypt.key-secret=key,"
                  "encrypt.iter-time=10" + options, path, "5M")
    host.run_well("qemu-io", *key, "-c", "write 0 100k", "-c", more, "-c",
                  "write -z 1472k 64k", "json:" + node)
    want = json.loads(host.qemu_img("map", "--output=json", *key,
                                    "json:" + node))
    got = json.loads(host.qcow2setup("map", path, "--json"))
    ktap.equal(len(got), len(want), f"number of entries: {got} {want}")
    for ours, theirs in zip(got, want):
        ktap.equal({key: ours.get(key) for key in theirs}, theirs, "entry")
        ktap.equal("offset" in ours, "offset" in theirs, f"offset in {ours}")
    out = host.qcow2setup("map", path)
    ktap.check(f"encrypted       {path}\n" in out, out)


ktap.case("map: encrypted", encrypted, True, "", "write -c 1M 64k")
ktap.case("map: encrypted, with subclusters", encrypted, True,
          ",extended_l2=on,preallocation=metadata", "write 4M 2k")
# What was never written is no zeroes.
ktap.case("map: encrypted, and preallocated", encrypted, False,
          ",preallocation=metadata", "write 4M 2k")


@ktap.test
def map_of_what_can_be_read():
    path = f"{host.directory}/image"
    host.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512",
                  path, "1M")
    # Each has its L2 table; behind the second table the first entry is no place.
    host.qemu_io(path, "write 0 512", "write 64k 512")
    with open(path, "r+b") as f:
        f.seek(40)
        f.seek(int.from_bytes(f.read(8), "big") + 2 * 8)
        table = int.from_bytes(f.read(8), "big") & (1 << 56) - 512
        f.seek(table)
        f.write((1 << 63 | 0x301).to_bytes(8, "big"))
    done = subprocess.run([host.COMMAND, "map", path, "--json"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ktap.equal(done.returncode, 4, "exit code")
    ktap.check(b"L2" in done.stderr, done.stderr)
    ktap.check(json.loads(done.stdout)[0]["data"], done.stdout)


def behind_the_end(bits):
    """Where QEMU reads zeroes, be it that a file was truncated"""
    path = f"{host.directory}/image"
    host.qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    host.qemu_io(path, "write 0 1M")
    os.truncate(path, os.path.getsize(path) - 100 * KIB)
    if bits:
        with open(path, "r+b") as f:
            f.seek(4 * 64 * KIB)
            f.write(bits.to_bytes(8, "big"))
    check_json((path, "qcow2"), [])


ktap.case("map: clusters behind the end", behind_the_end, 0)
ktap.case("map: a cluster far behind the end", behind_the_end, 1 << 63 | 1 << 40)


@ktap.test
def map_of_a_table_that_points_beyond_the_end():
    path = f"{host.directory}/bad"
    host.qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    host.qemu_io(path, "write 0 64k")
    with open(path, "r+b") as f:
        f.seek(4 * 64 * KIB)
        f.write((1 << 62 | 1 << 40).to_bytes(8, "big"))
    out, code = host.run(host.COMMAND, "map", path)
    ktap.equal(code, 4, "exit code")
    ktap.check("L2 entry at offset 262144" in out, out)


host.main()
