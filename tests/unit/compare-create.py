#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""create: images that are more than one file."""

import json
import os

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
def a_data_file_goes_when_its_image_cannot_be_made():
    path = f"{host.directory}/image"
    refused("Cluster", path, "1M", "-o", "data_file=data,cluster_size=3")
    ktap.equal(names(), [], "files")


host.main()
