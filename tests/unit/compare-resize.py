#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""resize of images that are not open."""

import json
import os
import shutil
import subprocess

import host  # before the modules of lib/
from host import GIB, KIB, MIB
import ktap


def create(name="image", size="4M", *options):
    path = f"{host.directory}/{name}"
    host.qemu_img("create", "-q", "-f", "qcow2", *options, path, size)
    return path


def size_of(path, fmt="qcow2"):
    out = host.qemu_img("info", "--output=json", "-f", fmt, path)
    return json.loads(out)["virtual-size"]


def read_zeroes(path, start, length):
    out = host.run_well("qemu-io", "-r", "-f", "qcow2", "-c",
                        f"read -P 0 {start} {length}", path)
    ktap.check("failed" not in out, out)


def refused(code, what, *args):
    out, got = host.run(host.COMMAND, "resize", *args)
    ktap.equal(got, code, f"exit code: {out}")
    ktap.check(what in out, f"no '{what}' in: {out}")


def size_words(words):
    """The size after each of them."""
    path = create()
    for word, size in words:
        report = json.loads(host.qcow2setup("resize", path, "--json",
                                            "--shrink", word))
        ktap.equal(size_of(path), size, f"size after {word}")
        ktap.equal(report["virtual-size"], size, "size in the report")
    host.qemu_img("check", path)


