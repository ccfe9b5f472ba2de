#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""rebase -u of images that are not open, beside qemu-img rebase -u."""

import json
import shutil

import host  # before the modules of lib/
import ktap


def chain():
    """Returns the path of an overlay, and of what it stands on."""
    base, top = (f"{host.directory}/{name}" for name in ("base", "top"))
    host.qemu_img("create", "-q", "-f", "qcow2", base, "4M")
    host.qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    return top, base


def link_of(path):
    out = host.qemu_img("info", "--output=json", "-f", "qcow2", path)
    info = json.loads(out)
    return info.get("backing-filename"), info.get("backing-filename-format")


def bytes_of(path):
    with open(path, "rb") as f:
        return f.read()


def relink(name, fmt):
    """Both commands must leave the same link."""
    top, _ = chain()
    other = f"{host.directory}/other"
    shutil.copy(top, other)
    options = ["-u", "-b", name] + (["-F", fmt] if fmt else [])
    host.qcow2setup("rebase", top, *options)
    host.qemu_img("rebase", "-f", "qcow2", *options, other)
    ktap.equal(link_of(top), link_of(other), "link")
    alone = {"driver": "qcow2", "backing": None,
             "file": {"driver": "file", "filename": top}}
    host.qemu_img("check", "-q", "json:" + json.dumps(alone))


for title, name, fmt in (("to another", "other-base", "qcow2"),
                         ("to one that is missing", "/nowhere/base", "qcow2"),
                         ("to a raw one", "disk.raw", "raw"),
                         ("to none", "", None)):
    ktap.case(f"rebase -u {title}", relink, name, fmt)


def planned(name, fmt, json_words):
    top, _ = chain()
    before = bytes_of(top)
    options = ["-u", "-b", name] + (["-F", fmt] if fmt else [])
    out = host.qcow2setup("rebase", top, *options, "--dry-run", *json_words)
    ktap.same_bytes(bytes_of(top), before, "the image after a dry run")
    return top, out


@ktap.test
def rebase_u_tells_its_plan():
    top, out = planned("elsewhere", "qcow2", [])
    ktap.equal(out, f"write: {top}\nlink: {top} to elsewhere\n", "plan")
    top, out = planned("", None, [])
    ktap.equal(out, f"write: {top}\nlink: {top} to none\n", "plan")
    top, out = planned("elsewhere", "qcow2", ["--json"])
    plan = json.loads(out)
    ktap.equal((plan["operation"], plan["written"]), ("rebase", [top]), "plan")
    ktap.equal(plan["relinked"], {"image": top, "backing-file": "elsewhere"},
               "link")


@ktap.test
def rebase_u_tells_what_it_did():
    top, base = chain()
    out = host.qcow2setup("rebase", top, "-u", "-b", "", "--json")
    ktap.equal(json.loads(out)["relinked"],
               {"image": top, "backing-file": None}, "link")
    out = host.qcow2setup("rebase", top, "-u", "-b", base, "-F", "qcow2")
    ktap.equal(out, "", "what is said without --json")


@ktap.test
def rebase_u_to_what_looks_like_a_protocol_or_an_option():
    top, base = chain()
    for name, link in (("a:b.qcow2", "./a:b.qcow2"), ("-1.qcow2", "-1.qcow2")):
        shutil.copy(base, f"{host.directory}/{name}")
        host.qcow2setup("rebase", top, "-u", "-F", "qcow2", "-b", name)
        ktap.equal(link_of(top), (link, "qcow2"), "link")
        host.qcow2setup("info", top, "--backing-chain")


@ktap.test
def rebase_u_to_itself():
    top, _ = chain()
    before = bytes_of(top)
    out, code = host.run(host.COMMAND, "rebase", top, "-u", "-b", "./top",
                         "-F", "qcow2")
    ktap.check(code and "its own backing file" in out, out)
    ktap.same_bytes(bytes_of(top), before, "the image")


host.main()
