#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Command lines that are wrong: what is wrong with them is said. So is what is
wrong with the world around a right one."""

import os
import re
import subprocess
import tempfile

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


OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][a-z-]*")
MANUAL = os.path.join(host.TESTS, "..", "Documentation", "qcow2setup.8")


def options_by_command(text, start):
    """Of each command the options in its lines, which begin with its name."""
    found = {}
    for name, words in re.findall(f"\n{start}(\\w+)(.*?)(?=\n{start}|\\Z)", text,
                                  re.DOTALL):
        found.setdefault(name, set()).update(OPTION.findall(words))
    return found


def usages():
    """The help, without what the commands do"""
    text = host.qcow2setup("--help")
    text = text[text.index("\n  "):text.index("\n  --json")]
    return re.sub(r"\n {8}\w.*", "", text)


def options_of_help():
    return options_by_command(usages(), r"  (?=\w)")


def options_of_manual():
    with open(MANUAL) as f:
        text = re.sub(r"\\c\n", "", f.read()).replace("\\-", "-")
    text = text[text.index(".SH SYNOPSIS"):text.index("\n.PP")]
    return options_by_command(text, r"\.B qcow2setup ")


VALUES = {"--no-space": "error", "--backing-format": "a=raw",
          "--bandwidth": "1"}


def takes(command, words, option, refused_one):
    """Two options, the second of which the command does not take: the one that it
    complains of tells."""
    out, _ = host.run(host.COMMAND, command, *words, *option, refused_one)
    ktap.check("is not an option of" in out, out)
    return f"{option[0]} is not" not in out


@ktap.test
def options_that_are_taken_are_told_of():
    usage, manual, text = options_of_help(), options_of_manual(), usages()
    ktap.equal(manual, usage, "options in the manual")
    least = {"list": 0, "jobs": 0, "open": 2, "resize": 2, "internal": 2,
             "delete": 2, "copy": 2, "revert": 3}
    for option in sorted(set().union(*usage.values())):
        words = [option]
        if re.search(rf"[\[ ]{option}[ =]\[?\w", text):
            words.append(VALUES.get(option, "x"))
        for command, options in usage.items():
            other = next(o for o in ("--partitions", "--clean", "--shrink")
                         if o != option and o not in options)
            taken = takes(command, ["x"] * least.get(command, 1), words, other)
            ktap.equal(taken, option in options, f"{command} {option}")


@ktap.test
def usages_have_lines():
    for command in options_of_help():
        if command in ("list", "jobs"):
            continue
        out, code = host.run(host.COMMAND, command)
        ktap.equal(code, 1, f"exit code: {out}")
        ktap.check("?" not in out and f"\n  {command} " in out, out)
        out = host.qcow2setup(command, "--help")
        ktap.equal(re.findall(r"(?m)^  (\w+)", out), [command], "help")


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


@ktap.test
def what_is_no_image_is_called_what_it_is():
    fifo = f"{host.directory}/fifo"
    os.mkfifo(fifo)
    for path in (fifo, host.directory, "/dev/null"):
        out, code = host.run(host.COMMAND, "check", path)
        ktap.equal(code, 1, f"exit code of check: {out}")
        ktap.equal(out, f"{path} is neither a file nor a block device.\n",
                   "message")
    for path in (fifo, "/dev/null"):
        out, code = host.run(host.COMMAND, "tree", path)
        ktap.equal(code, 4, f"exit code of tree: {out}")
        ktap.check("is neither a directory, a file nor" in out, out)


def nobody(*args):
    """As a user who cannot even look at where the program is"""
    program = os.open(host.COMMAND, os.O_RDONLY)
    done = subprocess.run([host.COMMAND, *args], text=True, user=65534,
                          group=65534, extra_groups=[], pass_fds=[program],
                          executable=f"/proc/self/fd/{program}",
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    os.close(program)
    return done.stdout, done.returncode


@ktap.test
def who_is_not_root_is_told_so():
    with tempfile.TemporaryDirectory() as inside:
        os.chmod(inside, 0o755)
        host.qemu_img("create", "-q", "-f", "raw", f"{inside}/base", "1M")
        os.chmod(f"{inside}/base", 0o600)
        host.qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw",
                      f"{inside}/image")
        for words in (["check"], ["resize", "+1M"], ["info"]):
            image = "base" if words == ["info"] else "image"
            out, code = nobody(words[0], f"{inside}/{image}", *words[1:])
            ktap.equal(code, 1 if words == ["check"] else 2, f"exit code: {out}")
            ktap.check("Permission denied (you are not root)" in out, out)
        out, code = nobody("tree", f"{inside}/image")
        ktap.equal(code, 0, f"exit code: {out}")
        ktap.check(f"{inside}/base  cannot be read" in out, out)


host.main()
