# SPDX-License-Identifier: GPL-2.0-only
"""What a seed means: the chain it starts from. Host and guest agree on it."""

import json
import random

SECTOR = 512
KIB, MIB = 1 << 10, 1 << 20

CLUSTER_SIZES = [512, 4 * KIB, 64 * KIB, 2 * MIB]
REFCOUNT_BITS = [1, 8, 16, 64]
BASES = ["none", "raw", "qcow2"]
OVERLAYS = 3

# Of all encrypted images
PASSPHRASE = "secret"
SECRET = ["--object", f"secret,id=s,data={PASSPHRASE}"]


class Layer:
    def __init__(self, name, fmt, size, cluster_size=0, compat="1.1",
                 refcount_bits=16, preallocation="off",
                 compression="zlib", extended_l2="off", data_file="off",
                 luks=False):
        self.name = name
        self.fmt = fmt
        self.size = size
        self.cluster_size = cluster_size
        self.compat = compat
        self.refcount_bits = refcount_bits
        self.preallocation = preallocation
        self.compression = compression
        self.extended_l2 = extended_l2
        self.data_file = data_file
        self.luks = luks

    def data_name(self):
        """Of the external data file, or None."""
        return f"{self.name}.data" if self.data_file != "off" else None

    def files(self):
        return [f for f in (self.name, self.data_name()) if f]

    def create_options(self):
        out = f"compat={self.compat},cluster_size={self.cluster_size}"
        if self.compat == "1.1":
            out += f",refcount_bits={self.refcount_bits}"
            out += f",compression_type={self.compression}"
            out += f",extended_l2={self.extended_l2}"
            if self.data_name():
                out += f",data_file={self.data_name()}"
            if self.data_file == "raw":
                out += ",data_file_raw=on"
        if self.luks:
            out += ",encrypt.format=luks,encrypt.key-secret=s"
            out += ",encrypt.iter-time=10"
        return out + f",preallocation={self.preallocation}"

    def __str__(self):
        if self.fmt == "raw":
            return f"raw {self.size}"
        return f"qcow2 {self.size} {self.create_options()}"


def node(layers, path=None):
    """The first layer over the others, for QEMU; or alone, and elsewhere."""
    top = layers[0]
    out = {"driver": top.fmt}
    if path:
        out["file"] = {"driver": "host_device", "filename": path,
                       "cache": {"direct": True}}
    else:
        out["file"] = {"driver": "file", "filename": top.name}
    if top.luks:
        out["encrypt"] = {"format": "luks", "key-secret": "s"}
    if top.fmt == "qcow2":
        out["backing"] = None if path or len(layers) == 1 else \
            node(layers[1:])
    return out


def source(layers):
    """Arguments for QEMU's tools: the first layer over the others"""
    if any(layer.luks for layer in layers):
        return ["json:" + json.dumps(node(layers))]
    return ["-f", layers[0].fmt, layers[0].name]


class Options:
    """Everything about a seed except the operations.

    The four axes of the option sets are cycled through, the rest is drawn.
    layers: top first, as the device starts; overlays: for live snapshots.
    """

    def __init__(self, seed):
        rng = random.Random(f"options {seed}")
        cluster = CLUSTER_SIZES[seed % 4]
        compat = "0.10" if seed // 4 % 4 == 3 else "1.1"
        bits = REFCOUNT_BITS[seed // 2 % 4] if compat == "1.1" else 16
        base = BASES[seed // 3 % 3]
        size = self._size(rng, cluster)
        prealloc = base == "none" and rng.random() < 0.4
        top = Layer("top", "qcow2", size, cluster, compat, bits,
                    "metadata" if prealloc else "off")
        self.seed = seed
        self.layers = [top] + self._lower(rng, base, size)
        self.overlays = [Layer(f"overlay{n}", "qcow2",
                               size + rng.choice([0, 0, 0, SECTOR, 3 * MIB]),
                               rng.choice(CLUSTER_SIZES[:3] + [cluster]),
                               rng.choice(["1.1", "1.1", "0.10"]),
                               rng.choice([8, 16, 32, 64]))
                         for n in range(OVERLAYS)]
        for layer in self.layers + self.overlays:
            layer.compression = rng.choice(["zlib", "zstd"])
            # Subclusters have a sector at the least.
            if layer.cluster_size >= 16 * KIB and rng.random() < 0.6:
                layer.extended_l2 = "on"
                layer.cluster_size = rng.choice([16 * KIB, 128 * KIB,
                                                 layer.cluster_size])
        self.initial_snapshots = bits > 1 and rng.random() < 0.35 and \
            rng.randint(1, 2) or 0
        self.zero_from = rng.random() < 0.4
        # A table may be shorter than the image.
        self.length = size if rng.random() < 0.8 else \
            size - SECTOR * rng.randint(1, 16)
        for layer in self.layers + self.overlays:
            if layer.fmt == "qcow2" and layer.compat == "1.1" and \
                    rng.random() < 0.3:
                layer.data_file = "on"
        # A data file that is a raw image by itself excludes a backing file.
        if self.layers[-1].data_file == "on" and rng.random() < 0.5:
            self.layers[-1].data_file = "raw"
        if top.data_file != "off":
            self.initial_snapshots = 0
        rng = random.Random(f"encryption {seed}")
        for layer in self.layers + self.overlays:
            # Who is to read a raw data file by itself has no key.
            layer.luks = layer.fmt == "qcow2" and layer.compat == "1.1" and \
                layer.data_file != "raw" and rng.random() < 0.2

    @staticmethod
    def _size(rng, cluster):
        whole = {512: 2 * MIB, 4 * KIB: 6 * MIB, 64 * KIB: 12 * MIB,
                 2 * MIB: 10 * MIB}[cluster]
        return whole + rng.choice([0, SECTOR, 7 * SECTOR, MIB + 8 * SECTOR])

    @staticmethod
    def _lower(rng, base, size):
        lower = []
        if base == "none":
            return lower
        for n in range(rng.choice([0, 0, 1, 2])):
            lower.append(Layer(f"middle{n}", "qcow2",
                               Options._other_size(rng, size),
                               rng.choice(CLUSTER_SIZES),
                               rng.choice(["1.1", "0.10"]),
                               rng.choice([2, 4, 16, 32])))
        size = Options._other_size(rng, size)
        if base == "raw":
            lower.append(Layer("base", "raw", size))
        else:
            lower.append(Layer("base", "qcow2", size,
                               rng.choice(CLUSTER_SIZES),
                               rng.choice(["1.1", "0.10"])))
        return lower

    @staticmethod
    def _other_size(rng, size):
        size = rng.choice([size, size, size // 2, size * 3 // 4, size * 5 // 4])
        return size // SECTOR * SECTOR

    def __str__(self):
        text = " <- ".join(str(layer) for layer in self.layers)
        return (f"{text}; length {self.length}, "
                f"{self.initial_snapshots} snapshots, "
                f"zero_from {'yes' if self.zero_from else 'no'}")
