#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What is refused, and that the message names it."""

import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import MIB, peek, poke, refused  # noqa: E402


@ktap.test
def legacy_encryption():
    fx.create("image", MIB)
    poke("image", 32, "I", 1)
    refused([("qcow2", "image")], MIB, "legacy AES.*predicted")


@ktap.test
def luks():
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "--object",
                    "secret,id=s,data=secret", "-o",
                    "encrypt.format=luks,encrypt.key-secret=s,"
                    "encrypt.iter-time=10", "image", "1M"], check=True)
    fx.pad("image")
    refused([("qcow2", "image")], MIB, "luks.*dm-crypt device")


@ktap.test
def legacy_aes():
    fx.create("image", MIB)
    poke("image", 32, "I", 1)
    refused([("qcow2", "image")], MIB, "legacy AES")


@ktap.test
def an_unknown_incompatible_feature():
    fx.create("image", MIB)
    poke("image", 72, "Q", 1 << 40)
    refused([("qcow2", "image")], MIB, "incompatible|feature|bit 40")


@ktap.test
def a_dirty_image_for_writing():
    fx.create("image", MIB, lazy_refcounts="on")
    poke("image", 72, "Q", 1)
    refused([("qcow2", "image")], MIB, "dirty|repair")


@ktap.test
def a_corrupt_image_for_writing():
    fx.create("image", MIB)
    poke("image", 72, "Q", 2)
    refused([("qcow2", "image")], MIB, "corrupt|repair")


@ktap.test
def not_qcow2():
    fx.run("truncate", "-s", "1M", "image")
    refused([("qcow2", "image")], MIB, "magic.*not a qcow2|not a qcow2")


@ktap.test
def a_device_that_hides_the_l1_table():
    """A new 64 MiB image as qemu-img leaves it: the last 8 bytes are hidden."""
    fx.qemu_img("create", "-q", "-f", "qcow2", "image", "64M")
    ktap.check(os.path.getsize("image") % 512, "the file has whole sectors")
    refused([("qcow2", "image")], 64 * MIB, "l1_table_offset",
            read_only=True)


@ktap.test
def a_device_too_short_for_the_refcount_table():
    fx.create("image", 64 * MIB)
    offset = peek("image", 48, "Q")
    poke("image", 48, "Q", (offset + (1 << 30)) & ~0xffff)
    refused([("qcow2", "image")], 64 * MIB, "refcount_table_offset",
            read_only=True)


@ktap.test
def a_table_longer_than_the_image():
    fx.create("image", MIB)
    refused([("qcow2", "image")], 2 * MIB, "size|longer|length")


def bad_line(line, message):
    fx.create("image", MIB)
    # Long enough for whatever the line makes of it
    fx.grow("image", 2 * MIB)
    loop = fx.blk.Loop("image")
    dm = fx.blk.Dm("refused")
    fx.kernel_log()
    try:
        dm.create(2048, line.format(dev=loop.dev))
    except OSError:
        log = fx.kernel_log()
        ktap.check(re.search(message, log, re.I),
                   f"no {message!r} in the kernel log:\n{log}")
    else:
        dm.remove()
        raise ktap.Failure("it was opened")
    finally:
        loop.detach()


@ktap.test
def more_tables_of_snapshots_than_there_is_memory_for():
    """All in holes: a small file"""
    tables, clusters = 200, 65536
    fx.create("image", MIB, cluster_size=512)
    where = 4 * MIB
    poke("image", 60, "I", tables)
    poke("image", 64, "Q", where)
    first = 8 * MIB
    for n in range(tables):
        poke("image", where + 40 * n, "Q", first + n * clusters * 512)
        poke("image", where + 40 * n + 8, "I", clusters * 64)
    fx.grow("image", first + tables * clusters * 512)
    refused([("qcow2", "image")], MIB, "more clusters of metadata")


for title, line, message in (
        ("no arguments", "", "argument|layers"),
        ("no layers", "0", "layers|argument"),
        ("more layers than arguments", "2 qcow2 {dev} -", "argument|layer"),
        ("an unknown format", "1 vmdk {dev} -", "format|vmdk"),
        ("raw in the middle", "2 raw {dev} - qcow2 {dev} -", "raw|last"),
        ("a device that is not there", "1 qcow2 /dev/nothing -",
         "nothing|device"),
        ("the image as data device", "1 qcow2 {dev} {dev}", "itself"),
        ("a data device that is not there", "1 qcow2 {dev} /dev/nothing",
         "data device"),
        ("a data device of a raw image", "1 raw {dev} {dev}", "raw image"),
        ("an unknown feature", "1 qcow2 {dev} - 1 faster", "feature|faster"),
        ("a feature without its argument", "1 qcow2 {dev} - 1 zero_from",
         "zero_from|argument"),
        ("a bad zero_from", "1 qcow2 {dev} - 2 zero_from -7", "zero_from"),
        ("too many arguments", "1 qcow2 {dev} - 0 surplus", "argument|surplus|words left"),
        ("the image as its own mirror", "1 qcow2 {dev} - 2 mirror {dev}",
         "mirror.*qcow2"),
        ("one device twice in a chain", "2 qcow2 {dev} - qcow2 {dev} -",
         "twice|same|already")):
    ktap.case(f"table line: {title}", bad_line, line, message)


if __name__ == "__main__":
    fx.main()
