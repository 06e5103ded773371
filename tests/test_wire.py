"""Messages between a controller and its workers: they arrive as they were sent, and nothing else is taken for one."""

import json
import math
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat
from towpath.models import base
from towpath.recipe import Decoding, Lora
from towpath.runtime import wire
from towpath.runtime.channel import MAGIC, PREFIX, Channel, ChannelClosed, Frame
from towpath.runtime.contract import Loss, OptimizerConfig, RoleSpec
from towpath.runtime.wire import MessageError


@pytest.fixture(params=["unix", "tcp"])
def ends(request):
    """Two connected channels."""
    if request.param == "unix":
        pair = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            pair = socket.create_connection(server.getsockname()), server.accept()[0]
    channels = [Channel(end, 2.0) for end in pair]
    yield channels
    for channel in channels:
        channel.close()


def sent(ends, message):
    """What arrives of a message."""
    thread = threading.Thread(target=ends[0].send, args=(message,))
    thread.start()
    received = ends[1].receive()
    thread.join()
    return received


def test_values_arrive_as_they_were_sent(ends) -> None:
    message = {
        "none": None,
        "numbers": [1, -2.5, math.inf, True],
        "tuple": (1, ("a", 2.0)),
        "map with any keys": {"#": 1, "": {"x": []}},
        "set": frozenset({"b", "a"}),
        "path": Path("/a b/c"),
        "text": 'Grüße "🙂"\n\0',
    }
    assert sent(ends, message) == message
    assert math.isnan(sent(ends, [math.nan])[0])


@pytest.mark.parametrize("size", [0, 3, 1 << 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_keep_bits_shape_and_type(ends, dtype, size) -> None:
    """The largest go by shared memory on one host, and are the receiver's own."""
    tensor = torch.randn(2, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    (received,) = sent(ends, [tensor.t()])
    assert received.dtype == dtype and torch.equal(received, tensor.t())
    before = tensor.clone()
    received.fill_(1)
    assert torch.equal(tensor, before)


def test_records_and_batches_arrive(ends, tiny_folder) -> None:
    rows = [Row(np.arange(3, 8), 2), Row(np.arange(5), 3)]
    columns = {"advantage": torch.randn(2, 3), "group": np.array([0, 1]), "ended": torch.tensor([True, False])}
    batch = sent(ends, Batch(rows, columns, (2,), frozenset({"advantage"}), {"prefix": 4}))
    assert [(row.ids.tolist(), row.start) for row in batch.rows] == [([3, 4, 5, 6, 7], 2), ([0, 1, 2, 3, 4], 3)]
    assert batch.sizes == (2,) and batch.fixed == {"advantage"} and batch.handles == {"prefix": 4}
    assert all(np.array_equal(batch.columns[name], column) for name, column in columns.items())
    assert len(sent(ends, Batch([]))) == 0
    records = [
        RoleSpec("m", Lora(rank=4, targets=["q_proj"]), 3, init=Path("x"), learning_rate=1e-4),
        OptimizerConfig(1e-6),
        Loss("towpath.algos.ppo", {"a": [1]}, {"kl_coef": 0.1}),
        Decoding(top_k=3),
    ]
    assert sent(ends, records) == records
    out = sent(ends, Outputs(torch.ones(1, 2, dtype=torch.bool), logp_BT=torch.zeros(1, 2)))
    assert out.logp_BT.shape == (1, 2) and not out.value_BT.numel()
    chat = Chat(base.load_tokenizer(tiny_folder))
    assert sent(ends, {"chat": chat})["chat"].prompt("Hello") == chat.prompt("Hello")


def test_nothing_else_is_sent() -> None:
    class Own:
        pass

    for value in (Own(), print, np.array(["a"], dtype=object)):
        with pytest.raises(TypeError, match="not sent to a worker"):
            wire.encode([value])


def raw(header: bytes, checksum: int | None = None) -> bytes:
    return PREFIX.pack(MAGIC, len(header), zlib.crc32(header) if checksum is None else checksum, 0) + header


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        raw(b"[1]"),
        raw(b"not json at all"),
        raw(b'{"message":1,"bytes":[]}', checksum=7),
        raw(json.dumps({"message": {"#": "record", "name": "Popen", "fields": {}}, "bytes": []}).encode()),
        raw(json.dumps({"message": {"#": "tensor", "dtype": "float32", "shape": [9]}, "bytes": []}).encode()),
        raw(json.dumps({"message": {"#": "unknown"}, "bytes": []}).encode()),
        struct.pack("<4sIIB", MAGIC, 1 << 30, 0, 0),
    ],
)
def test_noise_is_no_message(ends, noise) -> None:
    ends[0].connection.sendall(noise)
    with pytest.raises(MessageError):
        ends[1].receive()


def test_half_a_message_ends_in_time(ends) -> None:
    ends[1].timeout = 0.3
    ends[1].connection.settimeout(0.1)
    frame = Frame({"x": torch.zeros(100)}, shared=False)
    ends[0].connection.sendall(PREFIX.pack(MAGIC, len(frame.header), zlib.crc32(frame.header), 0) + frame.header[:20])
    begin = time.monotonic()
    with pytest.raises(MessageError, match="half a message"):
        ends[1].receive()
    assert time.monotonic() - begin < 2.0
    ends[0].close()
    with pytest.raises(ChannelClosed):
        ends[1].receive()
