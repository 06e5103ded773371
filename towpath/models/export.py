"""Write models and adapters as transformers and peft load them."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from towpath.data.chat import Chat
from towpath.models import base
from towpath.models.adapters import Adapters
from towpath.recipe import Lora


def write_model(model: Any, chat: Chat, folder: Path) -> None:
    """Weights, configuration, and the tokenizer with the chat template; plain `generate` stops where engines stop."""
    model.config.pad_token_id = chat.pad
    settings = getattr(model, "generation_config", None)
    if settings is not None:  # a sequence-classification model has none
        settings.pad_token_id = chat.pad
        settings.eos_token_id = list(chat.stops) if len(chat.stops) > 1 else chat.eos
    model.save_pretrained(folder)
    base.save_tokenizer(chat, folder)


def write_adapter(adapters: Adapters, name: str, lora: Lora, model: str, folder: Path) -> None:
    """One adapter in peft's layout, over the model it was trained on."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": any(layer.is_transposed for layer in adapters.layers.values()),
        "inference_mode": True,
        "target_modules": _target_modules(adapters, name),
        "target_parameters": [path for path, weight in adapters.experts.items() if name in weight.scale] or None,
    }
    tensors = {key: p.detach().cpu().contiguous() for key, p in adapters.parameters(name).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _target_modules(adapters: Adapters, name: str) -> list[str]:
    """The last names of the adapted layers, or their paths where not all layers of these names are adapted."""
    paths = [path for path, layer in adapters.layers.items() if name in layer.scale]
    names = {path.rpartition(".")[2] for path in paths}
    everywhere = [path for path in adapters.layers if path.rpartition(".")[2] in names]
    return sorted(names if everywhere == paths else paths)
