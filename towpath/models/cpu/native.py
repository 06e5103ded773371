"""The kernels as `kernels.cpp` has them, see there; functions and shapes are those of `plain`."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from towpath.models.cpu import build
from towpath.models.cpu.plain import AdamWStep, RotaryCache

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
PARTS = 16
"""Shares that a sum over all rows is made of, whatever the number of threads: the order of additions is the same."""


@cache
def _kernel(name: str, dtype: torch.dtype, shape: str) -> Any:
    """A kernel by its name, precision and parameters: p a pointer, n a whole number, f a fraction."""
    kinds = {"p": ctypes.c_void_p, "n": ctypes.c_long, "f": ctypes.c_float}
    address = ctypes.c_void_p.in_dll(build.library(), f"{name}_{NAMES[dtype]}").value  # pyright: ignore[reportArgumentType]
    return ctypes.CFUNCTYPE(None, *(kinds[kind] for kind in shape))(address)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _run(name: str, shape: str, like: Tensor, *arguments: Tensor | float | None) -> None:
    """Tensors are held by the caller; threads come last. A kernel sees addresses alone: what lies otherwise than it
    thinks is refused here."""
    if not all(x.is_contiguous() for x in arguments if isinstance(x, Tensor)):
        raise ValueError(
            f"{name}: a tensor of {[tuple(x.shape) for x in arguments if isinstance(x, Tensor)]} is not contiguous"
        )
    addresses = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    _kernel(name, like.dtype, shape + "n")(*addresses, torch.get_num_threads())


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x_TD = x_TD.contiguous()
    weight_D = weight_D.to(x_TD.dtype)
    out_TD = torch.empty_like(x_TD)
    scale_T1 = torch.empty(len(x_TD), 1)
    _run("rms_norm", "ppppnnf", x_TD, x_TD, weight_D, out_TD, scale_T1, *x_TD.shape, eps)
    return out_TD, scale_T1


def apply_rms_norm(x_TD: Tensor, scale_T1: Tensor, weight_D: Tensor) -> Tensor:
    weight_D = weight_D.to(x_TD.dtype)
    out_TD = torch.empty_like(x_TD)
    _run("apply_rms_norm", "ppppnn", x_TD, x_TD, scale_T1, weight_D, out_TD, *x_TD.shape)
    return out_TD


def rms_norm_backward(
    grad_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, weight_D: Tensor, more_TD: Tensor, learns: bool
) -> tuple[Tensor, Tensor | None]:
    weight_D = weight_D.to(x_TD.dtype)
    more_TD = more_TD.contiguous()
    out_TD = torch.empty_like(x_TD)
    sums = torch.zeros(PARTS, x_TD.shape[1]) if learns else None
    _run(
        "rms_norm_backward",
        "pppppppnnn",
        x_TD,
        grad_TD,
        x_TD,
        scale_T1,
        weight_D,
        more_TD,
        out_TD,
        sums,
        PARTS,
        *x_TD.shape,
    )
    return out_TD, None if sums is None else sums.sum(0)


def swiglu(inner: Tensor) -> Tensor:
    out = inner.new_empty(len(inner), inner.shape[1] // 2)
    _run("swiglu", "ppnn", inner, inner, out, *out.shape)
    return out


def swiglu_backward(by_acted: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(by_acted)
    by_inner = torch.empty_like(inner)
    _run("swiglu_backward", "ppppnn", inner, by_acted, inner, out, by_inner, *out.shape)
    return out, by_inner


def rotate_and_split_qkv(
    qkv_TN: Tensor, rotary: RotaryCache, begin_P1: Tensor, heads: int, key_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    lines, _, length, half = rotary[0].shape
    width = 2 * half
    batch = lines * key_heads
    q = qkv_TN.new_empty(batch, heads // key_heads * length, width)
    k = qkv_TN.new_empty(batch, length, width)
    v = qkv_TN.new_empty(batch, length, width)
    _run(
        "rotate_and_split_qkv",
        "pppppppnnnnnf",
        qkv_TN,
        qkv_TN,
        *rotary,
        begin_P1,
        q,
        k,
        v,
        lines,
        length,
        heads,
        key_heads,
        width,
        width**-0.5,
    )
    return q, k, v


def rotate_and_split_qkv_backward(
    by_q: Tensor,
    by_k: Tensor,
    by_v: Tensor,
    rotary: RotaryCache,
    begin_P1: Tensor,
    heads: int,
    key_heads: int,
    out_TN: Tensor,
) -> None:
    lines, _, length, half = rotary[0].shape
    arguments = (
        by_q,
        by_k,
        by_v,
        *rotary,
        begin_P1,
        out_TN,
        lines,
        length,
        heads,
        key_heads,
        2 * half,
        (2 * half) ** -0.5,
    )
    _run("rotate_and_split_qkv_backward", "pppppppnnnnnf", by_q, *arguments)


def split_heads(rows_TD: Tensor, begin_P1: Tensor, length: int, heads: int, key_heads: int) -> Tensor:
    lines = len(begin_P1) - 1
    width = rows_TD.shape[1] // heads
    out = rows_TD.new_empty(lines * key_heads, heads // key_heads * length, width)
    _run("split_heads", "pppnnnn", rows_TD, rows_TD, begin_P1, out, lines, length, heads, width)
    return out


def merge_heads(by_head: Tensor, begin_P1: Tensor, heads: int, out_TD: Tensor) -> None:
    lines = len(begin_P1) - 1
    width = by_head.shape[-1]
    _run(
        "merge_heads",
        "pppnnnn",
        by_head,
        by_head,
        begin_P1,
        out_TD,
        lines,
        by_head.numel() // (lines * heads * width),
        heads,
        width,
    )


def masked_softmax(scores: Tensor, mask: Tensor, heads: int) -> Tensor:
    lines, _, length, keys = mask.shape
    _run("masked_softmax", "ppnnnn", scores, scores, mask, lines, heads, length, keys)
    return scores


def decode_attention(
    qkv: Tensor, rotary: RotaryCache, mask: Tensor, keys: Tensor, values: Tensor, column: int, heads: int
) -> Tensor:
    lines, key_heads, columns, width = keys.shape
    mixed = qkv.new_empty(lines, heads * width)
    arguments = qkv, *rotary, keys, values, mask, mixed, lines, heads, key_heads, width, columns, column, width**-0.5
    _run("decode_attention", "pppppppnnnnnnf", qkv, *arguments)
    return mixed


def token_logprobs(
    logits_NV: Tensor, target_N: Tensor, temperature: float, entropy: bool, keep: bool
) -> tuple[Tensor, Tensor | None]:
    logp_N = torch.empty(len(logits_NV))
    entropy_N = torch.empty(len(logits_NV)) if entropy else None
    _run(
        "token_logprobs",
        "ppppnnnf",
        logits_NV,
        logits_NV,
        target_N,
        logp_N,
        entropy_N,
        keep,
        *logits_NV.shape,
        1 / temperature,
    )
    return logp_N, entropy_N


def sum_of_squares(x: Tensor) -> Tensor:
    sums = torch.empty(PARTS, dtype=torch.float64)
    _run("sum_of_squares", "ppnn", x, x, sums, PARTS, x.numel())
    return sums.sum()


def adamw_step(
    weight: Tensor, low_bits: Tensor | None, grad: Tensor, mean: Tensor, square: Tensor, step: AdamWStep
) -> None:
    if (weight.dtype, mean.dtype, square.dtype) != (
        torch.float32 if low_bits is None else torch.bfloat16,
        torch.float32,
        torch.float32,
    ):
        raise ValueError(
            f"adamw_step: a weight of {weight.dtype} {'without' if low_bits is None else 'with'} low bits, moments of "
            f"{mean.dtype}"
        )
    _run("adamw_step", "pppppn" + "f" * len(step), grad, weight, low_bits, grad, mean, square, grad.numel(), *step)


def sample_tokens(logits_BV: Tensor, temperature_B: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens by inverse CDF without any filter, and their log p; `sampling` has the same in torch's steps."""
    token_B = torch.empty(len(logits_BV), dtype=torch.int64)
    logp_B = torch.empty(len(logits_BV))
    _run(
        "sample_tokens",
        "pppppnn",
        logits_BV,
        logits_BV.contiguous(),
        temperature_B,
        uniform_B.contiguous(),
        token_B,
        logp_B,
        *logits_BV.shape,
    )
    return token_B, logp_B
