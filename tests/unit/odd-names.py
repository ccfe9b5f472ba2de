#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Names that are not UTF-8, or that a terminal would obey: of files, and in
images from anywhere."""

import json
import os
import resource
import shutil
import subprocess

import host  # before the modules of lib/
import ktap

LATIN = b"caf\xe9"
# Overlong, a surrogate, beyond the last character, cut off; and good ones
WRONG = b"\xc0\xaf \xed\xa0\x80 \xf4\x90\x80\x80 \xe2\x82"
GOOD = "é€𝄞"


def said(*args):
    done = subprocess.run([host.COMMAND, *args], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout


def directory():
    return os.fsencode(host.directory)


def create(name, *args):
    path = directory() + b"/" + name
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *args, path,
                    "1M"], check=True)
    return path


@ktap.test
def json_is_utf_8_whatever_a_file_is_called():
    path = create(LATIN)
    info = json.loads(said("info", path, "--json").decode())
    ktap.equal(info["filename"], f"{host.directory}/caf\ufffd", "name")
    host.qemu_io(path, "write 0 64k")
    parts = json.loads(said("map", path, "--json").decode())
    ktap.equal(parts[0]["filename"], f"{host.directory}/caf\ufffd", "name")
    tree = json.loads(said("tree", directory(), "--json").decode())
    ktap.equal(tree[0]["image"], f"{host.directory}/caf\ufffd", "name")


@ktap.test
def json_is_utf_8_whatever_an_image_says():
    path = create(b"image", "-u", "-b", WRONG + GOOD.encode(), "-F", "qcow2")
    info = json.loads(said("info", path, "--json").decode())
    replaced = (b"\0\0 \0\0\0 \0\0\0\0 \0\0".replace(b"\0", b"\xef\xbf\xbd")
                .decode() + GOOD)
    ktap.equal(info["backing-filename"], replaced, "backing file")


@ktap.test
def what_an_image_says_is_no_command_to_the_terminal():
    name = "x\nencrypted\x1b[2J\x7f"
    path = create(b"image", "-u", "-b", name, "-F", "qcow2")
    out = said("info", path).decode()
    ktap.check("backing file: x?encrypted?[2J? (actual" in out, out)
    out = said("info", path, "--backing-chain").decode()
    ktap.check("x?encrypted?[2J? of" in out, out)
    out = said("tree", directory()).decode()
    ktap.equal(out.splitlines()[0],
               f"{host.directory}/x?encrypted?[2J?  missing", "tree")


@ktap.test
def what_a_file_is_called_is_no_command_to_the_terminal():
    path = create("a\x9b2J\nb\x1bc é€".encode())
    for words in (["info", path], ["tree", directory()],
                  ["snapshot", path, directory() + b"/new", "--dry-run"]):
        out = said(*words).decode()
        ktap.check("a??2J?b?c é€" in out, ascii(out))
        ktap.check("\x1b" not in out and "\x9b" not in out, ascii(out))


# A noncharacter, as well, and what JSON has escapes for
NAMES = (LATIN, WRONG, b"\xef\xbf\xbe", "\U0001fffe".encode(), GOOD.encode(),
         b"\x1b\"\\,\n:")


def check_and_resize(inside, path):
    ktap.equal(said("create", inside + b"/base", "1M"), b"", "create")
    host.qemu_io(inside + b"/base", "write -P 1 0 1M")
    ktap.equal(said("create", path, "-b", "base", "-F", "qcow2", "-o",
                    "data_file=data"), b"", "create")
    out = said("check", "--repair", path)
    ktap.check(b"No errors" in out, out)
    for size, length in ("512k", 512 << 10), ("2M", 2 << 20):
        ktap.equal(said("resize", "--shrink", path, size), b"", "resize")
        ktap.equal(os.stat(inside + b"/data").st_size, length, "data file")
    # QEMU finds the data file in its working directory.
    done = subprocess.run(["qemu-io", "-r", "-f", "qcow2", "-c",
                           "read -P 1 0 512k", "-c", "read -P 0 512k 1536k",
                           path], stdout=subprocess.PIPE, cwd=inside)
    ktap.check(not done.returncode and b"failed" not in done.stdout, done)


@ktap.test
def check_and_resize_take_images_whatever_they_are_called():
    for name in NAMES:
        inside = directory() + b"/" + name
        os.mkdir(inside)
        try:
            check_and_resize(inside, inside + b"/" + name)
        finally:
            shutil.rmtree(inside)


@ktap.test
def what_is_no_image_is_not_even_opened():
    """An image from anywhere may name a watchdog, which then begins to count."""
    fifo = directory() + b"/fifo"
    os.mkfifo(fifo)
    path = create(b"image", "-u", "-b", fifo, "-F", "raw")
    # It ends when somebody opens it for reading.
    writer = subprocess.Popen(["sh", "-c", 'exec 3>"$1"', "sh", fifo])
    for words in ("info", path, "--backing-chain"), ("map", path), ("info",
                                                                    fifo):
        ktap.check(b"neither a file nor" in said(*words), words)
    try:
        writer.wait(0.5)
        ktap.check(False, "it was opened")
    except subprocess.TimeoutExpired:
        writer.terminate()
        writer.wait()


def small_stack():
    resource.setrlimit(resource.RLIMIT_STACK, (2 << 20, 2 << 20))


@ktap.test
def tree_bears_chains_of_any_length():
    host.chain_of(host.directory, 3000)
    for options in ([], ["--json"]):
        done = subprocess.run([host.COMMAND, "tree", f"{host.directory}/3000",
                               *options], stdout=subprocess.PIPE,
                              preexec_fn=small_stack)
        ktap.equal(done.returncode, 0, "exit code")
        ktap.check(b"3000" in done.stdout, done.stdout[-500:])


host.main()
