"""Rows packed into lines, as models read them; and which lines attention takes together.

P lines, L tokens of a line.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

APART = 12_000
"""Cells of attention's squares that cost as much as one more call for some of the lines; a flat optimum, 5,000 and
20,000 do as well."""


class PackedBatch(NamedTuple):
    """Rows packed into lines, see `data.batch.Packed`."""

    ids_PL: Tensor
    position_PL: Tensor
    segment_PL: Tensor
    parent_PL: Tensor


def window_of(config: Any) -> int | None:
    """How many tokens some of a model's layers look back, the token itself included; None where all look back to the
    start."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False or (kinds and "sliding_attention" not in kinds):
        return None
    return getattr(config, "sliding_window", None)


def by_layer(config: Any, whole: Tensor, windowed: Tensor) -> Tensor | dict[str, Tensor]:
    """Masks as a model with a sliding window takes them: one for all layers, or one for each kind of layer."""
    if not getattr(config, "layer_types", None):
        return windowed
    return {"full_attention": whole, "sliding_attention": windowed}


def masks(config: Any, lines: PackedBatch, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The masks of packed rows; a window matters where rows are longer than it."""
    whole = attention_mask(lines.segment_PL, dtype, lines.parent_PL)
    window = window_of(config)
    if window is None or int(lines.position_PL.max()) < window:
        return whole
    apart_PLL = lines.position_PL[:, :, None] - lines.position_PL[:, None, :]
    return by_layer(config, whole, whole.masked_fill(apart_PLL[:, None] >= window, torch.finfo(dtype).min))


def windowed(config: Any, mask: Tensor, end: int) -> Tensor | dict[str, Tensor]:
    """The additive mask [B,1,Q,S] of queries up to column `end`, as a model with a sliding window takes it; a row's
    columns lie side by side."""
    window = window_of(config)
    if window is None or end <= window:
        return mask
    query_Q1 = torch.arange(end - mask.shape[2], end, device=mask.device)[:, None]
    far_QS = query_Q1 - torch.arange(mask.shape[3], device=mask.device) >= window
    return by_layer(config, mask, mask.masked_fill(far_QS, torch.finfo(mask.dtype).min))


@functools.cache
def cache_name(body: type) -> str:
    """What a model calls its cache: transformers 5.24 gave it a shorter name."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"  # pyright: ignore[reportAttributeAccessIssue]


def attention_mask(segment_PL: Tensor, dtype: torch.dtype, parent_PL: Tensor | None = None) -> Tensor:
    """Additive causal mask [P,1,L,L]: a token sees itself and what came before it in its own segment and in its
    parent."""
    length = segment_PL.shape[1]
    visible = segment_PL[:, :, None] == segment_PL[:, None, :]
    if parent_PL is not None:
        visible |= parent_PL[:, :, None] == segment_PL[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_PL.device).tril()
    mask = torch.zeros(visible.shape, dtype=dtype, device=segment_PL.device)
    return mask.masked_fill_(~(visible & causal), torch.finfo(dtype).min)[:, None]


def length_buckets(lengths: Sequence[int]) -> list[slice]:
    """Neighbouring lines that attention takes together, each as wide as their longest: the cut that costs least."""
    least = np.zeros(len(lengths) + 1)
    begins = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        widest = np.maximum.accumulate(lengths[:end][::-1])[::-1]
        costs = least[:end] + APART + np.arange(end, 0, -1) * widest**2
        begins[end] = int(costs.argmin())
        least[end] = costs[begins[end]]
    buckets = []
    end = len(lengths)
    while end:
        buckets.append(slice(begins[end], end))
        end = begins[end]
    return buckets[::-1]
