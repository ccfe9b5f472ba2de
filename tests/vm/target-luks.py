#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""LUKS encryption: a dm-crypt device over the image as data device."""

import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
import luks  # noqa: E402
from fixture import KIB, MIB  # noqa: E402

PASSPHRASE = "secret"
SECRET = ["--object", f"secret,id=s,data={PASSPHRASE}"]


def source(name):
    return f"driver=qcow2,encrypt.key-secret=s,file.filename={name}"


def create(name, size, backing=None, **options):
    options = {"encrypt.format": "luks", "encrypt.key-secret": "s",
               "encrypt.iter-time": 10, **options}
    link = ["-u", "-b", backing, "-F", "raw"] if backing else []
    fx.qemu_img("create", "-q", "-f", "qcow2", *SECRET, *link, "-o",
                ",".join(f"{k}={v}" for k, v in options.items()), name,
                str(size))
    fx.pad(name)


def qemu_io(name, *commands):
    words = [w for c in commands for w in ("-c", c)]
    out = fx.run("qemu-io", *SECRET, *words, "--image-opts", source(name))
    ktap.check("failed" not in out, out)


def content(name, snapshot=None):
    extra = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    fx.qemu_img("convert", *SECRET, *extra, "--image-opts", source(name), "-O",
                "raw", "content.raw")
    data = fx.file_bytes("content.raw")
    os.unlink("content.raw")
    return data


def check(name):
    fx.qemu_img("check", *SECRET, "--image-opts", source(name))


