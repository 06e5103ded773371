"""A model's own logits of its last hidden states, whatever it does to them: scale (Granite, Cohere), cap (Gemma 2),
bias (Phi).

N states, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from towpath.models import lm
from towpath.models.pass_memory import head_rows

LOUD = 100.0
"""What the largest logit is brought to where heads are compared: a cap shows on large ones alone."""
ALIKE = 1e-2
"""The share of the largest logit by which two ways to the same may differ; in bfloat16 they differ by less than half
of it."""
_plain: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()


class _States(BaseModelOutputWithPast):
    """What a body returns, with its last hidden states only."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        # router logits, cross attention: what logits do not depend on


def own_logits(model: Any, states_ND: Tensor) -> Tensor:
    """Logits [N,V] by the model's own code: its forward pass, in which the body returns these states."""
    body = model.base_model
    states_1ND = states_ND[None]
    body.forward = lambda *_inputs, **_settings: _States(last_hidden_state=states_1ND)
    try:
        ids_1N = torch.zeros(states_1ND.shape[:2], dtype=torch.long, device=states_ND.device)
        return model(input_ids=ids_1N, use_cache=False).logits[0]
    finally:
        del body.forward


@torch.no_grad()
def has_plain_logits(model: Any) -> bool:
    """Whether logits are the states' product with the head's weights and nothing more; measured once a model."""
    if model not in _plain:
        head = model.get_output_embeddings()
        weight_VD = head.weight
        draw = torch.Generator().manual_seed(0)
        states_ND = torch.randn(4, weight_VD.shape[1], generator=draw).to(weight_VD)
        states_ND = states_ND * (LOUD / (states_ND @ weight_VD.T).abs().max().clamp(min=1e-9))
        product_NV = (states_ND @ weight_VD.T).float()
        difference = (own_logits(model, states_ND).float() - product_NV).abs().max()
        alike = bool(difference <= ALIKE * product_NV.abs().max())
        _plain[model] = alike and getattr(head, "bias", None) is None
    return _plain[model]


def head_of(model: Any) -> Callable[[Tensor], Tensor]:
    """States [N,D] to logits [N,V]: the head's module where that is all, else the model's own code."""
    if has_plain_logits(model):
        return model.get_output_embeddings()
    return lambda states_ND: own_logits(model, states_ND)


def token_logprobs(
    model: Any, states_ND: Tensor, target_N: Tensor, temperature: float, entropy: bool, chunk: int = 0
) -> tuple[Tensor, Tensor]:
    """log p(target) and, if `entropy`, the entropy (without gradient) at each position, by the model's own head. Logits
    are made for `chunk` states at a time, by default as many as suit the device."""
    chunk = chunk or head_rows(states_ND.device.type == "cpu", model.config.get_text_config().vocab_size)
    if has_plain_logits(model):
        weight_VD = model.get_output_embeddings().weight
        return lm.token_logprobs(states_ND, weight_VD, target_N, temperature, entropy, chunk)

    def logprobs(part_ND: Tensor, part_N: Tensor) -> tuple[Tensor, Tensor]:
        logp_NV = (own_logits(model, part_ND).float() / temperature).log_softmax(-1)
        spread_N = -(logp_NV.detach().exp() * logp_NV.detach()).sum(-1) if entropy else torch.zeros_like(part_N).float()
        return logp_NV.gather(1, part_N[:, None])[:, 0], spread_N

    # logits [chunk,V] are computed again in the backward pass: the full [N,V] never exists
    parts = [
        checkpoint(logprobs, part_ND, part_N, use_reentrant=False)
        if torch.is_grad_enabled()
        else logprobs(part_ND, part_N)
        for part_ND, part_N in zip(states_ND.split(chunk), target_N.split(chunk), strict=True)
    ]
    if not parts:
        return states_ND.new_zeros(0).float(), states_ND.new_zeros(0).float()
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)
