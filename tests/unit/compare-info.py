#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""info beside qemu-img info, over what an image can say of itself."""

import json

import host  # before the modules of lib/
from host import KIB
import ktap

SECRET = ["--object", "secret,id=key,data=abc"]
LUKS = ["encrypt.format=luks", "encrypt.key-secret=key",
        "encrypt.iter-time=10"]

# Options of qemu-img create, and arguments before them
OPTIONS = {
    "as it comes": ([], []),
    "version 2": (["compat=0.10"], []),
    "zstd": (["compression_type=zstd"], []),
    "lazy refcounts": (["lazy_refcounts=on"], []),
    "refcounts of one bit": (["refcount_bits=1"], []),
    "small clusters": (["cluster_size=512"], []),
    "large clusters": (["cluster_size=2M"], []),
    "subclusters": (["extended_l2=on", "cluster_size=128k"], []),
    "data file": (["data_file=@/data"], []),
    "raw data file": (["data_file=@/data", "data_file_raw=on"], []),
    "LUKS": (LUKS, SECRET),
    "LUKS with CBC": (LUKS + ["encrypt.cipher-alg=serpent-256",
                              "encrypt.cipher-mode=cbc",
                              "encrypt.ivgen-alg=essiv",
                              "encrypt.ivgen-hash-alg=sha256",
                              "encrypt.hash-alg=sha512"], SECRET),
    "AES": (["encrypt.format=aes", "encrypt.key-secret=key"], SECRET),
    "preallocated": (["preallocation=full"], []),
}

# What newer QEMUs say of the file below
CHILDREN = "children"


def contained(ours, theirs, where):
    """All that qemu-img says, we say."""
    if isinstance(theirs, dict):
        for key in theirs:
            if key == CHILDREN:
                continue
            ktap.check(key in ours, f"{where}: no {key} in {ours}")
            contained(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list):
        ktap.equal(len(ours), len(theirs), f"length of {where}")
        for n, pair in enumerate(zip(ours, theirs)):
            contained(*pair, f"{where}[{n}]")
    else:
        ktap.equal(ours, theirs, where)


