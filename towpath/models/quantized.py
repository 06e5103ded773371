"""Frozen base weights in four bits (bitsandbytes NF4) on a GPU, for LoRA."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from towpath.errors import ModelError

FIX = "pip install towpath[quantize] on a machine with a CUDA GPU, or remove model.quantize"


def require(device: torch.device) -> None:
    """Raise a ModelError unless four-bit weights can be used on this device."""
    if device.type != "cuda":
        value = f"model.quantize = '4bit' on {device.type}"
        raise ModelError(value, "bitsandbytes multiplies four-bit weights on CUDA GPUs", FIX)
    if find_spec("bitsandbytes") is None:
        raise ModelError("model.quantize = '4bit' without bitsandbytes", "it stores four-bit weights", FIX)


def settings(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What from_pretrained takes to load weights in four bits."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": device}}


def full_weight(layer: Any) -> Tensor:
    """A linear layer's weight in float32; of a four-bit layer the values that it multiplies with."""
    weight = whole(layer.weight.detach())
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return weight.float()
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    return dequantize_4bit(weight.data, state).float()


def whole(weight: Any) -> Tensor:
    """A weight; one that is divided over several processes is gathered, in which all of them take part."""
    gather = getattr(weight, "full_tensor", None)
    return weight if gather is None else gather()
