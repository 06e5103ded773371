"""A float32 as two halves of sixteen bits: the bfloat16 nearest to it, which passes read, and the rest, which only the optimizer reads.
Together they are the float32 itself, to the bit."""

import torch
from torch import Tensor


def parted(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Upper half and rest of float32 values; of two bfloat16 equally near the upper one is that away from zero."""
    return upper(whole), whole.contiguous().view(torch.int32).to(torch.int16)


def upper(whole: Tensor) -> Tensor:
    """The upper half alone."""
    return ((whole.contiguous().view(torch.int32) + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16)


def joined(upper: Tensor, rest: Tensor) -> Tensor:
    """The float32 values that were parted."""
    return ((upper.contiguous().view(torch.int16).int() << 16) + rest).view(torch.float32)
