# SPDX-License-Identifier: GPL-2.0-only
"""Loop devices, device-mapper and block I/O by system call.

Starting a program costs an emulated CPU a fifth of a second, so tests that do
thousands of operations call the kernel themselves.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
import time

SECTOR = 512

_libc = ctypes.CDLL(None, use_errno=True)


class Loop:
    """A loop device on a file, with direct I/O; block: bytes of its logical
    blocks, 0 for the kernel's choice."""

    CTL_GET_FREE = 0x4C82
    CONFIGURE = 0x4C0A
    CLR_FD = 0x4C01
    SET_CAPACITY = 0x4C07
    READ_ONLY = 1
    DIRECT_IO = 16

    def __init__(self, path, read_only=False, block=0):
        self.path = path
        self.block = block
        self.fd = -1
        flags = os.O_RDONLY if read_only else os.O_RDWR
        backing = os.open(path, flags | os.O_DIRECT)
        try:
            self._attach(backing, read_only)
        finally:
            os.close(backing)
        if get(f"/sys/block/{self.dev[5:]}/loop/dio").strip() != "1":
            raise RuntimeError(f"{self.dev} has no direct I/O")

    def _attach(self, backing, read_only):
        flags = self.DIRECT_IO | (self.READ_ONLY if read_only else 0)
        name = os.fsencode(self.path)[:63]
        info = struct.pack("<QQQQQIIII64s64s32sQQ", 0, 0, 0, 0, 0, 0, 0, 0,
                           flags, name, b"", b"", 0, 0)
        config = struct.pack("<II", backing, self.block) + info + bytes(64)
        control = os.open("/dev/loop-control", os.O_RDWR)
        try:
            while True:
                number = fcntl.ioctl(control, self.CTL_GET_FREE)
                self.dev = f"/dev/loop{number}"
                fd = os.open(self.dev, flags & self.READ_ONLY and
                             os.O_RDONLY or os.O_RDWR)
                try:
                    fcntl.ioctl(fd, self.CONFIGURE, config)
                    self.fd = fd
                    return
                except OSError as e:
                    os.close(fd)
                    # somebody else was faster
                    if e.errno != errno.EBUSY:
                        raise
        finally:
            os.close(control)

    def set_capacity(self):
        """The file's length has changed."""
        fcntl.ioctl(self.fd, self.SET_CAPACITY)

    def detach(self):
        if self.fd < 0:
            return
        fcntl.ioctl(self.fd, self.CLR_FD)
        os.close(self.fd)
        self.fd = -1
        # The device goes away when the last opener does; wait for it. By then
        # somebody else may have it.
        path = f"/sys/block/{self.dev[5:]}/loop/backing_file"
        for _ in range(1000):
            try:
                if get(path).strip() != os.path.realpath(self.path):
                    return
            except OSError:
                return
            time.sleep(0.01)
        raise RuntimeError(f"{self.dev} does not go away")


class DmError(OSError):
    pass


