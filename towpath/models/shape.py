"""A model's kind measured on a small copy: its configuration with few layers and narrow ones, random weights,
float32.

What training and drawing need of a model (`sound`) follows from its code and configuration, not from its weights, so
it is known in seconds and before a run begins.
"""

import copy
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from towpath.errors import ModelError
from towpath.models import check_model, files
from towpath.models.adapters import is_target
from towpath.models.attention_choice import register
from towpath.models.coverage import Coverage
from towpath.models.lora_layers import LINEAR
from towpath.models.packed_batch import window_of

MOST = 150_000_000
"""Weights of a copy that is still made in seconds."""
NARROW = 256
WINDOW = 8
"""Tokens of the copy's sliding window: shorter than the rows it is measured on."""
IRRELEVANT = ("_name_or_path", "dtype", "torch_dtype", "pad_token_id", "transformers_version")
_measured: dict[tuple[str, str], bool] = {}
"""By configuration and attention: a run loads models of one kind again and again."""


def require(folder: str, attention: str) -> bool:
    """Raise a ModelError where a model of this kind would be trained or drawn from as another; False where no small
    copy could be measured."""
    config = files.read_json(Path(folder) / "config.json")
    key = (
        json.dumps({name: value for name, value in config.items() if name not in IRRELEVANT}, sort_keys=True),
        attention,
    )
    if key not in _measured:
        with _one_thread():
            _measured[key] = _measure(folder, attention)
    return _measured[key]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products this small are fastest so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(folder: str, attention: str) -> bool:
    model = described(folder, attention)
    check_model.require_parts(model, folder)
    shallow = _shallow(model.config)
    for config, last in ((_narrow(shallow), False), (shallow, True)):
        small = _built(config)
        if small is None:
            continue
        try:
            check_model.check_model(small, folder)
            check_model.require_rows_apart(small, folder)
        except check_model.PassFailed:
            if last:
                raise
            continue  # perhaps its narrow sizes do not go together
        return True
    return False


def described(folder: str, attention: str) -> Any:
    """The model that config.json describes, without its weights (on the meta device)."""
    register()
    files.read_json(Path(folder) / "config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a configuration's own checks raise
        raise _unusable(folder, error) from None
    config.__dict__.pop("quantization_config", None)
    pad = getattr(config, "pad_token_id", None)
    embeddings = getattr(config, "vocab_size", None)
    if pad is not None and embeddings and pad >= embeddings:
        config.pad_token_id = None  # loading names another
    try:
        return _on_meta(config, attention)
    except Exception as error:  # whatever a model's own code raises
        if attention == "eager":
            raise _unusable(folder, error) from None
    try:
        model = _on_meta(config, "eager")
    except Exception as error:  # the same
        raise _unusable(folder, error) from None
    check_model.require_parts(model, folder)
    value = f"{folder}: a {type(model).__name__} takes no attention {attention!r}"
    raise ModelError(
        value, "a model's own code must offer the attention that the recipe names", 'set model.attention = "eager"'
    )


def _on_meta(config: Any, attention: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation=attention, trust_remote_code=False
        )


def _unusable(folder: str, error: Exception) -> ModelError:
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if message.startswith("Unrecognized configuration class"):
        message = "describes no causal language model"
    return ModelError(
        f"{folder}/config.json: {message}",
        "transformers must know the model that config.json describes",
        "check model.source",
    )


def coverage(model: Any, targets: Sequence[str] = ("linear",)) -> Coverage:
    """What LoRA adapts of a model as transformers builds it."""
    head = model.get_output_embeddings()
    total = sum(weight.numel() for weight in model.parameters())
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and module is not head and is_target(name, targets)
    }
    names = Counter(name.rpartition(".")[2] for name in linear)
    adapted: Counter[str] = Counter()
    stacked: Counter[str] = Counter()
    expert_sides = 0
    for name, weight in model.named_parameters():
        if weight.ndim == 3 and is_target(name, targets, is_expert=True):
            adapted[name.rpartition(".")[2]] += weight.numel()
            expert_sides += len(weight) * sum(weight.shape[1:])
        elif weight.ndim > 2:
            stacked[".".join(part for part in name.split(".")[-2:] if not part.isdigit())] += weight.numel()
    experts = {name: count / total for name, count in stacked.items() if count > total / 100}
    names |= Counter(dict.fromkeys(adapted, 1))
    weights = sum(module.weight.numel() for module in linear.values()) + adapted.total()
    sides = sum(sum(module.weight.shape) for module in linear.values()) + expert_sides
    return Coverage(dict(names), weights / total, sides, experts, total)


def _shallow(config: Any) -> Any:
    """The configuration with as few layers as have every kind of layer, two at least, and a short window."""
    small = copy.deepcopy(config)
    count = small.num_hidden_layers
    listed = {
        name: value for name, value in vars(small).items() if isinstance(value, list | tuple) and len(value) == count
    }
    kinds = list(zip(*(map(str, value) for value in listed.values()), strict=True)) or [("",)] * count
    layers = sorted({*range(min(2, count)), *(kinds.index(kind) for kind in set(kinds))})
    for name, value in listed.items():
        setattr(small, name, [value[i] for i in layers])
    small.num_hidden_layers = len(layers)
    if getattr(small, "first_k_dense_replace", None):
        small.first_k_dense_replace = len(layers) - 1
    if window_of(small):
        small.sliding_window = min(small.sliding_window, WINDOW)
    return small


def _narrow(config: Any) -> Any:
    """The configuration with few tokens, heads, experts and inner units; heads keep their width, since it decides
    about positions."""
    small = copy.deepcopy(config)
    heads = getattr(small, "num_attention_heads", 1)
    key_heads = getattr(small, "num_key_value_heads", None) or heads
    width = getattr(small, "head_dim", None) or small.hidden_size // heads
    few = 1 if heads >= 4 * key_heads else min(4, key_heads)
    limits = {
        "num_experts": 8,
        "num_local_experts": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    }
    values = {"vocab_size": NARROW, "num_key_value_heads": few, "num_attention_heads": few * (heads // key_heads)}
    values["hidden_size"] = values["num_attention_heads"] * max(width, 16)
    limits |= {name: NARROW for name in vars(small) if name.endswith(("intermediate_size", "ffn_dim"))}
    for name, most in limits.items():
        if isinstance(value := getattr(small, name, None), int):
            values[name] = min(value, most)
    for name, number in values.items():
        if getattr(small, name, None) is not None:
            setattr(small, name, number)
    for name, number in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2)):
        setattr(small, name, number)
    return small


def _built(config: Any) -> Any:
    """A model with random weights in float32, or None where it cannot be made or is large."""
    try:
        if sum(weight.numel() for weight in _on_meta(config, config._attn_implementation).parameters()) > MOST:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            settings: dict[str, Any] = {
                "dtype": torch.float32,
                "attn_implementation": config._attn_implementation,
                "trust_remote_code": False,
            }
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), **settings).eval()
            _randomise(model)
    except Exception:  # sizes that do not go together raise whatever a model's own code does
        return None
    return model


@torch.no_grad()
def _randomise(model: Any) -> None:
    """Weights large enough that what one token tells another shows."""
    for weight in model.parameters():
        if weight.ndim >= 2:
            weight.normal_(0.0, 1.5 / math.sqrt(weight.shape[-1]))
