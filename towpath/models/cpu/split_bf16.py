"""A float32 as two halves of sixteen bits: the bfloat16 nearest to it, which passes read, and the rest, which only
the optimizer reads. Together they are the float32 itself; where it lies just between two bfloat16 and the lower one
is even, the float32 next to it."""

import torch
from torch import Tensor


def split_float32(whole: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16, of two the even one, as everywhere; and how many float32 steps from there, of which
    0x8000 are one too many."""
    if whole.dtype == torch.bfloat16:
        return whole, torch.zeros_like(whole, dtype=torch.int16)
    whole = whole.float()
    upper = whole.contiguous().to(torch.bfloat16)
    return upper, (whole.contiguous().view(torch.int32) - (upper.view(torch.int16).int() << 16)).clamp_(max=0x7FFF).to(
        torch.int16
    )


def merge_float32(upper: Tensor, rest: Tensor) -> Tensor:
    """Merge both halves to float32."""
    return ((upper.contiguous().view(torch.int16).int() << 16) + rest).view(torch.float32)
