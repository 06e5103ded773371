"""Framed messages over a socket. Nothing waits without a limit; on one host large arrays travel as shared memory."""

import mmap
import os
import socket
import struct
import threading
import time
import zlib
from typing import Any

from towpath.runtime import wire

PREFIX = struct.Struct("<4sIIB")
"""Magic, bytes of the header, its checksum, whether the arrays come as a file descriptor."""
MAGIC = b"TWP1"
SHARED_FROM = 1 << 18
"""Bytes of arrays from which they go by shared memory."""
LONGEST_HEADER = 1 << 28


class ChannelClosed(ConnectionError):
    """The other end is gone."""


class Frame:
    """A message ready to be sent, to one worker or to several: it is encoded once."""

    def __init__(self, message: Any, shared: bool) -> None:
        self.header, arrays = wire.encode(message)
        self.bytes = sum(array.nbytes for array in arrays)
        self.arrays = arrays
        self.fd = -1
        if shared and self.bytes >= SHARED_FROM:
            self.fd = _in_memory(arrays)
            self.arrays = []

    def close(self) -> None:
        """Let go of the shared memory; whoever received it has it still."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _in_memory(arrays: list[memoryview]) -> int:
    """A file without a name that holds the arrays one after the other."""
    fd = os.memfd_create("towpath", os.MFD_CLOEXEC)
    for array in arrays:
        view = array
        while len(view):
            view = view[os.write(fd, view) :]
    return fd


class Channel:
    """One end of a connection. Several threads may send; one receives."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self.connection = connection
        self.shared = connection.family == socket.AF_UNIX
        self.timeout = timeout
        """Seconds within which a frame that has begun must be complete."""
        self.received_bytes = 0
        self.sent_bytes = 0
        self._sending = threading.Lock()
        connection.settimeout(timeout)

    def fileno(self) -> int:
        return self.connection.fileno()

    def close(self) -> None:
        self.connection.close()

    def send(self, message: Any) -> None:
        """Send a message; ChannelClosed where the other end is gone or does not read."""
        frame = Frame(message, self.shared)
        try:
            self.send_frame(frame)
        finally:
            frame.close()

    def send_frame(self, frame: Frame) -> None:
        """Send a message that is encoded."""
        prefix = PREFIX.pack(MAGIC, len(frame.header), zlib.crc32(frame.header), frame.fd >= 0)
        try:
            with self._sending:
                if frame.fd >= 0:
                    socket.send_fds(self.connection, [prefix], [frame.fd])
                else:
                    self.connection.sendall(prefix)
                self.connection.sendall(frame.header)
                for array in frame.arrays:
                    self.connection.sendall(array)
                self.sent_bytes += len(frame.header) + frame.bytes
        except OSError as error:
            raise ChannelClosed(str(error) or type(error).__name__) from error

    def receive(self) -> Any:
        """The next message, which must have begun to arrive; MessageError for bytes that are none."""
        deadline = time.monotonic() + self.timeout
        prefix, fd = self._prefix(deadline)
        try:
            magic, length, checksum, by_memory = PREFIX.unpack(prefix)
            if magic != MAGIC or length > LONGEST_HEADER or bool(by_memory) != (fd >= 0):
                raise wire.MessageError(f"not a message: {bytes(prefix)!r}")
            header = bytes(self._exactly(length, deadline))
            if zlib.crc32(header) != checksum:
                raise wire.MessageError("a message with a wrong checksum")
            size = wire.array_bytes(header)
            arrays = _mapped(fd, size) if fd >= 0 else memoryview(self._exactly(size, deadline))
            self.received_bytes += length + size
            return wire.decode(header, arrays)
        finally:
            if fd >= 0:
                os.close(fd)

    def _prefix(self, deadline: float) -> tuple[bytearray, int]:
        fds: list[int] = []
        first = b""
        try:
            if self.shared:
                first, fds, _, _ = socket.recv_fds(self.connection, PREFIX.size, 1)
            else:
                first = self.connection.recv(PREFIX.size)
        except OSError as error:
            raise ChannelClosed(str(error) or type(error).__name__) from error
        if not first:
            raise ChannelClosed("the connection was closed")
        return bytearray(first) + self._exactly(PREFIX.size - len(first), deadline), fds[0] if fds else -1

    def _exactly(self, size: int, deadline: float) -> bytearray:
        content = bytearray(size)
        view = memoryview(content)
        while len(view):
            if time.monotonic() > deadline:
                raise wire.MessageError(f"half a message: {size - len(view):,} of {size:,} bytes")
            try:
                count = self.connection.recv_into(view)
            except TimeoutError:
                continue
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not count:
                raise ChannelClosed("the connection was closed within a message")
            view = view[count:]
        return content


def _mapped(fd: int, size: int) -> memoryview:
    """The shared memory as this process's own: what is written to it stays here."""
    if os.fstat(fd).st_size != size:
        raise wire.MessageError("shared memory of another size")
    return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
