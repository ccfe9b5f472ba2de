#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""check beside qemu-img check: exit codes, what is found, what is repaired."""

import json
import os
import subprocess

import host  # before the modules of lib/
from host import KIB, MIB
import ktap

CLUSTER = 64 * KIB
# Where a new image has its refcount block
REFBLOCK = 2 * CLUSTER


def create(*options):
    path = f"{host.directory}/image"
    host.qemu_img("create", "-q", "-f", "qcow2", *options, path, "4M")
    host.qemu_io(path, "write 0 200k", "write 1M 64k")
    return path


def set_refcount(path, cluster, value):
    with open(path, "r+b") as f:
        f.seek(REFBLOCK + 2 * cluster)
        f.write(value.to_bytes(2, "big"))


def check(path, *options, code=0):
    out, got = host.run(host.COMMAND, "check", path, *options)
    ktap.equal(got, code, f"exit code of check: {out}")
    return out


def check_json(path, *options, code=0):
    """What qemu-img says, we say, and of the tail."""
    done = subprocess.run([host.COMMAND, "check", path, "--json", *options],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ktap.equal(done.returncode, code, "exit code")
    return json.loads(done.stdout)


def same_as_qemu(path, code):
    done = subprocess.run(["qemu-img", "check", "--output=json", path],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ktap.equal(done.returncode, code, "exit code of qemu-img")
    theirs = json.loads(done.stdout)
    ours = check_json(path, code=code)
    ktap.equal({key: ours.get(key) for key in theirs}, theirs, "report")
    ktap.equal(set(ours) - set(theirs), {"tail", "tail-cut"}, "our own keys")


@ktap.test
def check_of_a_sound_image():
    path = create()
    same_as_qemu(path, 0)
    ktap.check("No errors" in check(path), "text")
    ktap.equal(check_json(path)["tail"], 0, "tail")


@ktap.test
def check_of_leaks():
    path = create()
    host.qemu_io(path, "discard 64k 64k")
    set_refcount(path, 6, 1)
    same_as_qemu(path, 3)
    out = check(path, code=3)
    ktap.check("1 leaked clusters" in out, out)
    report = check_json(path, "--repair")
    ktap.equal(report["leaks-fixed"], 1, "leaks")
    same_as_qemu(path, 0)


@ktap.test
def check_of_a_corrupt_image():
    path = create()
    set_refcount(path, 5, 0)
    same_as_qemu(path, 2)
    out = check(path, code=2)
    ktap.check("errors were found" in out, out)
    report = check_json(path, "--repair")
    ktap.check(report["corruptions-fixed"], report)
    same_as_qemu(path, 0)


def poke(path, offset, value):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(value.to_bytes(4, "big"))


@ktap.test
def check_of_an_image_without_refcounts():
    """No refcount table at all: QEMU makes one."""
    path = create()
    poke(path, 56, 0)
    same_as_qemu(path, 2)
    ktap.check(check_json(path, "--repair")["corruptions-fixed"], "repaired")
    same_as_qemu(path, 0)


@ktap.test
def check_that_finds_no_refcounts():
    """The block is where no file has anything: nothing can be compared."""
    path = create()
    poke(path, CLUSTER, 0x80000000)
    out = check(path, code=1)
    ktap.check("could not be completed" in out, out)
    ktap.check("Sanitizer" not in out, out)


@ktap.test
def check_of_too_many_snapshots():
    """QEMU drops those beyond the limit; what there is are empty ones here."""
    path = create()
    os.truncate(path, 16 * MIB)
    poke(path, 60, 65537)
    poke(path, 68, 8 * MIB)
    out = check(path, code=1)
    ktap.check("check -r all" in out, out)


def create_with_snapshot():
    """And with a bitmap, for which QEMU writes the header in a repair"""
    path = create()
    host.qemu_img("snapshot", "-c", "one", path)
    host.qemu_io(path, "write -P 7 0 200k")
    host.qemu_img("bitmap", "--add", path, "bits")
    return path


def leak(path):
    with open(path, "r+b") as f:
        cluster = -(-f.seek(0, os.SEEK_END) // CLUSTER)
        f.truncate((cluster + 1) * CLUSTER)
    set_refcount(path, cluster, 1)


def snapshot_of(path):
    """Its contents; QEMU fails where there is none."""
    host.qemu_img("convert", "-l", "snapshot.name=one", "-O", "raw", path,
                  f"{path}.raw")
    with open(f"{path}.raw", "rb") as f:
        return f.read()


def bitmaps_of(path):
    info = json.loads(host.qcow2setup("info", path, "--json"))
    return info["format-specific"]["data"].get("bitmaps")


@ktap.test
def check_keeps_snapshots_of_an_image_with_bitmaps():
    """qemu-img check -r all drops them, as it is about to mark the bitmaps."""
    path = create_with_snapshot()
    host.qemu_img("bitmap", "--add", "--disable", path, "more")
    snapshot, bitmaps = snapshot_of(path), bitmaps_of(path)
    with open(path, "rb") as f:
        sound = f.read()
    check(path, "--repair")
    with open(path, "rb") as f:
        ktap.check(sound.startswith(f.read()), "sound image is as it was")
    leak(path)
    ktap.equal(check_json(path, "--repair")["leaks-fixed"], 1, "leaks")
    ktap.check(snapshot_of(path) == snapshot, "contents of the snapshot")
    ktap.equal(bitmaps_of(path), bitmaps, "bitmaps")
    set_refcount(path, 5, 0)
    ktap.check(check_json(path, "--repair")["corruptions-fixed"], "repaired")
    ktap.check(snapshot_of(path) == snapshot, "contents of the snapshot")
    ktap.equal(bitmaps_of(path), bitmaps, "bitmaps")


@ktap.test
def check_keeps_snapshots_where_features_are_cleared():
    """Autoclear features: one that is not known, and bitmaps that are void"""
    for autoclear in (1 << 40 | 1, 1 << 40, 0):
        path = create_with_snapshot()
        snapshot = snapshot_of(path)
        with open(path, "r+b") as f:
            f.seek(88)
            f.write(autoclear.to_bytes(8, "big"))
        check(path, "--repair")
        ktap.check(snapshot_of(path) == snapshot, "contents of the snapshot")
        same_as_qemu(path, 0)
        ktap.equal(bool(bitmaps_of(path)), bool(autoclear & 1), "bitmaps")
        os.unlink(path)


@ktap.test
def check_repairs_where_the_bitmaps_extension_is_missing():
    """QEMU finds leaks, does not free them, and says that all is well."""
    path = create()
    with open(path, "r+b") as f:
        f.seek(88)
        f.write((1).to_bytes(8, "big"))
    leak(path)
    ktap.equal(check_json(path, "--repair")["leaks-fixed"], 1, "leaks")
    same_as_qemu(path, 0)


@ktap.test
def check_of_bitmaps_that_qemu_refuses_changes_nothing():
    path = create_with_snapshot()
    with open(path, "r+b") as f:
        data = f.read()
        # The entry: type, granularity and the length of the name
        f.seek(data.rindex(bytes([1, 16, 0, 4])) + 1)
        f.write(bytes([99]))
        f.seek(0)
        data = f.read()
    check(path, "--repair", code=1)
    with open(path, "rb") as f:
        ktap.check(f.read() == data, "as it was")


@ktap.test
def check_of_an_overlay_without_its_base():
    path = create("-u", "-b", "nowhere", "-F", "qcow2")
    check(path, code=0)


@ktap.test
def check_cuts_a_tail():
    path = create()
    length = os.path.getsize(path)
    os.truncate(path, length + MIB)
    # What a crash left there, of which nothing knows
    with open(path, "r+b") as f:
        f.seek(length + 4 * KIB)
        f.write(b"left")
    report = check_json(path)
    ktap.equal((report["tail"], report["tail-cut"]), (MIB, 0), "tail")
    ktap.equal(os.path.getsize(path), length + MIB, "length")
    ktap.check("has 1 MiB behind" in check(path), "text")
    ktap.check("Cut off 1 MiB" in check(path, "--repair"), "text")
    ktap.equal(os.path.getsize(path), length, "length when it is cut")
    same_as_qemu(path, 0)


@ktap.test
def check_cuts_leaked_clusters_at_the_end():
    path = create()
    length = os.path.getsize(path)
    set_refcount(path, length // CLUSTER, 1)
    set_refcount(path, length // CLUSTER + 1, 1)
    os.truncate(path, length + 2 * CLUSTER)
    ktap.equal(check_json(path, code=3)["tail"], 0, "tail")
    report = check_json(path, "--repair")
    ktap.equal((report["leaks-fixed"], report["tail"]), (2, 0), "repaired")
    ktap.equal(os.path.getsize(path), length, "length")


@ktap.test
def check_does_not_cut_what_is_not_sound():
    path = create()
    length = os.path.getsize(path)
    os.truncate(path, length + MIB)
    set_refcount(path, 5, 0)
    check(path, code=2)
    ktap.equal(os.path.getsize(path), length + MIB, "length")


@ktap.test
def check_clears_the_dirty_bit():
    path = create("-o", "lazy_refcounts=on")
    with open(path, "r+b") as f:
        f.seek(72)
        f.write((1).to_bytes(8, "big"))
    info = json.loads(host.qcow2setup("info", path, "--json"))
    ktap.equal(info["dirty-flag"], True, "dirty")
    check(path, "--repair")
    info = json.loads(host.qcow2setup("info", path, "--json"))
    ktap.equal(info["dirty-flag"], False, "dirty")


@ktap.test
def check_of_what_is_no_image():
    path = f"{host.directory}/raw"
    with open(path, "wb") as f:
        f.truncate(MIB)
    out = check(path, code=63)
    ktap.check("not a qcow2 image" in out, out)
    out = check(f"{host.directory}/nothing", code=1)
    ktap.check("does not exist" in out, out)
    path = create()
    with open(path, "r+b") as f:
        f.seek(20)
        f.write((99).to_bytes(4, "big"))
    out = check(path, code=1)
    ktap.check("cluster_bits" in out, out)


@ktap.test
def check_of_an_encrypted_image():
    path = create("--object", "secret,id=key,data=abc", "-o",
                  "encrypt.format=luks,encrypt.key-secret=key,"
                  "encrypt.iter-time=10")
    key, wrong = host.key_file("abc"), host.key_file("xyz")
    ktap.check("--key-file" in check(path, code=1), "without its passphrase")
    out = check(path, "--key-file", wrong, code=1)
    ktap.check("No key slot" in out, out)
    check(path, "--key-file", key)
    check(path, "--repair", "--key-file", f"{path}={key}")


@ktap.test
def check_of_a_locked_image():
    path = create()
    with subprocess.Popen(["qemu-io", "-f", "qcow2", path],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          bufsize=0) as writer:
        writer.stdin.write(b"length\n")
        writer.stdout.read(1)
        out = check(path, code=1)
        ktap.check("is locked" in out and "for writing" in out, out)
        out = check(path, "--repair", code=1)
        ktap.check("is locked" in out, out)
        writer.stdin.close()
    # Who reads is in the way of repairs alone.
    with subprocess.Popen(["qemu-io", "-r", "-f", "qcow2", path],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          bufsize=0) as reader:
        reader.stdin.write(b"length\n")
        reader.stdout.read(1)
        check(path)
        out = check(path, "--repair", code=1)
        ktap.check("is locked" in out, out)
        reader.stdin.close()
    check(path, "--repair")


host.main()
