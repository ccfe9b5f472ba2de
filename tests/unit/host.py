# SPDX-License-Identifier: GPL-2.0-only
"""For tests of qcow2setup that need no device: on the host, beside qemu-img."""

import os
import shutil
import subprocess
import sys
import tempfile

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(TESTS, "build")
LIB = os.path.join(TESTS, "lib")
COMMAND = os.path.join(BUILD, "qcow2setup")
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

sys.path.insert(0, LIB)
import ktap
import qemuimg

# Where images go: a new directory, emptied after each test
directory = None


def run(*command):
    """Returns what it printed, errors as well, and its exit code."""
    done = subprocess.run(command, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout, done.returncode


def run_well(*command, runner=run):
    out, code = runner(*command)
    ktap.equal(code, 0, f"exit code of {' '.join(command)}: {out}")
    return out


def qemu_img(*args):
    return run_well("qemu-img", *args, runner=qemuimg.run)


def qemu_io(name, *commands):
    """Some may fail: a cluster that is allocated cannot become compressed."""
    args = ["qemu-io", "-f", "qcow2", "-d", "unmap"]
    for command in commands:
        args += ["-c", command]
    if commands:
        run(*args, name)


def key_file(passphrase):
    path = os.path.join(directory, f"key-{passphrase}")
    with open(path, "w") as f:
        f.write(passphrase)
    return path


def chain_of(where, count):
    """Images 0001 to COUNT in a directory, each on the one before"""
    first = os.path.join(where, "0001")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-u",
             "-b", "0000", "-F", "qcow2", first, "1M")
    with open(first, "rb") as f:
        image = f.read()
    for number in range(2, count + 1):
        with open(os.path.join(where, f"{number:04}"), "wb") as f:
            f.write(image.replace(b"0000", b"%04d" % (number - 1)))


def qcow2setup(*args):
    return run_well(COMMAND, *args)


def _empty():
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))


def main():
    global directory
    directory = tempfile.mkdtemp(prefix="images-", dir=BUILD)
    try:
        ktap.main(after_each=_empty)
    finally:
        shutil.rmtree(directory)
