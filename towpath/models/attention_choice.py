"""Which attention a model gets, and its registration with transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from towpath.models import attention, files, varlen

CAPABILITY = (8, 0)
"""The oldest GPUs that FlashAttention runs on."""


def register() -> None:
    """Register our attention functions, and their additive mask, with transformers."""
    for name, function in ((attention.NAME, attention.grouped), (varlen.NAME, varlen.attention)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, eager_mask)


def resolve(name: str, folder: str, dtype: torch.dtype, device: torch.device) -> str:
    """The attention of a recipe for the model of a folder; `auto` is `varlen` where FlashAttention computes it."""
    if name != "auto":
        return name
    is_gpu = device.type == "cuda" and torch.cuda.is_available()
    if not is_gpu or torch.cuda.get_device_capability(device) < CAPABILITY:
        return attention.NAME
    path = Path(folder) / "config.json"
    config = files.read_json(path) if path.is_file() else {}
    return varlen.NAME if is_flash_model(config, dtype) else attention.NAME


def is_flash_model(config: dict[str, Any], dtype: torch.dtype) -> bool:
    """Whether FlashAttention computes the attention of a model, by its configuration."""
    config = config | (config.get("text_config") or {})
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    hidden = config.get("hidden_size") or config.get("n_embd") or 0
    width = config.get("head_dim") or hidden // heads
    is_special = (
        config.get("attn_logit_softcapping") or config.get("kv_lora_rank") or "gpt_oss" in str(config.get("model_type"))
    )
    return dtype in varlen.DTYPES and 0 < width <= varlen.WIDEST and width % 8 == 0 and not is_special
