# SPDX-License-Identifier: GPL-2.0-only
"""What has to be true of a directory with a chain after a crash.

An item says: "tops", of which the first that is there reads "sum"; and what is
true when its commands have ended: "finished", images that are there and read
"sum"; "links", what backing links are; "gone", images that are not there.
"""

import glob
import hashlib
import json
import os
import subprocess


class Wrong(Exception):
    pass


def _qemu_img(directory, *words, ok=(0,)):
    done = subprocess.run(("qemu-img",) + words, cwd=directory, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    if done.returncode not in ok:
        raise Wrong(f"qemu-img {' '.join(words)}: {done.stdout.strip()[-400:]}")
    return done.stdout


def sum_of(directory, image):
    raw = os.path.join(directory, "contents.raw")
    try:
        _qemu_img(directory, "convert", "-f", "qcow2", "-O", "raw", image, raw)
        with open(raw, "rb") as f:
            return hashlib.sha256(f.read()).hexdigest()
    finally:
        if os.path.exists(raw):
            os.unlink(raw)


def _reads(directory, image, item):
    if sum_of(directory, image) != item["sum"]:
        raise Wrong(f"{image} reads something else")


def _is_qcow2(path):
    with open(path, "rb") as f:
        return f.read(4) == b"QFI\xfb"


def check(directory, item):
    """At any time: no image is corrupt, and the top reads what it did."""
    for path in sorted(glob.glob(f"{directory}/*")):
        # What is being made has no name yet that anybody would use.
        if os.path.isfile(path) and not path.endswith(".partial") and \
                _is_qcow2(path):
            _qemu_img(directory, "check", "-q", "-f", "qcow2",
                      os.path.basename(path), ok=(0, 3))
    for top in item["tops"]:
        if os.path.exists(f"{directory}/{top}"):
            _reads(directory, top, item)
            return
    raise Wrong(f"there is none of {' '.join(item['tops'])}")


def check_finished(directory, item):
    """When the commands have ended"""
    for image in item["finished"]:
        _reads(directory, image, item)
    for image, link in item["links"].items():
        info = json.loads(_qemu_img(directory, "info", "--output=json", "-f",
                                    "qcow2", image))
        if info.get("backing-filename") != link:
            raise Wrong(f"{image} is on {info.get('backing-filename')}")
    for image in item["gone"]:
        if os.path.exists(f"{directory}/{image}"):
            raise Wrong(f"{image} is there")
