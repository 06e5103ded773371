"""Load a base model and its tokenizer, and write the tokenizer; `find` returns a model's folder."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from towpath.data.chat import PROBES, Chat, pad_token
from towpath.errors import ModelError
from towpath.models import check_model, files, quantized, shape
from towpath.models.attention_choice import register, resolve
from towpath.models.convert import naming_files
from towpath.models.locate import find

__all__ = ["find", "load", "load_tokenizer", "move_to", "read_weights", "save_tokenizer"]
CPU = torch.device("cpu")


def load(
    folder: str,
    dtype: torch.dtype,
    attention: str,
    device: torch.device = CPU,
    pad: int | None = None,
    quantize: bool = False,
) -> Any:
    """The causal language model, in evaluation mode, with a pad token that is not EOS; or a sequence-classification
    model of a decoder family, whose body and score head are trained like a language model's."""
    register()
    files.require(Path(folder))
    files.require_memory(Path(folder), dtype.itemsize)
    attention = resolve(attention, folder, dtype, device)
    is_classifier = files.is_classifier(folder)
    with _naming_classifiers(is_classifier):
        shape.require(folder, attention)
    pad = pad_token(load_tokenizer(folder)) if pad is None else pad
    settings: dict[str, Any] = {"attn_implementation": attention, "pad_token_id": pad}
    if quantize:
        quantized.require(device)
        settings |= quantized.settings(dtype, device)
    kind = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    model = read_weights(folder, kind, dtype, settings).eval()
    model = model if quantize else move_to(model, device)
    if is_classifier:
        _require_one_label(model, folder)
    else:
        check_model.check_model(model, folder)
    return model


@contextmanager
def _naming_classifiers(is_classifier: bool) -> Iterator[None]:
    """Within the block a refusal of a sequence-classification model says that it can be used as it is."""
    try:
        yield
    except ModelError as error:
        if not is_classifier:
            raise
        fix = "set reward.train = false: the reward model is used as it is; or train one with reward.base"
        raise ModelError(error.value, f"{error.rule}, to train further", fix) from None


def _require_one_label(model: Any, folder: str) -> None:
    """Raise unless a sequence-classification model has one output."""
    if model.config.num_labels != 1:
        value = f"{folder}: {model.config.num_labels} labels"
        raise ModelError(value, "a reward model that is trained further has one output", "set reward.train = false")


def read_weights(folder: str, kind: Any, dtype: torch.dtype, settings: dict[str, Any]) -> Any:
    """The model of a class of transformers (`kind`), if the folder's files have all its weights."""
    settings = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True} | settings
    with naming_files(Path(folder), files.require, "transformers must be able to load the model"):
        loaded: Any = kind.from_pretrained(folder, output_loading_info=True, **settings)
    model, report = loaded
    name = type(model).__name__
    if missing := sorted(report["missing_keys"]):
        value = f"{folder}: no weights for {len(missing)} tensors of a {name}, such as {missing[0]}"
        raise ModelError(
            value, "the weights must be those of the model that config.json describes", "check model.source"
        )
    if unexpected := files.unexpected(report["unexpected_keys"]):
        value = f"{folder}: {len(unexpected)} tensors that a {name} has no place for, such as {unexpected[0]}"
        raise ModelError(
            value,
            "the weights must be those of the model that config.json describes",
            "check config.json and model.source",
        )
    _require_finite(model, folder)
    return model


@torch.inference_mode()
def _require_finite(model: Any, folder: str) -> None:
    """Weights that are no numbers would show as a loss that is none, and be blamed on training."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not all(math.isfinite(float(x)) for x in weight.aminmax()):
            rule = "every weight of a model is a finite number"
            fix = "copy the weights again from the model's source"
            raise ModelError(f"{folder}: the tensor {name} holds NaN or infinity", rule, fix)


def move_to(model: Any, device: torch.device) -> Any:
    """On its device; on a CPU out of the file that the weights are mapped from: weights that train or are
    repacked would be held twice."""
    if device.type != "cpu":
        return model.to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def load_tokenizer(folder: str) -> Any:
    """The model's fast tokenizer."""
    fix = "put tokenizer.json and tokenizer_config.json beside config.json, or fix model.source"
    with naming_files(
        Path(folder), files.require_texts, "a model comes with a tokenizer that transformers can load", fix
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not hasattr(tokenizer, "_tokenizer"):
        value = f"{folder}: a {type(tokenizer).__name__}, which is no fast tokenizer"
        raise ModelError(
            value, "special tokens in a user's text are told apart by the tokenizers library", "add a tokenizer.json"
        )
    return tokenizer


def save_tokenizer(chat: Chat, folder: Path) -> None:
    """Write the tokenizer with its template so that transformers reads it back as it is.

    Some classes of transformers lose settings when they are saved (`legacy` of LlamaTokenizer): those are written as
    the generic class.
    """
    chat.tokenizer.save_pretrained(folder)
    if _alike(chat, folder):
        return
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(files.read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2, ensure_ascii=False)
    )
    chat.tokenizer._tokenizer.save(str(folder / "tokenizer.json"))
    if not _alike(chat, folder):
        value = f"a {type(chat.tokenizer).__name__} reads other tokens once it is saved and loaded again"
        raise ModelError(
            value,
            "what is exported must read text as what was trained",
            "save the model's tokenizer as PreTrainedTokenizerFast",
        )


def _alike(chat: Chat, folder: Path) -> bool:
    """Whether the tokenizer in a folder gives the same tokens."""
    saved = load_tokenizer(str(folder))
    return saved.chat_template == chat.template and all(
        saved(text)["input_ids"] == chat.tokenizer(text)["input_ids"]
        and list(saved(chat.rendered_by(saved, text), add_special_tokens=False)["input_ids"])
        == chat.template_tokens(text)
        for text in PROBES
    )
