# SPDX-License-Identifier: GPL-2.0-only
"""Block devices that remember the order of all that is done to them. In the
guest.

A process of its own serves several network block devices out of memory, and
writes one log for all of them: what reaches one device before another one's
flush is known, which logs of single devices do not tell. Marks go into the same
log.

An entry: device number, kind, offset, length, data of a write.
"""

import fcntl
import os
import socket
import struct
import threading
import time

ENTRY = struct.Struct("<BcQI")
WRITE, FUA, FLUSH, TRIM, MARK = b"W", b"U", b"F", b"T", b"M"

_REQUEST = struct.Struct(">IIQQI")
_REPLY = struct.Struct(">IIQ")
_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
(_SET_SOCK, _SET_BLKSIZE, _DO_IT, _CLEAR_SOCK, _SET_SIZE_BLOCKS, _DISCONNECT,
 _SET_FLAGS) = 0xAB00, 0xAB01, 0xAB03, 0xAB04, 0xAB07, 0xAB08, 0xAB0A
_FLAGS = 1 | 4 | 8 | 32     # flush, FUA, trim


def read_log(path):
    """Yields (device, kind, offset, length, data) until the end."""
    with open(path, "rb") as f:
        while True:
            head = f.read(ENTRY.size)
            if len(head) < ENTRY.size:
                return
            device, kind, offset, length = ENTRY.unpack(head)
            data = f.read(length) if kind in (WRITE, FUA, MARK) else b""
            yield device, kind, offset, length, data


class _Server:
    def __init__(self, log):
        self.log = open(log, "wb")
        self.lock = threading.Lock()

    def note(self, device, kind, offset, length, data=b""):
        self.log.write(ENTRY.pack(device, kind, offset, length))
        self.log.write(data)

    def receive(self, sock, length):
        out = bytearray()
        while len(out) < length:
            piece = sock.recv(length - len(out))
            if not piece:
                return None
            out += piece
        return bytes(out)

    def one(self, number, store, command, offset, length, data):
        kind = command & 0xffff
        if kind == 0:
            return bytes(store[offset:offset + length])
        if kind == 1:
            store[offset:offset + length] = data
            self.note(number, FUA if command >> 16 & 1 else WRITE, offset,
                      length, data)
        elif kind == 3:
            self.note(number, FLUSH, 0, 0)
        elif kind == 4:
            store[offset:offset + length] = bytes(length)
            self.note(number, TRIM, offset, length)
        return b""

    def serve(self, number, store, sock):
        with sock:
            self.requests(number, store, sock)

    def requests(self, number, store, sock):
        while True:
            head = self.receive(sock, _REQUEST.size)
            if not head:
                return
            _, command, handle, offset, length = _REQUEST.unpack(head)
            kind = command & 0xffff
            if kind == 2:
                return
            data = self.receive(sock, length) if kind == 1 else b""
            with self.lock:
                out = self.one(number, store, command, offset, length, data)
            sock.sendall(_REPLY.pack(_REPLY_MAGIC, 0, handle) + out)

    def control(self, sock):
        """Marks: a length and a text; answered when it is in the log."""
        while True:
            head = self.receive(sock, 4)
            if not head:
                break
            text = self.receive(sock, struct.unpack("<I", head)[0])
            with self.lock:
                self.note(255, MARK, 0, len(text), text)
            sock.sendall(b".")
        with self.lock:
            self.log.flush()


class Devices:
    """images: files whose contents the devices start with; bytes: of each."""

    def __init__(self, images, size, log):
        self.nodes = [f"/dev/nbd{n}" for n in range(len(images))]
        pairs = [socket.socketpair() for _ in images]
        self.mine, theirs = socket.socketpair()
        self.child = os.fork()
        if not self.child:
            self.mine.close()
            self._run(images, size, log, pairs, theirs)
            os._exit(0)
        theirs.close()
        self.fds, self.threads = [], []
        for node, (kernel, server) in zip(self.nodes, pairs):
            server.close()
            self._connect(node, kernel, size)

    @staticmethod
    def _run(images, size, log, pairs, control):
        server = _Server(log)
        for number, (path, (kernel, sock)) in enumerate(zip(images, pairs)):
            kernel.close()
            store = bytearray(size)
            with open(path, "rb") as f:
                data = f.read()
            store[:len(data)] = data
            threading.Thread(target=server.serve, daemon=True,
                             args=(number, store, sock)).start()
        server.control(control)

    def _connect(self, node, kernel, size):
        fd = os.open(node, os.O_RDWR)
        fcntl.ioctl(fd, _SET_BLKSIZE, 512)
        fcntl.ioctl(fd, _SET_SIZE_BLOCKS, size // 512)
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS)
        fcntl.ioctl(fd, _SET_SOCK, kernel.fileno())
        pid = os.fork()
        if not pid:
            # Until it is disconnected
            try:
                fcntl.ioctl(fd, _DO_IT)
            except OSError:
                pass
            os._exit(0)
        self.fds.append(fd)
        self.threads.append(pid)
        kernel.close()
        self._wait_for(os.path.basename(node), size)

    @staticmethod
    def _wait_for(name, size):
        """Limits and size are those of the device only once it runs."""
        for _ in range(1000):
            if os.path.exists(f"/sys/block/{name}/pid"):
                with open(f"/sys/block/{name}/size", encoding="ascii") as f:
                    if int(f.read()) == size // 512:
                        return
            time.sleep(0.01)
        raise RuntimeError(f"{name} does not start")

    def mark(self, text):
        data = text.encode()
        self.mine.sendall(struct.pack("<I", len(data)) + data)
        self.mine.recv(1)

    def close(self):
        for fd, pid in zip(self.fds, self.threads):
            fcntl.ioctl(fd, _DISCONNECT)
            os.waitpid(pid, 0)
            fcntl.ioctl(fd, _CLEAR_SOCK)
            os.close(fd)
        self.mine.close()
        os.waitpid(self.child, 0)
