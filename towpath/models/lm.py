"""Hidden states of packed rows, and log-probabilities of chosen tokens without a full logits tensor.

P lines, L tokens of a line, N chosen positions, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from towpath.models import decoder


def attention_mask(segment_PL: Tensor, dtype: torch.dtype, parent_PL: Tensor | None = None) -> Tensor:
    """Additive causal mask [P,1,L,L]: a token sees itself and what came before it in its own segment and in its parent."""
    length = segment_PL.shape[1]
    seen = segment_PL[:, :, None] == segment_PL[:, None, :]
    if parent_PL is not None:
        seen |= parent_PL[:, :, None] == segment_PL[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_PL.device).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=segment_PL.device)
    return mask.masked_fill_(~(seen & causal), torch.finfo(dtype).min)[:, None]


class Lines(NamedTuple):
    """Rows packed into lines, see `data.batch.Packed`."""

    ids_PL: Tensor
    position_PL: Tensor
    segment_PL: Tensor
    parent_PL: Tensor


def hidden(model: Any, lines: Lines) -> Tensor:
    """Last hidden states [P,L,D], after the final norm."""
    return _through(model, lines, slice(None), True)


def below(model: Any, lines: Lines, depth: int) -> Tensor:
    """The states that the layers from `depth` on read [P,L,D]."""
    return _through(model, lines, slice(0, depth), False)


def above(model: Any, states_PLD: Tensor, lines: Lines, depth: int) -> Tensor:
    """`hidden`, begun at states that `below` gave."""
    return _through(model, lines, slice(depth, None), True, states_PLD)


def _through(model: Any, lines: Lines, part: slice, end: bool, states_PLD: Tensor | None = None) -> Tensor:
    """By the layers written out in `decoder` where they fit, else by the model's own."""
    body, device = model.base_model, model.device.type
    ours = decoder.fits(model)
    dtype = torch.get_autocast_dtype(device) if ours and torch.is_autocast_enabled(device) else model.dtype
    mask = attention_mask(lines.segment_PL, dtype, lines.parent_PL)
    if not ours:
        given = {"input_ids": lines.ids_PL} if states_PLD is None else {"inputs_embeds": states_PLD}
        with _only(body, part, body.norm if end else nn.Identity()):
            return body(attention_mask=mask, position_ids=lines.position_PL, use_cache=False, **given).last_hidden_state
    with torch.autocast(device, enabled=False):
        states_PLD = body.embed_tokens(lines.ids_PL) if states_PLD is None else states_PLD
        return decoder.through(model, states_PLD.to(dtype), lines.position_PL, mask, part, end)


@contextmanager
def _only(body: Any, part: slice, norm: nn.Module) -> Iterator[None]:
    """Within the block the model's body has some of its layers alone."""
    layers, last = body.layers, body.norm
    body.layers, body.norm = layers[part], norm
    try:
        yield
    finally:
        body.layers, body.norm = layers, last


def token_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, temperature: float = 1.0, entropy: bool = True, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """log p(target) and, where asked, entropy (without gradient) at each position, a chunk of logits at a time."""
    logps, entropies = [], []
    if not (torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad)):
        reading = _chosen
    else:
        reading = (_LearnedHead if head_VD.requires_grad else _FrozenHead).apply
    for begin in range(0, len(target_N), chunk):
        part = slice(begin, begin + chunk)
        logp_N, entropy_N = reading(hidden_ND[part], head_VD, target_N[part], temperature, entropy)  # pyright: ignore[reportGeneralTypeIssues]
        logps.append(logp_N)
        entropies.append(entropy_N)
    if not logps:
        empty = hidden_ND.new_zeros(0, dtype=torch.float32)
        return empty, empty
    return torch.cat(logps), torch.cat(entropies)


def _chosen(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy, for whoever needs no gradient."""
    return _read(hidden_ND, head_VD, target_N, temperature, entropy, False)[:2]


def _read(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, temperature: float, entropy: bool, whole: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(target); entropy, or zeros where it is not asked for; p of every token [N,V] where `whole`."""
    logits = (hidden_ND @ head_VD.T).float()
    if temperature != 1.0:
        logits /= temperature
    logp_NV = logits.log_softmax(-1)
    logp_N = logp_NV.gather(1, target_N[:, None])[:, 0]
    p_NV = logp_NV.exp() if entropy or whole else logp_NV[:0]
    return logp_N, -torch.einsum("nv,nv->n", p_NV, logp_NV) if entropy else torch.zeros_like(logp_N), p_NV


class _LearnedHead(torch.autograd.Function):
    """Keeps p in the states' own precision, so that the way back needs neither the logits again nor a float32 copy of them."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, temperature: float, wanted: bool) -> tuple[Tensor, Tensor]:
        logp, entropy, p_NV = _read(hidden_ND, head_VD, target_N, temperature, wanted)
        ctx.save_for_backward(p_NV.to(hidden_ND.dtype), hidden_ND, head_VD, target_N)
        ctx.mark_non_differentiable(entropy)
        ctx.temperature = temperature
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _entropy: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        p_NV, hidden_ND, head_VD, target_N = ctx.saved_tensors
        share_N = (grad_N / ctx.temperature).to(p_NV.dtype)
        slope_NV = p_NV * -share_N[:, None]
        slope_NV[torch.arange(len(target_N), device=target_N.device), target_N] += share_N
        return slope_NV @ head_VD, slope_NV.T @ hidden_ND, None, None, None


class _FrozenHead(torch.autograd.Function):
    """With a frozen head the gradient of log p(target) by the hidden state is known in the forward pass:
    (one-hot − p) W / temperature. Keeping that [N,D] instead of [N,V] saves the second pass over the logits."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, temperature: float, wanted: bool) -> tuple[Tensor, Tensor]:
        logp, entropy, p_NV = _read(hidden_ND, head_VD, target_N, temperature, wanted)
        if ctx.needs_input_grad[0]:
            mean_ND = p_NV.to(head_VD.dtype) @ head_VD
            ctx.save_for_backward((head_VD[target_N].float() - mean_ND.float()) / temperature)
        ctx.mark_non_differentiable(entropy)
        ctx.dtype = hidden_ND.dtype
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _entropy: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope_ND,) = ctx.saved_tensors
        return (slope_ND * grad_N[:, None]).to(ctx.dtype), None, None, None, None
