#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Random commands on random chains, with whatever the format allows. KTAP.

A seed makes a few images, with options that are drawn for each of them, one on
the other, and does to them what qcow2setup can do, open and closed. The model
knows what each image reads. After each command: what the devices and the images
read, qemu-img check, that no other file has changed, and that nothing is left
behind. What is refused must have changed nothing at all.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "..", "lib")]
import blk  # noqa: E402
import fixture as fx  # noqa: E402
import ktap  # noqa: E402
from fixture import KIB, MIB  # noqa: E402

SECTOR = 512
WORK = f"{fx.SCRATCH}/work"
KEY = f"{fx.SCRATCH}/key"
SECRET = ["--object", f"secret,id=s,file={KEY}"]
VOLUMES = 4
VOLUME_SIZE = 16 * MIB
CLUSTERS = [512, KIB, 2 * KIB, 4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 64 * KIB,
            128 * KIB, 512 * KIB, 2 * MIB]
RUN, LASTING = "/run/qcow2setup", "/var/lib/qcow2setup"
DEVICES_MAX = 2


def fit(data, size):
    """Cut, or continued with zeroes"""
    return bytes(data[:size]) + bytes(max(0, size - len(data)))


def as_long(got, want):
    """qemu-img shows a snapshot as long as the image is now."""
    return got + want[len(got):] if len(got) < len(want) else got[:len(want)]


