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
                     ("-4M", MIB), ("+3M", 4 * MIB),
                     # No more is lost than was asked for.
                     ("-1", 4 * MIB), ("-1000", 4 * MIB - 512),
                     ("-4193281", 512), ("-511", 512)]}.items():
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


# The image ends within its last cluster, and within a subcluster.
CLUSTER = 128 * KIB
END = 2 * MIB - 1536
LONGER = END + MIB


def make_tail(path, way):
    """An image of 2 MiB gets something there, and ends before it then."""
    if way == "compressed":
        # The base has none of it, whatever it is.
        host.qemu_io(path, f"write -c -P 39 {2 * MIB - CLUSTER} {CLUSTER}")
    elif way == "sector":
        host.qemu_io(path, f"write -P 39 {END} 512")
    elif way != "nothing":
        host.qemu_io(path, "write -P 39 1983k 65k")
    host.qemu_img("resize", "-q", "--shrink", "-f", "qcow2", path, str(END))
    if way == "snapshot":
        host.qemu_img("snapshot", "-c", "one", path)


def contents(path):
    raw = f"{host.directory}/raw"
    host.qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    with open(raw, "rb") as f:
        return f.read()


def zeroes_the_tail(options, way, base):
    backing = []
    if base:
        backing = ["-b", create("base", base), "-F", "qcow2"]
        host.qemu_io(backing[1], f"write -P 1 0 {base}")
    path = create("image", "2M", *backing, "-o",
                  ",".join([f"cluster_size={CLUSTER}", *options]))
    make_tail(path, way)
    before = contents(path)
    ktap.equal(len(before), END, "length")
    if base in ("2M", "4M") and "compat=0.10" in options:
        with open(path, "rb") as f:
            whole = f.read()
        refused(4, "qemu-img amend", path, str(LONGER))
        with open(path, "rb") as f:
            ktap.same_bytes(f.read(), whole, "the image that was refused")
        # Within the cluster there is nothing to hide.
        host.qcow2setup("resize", path, "+512")
        ktap.check(contents(path) == before + bytes(512), "contents")
        return
    host.qcow2setup("resize", path, str(LONGER))
    ktap.check(contents(path) == before + bytes(LONGER - END), "contents")
    host.qemu_img("check", path)


@ktap.test
def resize_zeroes_the_rest_of_the_last_cluster():
    """As an image has it that was made shorter"""
    for options in ([], ["compat=0.10"], ["extended_l2=on"],
                    [f"data_file={host.directory}/data"],
                    [f"data_file={host.directory}/data", "data_file_raw=on"]):
        for way in "all", "sector", "nothing", "compressed", "snapshot":
            # QEMU resizes no image of version 2 that has a snapshot.
            if (way == "snapshot" and options and options != ["extended_l2=on"]) \
                    or (way == "compressed" and "data_file" in str(options)):
                continue
            # Another one, as long, longer for QEMU, longer
            for base in (None, "1M", str(END), "2M", "4M"):
                if base and "data_file_raw=on" in options:
                    continue
                zeroes_the_tail(options, way, base)
                for name in os.listdir(host.directory):
                    os.unlink(f"{host.directory}/{name}")


@ktap.test
def resize_zeroes_the_rest_of_an_encrypted_cluster():
    key = host.key_file("secret")
    for base in None, "1M":
        path = f"{host.directory}/image"
        backing = []
        if base:
            host.qemu_io(create("base", base), f"write -P 1 0 {base}")
            backing = ["-b", "base", "-F", "qcow2"]
        host.qcow2setup("create", path, "2M", *backing, "-o",
                        "encrypt.format=luks,encrypt.iter-time=10,"
                        f"cluster_size={CLUSTER}", "--key-file", key)
        image = ["--object", f"secret,id=key,file={key}", "--image-opts",
                 f"driver=qcow2,file.filename={path},encrypt.key-secret=key"]
        host.run_well("qemu-io", *image, "-c", "write -P 39 1983k 65k")
        host.qcow2setup("resize", path, "--shrink", str(END), "--key-file", key)
        host.qcow2setup("resize", path, str(LONGER), "--key-file", key)
        out = host.run_well("qemu-io", *image, "-c",
                            f"read -P 39 1983k {END - 1983 * KIB}", "-c",
                            f"read -P 0 {END} {MIB}", "-c",
                            f"read -P {1 if base else 0} 0 1M")
        ktap.check("failed" not in out, out)
        os.unlink(path)


@ktap.test
def resize_has_zeroes_before_the_size():
    """Whatever becomes of the command then"""
    path = create("image", "2M", "-o", f"cluster_size={CLUSTER}")
    make_tail(path, "all")
    done = subprocess.run([host.COMMAND, "resize", path, "+1M"], env={"PATH": "/"},
                          stderr=subprocess.PIPE)
    ktap.check(b"Cannot find qemu-img" in done.stderr, done.stderr)
    ktap.equal(size_of(path), END, "size")
    host.qemu_img("resize", "-q", "-f", "qcow2", path, "2M")
    read_zeroes(path, END, 2 * MIB - END)


@ktap.test
def resize_hides_what_is_behind_the_end_of_an_overlay():
    """Of a base as long as that, which is read in the rest"""
    host.qemu_io(create("base", "64k"), "write -P 3 0 64k")
    path = create("image", "64k", "-o", "cluster_size=512", "-b", "base", "-F",
                  "qcow2")
    host.qemu_io(path, "write -P 1 0 32k", "write -b -P 7 0 64k")
    host.qcow2setup("resize", path, "128k")
    read_zeroes(path, 64 * KIB, 64 * KIB)
    out = host.run_well("qemu-io", "-c", "read -P 1 0 32k", "-c",
                        "read -P 3 32k 32k", path)
    ktap.check("failed" not in out, out)
    ktap.check("backing file: base (" in host.qemu_img("info", path), "base")
    host.qemu_img("check", path)


@ktap.test
def resize_hides_what_another_program_left():
    """Entries of clusters behind the end, in a table that is in use"""
    for base in None, "2M":
        backing = ["-b", create("base", base), "-F", "qcow2"] if base else []
        path = create("image", "4M", *backing)
        host.qemu_io(path, "write -P 1 0 4M")
        with open(path, "r+b") as f:
            f.seek(24)
            f.write((3 * MIB).to_bytes(8, "big"))
        host.qcow2setup("resize", path, "+1M")
        read_zeroes(path, 3 * MIB, MIB)
        host.qemu_img("check", path)


@ktap.test
def resize_of_sizes_that_are_no_sectors():
    """A device has the last one whole; QEMU leaves it out."""
    for word, size in ("+512", MIB + 512), (str(MIB), MIB), ("+1M", 2 * MIB), \
            ("-512", MIB - 512):
        for base in None, "2M":
            backing = []
            if base:
                backing = ["-b", create("base", base), "-F", "qcow2"]
                host.qemu_io(backing[1], f"write -P 1 0 {base}")
            path = create("image", "1M", *backing)
            host.qemu_io(path, "write -P 39 1023k 1k")
            with open(path, "r+b") as f:
                f.seek(24)
                f.write((MIB - 100).to_bytes(8, "big"))
            host.qcow2setup("resize", "--shrink", path, word)
            ktap.equal(size_of(path), size, f"size after {word}")
            end = min(size, MIB)
            out = host.run_well("qemu-io", "-c",
                                f"read -P 39 1023k {end - 1023 * KIB}", "-c",
                                f"read -P 0 {end} {size - end}", path)
            ktap.check("failed" not in out, out)
            host.qemu_img("check", path)


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
