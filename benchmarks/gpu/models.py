"""Models with random weights, made on the device, and a runtime that opens them as if they were folders."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from towpath.data.batch import Batch, Row
from towpath.models import attention, fused, varlen
from towpath.models.attention_choice import is_flash_model, register
from towpath.recipe import Compile
from towpath.runtime.contract import RoleSpec
from towpath.runtime.local import Local

QWEN3 = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True}
LLAMA = {"num_hidden_layers": 24, "vocab_size": 50_272, "tie_word_embeddings": True}
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen3-0.6b": (
        Qwen3Config,
        {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16} | QWEN3,
    ),
    "qwen3-4b": (
        Qwen3Config,
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32} | QWEN3,
    ),
    "llama-1.3b": (LlamaConfig, {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 32} | LLAMA),
    "reward-350m": (LlamaConfig, {"hidden_size": 1024, "intermediate_size": 2752, "num_attention_heads": 16} | LLAMA),
    "small": (
        Qwen3Config,
        {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
        | {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 2048, "tie_word_embeddings": True},
    ),
}
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@dataclass(frozen=True)
class Setting:
    """Where and how large a job runs."""

    device: torch.device
    tiny: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def config(self, name: str) -> Any:
        """The configuration of a named shape, or a tiny one of its family."""
        family, sizes = SHAPES[name]
        return family(**sizes | (TINY if self.tiny else {}))

    def size(self, whole: int, tiny: int) -> int:
        """A number of rows, tokens or steps."""
        return tiny if self.tiny else whole


class RandomLocal(Local):
    """The runtime of one process, whose models are named shapes with random weights instead of folders."""

    def __init__(self, setting: Setting, attention: str = "auto", **settings: Any) -> None:
        self.setting = setting
        settings = {"tokens_per_pass": "auto", "dtype": torch.bfloat16} | settings
        super().__init__(device=setting.device, attention=attention, **settings)

    def _load(self, spec: RoleSpec, dtype: torch.dtype, quantize: bool = False) -> Any:
        model = build(self.setting, spec.model, dtype, self._attention)
        fused.apply(model, self._kernels)
        return model


def build(setting: Setting, name: str, dtype: torch.dtype, kind: str = "auto") -> Any:
    """A model of a named shape, made on the device; the small one on the CPU in float32, so that it has the same
    weights wherever it runs."""
    register()
    config = setting.config(name)
    if kind == "auto":
        is_flash = setting.is_gpu and is_flash_model(config.to_dict(), dtype)
        kind = varlen.NAME if is_flash else attention.NAME
    everywhere = name == "small"
    torch.manual_seed(zlib.crc32(name.encode()))
    with torch.device("cpu" if everywhere else setting.device):
        first = torch.float32 if everywhere else dtype
        model = AutoModelForCausalLM.from_config(config, dtype=first, attn_implementation=kind).eval()
    if everywhere:
        _enlarge(model)
    return model.to(setting.device, dtype)


@torch.no_grad()
def _enlarge(model: Any) -> None:
    """Weights so large that what one token tells another shows in log-probabilities."""
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.normal_(0.0, 1.2 / weight.shape[-1] ** 0.5)


def compiled(cudagraphs: bool = False) -> Compile:
    """Layers compiled, with CUDA graphs or without."""
    return Compile(on=True, cudagraphs=cudagraphs)


def rows(count: int, prompt: int, answer: int, vocabulary: int, seed: int = 0) -> list[Row]:
    """Rows of random tokens, all prompts different, all of one length."""
    draw = np.random.default_rng(seed)
    return [Row(draw.integers(3, vocabulary, prompt + answer), prompt) for _ in range(count)]


def uneven(count: int, shortest: int, longest: int, vocabulary: int, seed: int = 0) -> list[Row]:
    """Rows of random tokens of many lengths, a quarter of each a prompt."""
    draw = np.random.default_rng(seed)
    return [
        Row(draw.integers(3, vocabulary, length), max(1, length // 4))
        for length in draw.integers(shortest, longest + 1, count)
    ]


def rollout_columns(batch: Batch, logp_BT: torch.Tensor, seed: int = 0) -> Batch:
    """The columns that a policy-gradient loss reads: old and reference log-probabilities, and random advantages."""
    draw = torch.Generator().manual_seed(seed)
    return batch.with_columns(old_logp=logp_BT, ref_logp=logp_BT, advantage=torch.randn(len(batch), generator=draw))


def tokens_of(some: Sequence[Row]) -> int:
    """Tokens of all rows."""
    return sum(len(row.ids) for row in some)
