"""The files of a model's folder, read without torch: what is missing, cut short or damaged, by name."""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from towpath.errors import ModelError, ResourceError
from towpath.models.memory import memory_available

COPY = "copy the file again from the model's source"
LFS = b"version https://git-lfs"
TEXTS = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
ONLY_SAFETENSORS = (
    "weights are read from safetensors and GGUF files alone: a pickle (*.bin, *.pt) can run code when it is loaded"
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
BUFFERS = re.compile(r"\.(?:inv_freq|masked_bias|attn\.bias|position_ids)$")
"""Tensors that older versions of transformers wrote beside the weights, and that models compute for themselves."""
MARGIN = 16
"""By how much a configuration may go beyond what the weights hold: quantized weights hold up to eight numbers in
one."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
WIDTHS = (
    "vocab_size",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "n_inner",
    "moe_intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
)
Header = dict[str, dict[str, Any]]


def conversion(name: str) -> str:
    """The fix for weights in a pickle."""
    load = "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T"
    code = (
        f"{load}; M.from_pretrained('{name}').save_pretrained('NEW'); "
        f"T.from_pretrained('{name}').save_pretrained('NEW')"
    )
    return f'convert a model that you trust, and name the new folder: python -c "{code}"'


def require(folder: Path) -> None:
    """Raise a ModelError that names the first file of a model that is missing, cannot be read, or describes another
    model than the weights."""
    require_texts(folder)
    weights = weight_files(folder)
    if not weights:
        if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
            raise ModelError(
                f"{folder}: no safetensors, but {', '.join(pickles[:3])}", ONLY_SAFETENSORS, conversion(str(folder))
            )
        fix = "put model.safetensors beside config.json (a GGUF file is named by gguf:PATH)"
        raise ModelError(f"{folder}: no weights", "weights are *.safetensors beside config.json", fix)
    if (folder / "adapter_config.json").is_file():
        rule = "an adapter would replace this model by the one that its adapter_config.json names"
        raise ModelError(
            f"{folder}/adapter_config.json: an adapter beside a model",
            rule,
            "merge the adapter, or remove adapter_config.json",
        )
    tensors = {name: entry["shape"] for path in weights for name, entry in header(path).items()}
    config = read_json(folder / "config.json")
    require_plausible(f"{folder}/config.json", config | (config.get("text_config") or {}), tensors)


def require_plausible(source: str, config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> None:
    """Refuse sizes far beyond the weights before anything of that size is made: a billion tokens, a million layers."""
    largest = max((side for shape in tensors.values() for side in shape), default=0)
    limits = dict.fromkeys(WIDTHS, MARGIN * max(largest, 4096))
    limits |= dict.fromkeys(LAYERS, MARGIN + 4 * _numbered(tensors, r"\.(\d+)\."))
    limits |= dict.fromkeys(EXPERTS, MARGIN * max(largest, 64))
    for key, limit in limits.items():
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not 0 <= value <= limit:
            rule = f"the sizes of a model are those of its weights, whose tensors allow at most {limit}"
            raise ModelError(f"{source}: {key} = {value}", rule, "copy config.json again from the model's source")
    sizes = [next((config[key] for key in keys if isinstance(config.get(key), int)), 0) for keys in (LAYERS, EXPERTS)]
    if math.prod(sizes) > MARGIN * max(sum(map(math.prod, tensors.values())) // 1024, 4096):
        value = f"{source}: {sizes[0]} layers of {sizes[1]} experts"
        raise ModelError(
            value, "the sizes of a model are those of its weights", "copy config.json again from the model's source"
        )


def _numbered(names: Iterable[str], pattern: str) -> int:
    """The number of layers, from the names of tensors."""
    numbers = [int(match[1]) for name in names if (match := re.search(pattern, name)) and len(match[1]) < 7]
    return 1 + max(numbers, default=-1)


def require_memory(folder: Path, bytes_each: int) -> None:
    """Refuse a model that this machine cannot hold, before it is loaded."""
    total = sum(math.prod(entry["shape"]) for path in weight_files(folder) for entry in header(path).values())
    free = memory_available()
    if free is not None and total * bytes_each > free:
        value = f"{folder}: {total * bytes_each / 1e9:,.1f} GB of weights, {free / 1e9:,.1f} GB of memory available"
        raise ResourceError(
            value,
            "the weights must fit into memory",
            "use a smaller model, set model.dtype = 'bfloat16', or free memory",
        )


def unexpected(names: Collection[str]) -> list[str]:
    """Tensors of a file that the model has no place for; what models compute for themselves is none."""
    return sorted(name for name in names if not BUFFERS.search(name))


def require_texts(folder: Path) -> None:
    """`require` for all but the weights."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: no config.json",
            "a model is a folder with config.json, weights and a tokenizer",
            "check model.source",
        )
    for name in TEXTS:
        if (folder / name).is_file():
            read_json(folder / name)


