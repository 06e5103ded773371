"""AdamW for many weights in few kernels, on devices where a launch costs more than a small weight's arithmetic: the
operations of `cpu.plain`, each over a list."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from towpath.models.cpu.plain import AdamWStep
from towpath.models.cpu.split_bf16 import merge_float32, split_float32

NUMBERS = 2**26
"""Of weights that are updated together: their temporary copies take four times as many bytes."""


class Update(NamedTuple):
    """A weight, the low bits of its float32 where it is split, its gradient and its moments."""

    weight: Tensor
    low_bits: Tensor | None
    grad: Tensor
    mean: Tensor
    square: Tensor


def squared_norm(grads: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all gradients, in float64."""
    norms = [norm.double() for norm in torch._foreach_norm(list(grads), 2, dtype=torch.float32)]
    return torch.stack(norms).square().sum()


def adamw_step(updates: Sequence[Update], step: AdamWStep) -> None:
    """A step of AdamW in place, for weights of one dtype."""
    for part in _parts(updates):
        wholes = [u.weight if u.low_bits is None else merge_float32(u.weight, u.low_bits) for u in part]
        means = [u.mean for u in part]
        squares = [u.square for u in part]
        slopes = torch._foreach_mul([u.grad.to(x.dtype) for u, x in zip(part, wholes, strict=True)], step.scale)
        torch._foreach_lerp_(means, slopes, 1 - step.beta1)
        torch._foreach_mul_(squares, step.beta2)
        torch._foreach_addcmul_(squares, slopes, slopes, 1 - step.beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_mul_(roots, step.spread)
        torch._foreach_add_(roots, step.eps)
        torch._foreach_mul_(wholes, step.decay)
        torch._foreach_addcdiv_(wholes, means, roots, -step.rate)
        for update, whole in zip(part, wholes, strict=True):
            if update.low_bits is not None:
                upper, low_bits = split_float32(whole)
                update.weight.copy_(upper)
                update.low_bits.copy_(low_bits)


def _parts(updates: Sequence[Update]) -> Iterator[Sequence[Update]]:
    """Runs of updates of at most `NUMBERS` numbers, or of one weight."""
    begin = 0
    size = 0
    for index, update in enumerate(updates):
        size += update.weight.numel()
        if size > NUMBERS and index > begin:
            yield updates[begin:index]
            begin = index
            size = update.weight.numel()
    if updates:
        yield updates[begin:]
