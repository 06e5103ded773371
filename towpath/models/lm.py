"""Hidden states of packed rows, and log-probabilities of chosen tokens without a full logits tensor.

P packed sequences of L positions, S = P * L, T of them hold tokens, N are read, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from towpath.data.batch import PackedRows, Row, concatenate, pack
from towpath.models.cpu import kernels, layers
from towpath.models.packed_batch import PackedBatch, concatenates_rows, masks


def pack_rows(model: Any, rows: Sequence[Row], pad: int, width: int = 0) -> PackedRows:
    """Pack rows into sequences of at most `width` tokens; one row a sequence where the layers need no padding, all rows
    in one where attention is told where they begin."""
    if concatenates_rows(model):
        return concatenate(rows)
    return pack(rows, pad, 0 if layers.is_supported(model) else width)


def hidden(model: Any, packed: PackedBatch, read_N: Tensor) -> Tensor:
    """Last hidden states [N,D], after the final norm, at the positions `read_N` of the flattened batch."""
    return _through(model, packed, slice(None), read_N)


def run_lower_layers(model: Any, packed: PackedBatch, depth: int) -> Tensor:
    """The input [S,D] of layer `depth` at every position."""
    return _through(model, packed, slice(0, depth), None)


def run_upper_layers(model: Any, states_PLD: Tensor, packed: PackedBatch, depth: int, read_N: Tensor) -> Tensor:
    """`hidden`, resumed at layer `depth` from the output of `run_lower_layers`."""
    return _through(model, packed, slice(depth, None), read_N, states_PLD)


def _through(
    model: Any, packed: PackedBatch, part: slice, read_N: Tensor | None, states_PLD: Tensor | None = None
) -> Tensor:
    """Run some layers: those of `models.cpu.layers` where they support the model, else its own."""
    body = model.base_model
    if not layers.is_supported(model):
        mask = masks(model.config, packed, model.dtype)
        inputs = {"input_ids": packed.ids_PL} if states_PLD is None else {"inputs_embeds": states_PLD}
        whole = part == slice(None) and read_N is not None
        with nullcontext() if whole else _only(body, part, nn.Identity() if read_N is None else body.norm):
            out = body(
                attention_mask=mask, position_ids=packed.position_PL, use_cache=False, **inputs
            ).last_hidden_state.flatten(0, 1)
        return out if read_N is None else out[read_N]
    # padding has segment 0: only the T real tokens go through the layers
    place_T = (packed.segment_PL > 0).flatten().nonzero()[:, 0]
    if states_PLD is None:
        begun_TD: Tensor = _Embedding.apply(
            body.embed_tokens.weight, packed.ids_PL.flatten()[place_T], body.embed_tokens.padding_idx
        )  # pyright: ignore[reportAssignmentType]
    else:
        begun_TD = states_PLD.flatten(0, 1)[place_T]
    return layers.run_layers(model, begun_TD, packed, part, read_N)


class _Embedding(torch.autograd.Function):
    """Embedding lookup whose gradient is summed in float32 at least: a comma occurs hundreds of times in a batch. The
    row of the pad token gets no gradient, as in torch's own embedding."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids_T: Tensor, pad: int | None) -> Tensor:
        ctx.save_for_backward(ids_T)
        ctx.shape = weight_VD.shape
        ctx.pad = pad
        return F.embedding(ids_T, weight_VD)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # U distinct tokens; position_T says which of them each position holds
        ids_U, position_T = ctx.saved_tensors[0].unique(return_inverse=True)
        wide = torch.promote_types(grad_TD.dtype, torch.float32)
        sums_UD = grad_TD.new_zeros(len(ids_U), ctx.shape[1], dtype=wide).index_add_(0, position_T, grad_TD.to(wide))
        sums_UD[ids_U == (-1 if ctx.pad is None else ctx.pad)] = 0
        return grad_TD.new_zeros(ctx.shape).index_copy_(0, ids_U, sums_UD.to(grad_TD.dtype)), None, None