class Dm:
    """A device-mapper device with one target."""

    HEADER = "<IIIIIIiIIIQ128s129s7x"
    SIZE = struct.calcsize(HEADER)
    (CREATE, REMOVE, SUSPEND_CMD, STATUS_CMD, WAIT, LOAD, CLEAR, TABLE,
     MESSAGE) = 3, 4, 6, 7, 8, 9, 10, 12, 14
    READONLY = 1 << 0
    SUSPEND = 1 << 1
    STATUS_TABLE = 1 << 4
    SKIP_LOCKFS = 1 << 10
    NOFLUSH = 1 << 11
    DATA_OUT = 1 << 16

    # One for all: a program that makes a thousand devices has no more.
    control = -1

    def __init__(self, name):
        self.name = name
        if Dm.control < 0:
            Dm.control = os.open("/dev/mapper/control", os.O_RDWR)

    # Python lets other threads run during an ioctl with a buffer of this size.
    SMALL = 1024

    def _ioctl(self, cmd, flags=0, data=b"", targets=0, size=SMALL, event=0):
        size = max(size, self.SIZE + len(data))
        buf = bytearray(size)
        struct.pack_into(self.HEADER, buf, 0, 4, 0, 0, size, self.SIZE,
                         targets, 0, flags, event, 0, 0, self.name.encode(),
                         b"")
        buf[self.SIZE:self.SIZE + len(data)] = data
        try:
            fcntl.ioctl(self.control, 0xC138FD00 | cmd, buf)
        except OSError as e:
            raise DmError(e.errno, f"dm ioctl {cmd}: {os.strerror(e.errno)}",
                          self.name) from None
        return buf

    def _dev(self, buf):
        return struct.unpack_from(self.HEADER, buf)[10]

    def create(self, length, params, read_only=False, target="qcow2"):
        """Makes the device with its table, running."""
        buf = self._ioctl(self.CREATE)
        dev = self._dev(buf)
        self.path = f"/dev/dm-{os.minor(dev)}"
        try:
            self.load(length, params, read_only, target)
            self.resume()
        except OSError:
            self.remove()
            raise
        return self.path

    def load(self, length, params, read_only=False, target="qcow2"):
        self.load_table([(length, target, params)], read_only)

    def load_table(self, lines, read_only=False):
        """lines: (sectors, target, parameters), one behind the other."""
        data, start = b"", 0
        for length, target, params in lines:
            text = params.encode() + b"\0"
            text += bytes(-len(text) % 8)
            data += struct.pack("<QQiI16s", start, length, 0, 40 + len(text),
                                target.encode()) + text
            start += length
        self._ioctl(self.LOAD, self.READONLY if read_only else 0, data,
                    len(lines))

    def clear(self):
        self._ioctl(self.CLEAR)

    def suspend(self, flags=0):
        self._ioctl(self.SUSPEND_CMD, self.SUSPEND | flags)

    def resume(self, flags=0):
        self._ioctl(self.SUSPEND_CMD, flags)

    def status(self, flags=0):
        buf = self._ioctl(self.TABLE, flags, size=16384)
        start = self.SIZE + 40
        return buf[start:buf.index(0, start)].decode()

    def table(self):
        return self.status(self.STATUS_TABLE)

    def event_nr(self):
        return struct.unpack_from(self.HEADER, self._ioctl(self.STATUS_CMD))[8]

    def message(self, text):
        """Sends a target message; returns the answer, "" without one."""
        data = struct.pack("<Q", 0) + text.encode() + b"\0"
        buf = self._ioctl(self.MESSAGE, data=data)
        if not struct.unpack_from(self.HEADER, buf)[7] & self.DATA_OUT:
            return ""
        return buf[self.SIZE:buf.index(0, self.SIZE)].decode()

    def remove(self):
        # Whoever looked at the device last may not have closed it yet.
        for attempt in range(100):
            try:
                self._ioctl(self.REMOVE)
                return
            except DmError as e:
                if e.errno != errno.EBUSY or attempt == 99:
                    raise
                time.sleep(0.02)