class Encrypted:
    """A chain whose image and data may be encrypted; layers: (format, image,
    data file or None, encrypted)."""

    number = 0

    def __init__(self, layers, length, features=(), read_only=False):
        self.layers = layers
        self.length = length
        self.features = features
        self.read_only = read_only
        self.loops, self.crypts = [], []
        Encrypted.number += 1
        self.dm = blk.Dm(f"luks{Encrypted.number}")

    def crypt(self, image, below, read_only):
        cipher, key = luks.volume_key(luks.header_of(image),
                                      PASSPHRASE.encode())
        sectors = blk.sectors(below.dev)
        dm = blk.Dm(f"crypt{Encrypted.number}-{len(self.crypts)}")
        path = dm.create(sectors, f"{cipher} {key.hex()} 0 {below.dev} 0",
                         read_only, target="crypt")
        self.crypts.append(dm)
        return path

    def attach(self, path, read_only):
        self.loops.append(blk.Loop(path, read_only))
        return self.loops[-1]

    def words(self):
        for n, (fmt, image, data, encrypted) in enumerate(self.layers):
            read_only = n > 0 or self.read_only
            below = loop = self.attach(image, read_only)
            if data:
                below = self.attach(data, read_only)
            word = below.dev if data else "-"
            if encrypted:
                word = self.crypt(image, below, read_only)
            yield f"{fmt} {loop.dev} {word}"

    def __enter__(self):
        try:
            layers = list(self.words())
            line = f"{len(layers)} {' '.join(layers)}"
            if self.features:
                line += f" {len(self.features)} {' '.join(self.features)}"
            path = self.dm.create(self.length // 512, line, self.read_only)
            self.dev = blk.Device(path, os.O_RDONLY if self.read_only else
                                  os.O_RDWR)
        except BaseException:
            self.detach()
            raise
        return self.dev

    def __exit__(self, *_):
        self.dev.close()
        self.dm.remove()
        self.detach()

    def detach(self):
        for dm in self.crypts:
            dm.remove()
        for loop in self.loops:
            loop.detach()


def change(dev, model, ops, seed):
    rng = random.Random(seed)
    size = len(model)
    for _ in range(ops):
        length = rng.choice([1, 2, 7, 8, 64, 100, 300, 600]) * 512
        at = rng.randint(0, (size - length) // 512) * 512
        fx.change_one(dev, model, rng.choice(["write", "write", "write",
                                              "zeroout", "punch"]), at, length)


def changed(layers, size, features, seed, model):
    fx.grow("image", 2 * size + 16 * MIB)
    with Encrypted(layers, size, features) as dev:
        ktap.same_bytes(dev.read_all(), bytes(model), "before")
        change(dev, model, 80, seed)
        ktap.same_bytes(dev.read_all(), bytes(model), "after")
        # Their host clusters are used again.
        dev.discard(MIB, 2 * MIB)
        model[MIB:3 * MIB] = dev.read(MIB, 2 * MIB)
        dev.flush()
        change(dev, model, 40, seed + "again")
        ktap.same_bytes(dev.read_all(), bytes(model), "at the end")
        dev.flush()
    check("image")
    ktap.same_bytes(content("image")[:size], bytes(model), "as QEMU reads it")


def written(backing, virgin, data, options):
    size = 4 * MIB + 1536
    layers = [("qcow2", "image", data, True)]
    if backing:
        blk.save_sparse("base", fx.pattern("base", size))
        layers.append(("raw", "base", None, False))
    if data:
        options = {**options, "data_file": data}
    create("image", size, "base" if backing else None, **options)
    if data:
        fx.pad(data)
    qemu_io("image", "write -P 1 300k 200k", "write -z 600k 200k")
    fx.pad("image")
    features = ["zero_from", str(os.path.getsize("image") // 512)] \
        if virgin else []
    model = bytearray(content("image"))
    changed(layers, size, features, f"{backing} {options}", model)


for backing in (False, True):
    over = "over a base" if backing else "alone"
    for cluster in (4 * KIB, 64 * KIB):
        ktap.case(f"changes: {cluster} byte clusters, {over}", written, backing,
                  False, None, {"cluster_size": cluster})
    ktap.case(f"changes: a sparse file, {over}", written, backing, True, None,
              {})
    ktap.case(f"changes: subclusters, {over}", written, backing, True, None,
              {"extended_l2": "on"})
    ktap.case(f"changes: a data file, {over}", written, backing, False, "data",
              {})


@ktap.test
def the_image_holds_no_plain_text():
    create("image", 4 * MIB)
    fx.grow("image", 16 * MIB)
    text = b"plain text" * 512
    text = text[:len(text) // 512 * 512]
    with Encrypted([("qcow2", "image", None, True)], 4 * MIB) as dev:
        for at in range(0, 2 * MIB, 40 * KIB):
            dev.write(at, text)
    ktap.check(b"plain text" not in fx.file_bytes("image"), "it does")


@ktap.test
def compressed_clusters():
    """They are not encrypted: QEMU reads and writes them so."""
    create("image", 4 * MIB)
    qemu_io("image", "write -c -P 1 0 64k", "write -c -P 2 1M 512k",
            "write -P 3 2M 64k")
    fx.pad("image")
    changed([("qcow2", "image", None, True)], 4 * MIB, [], "compressed",
            bytearray(content("image")))


@ktap.test
def a_lower_layer():
    size = 4 * MIB
    create("lower", size)
    qemu_io("lower", "write -P 1 0 300k", "write -P 2 1M 64k")
    fx.pad("lower")
    model = bytearray(content("lower"))
    before = fx.file_bytes("lower")
    fx.create("image", size, backing="lower", cluster_size=4096)
    fx.grow("image", 16 * MIB)
    with Encrypted([("qcow2", "image", None, False),
                    ("qcow2", "lower", None, True)], size,
                   ["copy_on_read"]) as dev:
        change(dev, model, 40, "lower")
        ktap.same_bytes(dev.read_all(), bytes(model), "device")
    # Without what is below, which takes a secret
    fx.qemu_img("check", "json:" + json.dumps(
        {"driver": "qcow2", "backing": None,
         "file": {"driver": "file", "filename": "image"}}))
    ktap.check(before == fx.file_bytes("lower"), "the lower layer has changed")


@ktap.test
def internal_snapshots():
    size = 4 * MIB
    create("image", size)
    qemu_io("image", "write -P 1 0 1M")
    fx.qemu_img("snapshot", *SECRET, "-c", "one", "--image-opts",
                source("image"))
    fx.pad("image")
    first = content("image", "one")
    changed([("qcow2", "image", None, True)], size, [], "snapshots",
            bytearray(content("image")))
    ktap.same_bytes(content("image", "one"), first, "snapshot")


if __name__ == "__main__":
    fx.main()