def is_classifier(folder: Path | str) -> bool:
    """Whether the folder's configuration describes a sequence-classification model."""
    kinds = read_json(Path(folder) / "config.json").get("architectures")
    return isinstance(kinds, list) and any("SequenceClassification" in str(kind) for kind in kinds)


def require_classifier(folder: Path | str) -> None:
    """Raise a ModelError unless the folder's configuration describes a sequence-classification model."""
    if is_classifier(folder):
        return
    kinds = read_json(Path(folder) / "config.json").get("architectures") or []
    value = f"{folder}: architectures = {kinds} in config.json"
    rule = "a reward model from elsewhere is a sequence-classification model of transformers"
    raise ModelError(value, rule, "name such a model; reward.base trains a reward model from a language model")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder; where an index names them, exactly those."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise ModelError(f"{index}: no weight_map", "the index names the file of every tensor", COPY)
    names = sorted({str(name) for name in places.values()})
    if wrong := [name for name in names if "/" in name or not name.endswith(".safetensors")]:
        raise ModelError(
            f"{index}: names {wrong[0]!r}", f"the index names safetensors in its own folder; {ONLY_SAFETENSORS}", COPY
        )
    paths = [folder / name for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        value = f"{index}: {len(missing)} of {len(paths)} files are not there: {', '.join(missing[:5])}"
        raise ModelError(value, "the index names the file of every tensor", "fetch the missing files")
    return paths


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; errors name the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file",
            "a model is a folder with config.json, weights and a tokenizer",
            "check model.source",
        ) from None
    except OSError as error:
        raise ModelError(
            f"{path}: {(error.strerror or str(error)).lower()}",
            "the files of a model must be readable",
            "fix its permissions",
        ) from None
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error})", "this file of a model is JSON", COPY) from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON {type(content).__name__}", "this file of a model is a JSON object", COPY)
    return content


def header(path: Path) -> Header:
    """The tensors that a safetensors file says it holds, if it is as long as they are."""
    rule = "a safetensors file is a header and all the tensors it names"
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = int.from_bytes(start, "little")
            length = path.stat().st_size
            text = file.read(size) if 8 + size <= length else b""
    except OSError as error:
        raise ModelError(
            f"{path}: {(error.strerror or str(error)).lower()}",
            "the files of a model must be readable",
            "fix its permissions",
        ) from None
    if start == LFS[:8]:
        raise ModelError(
            f"{path}: a Git LFS pointer, not weights", rule, "run `git lfs pull` in the model's repository"
        )
    try:
        entries = json.loads(text)
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        needed = 8 + size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        _ = [entry["shape"] for entry in tensors.values()]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        value = f"{path}: {length} bytes, no whole header"
        raise ModelError(value, rule, COPY) from None
    if length < needed:
        raise ModelError(f"{path}: cut short, {length} of {needed} bytes", rule, COPY)
    return tensors
