#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""create: sizes, and images that are more than one file."""

import json
import os
import subprocess

import host  # before the modules of lib/
from host import MIB
import ktap


def refused(what, *args):
    out, code = host.run(host.COMMAND, "create", *args)
    ktap.check(code, f"created: {out}")
    ktap.check(what in out, f"no '{what}' in: {out}")
    return code


def names():
    return sorted(os.listdir(host.directory))


@ktap.test
def sizes():
    """Some of which not all versions of qemu-img take"""
    path = f"{host.directory}/image"
    for word, size in (("0x10000", 65536), ("0X1E", 512), (".5M", MIB // 2),
                       ("1.k", 1024), ("1000", 1024), ("0", 0)):
        host.qcow2setup("create", path, word)
        info = json.loads(host.qcow2setup("info", path, "--json"))
        ktap.equal(info["virtual-size"], size, f"size of {word}")
        os.unlink(path)
    for word in ("1e3", "0x1G", "1.5", "-1"):
        refused("", path, word)
    ktap.equal(names(), [], "files")


@ktap.test
def a_data_file_is_beside_its_image():
    path = f"{host.directory}/image"
    host.qcow2setup("create", path, "1M", "-o",
                    "cluster_size=4k,data_file=a,,b,data_file_raw=on")
    info = json.loads(host.qcow2setup("info", path, "--json"))
    ktap.equal(info["format-specific"]["data"]["data-file"], "a,b", "name")
    ktap.equal(names(), ["a,b", "image"], "files")
    ktap.equal(os.path.getsize(f"{host.directory}/a,b"), MIB, "length")


@ktap.test
def a_data_file_that_is_there_is_kept():
    path = f"{host.directory}/image"
    with open(f"{host.directory}/data", "wb") as f:
        f.write(b"x")
    ktap.equal(refused("already exists", path, "1M", "-o", "data_file=data"), 5,
               "exit code")
    ktap.equal(names(), ["data"], "files")
    ktap.equal(os.path.getsize(f"{host.directory}/data"), 1, "length")


@ktap.test
def names_of_data_files_are_no_protocols():
    path = f"{host.directory}/image"
    for name in ("nbd:x:1", "json:{}", "file:data", ""):
        refused("external data file", path, "1M", "-o", f"data_file={name}")
    ktap.equal(names(), [], "files")
    host.qcow2setup("create", path, "1M", "-o", "data_file=./a:b")
    ktap.equal(names(), ["a:b", "image"], "files")


@ktap.test
def a_data_file_without_a_name_is_on_for_qemu_img():
    path = f"{host.directory}/image"
    for name, options in (("on", "data_file"),
                          ("on", "data_file=other,data_file"),
                          ("off", "cluster_size=4k,nodata_file")):
        with open(f"{host.directory}/{name}", "w") as f:
            f.write("kept")
        refused("already exists", path, "1M", "-o", options)
        with open(f"{host.directory}/{name}") as f:
            ktap.equal(f.read(), "kept", name)
    refused("with -b and -F", path, "1M", "-o", "nobacking_file")
    ktap.equal(names(), ["off", "on"], "files")


@ktap.test
def a_data_file_goes_when_its_image_cannot_be_made():
    path = f"{host.directory}/image"
    refused("Cluster", path, "1M", "-o", "data_file=data,cluster_size=3")
    ktap.equal(names(), [], "files")


def luks(name, *args):
    path = f"{host.directory}/{name}"
    host.qcow2setup("create", path, "-o", "encrypt.format=luks,"
                    "encrypt.iter-time=10,cluster_size=4k", *args)
    return path


def read(path, passphrase, what):
    """Pattern 1 in the first sector, as QEMU reads it"""
    out, code = host.run(
        "qemu-io", "--object", f"secret,id=s,data={passphrase}", "-c",
        f"read -P {what} 0 512", "--image-opts",
        f"driver=qcow2,encrypt.key-secret=s,file.filename={path}")
    return not code and "failed" not in out


@ktap.test
def an_encrypted_image():
    key = host.key_file("secret")
    path = luks("image", "4M", "--key-file", key)
    ktap.check(read(path, "secret", 0), "QEMU cannot open it")
    ktap.check(not read(path, "other", 0), "any passphrase will do")
    info = json.loads(host.qcow2setup("info", path, "--json"))
    ktap.equal(info["format-specific"]["data"]["encrypt"]["format"], "luks",
               "format")
    host.qcow2setup("resize", path, "8M", "--key-file", key)
    out, code = host.run(host.COMMAND, "resize", path, "12M")
    ktap.equal(code, 2, f"exit code: {out}")
    ktap.check("--key-file" in out, out)


@ktap.test
def an_encrypted_overlay():
    key, other = host.key_file("secret"), host.key_file("other")
    path = luks("image", "4M", "--key-file", key)
    over = luks("over", "-b", "image", "-F", "qcow2", "--key-file",
                f"{host.directory}/over={other}", "--key-file", key)
    ktap.check("No key slot" in
               host.run(host.COMMAND, "check", over, "--key-file", key)[0],
               "the passphrase of another image fits")
    host.qcow2setup("check", over, "--key-file", other)
    # As an overlay without a word about it, if that is wanted
    plain = f"{host.directory}/plain"
    refused_here("--key-file", "snapshot", path, plain)
    host.qcow2setup("snapshot", path, plain, "--plain")
    host.qcow2setup("check", plain)
    host.qcow2setup("snapshot", path, plain + "2", "--key-file", other)
    host.qcow2setup("check", plain + "2", "--key-file", other)


def refused_here(what, *args):
    out, code = host.run(host.COMMAND, *args)
    ktap.equal(code, 2, f"exit code: {out}")
    ktap.check(what in out, out)


def failing_qemu_img(message):
    """One that makes no image, and counts; returns the environment with it"""
    bad = f"{host.directory}/qemu-img"
    with open(bad, "w") as f:
        f.write(f'#!/bin/sh\necho >>"{host.directory}/count"\n'
                f'echo "{message}" >&2\nexit 1\n')
    os.chmod(bad, 0o755)
    return dict(os.environ, PATH=f"{host.directory}:{os.environ['PATH']}")


def tries(message):
    key = host.key_file("secret")
    done = subprocess.run(
        [host.COMMAND, "create", f"{host.directory}/image", "4M", "-o",
         "encrypt.format=luks", "--key-file", key], text=True,
        env=failing_qemu_img(message), stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE)
    ktap.check(done.returncode, "created")
    ktap.equal(done.stderr.count(message), 1, "messages")
    with open(f"{host.directory}/count") as f:
        return len(f.read())


@ktap.test
def qemu_img_that_measures_too_early_is_run_again():
    ktap.equal(tries("Unable to get accurate CPU usage"), 20, "tries")


@ktap.test
def qemu_img_that_fails_is_not_run_again():
    ktap.equal(tries("No space left on device"), 1, "tries")


@ktap.test
def what_encryption_is_not_made():
    path = f"{host.directory}/image"
    for options, what in (("encrypt.format=aes", "predicted"),
                          ("encryption=on", "predicted"),
                          ("encrypt.format=rot13", "not supported"),
                          ("encrypt.format=luks,encrypt.key-secret=s",
                           "--key-file"),
                          ("encrypt.format=luks", "--key-file")):
        refused(what, path, "1M", "-o", options)
    ktap.equal(names(), [], "files")


@ktap.test
def options_of_several_words_all_count():
    path = f"{host.directory}/image"
    host.qcow2setup("create", path, "1M", "-o", "cluster_size=4k", "-o",
                    "data_file=my_backing_file.raw", "-o", "compat=1.1")
    info = json.loads(host.qcow2setup("info", path, "--json"))
    ktap.equal(info["cluster-size"], 4096, "cluster size")
    ktap.equal(names(), ["image", "my_backing_file.raw"], "files")


@ktap.test
def help_is_no_image():
    path = f"{host.directory}/image"
    for options in ("help", "?", "cluster_size=4k,help", "help,compat=1.1"):
        refused("-o help", path, "1M", "-o", options)
    refused("-o help", path, "-o", "help")
    ktap.equal(names(), [], "files")


@ktap.test
def a_size_is_no_option():
    """qemu-img is told one, and would complain of two."""
    base, path = f"{host.directory}/base", f"{host.directory}/image"
    host.qcow2setup("create", base, "1M")
    for words in ([], ["1M"], ["-b", "base", "-F", "qcow2"]):
        code = refused("behind the name", path, *words, "-o",
                       "cluster_size=4k,size=2M")
        ktap.equal(code, 1, "exit code")
    ktap.equal(names(), ["base"], "files")


@ktap.test
def a_directory_that_is_gone():
    gone = f"{host.directory}/gone"
    done = subprocess.run(
        f'mkdir "{gone}" && cd "{gone}" && rmdir "{gone}" && '
        f'exec "{host.COMMAND}" create gone-image 1M', shell=True, text=True,
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ktap.check(done.returncode and "No such file" in done.stderr, done.stderr)
    ktap.check(not os.path.exists("/gone-image"), "made in the root directory")


host.main()
