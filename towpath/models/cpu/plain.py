"""The kernels in torch's own steps: what `native` is held to, and what runs where it does not.

T tokens of P lines of L, D width, F inner width, H query heads and K key-value heads of width W, N logits, V
vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from towpath.models.cpu import split_bf16

RotaryCache = tuple[Tensor, Tensor]
"""Cosine and sine of every position's angles [P,1,L,W/2]."""


class AdamWStep(NamedTuple):
    """One step of AdamW as numbers."""

    scale: float
    """Of the gradient: less than one where its norm is clipped."""
    beta1: float
    beta2: float
    """What the two moments keep of themselves."""
    rate: float
    """Over one less the first moment's decay to the power of the step."""
    spread: float
    """One over the root of one less the second moment's decay to the power of the step."""
    eps: float
    decay: float
    """Of the weight, after decay."""


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm and the factor of each row [T,1], which is reckoned in float32."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    square_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=wide).square_()
    scale_T1 = square_T1.div_(x_TD.shape[1]).add_(eps).rsqrt_()
    return apply_rms_norm(x_TD, scale_T1, weight_D), scale_T1


def apply_rms_norm(x_TD: Tensor, scale_T1: Tensor, weight_D: Tensor) -> Tensor:
    """Rows scaled to unit root mean square, rounded, times the norm's weight."""
    return (x_TD * scale_T1).to(x_TD.dtype) * weight_D.to(x_TD.dtype)


