"""Adapters and exports: folders that plain peft and plain transformers load."""

import json
from pathlib import Path

from safetensors.torch import save_file

from towpath.models.adapters import Adapters
from towpath.recipe import Lora
from towpath.stages.job import Job
from towpath.store.publish import publish


def save_adapter(job: Job, adapters: Adapters, name: str, lora: Lora, folder: Path) -> None:
    """One adapter in peft's layout, over the tuned model it was trained on."""
    base = job.inputs["sft"] / "weights"
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({place.rsplit(".", 1)[-1] for place in adapters.layers}),
    }

    if lora.last_n_layers:
        config |= {
            "layers_to_transform": list(range(adapters.depth - lora.last_n_layers, adapters.depth)),
            "layers_pattern": "layers",
        }

    def write(place: Path) -> None:
        tensors = {key: p.detach().cpu().contiguous() for key, p in adapters.parameters(name).items()}
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2))

    if not folder.exists():
        publish(folder, write)
