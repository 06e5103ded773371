"""Whether a model is what passes and drawing take it for; measured when it is loaded, since configurations name such
things in many ways.

D width, V vocabulary.

"""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from towpath.errors import ModelError
from towpath.models import lm
from towpath.models.cpu import layers
from towpath.models.packed_batch import PackedBatch, attention_mask, cache_name, windowed

FAMILIES = "use a model of this kind: Llama, Mistral, Qwen 2 and 3, SmolLM, OLMo, Gemma 1 and 3, Phi-3, DeepSeek"
LOUD = 100.0
"""What the largest logit is brought to: a cap shows on large ones alone."""
ALIKE = 1e-2
"""The share of the largest number by which two ways to the same may differ; in bfloat16 they differ by less than
half of it."""


class PassFailed(ModelError):
    """The model's own code raised an exception in a forward pass."""


BROKEN = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    AssertionError,
)
"""What a model's own code raises when it is asked for what it cannot do."""


def check_model(model: Any, folder: str) -> None:
    """Layers and a final norm, and logits that are the states' product with the head's weights: nothing scaled,
    capped or added."""
    require_parts(model, folder)
    try:
        _require_plain_logits(model, folder)
    except BROKEN as error:
        raise failed(model, folder, "a pass through", error) from None


def require_parts(model: Any, folder: str) -> None:
    """Require the modules that forward passes and sampling use."""
    body = model.base_model
    head = model.get_output_embeddings()
    lacking = [name for name in ("layers", "norm") if not hasattr(body, name)] + ([] if head is not None else ["head"])
    if lacking:
        value = f"{folder}: a {type(model).__name__} has no {' and no '.join(lacking)} where passes look for them"
        raise ModelError(value, "a model has layers, a final norm and a head here", FAMILIES)


def failed(model: Any, folder: str, what: str, error: Exception) -> PassFailed:
    """The error for a model that training or sampling does not support."""
    message = " ".join(str(error).split())[:200]
    value = f"{folder}: {what} a {type(model).__name__} fails: {type(error).__name__}: {message}"
    return PassFailed(value, "training and drawing pass through it", FAMILIES)


@torch.inference_mode()
def require_rows_apart(model: Any, folder: str) -> None:
    """Require that packed rows, and rows sampled in one batch from a cache, give the same outputs as alone."""
    ids = _some(model)[0]
    short = ids[:6]
    long = ids[2:]
    alone = [model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in (short, long)]
    for what, read in (("packed into lines", _packed), ("drawn from a cache", _cached)):
        try:
            states = read(model, short, long)
        except BROKEN as error:
            raise failed(model, folder, f"rows {what}: a pass through", error) from None
        if any(_differ(one.float(), other[-len(one) :].float()) for one, other in zip(states, alone, strict=True)):
            value = f"{folder}: rows {what} are read otherwise by a {type(model).__name__} than alone"
            raise ModelError(
                value,
                "a row's answer must not depend on other rows: attention keeps them apart, recurrent layers do not",
                FAMILIES,
            )


def _packed(model: Any, short: torch.Tensor, long: torch.Tensor) -> list[torch.Tensor]:
    """The states of two rows packed into one line."""
    ids = torch.cat([short, long])[None]
    position = torch.cat([torch.arange(len(short)), torch.arange(len(long))])[None].to(ids.device)
    segment = torch.cat([torch.full((len(short),), 1), torch.full((len(long),), 2)])[None].to(ids.device)
    states = lm.hidden(
        model, PackedBatch(ids, position, segment, torch.zeros_like(ids)), torch.arange(ids.shape[1], device=ids.device)
    )
    return [states[: len(short)], states[len(short) :]]


def _cached(model: Any, short: torch.Tensor, long: torch.Tensor) -> list[torch.Tensor]:
    """The last states of two rows of which all but the last token was read before, the shorter one padded on the
    left."""
    length = len(long)
    config = model.config
    ids = torch.stack([torch.cat([short.new_zeros(length - len(short)), short]), long])
    present = torch.ones_like(ids)
    present[0, : length - len(short)] = 0
    position = (present.cumsum(-1) - 1).clamp(min=0)
    mask = windowed(config, attention_mask(present, model.dtype), length)
    cache = Cache(layers=[DynamicLayer() for _ in range(config.num_hidden_layers)])
    states = torch.zeros(0)
    for part in (slice(0, length - 1), slice(length - 1, length)):
        end = part.stop
        some = (
            {name: m[:, :, part, :end] for name, m in mask.items()}
            if isinstance(mask, dict)
            else mask[:, :, part, :end]
        )
        settings = {"use_cache": True, cache_name(type(model.base_model)): cache}
        states = model.base_model(
            input_ids=ids[:, part], attention_mask=some, position_ids=position[:, part], **settings
        ).last_hidden_state
    return [states[0, -1:], states[1, -1:]]


@torch.inference_mode()
def _require_plain_logits(model: Any, folder: str) -> None:
    body = model.base_model
    head = model.get_output_embeddings()
    ids = _some(model)
    small_V = _product(body, head, ids)
    hook = body.norm.register_forward_hook(
        lambda _norm, _inputs, out: out * (LOUD / max(float(small_V.abs().max()), 1e-9))
    )
    try:
        said_V = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        plain_V = _product(body, head, ids)
    finally:
        hook.remove()
    if _differ(said_V, plain_V):
        value = (
            f"{folder}: logits of a {type(model).__name__} are not its head's product (by up to "
            f"{float((said_V - plain_V).abs().max()):.2g})"
        )
        raise ModelError(
            value, "training and drawing read the head's weights alone: no scale, no cap, no bias", FAMILIES
        )


@torch.inference_mode()
def can_split_layers(model: Any, depth: int) -> bool:
    """Whether the layers from `depth` on, begun at the states of those below, say what all of them say: not where a
    body does more to its input than to pass it on, or where layers are told apart by their number."""
    if layers.is_supported(model):
        return True
    if len(set(getattr(model.config, "layer_types", None) or ())) > 1:
        return False  # each layer's mask is found by its number, which shows on rows longer than a window alone
    ids = _some(model)
    place_S = torch.arange(ids.shape[1], device=ids.device)
    lines = PackedBatch(ids, place_S[None], torch.ones_like(ids), torch.zeros_like(ids))
    whole_SD = lm.hidden(model, lines, place_S)
    states_PLD = lm.run_lower_layers(model, lines, depth).view(1, ids.shape[1], -1)
    return not _differ(lm.run_upper_layers(model, states_PLD, lines, depth, place_S), whole_SD, ALIKE / 10)


def _product(body: Any, head: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the last state [V]."""
    return (body(input_ids=ids, use_cache=False).last_hidden_state[0, -1:] @ head.weight.T)[0].float()


def _some(model: Any) -> torch.Tensor:
    """A short row of tokens [1,16]."""
    return (torch.arange(16, device=model.device) * 7 % model.config.vocab_size)[None]


def _differ(one: torch.Tensor, other: torch.Tensor, alike: float = ALIKE) -> bool:
    return bool((one - other).abs().max() > alike * other.abs().max())