def rms_norm_backward(
    grad_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, weight_D: Tensor, more_TD: Tensor, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of `rms_norm` by its input, and what else comes to that, and by its weight."""
    unit_TD = x_TD * scale_T1
    by_weight = (grad_TD * unit_TD).sum(0) if learns else None
    slope_TD = grad_TD * weight_D.to(scale_T1.dtype)
    mean_T1 = torch.linalg.vecdot(slope_TD, unit_TD)[:, None].div_(unit_TD.shape[1])
    return slope_TD.addcmul_(unit_TD, mean_T1, value=-1.0).mul_(scale_T1).add_(more_TD).to(grad_TD.dtype), by_weight


def swiglu(inner: Tensor) -> Tensor:
    """silu(gate) * up of [T,2F]."""
    gate, up = inner.chunk(2, -1)
    return F.silu(gate).mul_(up)


def swiglu_backward(by_acted: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """The output of `swiglu` and the gradient of its input."""
    gate, up = inner.chunk(2, -1)
    opened = F.silu(gate)
    by_inner = torch.empty_like(inner)
    torch.mul(by_acted, opened, out=by_inner[:, gate.shape[1] :])
    torch.ops.aten.silu_backward.grad_input(by_acted * up, gate, grad_input=by_inner[:, : gate.shape[1]])
    return opened * up, by_inner


def rotate_and_split_qkv(
    qkv_TN: Tensor, rotary: RotaryCache, begin_P1: Tensor, heads: int, key_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, scaled and grouped by the key head they read [P*K,G*L,W], keys and values [P*K,L,W]; queries and keys
    turned by position. A line's tokens are those from its `begin` to the next one's; places that none of them has
    are zeros."""
    lines, _, length, half = rotary[0].shape
    width = 2 * half
    turned = heads + key_heads
    each = _heads(qkv_TN, begin_P1, length, turned + key_heads)
    q = _turned(each[:, :heads], *rotary)
    k = _turned(each[:, heads:turned], *rotary)
    batch = lines * key_heads
    return (
        q.mul_(width**-0.5).view(batch, -1, width),
        k.view(batch, length, width),
        each[:, turned:].reshape(batch, length, width),
    )


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
    """Gradients of `rotate_and_split_qkv`, as the gradient of its product, into the rows of these lines' tokens."""
    lines, _, length, half = rotary[0].shape
    cos, sin = rotary
    each = by_q.new_empty(lines, heads + 2 * key_heads, length, 2 * half)
    turned = heads + key_heads
    _turned((by_q * (2 * half) ** -0.5).view(lines, heads, length, -1), cos, -sin, each[:, :heads])
    _turned(by_k.view(lines, key_heads, length, -1), cos, -sin, each[:, heads:turned])
    each[:, turned:] = by_v.view(lines, key_heads, length, -1)
    merge_heads(each, begin_P1, heads + 2 * key_heads, out_TN)


def split_heads(rows_TD: Tensor, begin_P1: Tensor, length: int, heads: int, key_heads: int) -> Tensor:
    """Rows [T,H*W] laid into lines as heads [P*K,G*L,W]."""
    return _heads(rows_TD, begin_P1, length, heads).reshape(
        (len(begin_P1) - 1) * key_heads, heads // key_heads * length, -1
    )


def merge_heads(by_head: Tensor, begin_P1: Tensor, heads: int, out_TD: Tensor) -> None:
    """Inverse of `split_heads`: heads of lines to rows of tokens."""
    lines = len(begin_P1) - 1
    width = by_head.shape[-1]
    rows_SD = by_head.view(lines, heads, -1, width).transpose(1, 2).reshape(-1, heads * width)
    out_TD[begin_P1[0] : begin_P1[-1]] = rows_SD[_places(begin_P1, len(rows_SD) // lines)]


def masked_softmax(scores: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Attention weights [P*K,G*L,S] in the place of the scores, of which the mask [P,1,L,S] bars some."""
    lines, _, length, keys = mask.shape
    scores.view(lines, heads, length, keys).add_(mask)
    return torch.softmax(scores, -1, out=scores)


def decode_attention(
    qkv: Tensor, rotary: RotaryCache, mask: Tensor, keys: Tensor, values: Tensor, column: int, heads: int
) -> Tensor:
    """One more token of every row [P,H*W]: its key and value take the column `column` of [P,K,S,W], and its queries
    read all up to it."""
    lines, key_heads, columns, width = keys.shape
    q, k, v = rotate_and_split_qkv(qkv, rotary, torch.arange(lines + 1), heads, key_heads)
    keys[:, :, column] = k.view(lines, key_heads, width)
    values[:, :, column] = v.view(lines, key_heads, width)
    weights = masked_softmax(torch.bmm(q, keys.view(-1, columns, width).transpose(1, 2)), mask, heads)
    return torch.bmm(weights, values.view(-1, columns, width)).view(lines, -1)


def token_logprobs(
    logits_NV: Tensor, target_N: Tensor, temperature: float, entropy: bool, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """log p(target) and, where asked, entropy; where asked the logits become p, less one at the target."""
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature != 1.0:
        wide_NV = wide_NV * (1 / temperature)
    p_NV = wide_NV.softmax(-1)
    # log of the sum of exponentials: the likeliest token has both at hand
    total_N = wide_NV.amax(-1) - p_NV.amax(-1).log()
    logp_N = wide_NV.gather(1, target_N[:, None])[:, 0] - total_N
    entropy_N = total_N - torch.linalg.vecdot(p_NV, wide_NV) if entropy else None
    if keep:
        logits_NV.copy_(p_NV.scatter_add_(1, target_N[:, None], p_NV.new_full((len(p_NV), 1), -1.0)))
    return logp_N, entropy_N


def sum_of_squares(x: Tensor) -> Tensor:
    """The sum of squares, in float64."""
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)).double().square()


def adamw_step(
    weight: Tensor, low_bits: Tensor | None, grad: Tensor, mean: Tensor, square: Tensor, step: AdamWStep
) -> None:
    """A step of AdamW in place; with a low_bits the weight is the upper half of what moves."""
    whole = weight if low_bits is None else split_bf16.merge_float32(weight, low_bits)
    slope = grad.to(whole.dtype) * step.scale
    mean.lerp_(slope, 1 - step.beta1)
    square.mul_(step.beta2).addcmul_(slope, slope, value=1 - step.beta2)
    whole.mul_(step.decay).addcdiv_(mean, square.sqrt().mul_(step.spread).add_(step.eps), value=-step.rate)
    if low_bits is not None:
        for half, new in zip((weight, low_bits), split_bf16.split_float32(whole), strict=True):
            half.copy_(new)


def _places(begin_P1: Tensor, length: int) -> Tensor:
    """Which positions of the lines have a token."""
    return (torch.arange(length) < begin_P1.diff()[:, None]).flatten().nonzero()[:, 0]


def _heads(rows_TD: Tensor, begin_P1: Tensor, length: int, heads: int) -> Tensor:
    """Rows at their positions in the lines, zeros elsewhere, as [P,H,L,W]."""
    lines = len(begin_P1) - 1
    all_SD = rows_TD.new_zeros(lines * length, rows_TD.shape[1])
    all_SD[_places(begin_P1, length)] = rows_TD[begin_P1[0] : begin_P1[-1]]
    return all_SD.view(lines, length, heads, -1).transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotary embedding: heads [P,H,L,W] rotated by the angles of their positions [P,1,L,W/2]."""
    half = x.shape[-1] // 2
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    one = x[..., :half]
    two = x[..., half:]
    torch.mul(one, cos, out=out[..., :half]).addcmul_(two, sin, value=-1.0)
    torch.mul(two, cos, out=out[..., half:]).addcmul_(one, sin)
    return out
