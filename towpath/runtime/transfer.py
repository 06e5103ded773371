"""Copies from host memory to a device: one for all that a pass needs, which waits for nothing."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes to which tensors begin within a copy, so that each can be read as its own type."""


def to_device(values: Sequence[Any], device: torch.device) -> list[Tensor]:
    """Tensors or arrays on a device. In host memory they stay what they are; to a device all go as one copy from pinned
    memory, while the device computes."""
    tensors = [torch.as_tensor(value) for value in values]
    if device.type == "cpu" or not tensors:
        return [tensor.to(device) for tensor in tensors]
    inside = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    buffer, begins = _concatenate(inside, device.type == "cuda")
    there = buffer.to(device, non_blocking=True)
    copies = iter([_part(there, begin, tensor) for begin, tensor in zip(begins, inside, strict=True)])
    return [next(copies) if tensor.device.type == "cpu" else tensor.to(device) for tensor in tensors]


def _concatenate(tensors: Sequence[Tensor], pinned: bool) -> tuple[Tensor, list[int]]:
    """The bytes of all tensors in one buffer, and where each begins."""
    begins = []
    size = 0
    for tensor in tensors:
        begins.append(size)
        size += math.ceil(tensor.numel() * tensor.element_size() / ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for begin, tensor in zip(begins, tensors, strict=True):
        _part(buffer, begin, tensor).copy_(tensor)
    return buffer, begins


def _part(buffer: Tensor, begin: int, like: Tensor) -> Tensor:
    """The part of a buffer from `begin` on, read with a tensor's type and shape."""
    size = like.numel() * like.element_size()
    return buffer[begin : begin + size].view(like.dtype).view(like.shape)
