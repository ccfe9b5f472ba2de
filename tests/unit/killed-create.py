#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A create that was killed is undone by the next command, perhaps long after:
what became of the image until then is not."""

import fcntl
import json
import os
import resource
import struct
import subprocess

import host  # before the modules of lib/
from host import MIB
import ktap

STATE = os.path.join(host.BUILD, "run")
F_OFD_SETLK = 37
PARTIAL = ".qcow2setup.partial"


def noted(name):
    path = os.path.join(host.directory, name)
    st = os.stat(path)
    return {"path": path, "dev": st.st_dev, "ino": st.st_ino}


def killed_create(*args, **members):
    """As it was killed when all was done but the end of the journal"""
    host.qcow2setup("create", f"{host.directory}/image", "64M", *args)
    entry = {"operation": "create", "name": "", "uuid": ""}
    with open(os.path.join(STATE, "journal"), "w") as f:
        json.dump(entry | {k: noted(v) for k, v in members.items()}, f)


def killed_before_the_name(whole=True):
    """As it was killed while the image had another name yet"""
    image = f"{host.directory}/image"
    made = image + PARTIAL
    if whole:
        host.qcow2setup("create", image, "64M")
        os.rename(image, made)
        member = noted("image" + PARTIAL)
    else:
        with open(made, "wb"):
            member = {"dev": 0, "ino": 0}
    entry = {"operation": "create", "name": "", "uuid": "",
             "new": member | {"path": image, "made": made}}
    with open(os.path.join(STATE, "journal"), "w") as f:
        json.dump(entry, f)


def next_command():
    return host.qcow2setup("create", f"{host.directory}/other", "1M")


def lock_as_qemu(fd):
    for byte in (100, 201):
        fcntl.fcntl(fd, F_OFD_SETLK,
                    struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))


def is_there(*names):
    for name in names:
        ktap.check(os.path.exists(f"{host.directory}/{name}"),
                   f"{name} is gone")


@ktap.test
def an_image_that_nobody_uses_goes():
    killed_create(new="image")
    ktap.equal(next_command(), "", "messages")
    ktap.equal(os.listdir(host.directory), ["other"], "files")


@ktap.test
def so_does_its_data_file():
    killed_create("-o", "data_file=data", **{"new": "image",
                                            "new-data": "data"})
    ktap.equal(next_command(), "", "messages")
    ktap.equal(os.listdir(host.directory), ["other"], "files")


@ktap.test
def an_image_with_data_is_kept():
    killed_create(new="image")
    host.run_well("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M",
                  f"{host.directory}/image")
    ktap.check("is kept" in next_command(), "no warning")
    is_there("image", "other")
    ktap.check(not os.path.exists(f"{STATE}/journal"), "the journal is there")


@ktap.test
def so_is_its_data_file():
    killed_create("-o", "data_file=data", **{"new": "image",
                                            "new-data": "data"})
    # QEMU looks for the data file in its working directory.
    os.chdir(host.directory)
    host.run_well("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M", "image")
    os.chdir("/")
    ktap.check("is kept" in next_command(), "no warning")
    is_there("image", "data")


@ktap.test
def an_image_in_use_is_kept():
    killed_create(new="image")
    fd = os.open(f"{host.directory}/image", os.O_RDWR)
    lock_as_qemu(fd)
    ktap.check("is kept" in next_command(), "no warning")
    os.close(fd)
    is_there("image")


@ktap.test
def what_another_program_made_of_it_is_kept():
    killed_create(new="image")
    with open(f"{host.directory}/image", "wb") as f:
        f.write(b"x" * MIB)
    ktap.check("is kept" in next_command(), "no warning")
    is_there("image")


@ktap.test
def so_does_one_without_its_name():
    killed_before_the_name()
    ktap.equal(next_command(), "", "messages")
    ktap.equal(os.listdir(host.directory), ["other"], "files")


@ktap.test
def one_that_has_just_got_its_name():
    killed_before_the_name()
    os.rename(f"{host.directory}/image{PARTIAL}", f"{host.directory}/image")
    ktap.equal(next_command(), "", "messages")
    ktap.equal(os.listdir(host.directory), ["other"], "files")


@ktap.test
def whose_name_another_file_has():
    killed_before_the_name(whole=False)
    with open(f"{host.directory}/image", "wb"):
        pass
    ktap.equal(next_command(), "", "messages")
    ktap.equal(sorted(os.listdir(host.directory)), ["image", "other"], "files")


@ktap.test
def what_a_power_cut_left_is_in_nobodys_way():
    image = f"{host.directory}/image"
    with open(image + PARTIAL, "wb") as f:
        f.write(b"QFI" + bytes(MIB))
    host.qcow2setup("create", image, "64M")
    ktap.equal(os.listdir(host.directory), ["image"], "files")
    host.run_well("qemu-img", "check", "-q", "-f", "qcow2", image)


@ktap.test
def but_what_is_in_use():
    image = f"{host.directory}/image"
    with open(image + PARTIAL, "w+b") as f:
        f.write(bytes(MIB))
        f.flush()
        lock_as_qemu(f.fileno())
        out, code = host.run(host.COMMAND, "create", image, "64M")
    ktap.equal(code, 5, f"exit code: {out}")
    ktap.equal(os.listdir(host.directory), ["image" + PARTIAL], "files")


@ktap.test
def a_name_as_long_as_names_are():
    name = "n" * 255
    host.qcow2setup("create", f"{host.directory}/{name}", "64M")
    ktap.equal(os.listdir(host.directory), [name], "files")


@ktap.test
def messages_have_the_name_that_was_given():
    image = f"{host.directory}/image"
    out, code = host.run(host.COMMAND, "create", image, "1M", "-o",
                         "cluster_size=3k")
    ktap.equal(code, 4, f"exit code: {out}")
    ktap.check(f"{image}: " in out and PARTIAL not in out, out)
    ktap.equal(os.listdir(host.directory), [], "files")


def starved():
    """The last of them is libdevmapper's, where there is device-mapper."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))


@ktap.test
def who_does_not_get_the_lock_leaves_the_journal_alone():
    image = f"{host.directory}/image"
    killed_create(new="image")
    with open(os.path.join(STATE, "lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (["commit", image], ["copy", image, image + ".copy"],
                      ["jobs", "--clean"]):
            done = subprocess.run([host.COMMAND, *words], preexec_fn=starved,
                                  capture_output=True, text=True)
            ktap.equal(done.returncode, 4, f"{words}: {done.stderr}")
            ktap.check(os.path.exists(f"{STATE}/journal"), f"{words}: journal")
    is_there("image")
    next_command()


@ktap.test
def a_create_that_fails_leaves_nothing():
    out, code = host.run(host.COMMAND, "create", f"{host.directory}/image",
                         "1M", "-o", "data_file=data,data_file_raw=on,"
                         "cluster_size=3k")
    ktap.equal(code, 4, f"exit code: {out}")
    ktap.equal(os.listdir(host.directory), [], "files")


host.main()
