"""Attention by grouped matrix products: at the lengths of preference data it beats the library's kernels on a CPU.

B rows, K key-value heads, G query heads of each, L queries, S keys, D width of a head.
"""

from typing import Any

import torch
from torch import Tensor

NAME = "grouped"


def grouped(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_more: Any,
) -> tuple[Tensor, None]:
    """Softmax attention without repeating keys and values for every query head; an additive mask [B,1,L,S] or none.
    `softcap` bounds the scores (Gemma 2); `s_aux` has a score of each head for attending to nothing (GPT-OSS)."""
    batch, heads, length, width = query.shape
    kv = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # the G query heads of a key-value head side by side: one product [G*L,S] each, keys and values are not repeated
    q = (query * scale).reshape(batch * kv, heads // kv * length, width)
    k, v = (x.reshape(batch * kv, -1, x.shape[-1]) for x in (key, value))  # values may be narrower than keys (MLA)
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, heads, length, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : scores.shape[-1]]
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.to(scores).view(1, -1, 1, 1).expand(batch, heads, length, 1)], -1)
    weights = torch.softmax(scores, dim=-1)[..., : k.shape[1]]
    if dropout and module.training:
        weights = torch.nn.functional.dropout(weights, dropout)
    out = torch.bmm(weights.view(batch * kv, heads // kv * length, -1), v)
    return out.view(batch, heads, length, -1).transpose(1, 2), None
