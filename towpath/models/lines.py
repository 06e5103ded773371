"""Rows packed into lines, as models read them; and which lines attention takes together.

P lines, L tokens of a line.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

APART = 12_000
"""Cells of attention's squares that cost as much as one more call for some of the lines; a flat optimum, 5,000 and 20,000 do as well."""


class Lines(NamedTuple):
    """Rows packed into lines, see `data.batch.Packed`."""

    ids_PL: Tensor
    position_PL: Tensor
    segment_PL: Tensor
    parent_PL: Tensor


def attention_mask(segment_PL: Tensor, dtype: torch.dtype, parent_PL: Tensor | None = None) -> Tensor:
    """Additive causal mask [P,1,L,L]: a token sees itself and what came before it in its own segment and in its parent."""
    length = segment_PL.shape[1]
    seen = segment_PL[:, :, None] == segment_PL[:, None, :]
    if parent_PL is not None:
        seen |= parent_PL[:, :, None] == segment_PL[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_PL.device).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=segment_PL.device)
    return mask.masked_fill_(~(seen & causal), torch.finfo(dtype).min)[:, None]


def alike(lengths: Sequence[int]) -> list[slice]:
    """Neighbouring lines that attention takes together, each as wide as their longest: the cut that costs least."""
    least, begins = np.zeros(len(lengths) + 1), [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        widest = np.maximum.accumulate(lengths[:end][::-1])[::-1]
        costs = least[:end] + APART + np.arange(end, 0, -1) * widest**2
        begins[end] = int(costs.argmin())
        least[end] = costs[begins[end]]
    found, end = [], len(lengths)
    while end:
        found.append(slice(begins[end], end))
        end = begins[end]
    return found[::-1]
