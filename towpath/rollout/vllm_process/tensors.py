"""Weights in a buffer of bytes: views of its tensors, checksums of what was sent, fingerprints of what serves."""

from typing import Any

import torch
from torch import Tensor

CHUNK = 64 * 2**20
"""Bytes of weights in one message; a larger tensor has a message of its own. Small chunks stay in fewer pages."""
ALIGNMENT = 256

Fingerprint = tuple[float, float]
"""Sum and sum of squares in float64."""


def fingerprint(tensor: Tensor) -> Fingerprint:
    """Sum and sum of squares in float64, a few megabytes at a time, read from the device once."""
    sums = torch.zeros(2, dtype=torch.float64, device=tensor.device)
    for part in tensor.detach().reshape(-1).split(2**20):
        wide = part.double()
        sums[0] += wide.sum()
        sums[1] += wide.dot(wide)
    total, squares = sums.tolist()
    return total, squares


def checksum(tensor: Tensor) -> int:
    """Sum of the bytes as 64-bit words, modulo 2^64: as fast as memory, and any other value of one weight shows."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = len(data) // 8 * 8
    if data.storage_offset() % 8:
        data = data.clone()
    return int(data[:whole].view(torch.int64).sum()) + int(data[whole:].sum())


def padded(size: int) -> int:
    """Bytes that a tensor takes in a buffer."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def describe(name: str, tensor: Tensor, offset: int) -> dict[str, Any]:
    """Name, type, shape and offset of a tensor, as JSON holds them."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"name": name, "dtype": dtype, "shape": list(tensor.shape), "offset": offset}


def view(buffer: Tensor, dtype: str, shape: list[int], offset: int) -> Tensor:
    """A tensor within a buffer of bytes."""
    kind = getattr(torch, dtype)
    size = kind.itemsize
    for side in shape:
        size *= side
    return buffer[offset : offset + size].view(kind).view(shape)
