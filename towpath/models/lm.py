"""Hidden states of packed rows, and log-probabilities of chosen tokens without a full logits tensor.

P lines, L tokens of a line, S places in all lines, N that are read, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towpath.data.batch import PackedRows, Row, pack
from towpath.models.cpu import kernels, layers
from towpath.models.packed_batch import PackedBatch, masks


def pack_rows(model: Any, rows: Sequence[Row], pad: int, width: int = 0) -> PackedRows:
    """Rows laid into lines as this model's layers read them best: at most `width` wide, or a line to each row."""
    return pack(rows, pad, 0 if layers.is_supported(model) else width)


def hidden(model: Any, lines: PackedBatch, read_N: Tensor) -> Tensor:
    """Last hidden states [N,D], after the final norm, of the tokens that are read: their places in the lines, one
    line after the other."""
    return _through(model, lines, slice(None), read_N)


def run_lower_layers(model: Any, lines: PackedBatch, depth: int) -> Tensor:
    """The states of all places that the layers from `depth` on read [S,D]."""
    return _through(model, lines, slice(0, depth), None)


def run_upper_layers(model: Any, states_PLD: Tensor, lines: PackedBatch, depth: int, read_N: Tensor) -> Tensor:
    """`hidden`, begun at states that `below` gave, laid into lines."""
    return _through(model, lines, slice(depth, None), read_N, states_PLD)


def _through(
    model: Any, lines: PackedBatch, part: slice, read_N: Tensor | None, states_PLD: Tensor | None = None
) -> Tensor:
    """By the layers written out in `models.cpu.layers` where they fit, else by the model's own."""
    body = model.base_model
    if not layers.is_supported(model):
        mask = masks(model.config, lines, model.dtype)
        inputs = {"input_ids": lines.ids_PL} if states_PLD is None else {"inputs_embeds": states_PLD}
        with _only(body, part, nn.Identity() if read_N is None else body.norm):
            out = body(
                attention_mask=mask, position_ids=lines.position_PL, use_cache=False, **inputs
            ).last_hidden_state.flatten(0, 1)
        return out if read_N is None else out[read_N]
    place_T = (lines.segment_PL > 0).flatten().nonzero()[:, 0]
    if states_PLD is None:
        begun_TD: Tensor = _Lookup.apply(
            body.embed_tokens.weight, lines.ids_PL.flatten()[place_T], body.embed_tokens.padding_idx
        )  # pyright: ignore[reportAssignmentType]
    else:
        begun_TD = states_PLD.flatten(0, 1)[place_T]
    return layers.run_layers(model, begun_TD, lines, part, read_N)


class _Lookup(torch.autograd.Function):
    """The states that tokens begin with. What a token's places say of its row is summed in float32 at least: a
    comma's are hundreds. The pad token's row learns nothing here, as in torch's own embedding."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids_T: Tensor, pad: int | None) -> Tensor:
        ctx.save_for_backward(ids_T)
        ctx.shape = weight_VD.shape
        ctx.pad = pad
        return F.embedding(ids_T, weight_VD)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ids_U, place_T = ctx.saved_tensors[0].unique(return_inverse=True)
        wide = torch.promote_types(grad_TD.dtype, torch.float32)
        sums_UD = grad_TD.new_zeros(len(ids_U), ctx.shape[1], dtype=wide).index_add_(0, place_T, grad_TD.to(wide))
        sums_UD[ids_U == (-1 if ctx.pad is None else ctx.pad)] = 0
        return grad_TD.new_zeros(ctx.shape).index_copy_(0, ids_U, sums_UD.to(grad_TD.dtype)), None, None


@contextmanager
def _only(body: Any, part: slice, norm: nn.Module) -> Iterator[None]:
    """Within the block the model's body has some of its layers alone."""
    layers = body.layers
    last = body.norm
    body.layers = layers[part]
    body.norm = norm
    try:
        yield
    finally:
        body.layers = layers
        body.norm = last


def token_logprobs(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target_N: Tensor,
    temperature: float = 1.0,
    entropy: bool = True,
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """log p(target) and, where asked, entropy (without gradient) at each position, a chunk of logits at a time:
    small enough a chunk that what is done to it finds it in the processor's cache."""
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad):
        return _Reading.apply(hidden_ND, head_VD, target_N, temperature, entropy, chunk)  # pyright: ignore[reportReturnType]
    return _read(hidden_ND, head_VD, target_N, temperature, entropy, chunk)


def _read(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target_N: Tensor,
    temperature: float,
    entropy: bool,
    chunk: int,
    place_NV: Tensor | None = None,
    keep: Callable[[slice, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy, zeros where it is not asked for. What the way back needs, p less one at the target,
    is left in its place or shown to `keep` chunk by chunk [n,V], where either is given."""
    logp_N = hidden_ND.new_zeros(len(target_N), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
    entropy_N = torch.zeros_like(logp_N)
    ops = kernels.dispatch(hidden_ND)
    needs_grad = place_NV is not None or keep is not None
    for begin in range(0, len(target_N), chunk):
        part = slice(begin, begin + chunk)
        logits = torch.mm(hidden_ND[part], head_VD.T, out=None if place_NV is None else place_NV[part])
        logp_N[part], told_N = ops.token_logprobs(logits, target_N[part], temperature, entropy, needs_grad)
        if told_N is not None:
            entropy_N[part] = told_N
        if keep is not None:
            keep(part, logits)
    return logp_N, entropy_N


class _Reading(torch.autograd.Function):
    """The gradient of log p(target) by the logits is (one-hot - p) / temperature. With a head that learns it is kept,
    in the states' own
    precision: the way back needs neither the logits again nor a float32 copy of them. With a frozen head its
    product with the head is
    known at once, and [N,D] is all that is kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, temperature: float, wanted: bool, chunk: int
    ) -> tuple[Tensor, Tensor]:
        ctx.learns = ctx.needs_input_grad[1]
        ctx.temperature = temperature
        saved = torch.empty(
            len(target_N),
            len(head_VD) if ctx.learns else hidden_ND.shape[1],
            dtype=hidden_ND.dtype,
            device=hidden_ND.device,
        )

        def keep(part: slice, slope_NV: Tensor) -> None:
            torch.mm(slope_NV, head_VD, out=saved[part])

        room = (saved, None) if ctx.learns else (None, keep)
        logp, entropy = _read(hidden_ND, head_VD, target_N, temperature, wanted, chunk, *room)
        ctx.save_for_backward(saved, hidden_ND, head_VD)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_N: Tensor, _entropy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        saved, hidden_ND, head_VD = ctx.saved_tensors
        share_N1 = (grad_N / -ctx.temperature)[:, None]
        if not ctx.learns:
            return (share_N1 * saved).to(hidden_ND.dtype), None, None, None, None, None
        by_hidden = (share_N1 * (saved @ head_VD)).to(hidden_ND.dtype) if ctx.needs_input_grad[0] else None
        return by_hidden, saved.T @ (share_N1 * hidden_ND).to(saved.dtype), None, None, None, None
