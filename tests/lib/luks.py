# SPDX-License-Identifier: GPL-2.0-only
"""The volume key of a LUKS1 header, by the kernel's crypto API: for tests that
make dm-crypt devices by hand.

The format is that of "LUKS On-Disk Format Specification", version 1.2.3.
"""

import hashlib
import socket
import struct

SECTOR = 512
HEADER = ">6sH32s32s32sII20s32sI40s"
SLOT = ">II32sII"
ACTIVE = 0x00AC71F3
# Type of the header extension (qcow2 specification)
EXTENSION = 0x0537BE77


def _text(field):
    return field.rstrip(b"\0").decode()


def _decrypt(mode, key, data):
    """XTS with the number of the sector as IV, from 0 on."""
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as alg:
        alg.bind(("skcipher", mode))
        alg.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, key)
        op, _ = alg.accept()
        out = bytearray()
        with op:
            for at in range(0, len(data), SECTOR):
                iv = struct.pack("<QQ", at // SECTOR, 0)
                op.sendmsg_afalg([data[at:at + SECTOR]],
                                 op=socket.ALG_OP_DECRYPT, iv=iv)
                out += op.recv(SECTOR)
    return bytes(out)


def _diffuse(block, name):
    size = hashlib.new(name).digest_size
    out = b""
    for n, at in enumerate(range(0, len(block), size)):
        part = block[at:at + size]
        out += hashlib.new(name, struct.pack(">I", n) +
                           part).digest()[:len(part)]
    return out


def _merge(stripes, key_bytes, name):
    block = bytes(key_bytes)
    parts = [stripes[at:at + key_bytes]
             for at in range(0, len(stripes), key_bytes)]
    for n, part in enumerate(parts):
        block = bytes(a ^ b for a, b in zip(block, part))
        if n < len(parts) - 1:
            block = _diffuse(block, name)
    return block


def header_of(image):
    """The LUKS header in a qcow2 image: its extension tells where."""
    with open(image, "rb") as f:
        f.seek(100)
        at = struct.unpack(">I", f.read(4))[0]
        while True:
            f.seek(at)
            kind, length, where, size = struct.unpack(">IIQQ", f.read(24))
            if kind == EXTENSION:
                f.seek(where)
                return f.read(size)
            if not kind:
                raise ValueError(f"no LUKS header in {image}")
            at += 8 + (length + 7) // 8 * 8


def volume_key(header, passphrase):
    """(cipher as dm-crypt spells it, key) of a LUKS1 header."""
    (magic, version, cipher, mode, spec, _, key_bytes, digest, salt, rounds,
     _) = struct.unpack_from(HEADER, header)
    assert magic == b"LUKS\xba\xbe" and version == 1
    cipher, mode, name = _text(cipher), _text(mode), _text(spec)
    assert (cipher, mode) == ("aes", "xts-plain64")
    for n in range(8):
        active, count, slot_salt, where, stripes = struct.unpack_from(
            SLOT, header, struct.calcsize(HEADER) + n * struct.calcsize(SLOT))
        if active != ACTIVE:
            continue
        key = hashlib.pbkdf2_hmac(name, passphrase, slot_salt, count, key_bytes)
        material = header[where * SECTOR:where * SECTOR + key_bytes * stripes]
        material += bytes(-len(material) % SECTOR)
        key = _merge(_decrypt("xts(aes)", key, material)[:key_bytes * stripes],
                     key_bytes, name)
        if hashlib.pbkdf2_hmac(name, key, salt, rounds, 20) == digest:
            return f"{cipher}-{mode}", key
    raise ValueError("no key slot takes this passphrase")
