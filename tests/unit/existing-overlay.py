#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""snapshot --existing of images that are not open: which overlays are empty?"""

import os

import host  # before the modules of lib/
import ktap


def overlay(options):
    """Returns the paths of an image and an overlay of it."""
    base, top = (f"{host.directory}/{name}" for name in ("base", "top"))
    host.qemu_img("create", "-q", "-f", "qcow2", base, "24M")
    host.qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2",
                  *(["-o", options] if options else []), top)
    return base, top


def verdict(options, commands, empty):
    base, top = overlay(options)
    host.qemu_io(top, *commands)
    out, code = host.run(host.COMMAND, "snapshot", base, top, "--existing")
    if empty:
        ktap.equal(code, 0, f"exit code: {out}")
    else:
        ktap.equal((code, out), (4, f"{top} is not empty.\n"), "refusal")


PREALLOCATED = [f"extended_l2=on,cluster_size={size},preallocation={kind}"
                for size in ("16k", "128k", "2M")
                for kind in ("metadata", "falloc", "full")]
LAST = "write -P 1 25165312 512"

for options in ["", "extended_l2=on", "cluster_size=512"] + PREALLOCATED:
    name = options or "plain"
    ktap.case(f"empty: {name}", verdict, options, [], True)
    ktap.case(f"not empty, its last sector: {name}", verdict, options, [LAST],
              False)
for options in ("", "extended_l2=on", PREALLOCATED[0]):
    name = options or "plain"
    ktap.case(f"not empty, zeroes: {name}", verdict, options,
              ["write -z 1M 64k"], False)
for options in ("", "extended_l2=on"):
    name = options or "plain"
    ktap.case(f"not empty, compressed: {name}", verdict, options,
              ["write -c -P 1 1M 64k"], False)
    ktap.case(f"not empty, zeroes without a cluster: {name}", verdict, options,
              ["write -z -u 1M 64k"], False)


@ktap.test
def snapshots_are_data():
    base, top = overlay(PREALLOCATED[0])
    host.qemu_img("snapshot", "-c", "one", top)
    out, code = host.run(host.COMMAND, "snapshot", base, top, "--existing")
    ktap.equal((code, out), (4, f"{top} is not empty.\n"), "refusal")


@ktap.test
def dry_run_of_a_snapshot():
    base, top = overlay("")
    new = f"{host.directory}/new"
    out = host.qcow2setup("snapshot", base, new, "--dry-run")
    ktap.equal(out, f"write: {new}\nlink: {new} to base\n", "plan")
    ktap.check(not os.path.exists(new), "the overlay was made")
    host.qcow2setup("snapshot", base, top, "--existing", "--dry-run")
    host.qemu_io(top, LAST)
    out, code = host.run(host.COMMAND, "snapshot", base, top, "--existing",
                         "--dry-run")
    ktap.equal((code, out), (4, f"{top} is not empty.\n"), "refusal")


host.main()