for title, words in {
        "absolute": [("8M", 8 * MIB), ("8M", 8 * MIB), ("1.5G", 3 * GIB // 2),
                     ("1T", 1024 * GIB), ("4096k", 4 * MIB),
                     ("9m", 9 * MIB), ("1g", GIB), ("1024B", KIB),
                     ("4097K", 4097 * KIB), ("5000000", 5000192),
                     ("1.M", MIB), (".5g", GIB // 2), ("1.0", 512),
                     ("0.50048828125k", KIB), ("0x400000", 4 * MIB),
                     ("0X1E00", 0x1e00), ("4M", 4 * MIB)],
        "relative": [("+1M", 5 * MIB), ("+1b", 5 * MIB + 512),
                     ("+0.5k", 5 * MIB + KIB), ("-0x400", 5 * MIB),
                     ("-4M", MIB), ("+3M", 4 * MIB)]}.items():
    ktap.case(f"resize: {title}", size_words, words)


@ktap.test
def resize_of_an_image_with_a_data_file():
    """From another directory than the data file's"""
    path = f"{host.directory}/image"
    host.qcow2setup("create", path, "4M", "-o", "data_file=image.data")
    data = path + ".data"
    host.qcow2setup("resize", path, "6M")
    ktap.equal(os.path.getsize(data), 6 * MIB, "length of the data file")
    json.loads(host.qcow2setup("check", path, "--json"))
    host.qcow2setup("resize", path, "--shrink", "1M")
    ktap.equal(os.path.getsize(data), MIB, "length of the data file")


@ktap.test
def resize_refuses_what_is_no_size():
    path = create()
    for word in ("", "+", "-", "M", "1X", "1MM", "1e3", "1.5", "1.5B", ".", ".k",
                 "0x", "0xg", "0x1G", "0x1.8", "00x10", "++1", "+-1"):
        refused(1, "is not a size", path, word)
    for word in ("9E", "99999999999999999999", "+5E",
                 "0xffffffffffffffff", "0x10000000000000000"):
        refused(1, "too large", path, word)
    refused(1, "cannot have a size of 0", path, "--shrink", "-4M")
    refused(1, "is more than", path, "--shrink", "-5M")
    ktap.equal(size_of(path), 4 * MIB, "size")


@ktap.test
def resize_of_an_image_of_no_bytes():
    path = create("image", "0")
    refused(1, "cannot have a size of 0", path, "0")
    base = create("base", "8M")
    host.qemu_io(base, "write -P 1 0 8M")
    over = create("over", "0", "-b", base, "-F", "qcow2")
    for one in path, over:
        host.qcow2setup("resize", one, "+4M")
        ktap.equal(size_of(one), 4 * MIB, "size")
        host.qemu_img("check", one)
        # Past its end it had zeroes, whatever is below.
        read_zeroes(one, 0, 4 * MIB)


@ktap.test
def resize_keeps_what_is_below_the_next_image():
    """In the cluster that the image ends in"""
    bottom, middle, top = (f"{host.directory}/{n}" for n in
                           ("bottom", "middle", "top"))
    host.qcow2setup("create", bottom, "4M")
    host.qemu_io(bottom, "write -P 1 0 4M")
    host.qcow2setup("create", middle, "-b", "bottom", "-F", "qcow2")
    host.qcow2setup("create", top, str(MIB + 512), "-b", "middle", "-F",
                    "qcow2")
    host.qcow2setup("resize", top, "2M")
    out = host.run_well("qemu-io", "-c", f"read -P 1 0 {MIB + 512}", "-c",
                        f"read -P 0 {MIB + 512} {MIB - 512}", top)
    ktap.check("failed" not in out, out)
    host.qemu_img("check", top)


@ktap.test
def resize_takes_less_wherever_it_stands():
    path = create()
    for words in ([path, "-512", "--shrink"], [path, "--shrink", "-512"],
                  ["--shrink", path, "-512"], [path, "-512", "--shrink",
                                               "--search", "/tmp"],
                  [path, "--shrink", "--", "-512"],
                  ["--shrink", "--", path, "-512"]):
        size = size_of(path)
        host.qcow2setup("resize", *words)
        ktap.equal(size_of(path), size - 512, f"size after {words}")


@ktap.test
def resize_shrinks_on_demand_only():
    path = create()
    host.qemu_io(path, "write -P 1 0 4M")
    refused(1, "--shrink", path, "-1M")
    ktap.equal(size_of(path), 4 * MIB, "size")
    host.qcow2setup("resize", path, "--shrink", "-1M")
    ktap.equal(size_of(path), 3 * MIB, "size")
    host.qemu_img("check", path)
    host.qcow2setup("resize", path, "+1M")
    read_zeroes(path, 3 * MIB, MIB)


@ktap.test
def resize_does_not_harm_overlays():
    base = create("base")
    top = create("top", "8M", "-b", base, "-F", "qcow2")
    host.qemu_io(base, "write -P 1 0 4M")
    refused(5, f"{top} stands on {base}", base, "--shrink", "2M")
    ktap.equal(size_of(base), 4 * MIB, "size")
    # Longer is harmless: what the overlay showed there it still shows.
    host.qcow2setup("resize", base, "+2M")
    read_zeroes(top, 4 * MIB, 4 * MIB)
    host.qcow2setup("resize", base, "--shrink", "--force", "2M")
    ktap.equal(size_of(base), 2 * MIB, "size")


@ktap.test
def resize_sees_overlays_with_options_of_qemu():
    """Of a name that is not understood here the file counts all the same."""
    path = create()
    over = f"{host.directory}/over"
    name = {"driver": "qcow2", "l2-cache-size": 1 << 20,
            "file": {"driver": "file", "filename": path}}
    host.qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
                  "json:" + json.dumps(name), over)
    refused(5, "over stands on", path, "--shrink", "1M")
    ktap.equal(size_of(path), 4 * MIB, "size")


@ktap.test
def resize_sees_the_top_of_a_long_chain():
    """As long as the target takes it, with all between in another directory"""
    base = create("base")
    between = f"{host.directory}/between"
    os.mkdir(between)
    host.chain_of(between, 600)
    os.symlink(base, f"{between}/0000")
    create("top", "4M", "-u", "-b", "between/0600", "-F", "qcow2")
    refused(5, f"{host.directory}/top stands on {base}", base, "--shrink",
            "2M")
    shutil.rmtree(between)
    ktap.equal(size_of(base), 4 * MIB, "size")


@ktap.test
def resize_hides_a_longer_base():
    """What qemu-img hides as well, but not if it is not told of the base."""
    base = create("base", "8M")
    host.qemu_io(base, "write -P 1 0 8M")
    top = create("top", "3M", "-b", "base", "-F", "qcow2")
    host.qemu_io(top, "write -P 2 1M 64k")
    host.qcow2setup("resize", top, "6M")
    read_zeroes(top, 3 * MIB, 3 * MIB)
    out = host.qemu_img("info", top)
    ktap.check("backing file: base (" in out, out)
    host.qemu_img("check", top)


@ktap.test
def resize_hides_what_is_behind_the_end():
    """The state of a virtual machine, which qemu-img makes part of the disk."""
    path = create("image", "64k", "-o", "cluster_size=512")
    host.qemu_io(path, "write -P 1 0 64k", "write -b -P 7 0 64k")
    host.qemu_img("snapshot", "-c", "one", path)
    host.qcow2setup("resize", path, "128k")
    read_zeroes(path, 64 * KIB, 64 * KIB)
    ktap.check("backing" not in host.qemu_img("info", path), "a backing file")
    host.qemu_img("check", path)
    # The snapshot has it still.
    host.qcow2setup("internal", "apply", path, "one")
    out = host.run_well("qemu-io", "-c", "read -b -P 7 0 64k", path)
    ktap.check("failed" not in out, out)


@ktap.test
def resize_of_a_raw_image():
    path = f"{host.directory}/raw"
    with open(path, "wb") as f:
        f.truncate(MIB)
    refused(4, "not a qcow2 image", path, "2M")
    host.qcow2setup("resize", path, "+1M", "--backing-format", f"{path}=raw")
    ktap.equal(size_of(path, "raw"), 2 * MIB, "size")


@ktap.test
def resize_of_images_that_qemu_does_not_resize():
    path = create("image", "4M", "-o", "compat=0.10")
    host.qemu_img("snapshot", "-c", "one", path)
    refused(4, "qemu-img failed", path, "8M")
    ktap.equal(size_of(path), 4 * MIB, "size")


@ktap.test
def resize_beside_a_bitmap_that_is_not_known():
    """What writes to an image is refused; QEMU does not even show it."""
    path = create()
    host.qemu_img("bitmap", "--add", path, "one")
    with open(path, "r+b") as f:
        data = f.read()
        f.seek(data.rindex(b"one") - 24 + 15)
        f.write(b"\4")
    out, code = host.run("qemu-img", "info", path)
    ktap.equal(code, 1, f"info of qemu-img: {out}")
    refused(4, "bitmap 'one' has unknown flags", path, "8M")
    info = json.loads(host.qcow2setup("info", path, "--json"))
    ktap.equal(info["virtual-size"], 4 * MIB, "size")


@ktap.test
def resize_of_a_locked_image():
    path = create()
    with subprocess.Popen(["qemu-io", "-r", "-f", "qcow2", path],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          bufsize=0) as reader:
        reader.stdin.write(b"length\n")
        reader.stdout.read(1)
        refused(5, "is locked", path, "8M")
        reader.stdin.close()
    ktap.equal(size_of(path), 4 * MIB, "size")


host.main()
