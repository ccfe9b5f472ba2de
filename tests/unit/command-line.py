#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Command lines that are wrong: what is wrong with them is said. So is what is
wrong with the world around a right one."""

import subprocess

import host  # before the modules of lib/
import ktap


def refused(what, *args):
    out, code = host.run(host.COMMAND, *args)
    ktap.equal(code, 1, f"exit code: {out}")
    ktap.check(what in out, f"no '{what}' in: {out}")


@ktap.test
def options_of_other_commands_are_named():
    for command, options in {
            "close x": ("--delete", "--dry-run", "--read-only", "-u"),
            "list": ("--backing-chain", "--shrink", "--existing"),
            "copy ./x y": ("--force", "--repair", "--keep"),
            "wait x": ("--detach", "--clean", "--partitions")}.items():
        words = command.split()
        for option in options:
            refused(f"{option} is not an option of {words[0]}.", *words,
                    option)
    refused("--search is not an option of copy.", "copy", "./x", "y",
            "--search", "/")
    refused("-b is not an option of open.", "-b", "y", "open", "./x", "y")


@ktap.test
def rebase_takes_options_where_they_matter():
    rebase = ("rebase", "./x", "-b", "y", "-F", "qcow2")
    refused("are for -u", *rebase, "--force")
    refused("are for -u", *rebase, "--search", "/")
    refused("name the file", "rebase", "./x", "-b", "./x[1]", "-u")
    refused("not for -u", *rebase, "-u", "--detach")
    refused("not for -u", *rebase, "-u", "--bandwidth", "1M")
    refused("not for -u", *rebase, "-u", "--key-file", "y")


@ktap.test
def plain_is_for_what_is_made():
    for words in ("snapshot vm ./y", "snapshot ./x ./y", "revert vm z ./y"):
        refused("--plain is for", *words.split(), "--existing", "--plain")


@ktap.test
def key_files_are_named():
    refused("--key-file needs", "open", "./x", "vm", "--key-file", "=y")
    refused("--key-file needs", "open", "./x", "vm", "--key-file", "x=")
    refused("--key-file is not an option of tree", "tree", "./x",
            "--key-file", "y")


@ktap.test
def internal_takes_options_where_they_matter():
    for words in ("list ./x", "create vm y", "apply vm y", "delete ./x y"):
        refused("looks for overlays", "internal", *words.split(), "--force")
    for words in ("list vm", "create ./x y", "apply vm y", "delete vm y"):
        refused("something to freeze", "internal", *words.split(), "--qga",
                "z")
    refused("needs no passphrase", "internal", "list", "./x", "--key-file",
            "y")
    refused("Wrong number", "internal", "create", "vm")
    refused("list, create, apply", "internal", "make", "vm", "x")


def to_full_disk(*args):
    """Standard output is on a full disk: returns the errors, and the exit code."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([host.COMMAND, *args], stdout=full, text=True,
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return done.stderr, done.returncode


@ktap.test
def a_result_that_cannot_be_written_is_an_error():
    host.qemu_img("create", "-q", "-f", "qcow2", f"{host.directory}/image",
                  "1M")
    for words in (["info"], ["info", "--json"], ["map"], ["tree"]):
        err, code = to_full_disk(*words, f"{host.directory}/image")
        ktap.equal(code, 4, f"exit code of {words}: {err}")
        ktap.check("Cannot write" in err, f"no 'Cannot write' in: {err}")
    err, code = to_full_disk("check", f"{host.directory}/image")
    ktap.equal(code, 1, f"exit code of check: {err}")
    # More than a buffer of stdio: nothing is left for the last flush.
    host.chain_of(host.directory, 60)
    for words in (["tree", host.directory, "--json"], ["--help"]):
        err, code = to_full_disk(*words)
        ktap.equal(code, 4, f"exit code of {words}: {err}")
        ktap.check("Cannot write" in err, f"no 'Cannot write' in: {err}")


host.main()