def layers_of(model: Any) -> nn.ModuleList:
    """The model's layers, whatever their name."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [child for child in model.base_model.children() if isinstance(child, nn.ModuleList)]
    return next(child for child in lists if len(child) == count)


def checkpoint_layers(model: Any) -> None:
    """Compute the layers again in the backward pass, in gradient passes of any kind."""
    model.checkpoints_layers = True
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:  # before transformers 5.24
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.base_model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # which it asks for; its parts stay in evaluation mode, without dropout


@contextmanager
def _only(body: Any, part: slice, norm: nn.Module) -> Iterator[None]:
    """Within the block the model has only some of its layers, and another final norm."""
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
    """log p(target) and, if `entropy`, the entropy (without gradient) at each position.

    Logits [chunk,V] are made a chunk at a time: the full [N,V] never exists, and a chunk fits the processor's cache.
    """
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad):
        return _TokenLogprobs.apply(hidden_ND, head_VD, target_N, temperature, entropy, chunk)  # pyright: ignore[reportReturnType]
    return _token_logprobs(hidden_ND, head_VD, target_N, temperature, entropy, chunk)


def _token_logprobs(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target_N: Tensor,
    temperature: float,
    entropy: bool,
    chunk: int,
    slope_NV: Tensor | None = None,
    keep: Callable[[slice, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy (zeros if not wanted). For the backward pass, softmax minus one-hot is written to
    `slope_NV`, or passed to `keep` chunk by chunk [n,V]."""
    logp_N = hidden_ND.new_zeros(len(target_N), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
    entropy_N = torch.zeros_like(logp_N)
    ops = kernels.dispatch(hidden_ND)
    needs_grad = slope_NV is not None or keep is not None
    for begin in range(0, len(target_N), chunk):
        part = slice(begin, begin + chunk)
        logits = torch.mm(hidden_ND[part], head_VD.T, out=None if slope_NV is None else slope_NV[part])  # [n,V]
        # overwrites the logits with softmax - onehot where a gradient is needed
        logp_N[part], entropy_n = ops.token_logprobs(logits, target_N[part], temperature, entropy, needs_grad)
        if entropy_n is not None:
            entropy_N[part] = entropy_n
        if keep is not None:
            keep(part, logits)
    return logp_N, entropy_N


class _TokenLogprobs(torch.autograd.Function):
    """The gradient of log p(target) with respect to the logits is (onehot - softmax) / temperature.

    With a trained head it is saved [N,V] in the dtype of the states, so that the backward pass does not recompute the
    logits. With a frozen head its product with the head, [N,D], is all that is saved.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, temperature: float, wanted: bool, chunk: int
    ) -> tuple[Tensor, Tensor]:
        ctx.head_trains = ctx.needs_input_grad[1]
        ctx.temperature = temperature
        saved = torch.empty(
            len(target_N),
            len(head_VD) if ctx.head_trains else hidden_ND.shape[1],
            dtype=hidden_ND.dtype,
            device=hidden_ND.device,
        )

        def keep(part: slice, slope_NV: Tensor) -> None:
            torch.mm(slope_NV, head_VD, out=saved[part])

        room = (saved, None) if ctx.head_trains else (None, keep)
        logp, entropy = _token_logprobs(hidden_ND, head_VD, target_N, temperature, wanted, chunk, *room)
        ctx.save_for_backward(saved, hidden_ND, head_VD)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_N: Tensor, _entropy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        saved, hidden_ND, head_VD = ctx.saved_tensors
        share_N1 = (grad_N / -ctx.temperature)[:, None]
        if not ctx.head_trains:
            return (share_N1 * saved).to(hidden_ND.dtype), None, None, None, None, None
        by_hidden = (share_N1 * (saved @ head_VD)).to(hidden_ND.dtype) if ctx.needs_input_grad[0] else None
        return by_hidden, saved.T @ (share_N1 * hidden_ND).to(saved.dtype), None, None, None, None
