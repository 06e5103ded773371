"""Connections between hosts: both ends prove that they know the run's token before either reads a message.

Each sends 32 random bytes; each answers with an HMAC-SHA256 of both under the token, in a role that the other end
cannot take. Every wait has a limit, and so has the size of what is read.
"""

import hashlib
import hmac
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

MAGIC = b"TWPH"
NONCE_BYTES = 32
HANDSHAKE_SECONDS = 10.0
LONGEST_HELLO = 1 << 16
MIN_TOKEN = 16
"""Characters of a token."""


class HandshakeFailed(ConnectionError):
    """The other end does not know the token, or does not speak this protocol."""


class JoinRefused(ConnectionError):
    """The controller does not take this host."""


def new_token() -> str:
    """A token for one run."""
    return secrets.token_urlsafe(32)


def call(address: str, token: str, hello: Mapping[str, Any], wait: float = HANDSHAKE_SECONDS) -> socket.socket:
    """A connection to the controller at HOST:PORT, after both ends have proved themselves; the controller may let it
    wait, as long as it lives, until it is wanted."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), HANDSHAKE_SECONDS)
    try:
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        own = os.urandom(NONCE_BYTES)
        connection.sendall(MAGIC + own)
        theirs = _exactly(connection, NONCE_BYTES, deadline)
        proof = _exactly(connection, NONCE_BYTES, deadline)
        if not hmac.compare_digest(proof, _proof(token, b"controller", own, theirs)):
            raise HandshakeFailed(f"{address} does not know the token of this run")
        connection.sendall(_proof(token, b"worker", own, theirs))
        send_json(connection, hello)
        _keep_alive(connection)
        reply = receive_json(connection, time.monotonic() + wait)
        if "refused" in reply:
            raise JoinRefused(str(reply["refused"]))
    except BaseException:
        connection.close()
        raise
    return connection


def answer(connection: socket.socket, token: str, timeout: float = HANDSHAKE_SECONDS) -> dict[str, Any]:
    """The hello of whoever has connected, after both ends have proved themselves; `welcome` or `refuse` comes next."""
    deadline = time.monotonic() + timeout
    if _exactly(connection, len(MAGIC), deadline) != MAGIC:
        raise HandshakeFailed("not a worker of Towpath")
    theirs = _exactly(connection, NONCE_BYTES, deadline)
    own = os.urandom(NONCE_BYTES)
    connection.sendall(own + _proof(token, b"controller", theirs, own))
    if not hmac.compare_digest(_exactly(connection, NONCE_BYTES, deadline), _proof(token, b"worker", theirs, own)):
        raise HandshakeFailed("a worker that does not know the token of this run")
    _keep_alive(connection)
    return receive_json(connection, deadline)


def _proof(token: str, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.new(token.encode(), role + first + second, hashlib.sha256).digest()


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    content = b""
    while len(content) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise HandshakeFailed("no answer in time")
        connection.settimeout(min(left, 3600.0))
        try:
            part = connection.recv(size - len(content))
        except TimeoutError:
            raise HandshakeFailed("no answer in time") from None
        if not part:
            raise HandshakeFailed("the connection was closed: is the token of this run the same there?")
        content += part
    return content


def send_json(connection: socket.socket, content: Mapping[str, Any]) -> None:
    """A short message, before arrays are sent."""
    data = json.dumps(content).encode()
    connection.sendall(struct.pack("<I", len(data)) + data)


def receive_json(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """A short message; HandshakeFailed where it is none."""
    (size,) = struct.unpack("<I", _exactly(connection, 4, deadline))
    if size > LONGEST_HELLO:
        raise HandshakeFailed(f"a message of {size:,} bytes before the connection is made")
    try:
        content = json.loads(_exactly(connection, size, deadline))
    except ValueError as error:
        raise HandshakeFailed("a message that is no JSON") from error
    if not isinstance(content, dict):
        raise HandshakeFailed("a message that is no object")
    return content


def _keep_alive(connection: socket.socket) -> None:
    """Small messages go at once; a host that no longer answers is noticed within 20 seconds."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