class _Buffers(threading.local):
    """A buffer of each thread: fresh pages are slow on an emulated CPU.

    Not made before it is needed: a child must not share its parent's.
    """

    map = b""

    def get(self, length):
        if len(self.map) < length:
            self.map = mmap.mmap(-1, max(length, 1 << 20),
                                 mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return memoryview(self.map)[:length]


class Device:
    """An open block device, direct I/O."""

    _buffers = _Buffers()

    BLKDISCARD = 0x1277
    BLKZEROOUT = 0x127F
    BLKGETSIZE64 = 0x80081272
    KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

    def __init__(self, path, flags=os.O_RDWR):
        self.path = path
        self.fd = os.open(path, flags | os.O_DIRECT)
        self.size = struct.unpack("<Q", fcntl.ioctl(
            self.fd, self.BLKGETSIZE64, bytes(8)))[0]

    def close(self):
        os.close(self.fd)

    def write(self, offset, data, fua=False, flags=0):
        buf = self._buffers.get(len(data))
        buf[:] = data
        flags |= os.RWF_DSYNC if fua else 0
        done = os.pwritev(self.fd, [buf], offset, flags)
        if done != len(data):
            raise OSError(errno.EIO, f"wrote {done} of {len(data)} bytes")

    def read(self, offset, length, flags=0):
        buf = self._buffers.get(length)
        done = os.preadv(self.fd, [buf], offset, flags)
        if done != length:
            raise OSError(errno.EIO, f"read {done} of {length} bytes")
        return bytes(buf)

    def read_all(self, chunk=1 << 20):
        out = bytearray()
        while len(out) < self.size:
            out += self.read(len(out), min(chunk, self.size - len(out)))
        return out

    def flush(self):
        os.fsync(self.fd)

    def discard(self, offset, length):
        fcntl.ioctl(self.fd, self.BLKDISCARD,
                    struct.pack("<QQ", offset, length))

    def zeroout(self, offset, length):
        """Zeroes that may not give the space back (NOUNMAP)."""
        fcntl.ioctl(self.fd, self.BLKZEROOUT,
                    struct.pack("<QQ", offset, length))

    def punch(self, offset, length):
        """Zeroes that may give the space back."""
        self._fallocate(self.PUNCH_HOLE | self.KEEP_SIZE, offset, length)

    def _fallocate(self, mode, offset, length):
        if _libc.fallocate(self.fd, mode, ctypes.c_int64(offset),
                           ctypes.c_int64(length)):
            e = ctypes.get_errno()
            raise OSError(e, os.strerror(e))


_PIECE = 1 << 16
_ZEROES = bytes(_PIECE)


def _write_sparse(fd, offset, data):
    for at in range(0, len(data), _PIECE):
        piece = data[at:at + _PIECE]
        if piece != _ZEROES[:len(piece)]:
            os.pwrite(fd, piece, offset + at)


def save_sparse(path, data):
    """Writes a file, leaving holes where there are only zeroes."""
    with open(path, "wb") as f:
        _write_sparse(f.fileno(), 0, memoryview(data))
        os.truncate(f.fileno(), len(data))


def copy_sparse(source, target):
    """Copies a file; holes and zeroes become holes."""
    with open(source, "rb") as src, open(target, "wb") as dst:
        length = os.fstat(src.fileno()).st_size
        offset = 0
        while offset < length:
            try:
                offset = os.lseek(src.fileno(), offset, os.SEEK_DATA)
            except OSError as e:
                if e.errno != errno.ENXIO:
                    raise
                break
            end = os.lseek(src.fileno(), offset, os.SEEK_HOLE)
            while offset < end:
                data = os.pread(src.fileno(), min(1 << 20, end - offset),
                                offset)
                if not data:
                    raise RuntimeError(f"{source} shrinks while it is copied")
                _write_sparse(dst.fileno(), offset, data)
                offset += len(data)
        os.truncate(dst.fileno(), length)


def get(path):
    """What the kernel says in a file"""
    with open(path) as f:
        return f.read()


def put(path, value):
    """Tells the kernel by a file."""
    with open(path, "w") as f:
        f.write(str(value))


def sectors(path):
    """Length of a device; path: /dev/NAME"""
    return int(get(f"/sys/block/{os.path.basename(path)}/size"))


def queue_limit(path, name):
    """A number of a device's queue; path: /dev/NAME"""
    return int(get(f"/sys/block/{os.path.basename(path)}/queue/{name}"))


def disk_stat(path):
    """What has been done to a device so far; path: /dev/NAME"""
    return [int(n) for n in
            get(f"/sys/block/{os.path.basename(path)}/stat").split()]


PAGES, OBJECTS = 1, 2


def drop_caches(what=OBJECTS):
    """OBJECTS: runs every shrinker."""
    put("/proc/sys/vm/drop_caches", what)