def same_keys(ours, theirs, where):
    """Nothing is spelled in another way: what else we say is our own."""
    own = {"file-length", "block-device", "unknown-features",
           "detached-header"}
    if isinstance(ours, dict):
        more = set(ours) - set(theirs) - own
        ktap.check(not more, f"{where}: {more} in {ours}, not in {theirs}")
        for key in set(ours) & set(theirs):
            same_keys(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        for n, pair in enumerate(zip(ours, theirs)):
            same_keys(*pair, f"{where}[{n}]")


def check_json(path, *options):
    theirs = json.loads(host.qemu_img("info", "--output=json", *options, path))
    ours = json.loads(host.qcow2setup("info", "--json", *options, path))
    contained(ours, theirs, "info")
    same_keys(ours, theirs, "info")
    return ours


def text_lines(text):
    """Without the list of snapshots, whose layout changed, and without what
    newer QEMUs say of the file below."""
    lines, skipped = [], False
    for line in text.splitlines():
        if line.startswith(("Snapshot list:", "Child node")):
            skipped = True
        elif line and line[0].islower() or line.startswith("Format"):
            skipped = False
        if line and not skipped:
            lines.append(line)
    return lines


def check_text(path, *options):
    theirs = text_lines(host.qemu_img("info", *options, path))
    ours = text_lines(host.qcow2setup("info", *options, path))
    missing = [line for line in theirs if line not in ours]
    ktap.check(not missing, f"{missing} not in {ours}")


def check_info(path, *options):
    check_json(path, *options)
    check_text(path, *options)


def create(options, arguments=(), name="image", size="1M"):
    path = f"{host.directory}/{name}"
    args = ["-o", ",".join(o.replace("@", host.directory) for o in options)] \
        if options else []
    host.qemu_img("create", "-q", "-f", "qcow2", *arguments, *args, path, size)
    return path


def options_of_create(options, arguments):
    path = create(options, arguments)
    check_info(path)


for title, (options, arguments) in OPTIONS.items():
    ktap.case(f"info: {title}", options_of_create, options, arguments)


@ktap.test
def info_of_a_chain():
    base = f"{host.directory}/base"
    with open(base, "wb") as f:
        f.truncate(1000)
    create([], ["-b", "base", "-F", "raw"], "middle")
    path = create([], ["-b", f"{host.directory}/middle", "-F", "qcow2"])
    check_info(path)
    check_info(path, "--backing-chain")
    check_info(f"{host.directory}/middle")


@ktap.test
def info_of_an_overlay_without_its_base():
    path = create([], ["-u", "-b", "nowhere", "-F", "qcow2"])
    check_info(path)


@ktap.test
def info_of_an_overlay_that_records_no_format():
    path = create([], ["-u", "-b", "nowhere", "-F", "qcow2"])
    host.qemu_img("rebase", "-u", "-b", "", path)
    with open(path, "r+b") as f:
        f.seek(8)
        f.write((KIB).to_bytes(8, "big") + (3).to_bytes(4, "big"))
        f.seek(KIB)
        f.write(b"old")
    info = check_json(path)
    ktap.check("backing-filename-format" not in info, info)
    ktap.equal(info["backing-filename"], "old", "backing file")


@ktap.test
def info_of_snapshots():
    path = create([])
    host.qemu_io(path, "write 0 64k")
    # An entry that is longer than what is read first
    long_name = "n" * 2000
    for name in ["one", "two words", long_name, "four"]:
        host.qemu_img("snapshot", "-c", name, path)
    info = check_json(path)
    # QEMU cuts names
    ktap.equal(len(info["snapshots"]), 4, "snapshots")
    check_text(path)
    out = host.qcow2setup("info", path)
    ktap.check("\n2         two words " in out, out)


@ktap.test
def info_of_a_snapshot_table_beyond_the_end():
    path = create([])
    with open(path, "r+b") as f:
        f.seek(60)
        f.write((7).to_bytes(4, "big") + (1 << 40).to_bytes(8, "big"))
    out, code = host.run(host.COMMAND, "info", path)
    ktap.equal(code, 4, "exit code")
    ktap.check("no room for 7 snapshots" in out, out)


@ktap.test
def info_of_bitmaps():
    path = create([])
    host.qemu_img("bitmap", "--add", path, "one")
    host.qemu_img("bitmap", "--add", "-g", "4k", "--disable", path, "two")
    info = check_json(path)
    check_text(path)
    bitmaps = info["format-specific"]["data"]["bitmaps"]
    ktap.equal([b["name"] for b in bitmaps], ["one", "two"], "names")


def set_bits(path, where, bits):
    with open(path, "r+b") as f:
        f.seek(where)
        value = int.from_bytes(f.read(8), "big")
        f.seek(where)
        f.write((value | bits).to_bytes(8, "big"))


@ktap.test
def info_of_marked_images():
    path = create([])
    set_bits(path, 72, 1)
    ktap.equal(check_json(path)["dirty-flag"], True, "dirty")
    set_bits(path, 72, 2)
    data = check_json(path)["format-specific"]["data"]
    ktap.equal(data["corrupt"], True, "corrupt")
    check_text(path)


@ktap.test
def info_of_an_image_that_has_lost_its_data_file():
    """What it does not name any more it needs all the same."""
    for raw in "off", "on":
        path = create([f"data_file=@/data,data_file_raw={raw}"])
        host.qemu_img("amend", "-f", "qcow2", "-o", "data_file=", path)
        data = check_json(path)["format-specific"]["data"]
        ktap.check("data-file" not in data, data)
        ktap.equal(data["data-file-raw"], raw == "on", "raw")
        check_text(path)


@ktap.test
def info_of_an_image_that_nobody_knows():
    path = create([])
    set_bits(path, 72, 1 << 40)
    info = json.loads(host.qcow2setup("info", "--json", path))
    ktap.equal(info["unknown-features"], "bit 40", "features")


@ktap.test
def info_of_a_luks_image_without_its_header():
    path = create(LUKS, SECRET)
    with open(path, "r+b") as f:
        data = f.read()
        f.seek(data.index(b"LUKS\xba\xbe"))
        f.write(b"gone")
    out, code = host.run(host.COMMAND, "info", path)
    ktap.equal(code, 4, "exit code")
    ktap.check("no LUKS header" in out, out)


@ktap.test
def info_of_a_raw_image():
    path = f"{host.directory}/raw"
    with open(path, "wb") as f:
        f.write(b"x" * 700)
    theirs = json.loads(host.qemu_img("info", "--output=json", "-f", "raw",
                                      path))
    ours = json.loads(host.qcow2setup("info", "--json", "--backing-format",
                                      f"{path}=raw", path))
    theirs.pop("format-specific", None)
    contained(ours, theirs, "info")
    same_keys(ours, theirs, "info")


host.main()
