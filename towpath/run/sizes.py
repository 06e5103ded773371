"""Model size, and the disk and memory that a run needs; nothing is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from towpath.models import files
from towpath.recipe import Lora, Method, Recipe

NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe", "experts")
"""Parts of the names of matrices that take no LoRA adapter."""
BYTES = 4
"""Of a float32 parameter."""
TRAINING_COPIES = 5
"""A trained parameter with its gradient, two moments and the best checkpoint."""
UNKNOWN_LORA_SHARE = 20
"""Without shapes, an adapter is estimated as this fraction of the model."""


@dataclass(frozen=True)
class Size:
    """The size of a model as its folder states it; None where it does not."""

    parameters: int | None = None
    lora_sides: int | None = None
    """Inputs plus outputs of all linear layers that take an adapter: times the rank, the adapter's parameters."""
    context: int | None = None
    vocabulary: int = 0


def model_size(folder: Path) -> Size:
    """The size of a model from its configuration and the headers of its safetensors."""
    if not (folder / "config.json").is_file():
        return Size()
    config = files.read_json(folder / "config.json")
    config |= config.get("text_config") or {}
    shapes = {name: entry["shape"] for path in files.weight_files(folder) for name, entry in files.header(path).items()}
    adapted = [
        shape for name, shape in shapes.items() if len(shape) == 2 and not any(part in name for part in NOT_ADAPTED)
    ]
    parameters = sum(math.prod(shape) for shape in shapes.values())
    # A sliding window limits what a layer attends to, not the length of a row.
    context = config.get("max_position_embeddings")
    return Size(parameters or None, sum(map(sum, adapted)) or None, context or None, config.get("vocab_size") or 0)


def disk_needed(recipe: Recipe, size: Size) -> int:
    """Bytes of the weights that stages leave, and of three checkpoints each: two kept, one being written."""
    rounds = recipe.rounds
    saved = (size.parameters or 0) * (1 + rounds * (1 + (recipe.reward.method == "full")))
    sft, reward, policy = _trained_parameters(recipe, size)
    return BYTES * saved + 3 * 16 * (sft + rounds * (reward + policy))


def memory_needed(recipe: Recipe, size: Size) -> int:
    """Bytes of the largest stage: copies of the weights, trained parameters, and the logits of one pass."""
    total = size.parameters or 0
    sft, reward, policy = _trained_parameters(recipe, size)
    copies = {"sft": 1 + (recipe.sft.method == "lora"), "reward": 1, "policy": 3}
    for name, stage in (("sft", recipe.sft), ("reward", recipe.reward)):
        copies[name] -= stage.method == "full"
    if recipe.policy.method == "full":
        copies["policy"] = 2  # reference and reward model; the policy itself counts as trained
    if recipe.reward.method == "full":
        copies["policy"] += recipe.reward.ensemble_size - (recipe.policy.method == "full")
    largest = max(
        total * copies["sft"] + TRAINING_COPIES * sft,
        total * copies["reward"] + TRAINING_COPIES * reward,
        total * copies["policy"] + TRAINING_COPIES * policy,
    )
    return BYTES * largest + 8 * recipe.model.tokens_per_pass * size.vocabulary


def _trained_parameters(recipe: Recipe, size: Size) -> tuple[int, int, int]:
    """Parameters trained in sft, reward and policy; those of the policy include a critic with an adapter."""
    sft = _trained(recipe.sft.method, recipe.sft.lora, size)
    reward = _trained(recipe.reward.method, recipe.reward.lora, size)
    critic = reward if recipe.policy.ppo.critic == "adapter" else 0
    return sft, reward, _trained(recipe.policy.method, recipe.policy.lora, size) + critic


def _trained(method: Method | Literal["none"], lora: Lora, size: Size) -> int:
    if method == "none":
        return 0
    if method == "full":
        return size.parameters or 0
    return lora.rank * size.lora_sides if size.lora_sides else (size.parameters or 0) // UNKNOWN_LORA_SHARE
