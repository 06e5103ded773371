"""Models to benchmark on: real or random weights, with a tokenizer in which every token is one word."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.workload import EOS, PAD, SPECIAL, word
from towpath.models import base


def prepare_model(source: Any, cache: Path) -> Path:
    """The folder of a model that transformers loads; created once."""
    name = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / name
    if (folder / "ready").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    model = _random(source) if isinstance(source, dict) else _real(source)
    model.config.update({"eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": 1})
    model.generation_config.update(eos_token_id=EOS, pad_token_id=PAD, bos_token_id=1)
    model.save_pretrained(folder)
    _tokenizer(model.config.vocab_size).save_pretrained(folder)
    (folder / "ready").touch()
    return folder


def _real(source: str) -> Any:
    path = os.fspath(base.find(source))
    return AutoModelForCausalLM.from_pretrained(path, config=AutoConfig.from_pretrained(path), dtype=torch.float32)


def _random(shape: dict[str, int]) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape["vocabulary"],
            hidden_size=shape["width"],
            intermediate_size=shape["inner"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape.get("key_heads", shape["heads"]),
            tie_word_embeddings=True,
            max_position_embeddings=2048,
        )
    )


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word(i): i for i in range(vocabulary)}, unk_token=SPECIAL[PAD]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=SPECIAL[EOS], pad_token=SPECIAL[PAD], bos_token=SPECIAL[1]
    )
