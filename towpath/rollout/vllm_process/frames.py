"""Frames of a socket: a JSON header and raw arrays, bounded in length. Nothing is unpickled."""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

HEAD = struct.Struct("<4sIQ")
"""Magic, bytes of the header, bytes of the arrays."""
MAGIC = b"TWP1"
MAX_HEADER = 2**26
MAX_ARRAYS = 2**32
DTYPES = ("int32", "int64", "float32", "float64", "uint8")

Arrays = dict[str, np.ndarray]


class FrameError(Exception):
    """Bytes that are no frame, or half of one."""


class FrameSocket:
    """Sends and receives frames; a limit is the longest silence in seconds, None for no limit."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def send(self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """One frame, whole or an error."""
        parts = [(name, np.ascontiguousarray(array)) for name, array in (arrays or {}).items()]
        described = [[name, str(array.dtype), list(array.shape)] for name, array in parts]
        header = json.dumps({**message, "arrays": described}).encode()
        size = sum(array.nbytes for _, array in parts)
        if len(header) > MAX_HEADER or size > MAX_ARRAYS:
            rule = f"at most {MAX_HEADER:,} and {MAX_ARRAYS:,}"
            raise FrameError(f"a frame of {len(header):,} and {size:,} bytes: {rule}")
        self.socket.sendall(HEAD.pack(MAGIC, len(header), size) + header)
        for _, array in parts:
            if array.nbytes:
                self.socket.sendall(array.reshape(-1).view(np.uint8).data)

    def receive(self, limit: float | None) -> tuple[dict[str, Any], Arrays]:
        """The next frame; EOFError where the other side closed between two frames."""
        self.socket.settimeout(limit)
        try:
            head = self._read(HEAD.size, between=True)
            magic, header_size, size = HEAD.unpack(head)
            if magic != MAGIC or header_size > MAX_HEADER or size > MAX_ARRAYS:
                raise FrameError(f"bytes that are no frame: {bytes(head)!r}")
            try:
                message = dict(json.loads(bytes(self._read(header_size))))
                described = message.pop("arrays")
            except (ValueError, TypeError, KeyError) as error:
                raise FrameError(f"a header that is no JSON object with arrays: {error}") from None
            return message, self._arrays(described, size)
        finally:
            self.socket.settimeout(None)

    def _arrays(self, described: list[Any], size: int) -> Arrays:
        arrays: Arrays = {}
        left = size
        for name, dtype, shape in described:
            if dtype not in DTYPES or any(not isinstance(side, int) or side < 0 for side in shape):
                raise FrameError(f"an array of type {dtype!r} and shape {shape!r}")
            count = int(np.prod(shape, dtype=np.int64))
            bytes_needed = count * np.dtype(dtype).itemsize
            if bytes_needed > left:
                raise FrameError(f"array {name!r} is longer than its frame")
            left -= bytes_needed
            arrays[name] = np.frombuffer(self._read(bytes_needed), dtype).reshape(shape)
        if left:
            raise FrameError(f"{left} bytes of a frame belong to no array")
        return arrays

    def _read(self, size: int, between: bool = False) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = self.socket.recv_into(rest)
            if not count:
                if between and len(rest) == size:
                    raise EOFError
                raise FrameError(f"half a frame: {size - len(rest)} of {size} bytes")
            rest = rest[count:]
        return data
