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
from towpath.models.head import own_logits
from towpath.models.packed_batch import PackedBatch, attention_mask, cache_name, windowed

FAMILIES = "use a model of a family that docs/models.md lists"
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
    """A body and a head, and logits that follow from the last hidden states."""
    require_parts(model, folder)
    try:
        _require_own_logits(model, folder)
    except BROKEN as error:
        raise failed(model, folder, "a pass through", error) from None


def require_parts(model: Any, folder: str) -> None:
    """Require the modules that forward passes and sampling use."""
    lacking = ["body"] if model.base_model is model else []
    lacking += ["head"] if model.get_output_embeddings() is None else []
    if lacking:
        value = f"{folder}: a {type(model).__name__} has no {' and no '.join(lacking)}"
        raise ModelError(value, "a model has a body that gives hidden states and a head that gives logits", FAMILIES)


def failed(model: Any, folder: str, what: str, error: Exception) -> PassFailed:
    """The error for a model that training or sampling does not support."""
    message = " ".join(str(error).split())[:200]
    value = f"{folder}: {what} a {type(model).__name__} fails: {type(error).__name__}: {message}"
    rule = "a forward pass takes packed rows with a mask and positions, and rows with a cache of keys and values"
    return PassFailed(value, rule, FAMILIES)


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


@torch.no_grad()
def _require_own_logits(model: Any, folder: str) -> None:
    """Require that logits follow from the last hidden states."""
    ids = _some(model)
    logits_NV = model(input_ids=ids, use_cache=False).logits[0].float()
    states_ND = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    if _differ(own_logits(model, states_ND).float(), logits_NV):
        value = f"{folder}: logits of a {type(model).__name__} are not those of its last hidden states"
        raise ModelError(value, "training and sampling compute logits of chosen states alone", FAMILIES)


@torch.inference_mode()
def can_split_layers(model: Any, depth: int) -> bool:
    """Whether the layers from `depth` on, begun at the states of those below, say what all of them say: not where a
    body does more to its input than to pass it on, or where layers are told apart by their number."""
    if layers.is_supported(model):
        return True
    if not (hasattr(model.base_model, "layers") and hasattr(model.base_model, "norm")):
        return False
    if len(set(getattr(model.config, "layer_types", None) or ())) > 1:
        return False  # each layer's mask is found by its number, which shows on rows longer than a window alone
    ids = _some(model)
    place_S = torch.arange(ids.shape[1], device=ids.device)
    lines = PackedBatch(ids, place_S[None], torch.ones_like(ids), torch.zeros_like(ids))
    whole_SD = lm.hidden(model, lines, place_S)
    states_PLD = lm.run_lower_layers(model, lines, depth).view(1, ids.shape[1], -1)
    return not _differ(lm.run_upper_layers(model, states_PLD, lines, depth, place_S), whole_SD, ALIKE / 10)


def _some(model: Any) -> torch.Tensor:
    """A short row of tokens [1,16]."""
    return (torch.arange(16, device=model.device) * 7 % model.config.vocab_size)[None]


def _differ(one: torch.Tensor, other: torch.Tensor, alike: float = ALIKE) -> bool:
    return bool((one - other).abs().max() > alike * other.abs().max())
