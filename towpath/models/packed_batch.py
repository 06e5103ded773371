"""Rows packed into sequences, as models read them, their attention masks, and buckets of similar length.

P packed sequences, L positions of each.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from towpath.models import varlen

CALL_COST = 12_000
"""Cost of one more attention call, in cells of the score matrix; 5,000 and 20,000 are as fast."""


class PackedBatch(NamedTuple):
    """Tensors of packed rows, see `data.batch.PackedRows`."""

    ids_PL: Tensor
    position_PL: Tensor
    segment_PL: Tensor
    parent_PL: Tensor
    begin_B1: Tensor | None = None
    """Where rows begin that follow one another in a single line without padding, int32."""
    longest: int = 0
    """Tokens of the longest row."""


def concatenates_rows(model: Any) -> bool:
    """Whether the model's attention reads rows one after another in a single line, by where each begins."""
    return model.config._attn_implementation == varlen.NAME


def window_of(config: Any) -> int | None:
    """The sliding window of a model's attention in tokens, itself included; None where all layers attend fully."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False or (kinds and "sliding_attention" not in kinds):
        return None
    return getattr(config, "sliding_window", None)


def by_layer(config: Any, whole: Tensor, windowed: Tensor) -> Tensor | dict[str, Tensor]:
    """The masks that a model with a sliding window expects: one for all layers, or one a kind of layer."""
    if not getattr(config, "layer_types", None):
        return windowed
    return {"full_attention": whole, "sliding_attention": windowed}


def masks(config: Any, packed: PackedBatch, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Attention masks of packed rows; the window matters only where rows are longer."""
    if config._attn_implementation == varlen.NAME:
        return varlen.row_mask(*_row_begins(packed))
    whole = attention_mask(packed.segment_PL, dtype, packed.parent_PL)
    window = window_of(config)
    if window is None or (packed.longest or int(packed.position_PL.max()) + 1) <= window:
        return whole
    # distance of every query from every key
    apart_PLL = packed.position_PL[:, :, None] - packed.position_PL[:, None, :]
    return by_layer(config, whole, whole.masked_fill(apart_PLL[:, None] >= window, torch.finfo(dtype).min))


def _row_begins(packed: PackedBatch) -> tuple[Tensor, int]:
    """Where the rows of a single line begin, and the length of the longest; found in the segments if need be."""
    if packed.begin_B1 is not None and packed.begin_B1.numel():
        return packed.begin_B1, packed.longest
    segment_L = packed.segment_PL[0]
    changes_N = (segment_L[1:] != segment_L[:-1]).nonzero()[:, 0] + 1
    ends_B = torch.cat([changes_N.cpu(), torch.tensor([len(segment_L)])])
    begin_B1 = torch.cat([torch.zeros(1, dtype=torch.long), ends_B])
    return begin_B1.int().to(segment_L.device), int(begin_B1.diff().max())


def windowed(config: Any, mask: Tensor, end: int) -> Tensor | dict[str, Tensor]:
    """The additive mask [B,1,Q,S] of the last Q of `end` columns, in the form a model with a sliding window expects."""
    window = window_of(config)
    if window is None or end <= window:
        return mask
    query_Q1 = torch.arange(end - mask.shape[2], end, device=mask.device)[:, None]
    far_QS = query_Q1 - torch.arange(mask.shape[3], device=mask.device) >= window
    return by_layer(config, mask, mask.masked_fill(far_QS, torch.finfo(mask.dtype).min))


@functools.cache
def cache_name(body: type) -> str:
    """The name of a model's cache argument, which transformers 5.24 shortened."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"  # pyright: ignore[reportAttributeAccessIssue]


def attention_mask(segment_PL: Tensor, dtype: torch.dtype, parent_PL: Tensor | None = None) -> Tensor:
    """Additive causal mask [P,1,L,L]: a token attends to earlier tokens of its own segment and of the parent segment
    (the shared prompt of a group)."""
    length = segment_PL.shape[1]
    visible = segment_PL[:, :, None] == segment_PL[:, None, :]
    if parent_PL is not None:
        visible |= parent_PL[:, :, None] == segment_PL[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_PL.device).tril()
    mask = torch.zeros(visible.shape, dtype=dtype, device=segment_PL.device)
    return mask.masked_fill_(~(visible & causal), torch.finfo(dtype).min)[:, None]


def length_buckets(lengths: Sequence[int]) -> list[slice]:
    """Split sequences, in their order, into the buckets that attention computes at least cost; each bucket is padded to
    its longest sequence. Dynamic programming over the end of the last bucket."""
    least = np.zeros(len(lengths) + 1)
    begins = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        widest = np.maximum.accumulate(lengths[:end][::-1])[::-1]
        costs = least[:end] + CALL_COST + np.arange(end, 0, -1) * widest**2
        begins[end] = int(costs.argmin())
        least[end] = costs[begins[end]]
    buckets = []
    end = len(lengths)
    while end:
        buckets.append(slice(begins[end], end))
        end = begins[end]
    return buckets[::-1]
