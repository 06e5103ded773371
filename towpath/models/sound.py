"""Whether a model is what passes and drawing take it for; measured when it is loaded, since configurations name such things in many ways.

D width, V vocabulary.
"""

from typing import Any

import torch

from towpath.errors import ModelError
from towpath.models import lm
from towpath.models.lines import Lines

FAMILIES = "Llama, Mistral, Qwen, SmolLM and OLMo are of this kind"
LOUD = 100.0
"""What the largest logit is brought to: a cap shows on large ones alone."""
ALIKE = 1e-2
"""The share of the largest number by which two ways to the same may differ; in bfloat16 they differ by less than half of it."""


@torch.inference_mode()
def require(model: Any, folder: str) -> None:
    """Layers and a final norm, and logits that are the states' product with the head's weights: nothing scaled, capped or added."""
    body, head = model.base_model, model.get_output_embeddings()
    if head is None or not hasattr(body, "layers") or not hasattr(body, "norm"):
        raise ModelError(f"{folder}: a {type(model).__name__}", "a model has layers, a final norm and a head here", FAMILIES)
    ids = _some(model)
    small_V = _product(body, head, ids)
    hook = body.norm.register_forward_hook(lambda _norm, _given, out: out * (LOUD / max(float(small_V.abs().max()), 1e-9)))
    try:
        said_V, plain_V = model(input_ids=ids, use_cache=False).logits[0, -1].float(), _product(body, head, ids)
    finally:
        hook.remove()
    if _differ(said_V, plain_V):
        value = f"{folder}: logits of a {type(model).__name__} are not its head's product (by up to {float((said_V - plain_V).abs().max()):.2g})"
        raise ModelError(value, "training and drawing read the head's weights alone: no scale, no cap, no bias", FAMILIES)


@torch.inference_mode()
def parts(model: Any, depth: int) -> bool:
    """Whether the layers from `depth` on, begun at the states of those below, say what all of them say: not where a body does more to its
    input than to pass it on, or where layers are told apart by their number."""
    ids = _some(model)
    place_S = torch.arange(ids.shape[1], device=ids.device)
    lines = Lines(ids, place_S[None], torch.ones_like(ids), torch.zeros_like(ids))
    whole_SD = lm.hidden(model, lines, place_S)
    states_PLD = lm.below(model, lines, depth).view(1, ids.shape[1], -1)
    return not _differ(lm.above(model, states_PLD, lines, depth, place_S), whole_SD, ALIKE / 10)


def _product(body: Any, head: Any, ids: torch.Tensor) -> torch.Tensor:
    """The head's product with the last state [V]."""
    return (body(input_ids=ids, use_cache=False).last_hidden_state[0, -1:] @ head.weight.T)[0].float()


def _some(model: Any) -> torch.Tensor:
    """A short row of tokens [1,16]."""
    return (torch.arange(16, device=model.device) * 7 % model.config.vocab_size)[None]


def _differ(one: torch.Tensor, other: torch.Tensor, alike: float = ALIKE) -> bool:
    return bool((one - other).abs().max() > alike * other.abs().max())
