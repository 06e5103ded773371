"""Attention over rows that follow one another without padding, by torch's FlashAttention for rows of any length; where
that cannot be, row by row.

B rows, T tokens of all rows, H query heads, K key-value heads, W width of a head.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen as flash

from towpath.models.attention import grouped

NAME = "varlen"
WIDEST = 256
"""The widest head that FlashAttention computes."""
DTYPES = (torch.bfloat16, torch.float16)


def row_mask(begin_B1: Tensor, longest: int) -> Tensor:
    """What tells `attention` where rows begin: in place of an additive mask [B,1,L,S], which models pass on as it is, a
    view of these integers [1,1,longest,B+1]."""
    return begin_B1.view(1, 1, 1, -1).expand(1, 1, longest, -1)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row: queries [1,H,T,W], keys and values [1,K,T,W]. With an additive mask (in
    sampling, from a cache) it is `grouped`."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return grouped(module, query, key, value, attention_mask, scaling, dropout, **more)
    begin_B1 = attention_mask[0, 0, 0]
    window = more.get("sliding_window")
    if is_flash(query, value, more):
        out_THW = _flash(query[0], key[0], value[0], begin_B1, attention_mask.shape[2], scaling, window)
        return out_THW[None], None
    lengths = begin_B1.diff().tolist()
    rows = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
    return torch.cat([_row(module, q, k, v, scaling, window, more) for q, k, v in rows], 1), None


def is_flash(query: Tensor, value: Tensor, more: dict[str, Any]) -> bool:
    """Whether FlashAttention computes this: on a GPU, in 16 bits, without caps or sinks."""
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in DTYPES
        and value.shape[-1] == width <= WIDEST
        and width % 8 == 0
        and more.get("softcap") is None
        and more.get("s_aux") is None
    )


@cache
def _parameters() -> frozenset[str]:
    return frozenset(inspect.signature(flash.varlen_attn).parameters)


@torch._disable_dynamo  # one kernel already: compiled layers call it as it is
def _flash(
    q_HTW: Tensor,
    k_KTW: Tensor,
    v_KTW: Tensor,
    begin_B1: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """One call for all rows [T,H,W]; torch renamed its arguments from version to version."""
    q, k, v = (x.transpose(0, 1) for x in (q_HTW, k_KTW, v_KTW))
    q, k, v = _FenceAfter.apply(q, k, v)  # pyright: ignore[reportGeneralTypeIssues]
    settings: dict[str, Any] = {}
    if "window_size" in _parameters():
        settings["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        settings["is_causal"] = True
    if "scale" in _parameters():
        settings["scale"] = scaling
    elif scaling is not None:
        q = q * (scaling * q.shape[-1] ** 0.5)
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in _parameters():
            settings["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    out = flash.varlen_attn(q, k, v, begin_B1, begin_B1, longest, longest, **settings)
    return _FenceBefore.apply(out)  # pyright: ignore[reportReturnType]


def _row(
    module: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, more: dict[str, Any]
) -> Tensor:
    """Attention of one row [1,L,H,W]."""
    length = q.shape[2]
    is_long = window is not None and length > window
    if more.get("softcap") is None and more.get("s_aux") is None and not is_long:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2)
    place_L = torch.arange(length, device=q.device)
    apart_LL = place_L[:, None] - place_L
    barred_LL = (apart_LL < 0) | (apart_LL >= (window or length))
    mask = torch.zeros(1, 1, length, length, dtype=q.dtype, device=q.device)
    mask.masked_fill_(barred_LL, torch.finfo(q.dtype).min)
    return grouped(module, q, k, v, mask, scaling, **more)[0]


@contextmanager
def determinism_restored() -> Iterator[None]:
    """Around a backward pass: a fence that an error left open is closed."""
    before = torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


class _FenceAfter(torch.autograd.Function):
    """Its backward pass runs after that of what is between the fences, and ends what `_FenceBefore` began."""

    @staticmethod
    def forward(_ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        torch.set_deterministic_debug_mode("default")
        return grads


class _FenceBefore(torch.autograd.Function):
    """Its backward pass asks for sums in a fixed order, which FlashAttention otherwise does not promise: a resumed
    training must repeat its bits. Only between the fences: other operations have no such version."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        torch.set_deterministic_debug_mode("error")
        return grad