def up(number):
    return -(-number // SECTOR) * SECTOR


class Image:
    """An image as the model sees it. content: what it reads as the top."""

    def __init__(self, path, fmt="qcow2", backing=None):
        self.path = path
        self.fmt = fmt
        self.backing = backing
        self.content = b""
        self.luks = False
        self.data = None
        self.snapshots = {}
        self.bitmaps = False
        self.flawed = False
        self.dirty = False
        self.cut = False

    @property
    def on_block(self):
        return self.path.startswith("/dev/")

    @property
    def real(self):
        return os.path.realpath(self.path)

    def chain(self):
        out, image = [], self
        while image:
            out.append(image)
            image = image.backing
        return out

    def files(self):
        return [self.path] + ([self.data] if self.data else [])

    def word(self):
        return self.path if "/" in self.path else f"./{self.path}"

    def __repr__(self):
        return self.path


class Device:
    """An open one."""

    def __init__(self, name, top, mode):
        self.name = name
        self.layers = top.chain()
        self.mode = mode
        self.dev = None
        self.content = bytearray()

    def attach(self):
        flags = os.O_RDWR if self.mode == "rw" else os.O_RDONLY
        self.dev = blk.Device(f"/dev/mapper/{self.name}", flags)

    def detach(self):
        if self.dev:
            self.dev.close()
            self.dev = None


def node(layers):
    """For QEMU; each image by itself, as of the model"""
    top = layers[0]
    driver = "host_device" if top.on_block else "file"
    out = {"driver": top.fmt, "file": {"driver": driver,
                                       "filename": top.path}}
    if top.luks:
        out["encrypt"] = {"format": "luks", "key-secret": "s"}
    if top.fmt == "qcow2":
        out["backing"] = node(layers[1:]) if len(layers) > 1 else None
    return out


def source(image):
    """Words for QEMU's tools: the image over its chain"""
    chain = image.chain()
    if any(i.luks for i in chain):
        return SECRET + ["json:" + json.dumps(node(chain))]
    return ["-f", image.fmt, image.path]


def alone(image):
    return SECRET + ["json:" + json.dumps(node([image]))]


class Refused(Exception):
    """The command, and what it says"""


class World:
    """The images, the devices, and what is done to them"""

    def __init__(self, seed, verbose):
        self.seed = seed
        self.rng = random.Random(seed)
        self.verbose = verbose
        self.images = []
        self.devices = []
        self.volumes = [f"/dev/mapper/lv{n}" for n in range(VOLUMES)]
        self.rng.shuffle(self.volumes)
        self.number = 0
        self.log = []
        self.prints = {}
        self.refusals = {}
        self.counts = {}
        self.pattern = 0
        self.last = None
        self.base_size = self.rng.choice([1, 2, 3, 4]) * MIB + \
            self.rng.choice([0, 0, SECTOR, 7 * SECTOR, 8 * SECTOR, 37 * KIB])

    # Small words

    def say(self, text):
        self.log.append(text)
        if self.verbose:
            ktap.note(f"[{time.monotonic():.0f}] {text}")

    def run(self, *words, ok=(0,)):
        self.say(" ".join(words))
        return fx.run(*words, ok=ok)

    def chance(self, p):
        return self.rng.random() < p

    def children(self, image):
        return [i for i in self.images if i.backing is image]

    def below_of(self, images):
        """The images that stand on some of these, at any distance"""
        return [i for i in self.images
                if any(b in images for b in i.chain()[1:])]

    def busy(self):
        return {i for d in self.devices for i in d.layers}

    def hot(self):
        return {d.layers[0] for d in self.devices if d.mode == "rw"}

    def find(self, path):
        real = os.path.realpath(path)
        for image in self.images:
            if image.real == real:
                return image
        return None

    def new_path(self, suffix="qcow2"):
        if self.volumes and self.chance(0.15):
            return self.volumes.pop()
        self.number += 1
        where = self.rng.choice(["", "", "", "sub/"])
        return f"{where}i{self.number}.{suffix}"

    # Making images

    def sizes(self):
        size = self.base_size + self.rng.choice(
            [0, 0, 0, 0, SECTOR, -SECTOR, 3 * SECTOR, MIB, -MIB + SECTOR,
             -700 * KIB, 64 * KIB, 13 * SECTOR + 300 * KIB])
        return max(size, 600 * KIB)

    def options(self, image, size, backing):
        rng = self.rng
        o = {"cluster_size": rng.choice(CLUSTERS)}
        if self.chance(0.2):
            o["compat"] = "0.10"
            return o
        o["compat"] = "1.1"
        o["refcount_bits"] = rng.choice([1, 2, 4, 8, 16, 16, 16, 32, 64])
        if o["cluster_size"] >= 16 * KIB and self.chance(0.35):
            o["extended_l2"] = "on"
        o["compression_type"] = rng.choice(["zlib", "zstd"])
        if self.chance(0.2):
            o["lazy_refcounts"] = "on"
        if self.chance(0.2):
            o["encrypt.format"] = "luks"
            o["encrypt.key-secret"] = "s"
            o["encrypt.iter-time"] = 10
        elif self.chance(0.2) and not image.on_block:
            name = f"{image.path}.data"
            o["data_file"] = name if "/" not in name else os.path.abspath(name)
            if not backing and self.chance(0.5):
                o["data_file_raw"] = "on"
        if (not backing or "extended_l2" in o) and self.chance(0.4):
            o["preallocation"] = "metadata" if image.path[0] == "/" else \
                rng.choice(["metadata", "falloc", "full"])
        return o

    def link(self, image, backing):
        """A name of the backing file as it may be recorded"""
        path = os.path.abspath(backing.path)
        driver = "host_device" if backing.on_block else "file"
        relative = os.path.relpath(
            path, os.path.dirname(os.path.abspath(image.path)))
        names = [relative, relative, path]
        if image.on_block:
            names = [path]
        spell = self.rng.random()
        if spell < 0.15:
            return "json:" + json.dumps(
                {"driver": backing.fmt,
                 "file": {"driver": driver, "filename": path}})
        if spell < 0.2 and not backing.on_block:
            return "file:" + path
        return self.rng.choice(names)

    def create(self, path=None, backing=None, size=None, plain=False):
        """An empty qcow2 image"""
        image = Image(path or self.new_path(), "qcow2", backing)
        size = size or self.sizes()
        o = self.options(image, size, backing)
        if plain:
            o.pop("encrypt.format", None)
            o.pop("encrypt.key-secret", None)
            o.pop("encrypt.iter-time", None)
        image.luks = "encrypt.format" in o
        image.data = o.get("data_file")
        words = ["qemu-img", "create", "-q", "-f", "qcow2", *SECRET,
                 "-o", ",".join(f"{k}={v}" for k, v in o.items())]
        if backing:
            words += ["-u", "-b", self.link(image, backing), "-F",
                      backing.fmt]
        self.run(*words, image.path, str(size))
        image.options = o
        self.images.append(image)
        return image

    def raw(self):
        image = Image(self.new_path("raw"), "raw")
        size = self.sizes() + self.rng.choice([0, 0, 0, 1, 100, 511, 3000])
        self.pattern += 1
        data = fx.pattern(f"r{self.pattern}", up(size))[:size]
        self.say(f"raw {image.path} {size}")
        if image.on_block:
            with open(image.path, "r+b") as f:
                f.write(data)
        else:
            with open(image.path, "wb") as f:
                hole = self.rng.randrange(size)
                f.write(data[:hole])
                f.seek(min(size, hole + 300 * KIB))
                f.write(data[min(size, hole + 300 * KIB):])
        self.images.append(image)
        return image

    def spot(self, size):
        length = self.rng.choice([1, 3, 8, 64, 128, 300, 1000]) * SECTOR
        length = min(length, size)
        offset = self.rng.randrange(0, size - length + 1)
        align = self.rng.choice([SECTOR, SECTOR, 4 * KIB, 64 * KIB])
        offset = offset // align * align
        if self.chance(0.15):
            offset = size - length
        return offset // SECTOR * SECTOR, length

    def fill(self, image, size):
        """By QEMU: writes, zeroes, discards"""
        commands = []
        if image.fmt == "qcow2" and not image.data and self.chance(0.4):
            cluster = max(image.options["cluster_size"], SECTOR)
            used = set()
            for _ in range(6):
                offset = self.rng.randrange(0, size) // cluster * cluster
                length = min(cluster, size - offset)
                if offset in used or (length % cluster and
                                      offset + length != size):
                    continue
                used.add(offset)
                self.pattern += 1
                commands += ["-c", f"write -c -P {self.pattern % 255 + 1} "
                             f"{offset} {length}"]
            if not image.options.get("preallocation"):
                self.io(image, commands, ok=(0, 1))
            commands = []
        for _ in range(self.rng.randint(3, 12)):
            offset, length = self.spot(size)
            self.pattern += 1
            kind = self.rng.random()
            if kind < 0.7:
                word = f"write -P {self.pattern % 255 + 1} {offset} {length}"
            elif kind < 0.8:
                word = f"write -z {offset} {length}"
            elif kind < 0.9:
                word = f"write -z -u {offset} {length}"
            else:
                word = f"discard {offset} {length}"
            commands += ["-c", word]
        if self.chance(0.1):
            commands += ["-c", f"write 0 {4 * SECTOR}", "-c", "abort"]
            image.flawed = True
        self.io(image, commands, ok=(0, 1, -6))

    def io(self, image, commands, ok=(0,)):
        if not commands:
            return
        self.run("qemu-io", "-d", "unmap", *commands, *source(image), ok=ok)

    def size_of(self, image):
        return json.loads(fx.run("qemu-img", "info", "-U", "--output=json",
                                 *alone(image)))["virtual-size"]

    def build(self):
        """A chain, perhaps with a branch"""
        backing = None
        n = self.rng.choice([1, 2, 3, 3, 4, 4, 5])
        for level in range(n):
            if not level and self.chance(0.35):
                image = self.raw()
            else:
                image = self.create(backing=backing)
            self.furnish(image)
            backing = image
        if n > 1 and self.chance(0.3):
            self.furnish(self.create(
                backing=self.rng.choice(self.images[:-1])))

    def furnish(self, image):
        size = self.size_of(image)
        if image.fmt == "qcow2":
            self.fill(image, size)
            if self.can_hold_snapshots(image) and self.chance(0.25):
                self.run("qemu-img", "snapshot", *SECRET, "-c", "s0",
                         *self.snapshot_target(image))
                image.snapshots["s0"] = self.read(image)
                self.fill(image, size)
            if image.options["compat"] == "1.1" and self.chance(0.12) and \
                    not image.luks:
                self.run("qemu-img", "bitmap", "-f", "qcow2", "--add",
                         image.path, "b0")
                image.bitmaps = True
        elif self.chance(0.3):
            self.fill(image, size // SECTOR * SECTOR)
        image.content = self.read(image)
        if image.fmt == "qcow2":
            info = json.loads(fx.run("qemu-img", "info", "-U", "--output=json",
                                     *alone(image)))
            image.dirty = info.get("dirty-flag", False)
            image.flawed |= image.dirty

    @staticmethod
    def can_hold_snapshots(image):
        o = image.options
        return not image.data and (o["compat"] == "0.10" or
                                   o["refcount_bits"] > 1)

    @staticmethod
    def snapshot_target(image):
        return ["json:" + json.dumps(node([image]))]

    # Looking

    def read(self, image, snapshot=None):
        words = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
        fx.run("qemu-img", "convert", "-U", "-O", "raw", *words,
               *source(image), f"{fx.SCRATCH}/content")
        with open(f"{fx.SCRATCH}/content", "rb") as f:
            return f.read()

    def fingerprint(self):
        """Of all files and volumes in use"""
        self.forget_pages()
        out = {}
        for top, _, files in os.walk("."):
            for name in files:
                path = os.path.join(top, name)[2:]
                if os.path.islink(path):
                    continue
                with open(path, "rb") as f:
                    data = f.read()
                out[path] = (len(data), zlib.crc32(data))
        for image in self.images:
            if image.on_block:
                with open(image.path, "rb") as f:
                    out[image.path] = (0, zlib.crc32(f.read()))
        self.last = out
        return out

    @staticmethod
    def file_key(path):
        if path.startswith("/dev/"):
            return path
        return os.path.relpath(path, WORK)

    def unchanged(self, before, changed, what):
        now = self.fingerprint()
        may = {self.file_key(f) for i in changed | self.hot()
               for f in i.files()}
        diff = [p for p in set(before) | set(now)
                if before.get(p) != now.get(p) and p not in may]
        ktap.check(not diff, f"{what}: files changed: " + ", ".join(
            f"{p} {before.get(p)} -> {now.get(p)}" for p in sorted(diff)))

    @staticmethod
    def kernel_state():
        loops = []
        for d in os.listdir("/sys/block"):
            try:
                loops.append(blk.get(f"/sys/block/{d}/loop/backing_file")
                             .strip())
            except OSError:
                pass
        dms = sorted(d for d in os.listdir("/dev/mapper")
                     if not d.startswith("lv"))
        files = sorted(os.path.join(top, f)
                       for where in (RUN, LASTING)
                       for top, _, names in os.walk(where)
                       for f in names if f != "lock")
        return sorted(loops), dms, files

    def settled(self, want, what):
        """Loop devices go some time after their last user."""
        for _ in range(100):
            now = self.kernel_state()
            if now == want:
                return
            time.sleep(0.05)
        raise ktap.Failure(f"{what}: left behind: {now}, want {want}")

    def check_device(self, device, what):
        size = device.dev.size
        ktap.equal(size, len(device.content), f"{what}: size of {device.name}")
        ktap.same_bytes(device.dev.read_all(), device.content,
                        f"{what}: {device.name} of {device.layers}")

    def check_layers(self, device, what):
        status = json.loads(fx.run("qcow2setup", "status", device.name,
                                   "--json"))
        got = [os.path.realpath(x["image"]) for x in status["layers"]]
        ktap.equal(got, [i.real for i in device.layers],
                   f"{what}: layers of {device.name}")
        kernel = status["kernel"]
        ktap.equal(kernel["reason"] if kernel else None, None,
                   f"{what}: reason of {device.name}")

    def check_sound(self, image, what):
        if image.fmt != "qcow2":
            return
        words = ["qemu-img", "check", "-U", *alone(image)]
        done = subprocess.run(words, capture_output=True, text=True)
        good = (0, 3) if image.flawed else (0,)
        if image.dirty:
            good = (0, 2, 3)
        ktap.check(done.returncode in good,
                   f"{what}: check of {image}: {done.returncode} "
                   f"{done.stdout[-1500:]}{done.stderr[-500:]}")

    def check_image(self, image, what):
        if image in self.hot():
            return
        self.check_sound(image, what)
        if any(i in self.hot() for i in image.chain()):
            return
        ktap.same_bytes(self.read(image), image.content,
                        f"{what}: {image} of {image.chain()}")
        for name, content in image.snapshots.items():
            ktap.same_bytes(as_long(self.read(image, name), content), content,
                            f"{what}: snapshot {name} of {image}")

    def forget_pages(self):
        """Devices write past the pages that QEMU's tools have read of volumes."""
        for image in self.images:
            if image.on_block:
                fx.run("blockdev", "--flushbufs", image.path)

    def verify(self, what, images):
        self.forget_pages()
        for device in self.devices:
            self.check_device(device, what)
            self.check_layers(device, what)
        for image in images:
            if image in self.images:
                self.check_image(image, what)

    # Commands

    def keys(self, images):
        return ["--key-file", KEY] if any(i.luks for i in images) else []

    def setup(self, *words, image_set=(), json_out=None):
        """Runs qcow2setup. Returns what it printed; Refused if it does not."""
        words = [*words, *self.keys(image_set)]
        as_json = self.chance(0.6) if json_out is None else json_out
        if as_json:
            words.append("--json")
        self.say("qcow2setup " + " ".join(words))
        done = subprocess.run(["qcow2setup", *words], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            self.say(f"  -> {done.returncode} {done.stderr.strip()}")
            ktap.check(0 < done.returncode <= 5, f"exit {done.returncode} of "
                       f"{words}: {done.stderr}")
            ktap.check(done.stderr.strip(), f"{words} fails without a word: "
                       f"{done.stdout}")
            raise Refused(words[0], done.stderr.strip())
        if done.stderr.strip():
            self.say(f"  stderr: {done.stderr.strip()}")
        return self.documents(done.stdout) if as_json else done.stdout

    @staticmethod
    def documents(text):
        decoder, out, at = json.JSONDecoder(), [], 0
        text = text.strip()
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            out.append(value)
            while at < len(text) and text[at].isspace():
                at += 1
        return out

    @staticmethod
    def fates(out, key, word):
        """The images of which the output says that"""
        if isinstance(out, str):
            return re.findall(f"^{word}: (.*)$", out, re.M)
        return [p for d in out if isinstance(d, dict) for p in d.get(key, [])]

    def forget(self, image):
        """It does not count any more; its files go."""
        if image in self.images:
            self.images.remove(image)
        for file in image.files():
            (self.last or {}).pop(self.file_key(file), None)
        if image.on_block:
            if image.path not in self.volumes:
                self.volumes.insert(0, image.path)
            return
        for file in image.files():
            if os.path.exists(file):
                os.unlink(file)

    def forget_all(self, images):
        for image in images:
            self.forget(image)

    def changed(self, changed, chain, out, forced):
        """The contents of images have changed: who stands on them?"""
        invalid = {os.path.realpath(p) for p in
                   self.fates(out, "invalid", "now invalid")}
        deleted = {os.path.realpath(p) for p in
                   self.fates(out, "deleted", "deleted")}
        for image in list(self.images):
            if image.real in invalid or image.real in deleted:
                ktap.check(image not in chain or image is self.old_top,
                           f"{image} of the chain is said to be invalid")
                if image.real in deleted and not image.on_block:
                    ktap.check(not os.path.exists(image.path),
                               f"{image} is said to be deleted")
                self.drop_tree(image)
        for image in self.below_of(changed):
            if image not in chain and image in self.images and \
                    (forced or image.on_block):
                self.drop_tree(image)

    def drop_tree(self, image):
        gone = [image] + self.below_of([image])
        keep = self.busy()
        self.forget_all([i for i in gone if i not in keep])

    # Operations on a chain, with the device or by the image

    def target(self):
        """(word, layers, device or None)"""
        if self.devices and self.chance(0.7):
            device = self.rng.choice(self.devices)
            return device.name, device.layers, device
        tops = [i for i in self.images if i.fmt == "qcow2" and
                (self.chance(0.1) or not self.busy() & set(i.chain()))]
        if not tops:
            return None
        tops += [i for i in tops if not self.children(i)] * 3
        image = self.rng.choice(tops)
        return image.word(), image.chain(), None

    def layer_word(self, word, layers, n):
        if "/" not in word and self.chance(0.6):
            return f"{word}[{n}]"
        return layers[n].word()

    def sync(self, device):
        """The model's top is what the device shows."""
        top = device.layers[0]
        if device.mode == "rw":
            top.content = bytes(device.content) + \
                top.content[len(device.content):]

    def relayer(self, device, layers):
        if device:
            device.layers = layers

    def search(self):
        return ["--search", WORK]

    def collapse_words(self, removing=True):
        words = self.search()
        if self.chance(0.25):
            words += ["--force"]
        if removing and self.chance(0.3):
            words += ["--delete"]
        if self.chance(0.05):
            words += ["--bandwidth", "50M"]
        return words

    def do_commit(self, word, layers, device):
        n = len(layers)
        if n < 2:
            return self.setup("commit", word, image_set=layers)
        i = self.rng.choice([0, self.rng.randint(0, n - 2)])
        j = self.rng.choice([i + 1, self.rng.randint(i + 1, n - 1)])
        words = ["commit", word]
        if i or self.chance(0.2):
            words += ["--top", self.layer_word(word, layers, i)]
        if j != i + 1 or self.chance(0.3):
            words += ["--base", self.layer_word(word, layers, j)]
        words += self.collapse_words()
        top, base = layers[i], layers[j]
        self.touched = set(layers[max(0, i - 1):j + 1])
        out = self.setup(*words, image_set=layers)
        base.content = fit(top.content, max(len(top.content),
                                            len(base.content)))
        if i:
            layers[i - 1].backing = base
            new = layers[:i] + layers[j:]
        elif device:
            top.backing = base
            top.flawed |= top.luks
            self.old_top = top
            new = layers[j:]
        else:
            self.old_top = top
            new = layers[j:]
        self.relayer(device, new)
        keep = set(new) | ({top} if not i else set())
        self.changed([base], keep, out, "--force" in words)
        return out

    def do_pull(self, word, layers, device):
        n = len(layers)
        if n < 2:
            return self.setup("flatten", word, image_set=layers)
        i = self.rng.choice([0, self.rng.randint(0, n - 2)])
        k = self.rng.randint(i + 2, n) if i + 2 <= n else n
        words = [self.rng.choice(["pull", "flatten"]) if k == n else "pull",
                 word]
        if i or self.chance(0.2):
            words += ["--into", self.layer_word(word, layers, i)]
        if k < n:
            words += ["--base", self.layer_word(word, layers, k)]
        words += self.collapse_words()
        self.touched = {layers[i]} | (
            set(layers[i + 1:k]) if "--delete" in words else set())
        out = self.setup(*words, image_set=layers)
        layers[i].backing = layers[k] if k < n else None
        new = layers[:i + 1] + layers[k:]
        self.relayer(device, new)
        self.changed([], set(new), out, "--force" in words)
        return out

    def do_delete(self, word, layers, device):
        n = len(layers)
        i = self.rng.randint(0, n - 1)
        down = self.chance(0.5)
        words = ["delete", word, self.layer_word(word, layers, i)]
        if down or self.chance(0.5):
            words += ["--down" if down else "--up"]
        words += self.collapse_words(False)
        if self.chance(0.4):
            words += ["--keep"]
        gone = layers[i]
        self.touched = {gone, layers[max(0, i - 1)], layers[min(n - 1, i + 1)]}
        out = self.setup(*words, image_set=layers)
        changed = []
        if down:
            base = layers[i + 1]
            base.content = fit(gone.content, max(len(gone.content),
                                                 len(base.content)))
            changed = [base]
            if not i:
                self.old_top = gone
            if not i and device:
                gone.backing = base
                gone.flawed |= gone.luks
        if i:
            layers[i - 1].backing = layers[i + 1] if i + 1 < n else None
        new = layers[:i] + layers[i + 1:]
        self.relayer(device, new)
        if "--keep" not in words and not gone.on_block:
            ktap.check(not os.path.exists(gone.path),
                       f"delete leaves {gone}")
            changed.append(gone)
        self.changed(changed, set(new) | ({gone} if down and not i else set()),
                     out, "--force" in words)
        if not gone.on_block and not os.path.exists(gone.path):
            self.drop_tree(gone)
        return out

    def do_rebase(self, word, layers, device):
        others = [i for i in self.images
                  if i not in layers[:1] and layers[0] not in i.chain()]
        backing = self.rng.choice(others + [None])
        words = ["rebase", word]
        link = ""
        if backing:
            if backing in layers and device and self.chance(0.5):
                link = f"{word}[{layers.index(backing)}]"
            else:
                link = os.path.relpath(
                    os.path.abspath(backing.path), os.path.dirname(
                        os.path.abspath(layers[0].path)))
                if layers[0].on_block or self.chance(0.4):
                    link = os.path.abspath(backing.path)
            words += ["-b", link, "-F", backing.fmt]
        else:
            words += ["-b", ""]
        unsafe = not device and self.chance(0.3)
        if unsafe:
            words += ["-u"] + self.search()
            if self.chance(0.5):
                words += ["--force"]
        self.touched = {layers[0]}
        top = layers[0]
        out = self.setup(*words, image_set=() if unsafe else
                         layers + (backing.chain() if backing else []))
        top.backing = backing
        if unsafe:
            top.content = self.read(top)
            self.forget_all([i for i in self.below_of([top])
                             if i not in self.busy()])
            for name in top.snapshots:
                top.snapshots[name] = self.read(top, name)
        self.relayer(device, top.chain())
        return out

    def do_snapshot(self, word, layers, device):
        existing = self.chance(0.4)
        plain = self.chance(0.5)
        top = layers[0]
        words = ["snapshot", word]
        if existing:
            overlay = self.create(backing=top, size=len(top.content) +
                                  self.rng.choice([0, 0, 0, SECTOR, MIB]))
            words += [overlay.word(), "--existing"]
            self.before = self.fingerprint()
        else:
            overlay = Image(self.new_path(), "qcow2", top)
            words += [overlay.word()]
        if plain and not existing:
            words += ["--plain"]
        if device and self.chance(0.15):
            words += ["--no-grow"]
        self.touched = {overlay, top}
        try:
            out = self.setup(*words, image_set=layers + [overlay])
        except Refused:
            if existing:
                self.settle_refused()
                self.forget(overlay)
            else:
                self.give_back(overlay.path)
            raise
        if not existing:
            self.adopt(overlay)
        overlay.content = fit(top.content, self.size_of(overlay))
        if device:
            device.layers = [overlay] + layers
        return out

    def settle_refused(self):
        self.refused_check()
        self.before = None

    def give_back(self, path):
        if path.startswith("/dev/"):
            self.volumes.insert(0, path)

    def adopt(self, image):
        """What qcow2setup has made"""
        info = json.loads(fx.run("qemu-img", "info", "-U", "--output=json",
                                 "-f", image.fmt, image.path))
        image.luks = info.get("encrypted", False)
        data = info.get("format-specific", {}).get("data", {})
        image.data = data.get("data-file")
        image.options = {"compat": data.get("compat"), "refcount_bits":
                         data.get("refcount-bits"),
                         "cluster_size": info.get("cluster-size", 0)}
        self.images.append(image)

    def do_revert(self, word, layers, device):
        n = self.rng.randrange(len(layers))
        below = layers[n]
        overlay = Image(self.new_path(), "qcow2", below)
        words = ["revert", word, self.layer_word(word, layers, n),
                 overlay.word()]
        if self.chance(0.5):
            words += ["--plain"]
        self.touched = {overlay, layers[0]}
        if device:
            device.detach()
        try:
            out = self.setup(*words, image_set=layers + [overlay])
        except Refused:
            self.give_back(overlay.path)
            raise
        finally:
            if device:
                device.attach()
        self.adopt(overlay)
        overlay.content = fit(below.content,
                              self.size_of(overlay) // SECTOR * SECTOR)
        if device:
            device.layers = [overlay] + layers[n:]
            device.content = bytearray(overlay.content)
        return out

    def do_copy(self, word, layers, device):
        shallow = len(layers) > 1 and self.chance(0.4)
        fmt = "qcow2" if shallow else self.rng.choice(["raw", "qcow2"])
        dest = Image(self.new_path(fmt), fmt, layers[1] if shallow else None)
        words = ["copy", word, dest.word()]
        if fmt == "raw" or self.chance(0.3):
            words += ["--format", fmt]
        if shallow:
            words += ["--shallow"]
        pivot = self.chance(0.5)
        if pivot or self.chance(0.3):
            words += ["--pivot" if pivot else "--finish"]
        if self.chance(0.5):
            words += ["--plain"]
        self.touched = {dest, layers[0]}
        try:
            out = self.setup(*words, image_set=layers)
        except Refused:
            self.give_back(dest.path)
            raise
        self.adopt(dest)
        dest.content = fit(device.content if device else layers[0].content,
                           self.size_of(dest))
        if device and pivot:
            device.layers = dest.chain()
        return out

    def do_resize(self, word, layers, device):
        top = layers[0]
        size = len(device.content if device else top.content)
        new = max(size + self.rng.choice(
            [SECTOR, 5 * SECTOR, MIB, 64 * KIB, 3 * MIB + SECTOR, -SECTOR,
             -MIB, -64 * KIB, -3 * SECTOR]), SECTOR)
        # Within a cluster qemu-img leaves what is behind the new end, and shows it
        # when the image is made longer.
        if not device and new > size and top.cut:
            return None
        spelled = str(new)
        if self.chance(0.4):
            spelled = f"{new - size:+d}"
        words = ["resize", word, spelled]
        if new < size and self.chance(0.8):
            words += ["--shrink"]
        if self.chance(0.2):
            words += ["--force"]
        if not device:
            words += self.search()
        self.touched = {top}
        if device:
            device.detach()
        try:
            out = self.setup(*words, image_set=layers)
        finally:
            if device:
                device.attach()
        top.content = fit(top.content, max(new, len(top.content))
                          if device else new)
        if device:
            device.content = bytearray(fit(device.content, new))
        if new < size:
            top.cut = True
            self.forget_all([i for i in self.below_of([top])
                             if i not in self.busy()])
        return out

    def do_internal(self, word, layers, device):
        top = layers[0]
        kind = self.rng.choice(["create", "create", "apply", "delete", "list"])
        names = sorted(top.snapshots)
        self.number += 1
        name = f"s{self.number}" if kind == "create" or not names \
            else self.rng.choice(names)
        words = ["internal", kind, word]
        if kind != "list":
            words += [name]
        if kind == "apply":
            words += self.search()
            if self.chance(0.4):
                words += ["--force"]
        self.touched = {top} if kind != "list" else set()
        if device:
            device.detach()
        try:
            out = self.setup(*words, image_set=layers if kind != "list" else
                             ())
        finally:
            if device:
                device.attach()
        if kind == "create":
            top.snapshots[name] = top.content
        elif kind == "delete":
            del top.snapshots[name]
        elif kind == "apply":
            top.content = top.snapshots[name]
            if device:
                device.content = bytearray(top.content)
            self.forget_all([i for i in self.below_of([top])
                             if i not in self.busy()])
        else:
            for n in names:
                ktap.check(n in str(out), f"no {n} in {out}")
        return out

    def do_check(self, word, layers, device):
        image = self.rng.choice(layers)
        words = ["check", image.word()]
        if self.chance(0.5):
            words += ["--repair"]
        self.touched = {image}
        self.say("qcow2setup " + " ".join(words))
        done = subprocess.run(
            ["qcow2setup", *words, *self.keys([image]), "--json"], text=True,
            stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode == 1 or image.fmt == "raw":
            raise Refused("check", done.stderr.strip() or "?")
        repaired = "--repair" in words
        ktap.check(done.returncode == 0 or not repaired and image.flawed and
                   done.returncode in (2, 3),
                   f"check: {done.returncode} {done.stdout} {done.stderr}")
        self.documents(done.stdout)
        if repaired:
            image.flawed = image.dirty = False
        return ""

    def do_look(self, word, layers, device):
        """Commands that only print"""
        self.touched = set()
        image = layers[0]
        self.setup("info", word, *self.rng.choice([[], ["--backing-chain"]]))
        self.setup("tree", self.rng.choice([word, "."]))
        self.setup("list")
        out = self.setup("map", word, json_out=True)[0]
        if device or any(i in self.hot() for i in layers):
            return ""
        theirs = json.loads(fx.run("qemu-img", "map", "-U", "--output=json",
                                   *source(image)))
        keys = ("depth", "present", "zero", "data", "compressed")

        def simple(entries):
            got = []
            for e in entries:
                row = [e["start"], e["length"], *[e[k] for k in keys],
                       e.get("offset")]
                if got and got[-1][2:7] == row[2:7] and (
                        row[7] is None and got[-1][7] is None or
                        row[7] is not None and got[-1][7] is not None and
                        got[-1][7] + got[-1][1] == row[7]):
                    got[-1][1] += row[1]
                else:
                    got.append(row)
            return got
        mine, others = simple(out), simple(theirs)
        for a, b in zip(mine, others):
            if a != b:
                self.say(f"  map differs: {a} beside {b}")
                if self.loose_map(layers):
                    break
                raise ktap.Failure(f"map of {image}: {a} beside {b}")
        return ""

    @staticmethod
    def loose_map(layers):
        """Where QEMU looks for holes in files"""
        return any(i.fmt == "raw" or i.data for i in layers)

    # Devices

    def do_open(self):
        tops = [i for i in self.images if i.fmt == "qcow2" or
                self.chance(0.1)]
        if not tops:
            return
        free = [i for i in tops if not self.children(i) and
                not any(b in self.hot() for b in i.chain())]
        image = self.rng.choice(free if free and self.chance(0.8) else tops)
        name = next(f"d{n}" for n in range(9)
                    if f"d{n}" not in [d.name for d in self.devices])
        words = ["open", image.word(), name]
        mode, content, snapshot = "rw", image.content, None
        if image.snapshots and self.chance(0.4):
            snapshot = self.rng.choice(sorted(image.snapshots))
            words += ["--snapshot", snapshot]
            mode, content = "ro", image.snapshots[snapshot]
        elif self.children(image) or self.chance(0.15):
            words += ["--read-only"]
            mode = "ro"
        else:
            if self.chance(0.5):
                words += ["--no-space=error"]
            if self.chance(0.1):
                words += ["--no-grow"]
            if image.dirty or self.chance(0.1):
                words += ["--repair"]
        if image.fmt == "raw":
            words += ["--backing-format", f"{image.word()}=raw"]
        if mode == "rw" and any(i in self.hot() for i in image.chain()):
            mode = "?"
        self.touched = {image}
        self.setup(*words, image_set=image.chain())
        ktap.check(mode != "?", "an image in use was opened")
        if "--repair" in words:
            image.flawed = image.dirty = False
        device = Device(name, image, mode)
        device.snapshot = snapshot
        device.attach()
        device.content = bytearray(fit(content, device.dev.size))
        ktap.check(abs(device.dev.size - len(content)) < SECTOR,
                   f"{name} is {device.dev.size}, of {len(content)}")
        self.devices.append(device)

    def do_close(self, device=None):
        device = device or self.rng.choice(self.devices)
        self.touched = {device.layers[0]}
        device.detach()
        try:
            self.setup("close", device.name)
        except Refused:
            device.attach()
            raise
        self.sync(device)
        self.devices.remove(device)

    def do_io(self):
        devices = [d for d in self.devices if d.mode == "rw"]
        if not devices:
            return
        device = self.rng.choice(devices)
        chains = set(device.layers)
        for image in self.below_of(device.layers[:1]):
            if image not in chains:
                ktap.check(image not in self.busy(), f"{image} is open over "
                           "an image that is written")
                self.forget(image)
        size = len(device.content)
        for _ in range(self.rng.randint(1, 8)):
            offset, length = self.spot(size)
            kind = self.rng.choice(["write", "write", "write", "fua",
                                    "discard", "zeroout", "punch", "flush"])
            self.say(f"{device.name} {kind} {offset} {length}")
            try:
                self.one_io(device, kind, offset, length)
            except OSError as e:
                self.say(f"  -> {e}")
                if e.errno != 28:
                    raise
                # none, some, or all of it
                now = device.dev.read(offset, length)
                device.content[offset:offset + length] = now
        device.dev.flush()
        self.sync(device)
        self.touched = set()

    def one_io(self, device, kind, offset, length):
        dev, model = device.dev, device.content
        if kind == "flush":
            dev.flush()
        elif kind in ("write", "fua"):
            self.pattern += 1
            data = fx.pattern(f"w{self.pattern}", length)
            dev.write(offset, data, kind == "fua")
            model[offset:offset + length] = data
        else:
            fx.change_one(dev, model, kind, offset, length)

    # One step

    CHAIN = {"commit": 5, "pull": 3, "delete": 3, "rebase": 3, "snapshot": 4,
             "revert": 1.5, "copy": 2.5, "resize": 3, "internal": 4,
             "check": 1, "look": 1.5}

    def step(self):
        if self.devices and self.chance(0.25):
            return self.attempt("io", self.do_io)
        if len(self.devices) < DEVICES_MAX and \
                self.chance(0.15 if self.devices else 0.5):
            return self.attempt("open", self.do_open)
        if self.devices and self.chance(0.12):
            return self.attempt("close", self.do_close)
        chosen = self.target()
        if not chosen:
            return None
        names, weights = zip(*self.CHAIN.items())
        name = self.rng.choices(names, weights)[0]
        return self.attempt(name, getattr(self, "do_" + name), *chosen)

    def refused_check(self):
        what = self.log[-1]
        self.settled(self.state, "refused: " + what)
        if not self.partial:
            self.unchanged(self.before, set(), "refused: " + what)

    def attempt(self, name, function, *args):
        self.before = self.last or self.fingerprint()
        self.state = self.kernel_state()
        self.touched, self.partial, self.old_top = set(), False, None
        images = list(self.images)
        mark = len(self.log)
        try:
            function(*args)
            result = "done"
        except Refused as e:
            result = "refused"
            word, text = e.args
            self.note_refusal(word, text)
            self.partial = "space" in text
            if self.partial:
                self.last = None
            if self.before is not None:
                self.refused_check()
        what = "; ".join(self.log[mark:])[:600]
        key = f"{name} {result}"
        self.counts[key] = self.counts.get(key, 0) + 1
        look = {i for i in self.touched | set(self.below_of(self.touched))
                if i in self.images}
        look |= {i for i in self.images if i not in images}
        if result == "refused":
            look = set()
        else:
            gone = {i for i in images if i not in self.images}
            self.unchanged_but_gone(gone, what)
        self.verify(what, look)
        if not self.devices:
            self.settled(([], ["control"], []), what)

    def unchanged_but_gone(self, gone, what):
        """What is not part of it is as it was."""
        may = self.touched | gone | self.hot()
        new = {i for i in self.images if any(
            self.file_key(f) not in self.before for f in i.files())}
        self.unchanged(self.before, may | new, what)

    def note_refusal(self, word, text):
        text = re.sub(r"(/[\w./-]+|\bi\d+\.\w+(\.data)?|sub/\S+)", "PATH",
                      text)
        text = re.sub(r"\d+(\.\d+)?", "N", text)
        key = (word, text)
        self.refusals[key] = self.refusals.get(key, 0) + 1

    def finish(self):
        while self.devices:
            self.attempt("close", self.do_close, self.devices[0])
        self.verify("at the end", list(self.images))
        self.settled(([], ["control"], []), "at the end")


def make_volumes():
    sectors = VOLUME_SIZE // SECTOR
    for n in range(VOLUMES):
        name = f"lv{n}"
        if not os.path.exists(f"/dev/mapper/{name}"):
            fx.run("dmsetup", "create", name, "--table",
                   f"0 {sectors} linear /dev/vdb {n * sectors}")


def remove_volumes():
    for n in range(VOLUMES):
        if os.path.exists(f"/dev/mapper/lv{n}"):
            fx.run("dmsetup", "remove", "--retry", f"lv{n}")


TOTALS, REFUSALS = {}, {}


def shorter(line):
    line = line.replace("--object secret,id=s,file=/scratch/key ", "")
    return re.sub(r"json:\{.*\}$", lambda m: "json:" + "<".join(
        re.findall(r'"filename": "([^"]*)"', m.group())), line)


def seed_case(seed, steps, verbose):
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(f"{WORK}/sub")
    os.chdir(WORK)
    with open(KEY, "w") as f:
        f.write("secret")
    make_volumes()
    world = World(seed, verbose)
    try:
        world.build()
        world.verify("built", list(world.images))
        for _ in range(steps):
            world.step()
        world.finish()
    except BaseException as e:
        if not isinstance(e, ktap.Failure):
            ktap.note(traceback.format_exc())
        for line in world.log:
            ktap.note(f"  {shorter(line)}")
        raise
    finally:
        for key, n in world.counts.items():
            TOTALS[key] = TOTALS.get(key, 0) + n
        for key, n in world.refusals.items():
            REFUSALS.setdefault(key, [0, seed])[0] += n
        clean_up(world)
        os.chdir(fx.SCRATCH)


def clean_up(world):
    for device in world.devices:
        device.detach()
    for name in os.listdir("/dev/mapper"):
        if name != "control" and not name.startswith("lv"):
            subprocess.run(["dmsetup", "remove", "--retry", name],
                           capture_output=True)
    subprocess.run(["qcow2setup", "jobs", "--clean"], capture_output=True)
    subprocess.run(["qcow2setup", "list"], capture_output=True)
    remove_volumes()


def totals():
    for key, n in sorted(TOTALS.items()):
        ktap.note(f"{n} {key}")
    for (word, text), (n, seed) in sorted(REFUSALS.items()):
        ktap.note(f"refused {n} (seed {seed}) {word}: {text}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--minutes", type=float, default=1000)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    sys.argv[1:] = []
    end = time.monotonic() + args.minutes * 60

    def run(seed):
        if time.monotonic() < end:
            seed_case(seed, args.steps, args.verbose)

    for seed in range(args.first, args.first + args.seeds):
        ktap.case(f"seed {seed}", run, seed)
    ktap.main(fx.prepare, totals, fx.after_each)


if __name__ == "__main__":
    main()
