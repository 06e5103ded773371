"""How large a model is, and what a run with it takes of disk and memory; nothing is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path

from towpath.models import files
from towpath.models.memory import memory_available
from towpath.recipe import Lora, Method, Recipe

NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe", "experts")
"""What stands in the names of matrices that take no adapter."""


__all__ = ["Size", "disk_needed", "memory_available", "memory_needed", "model_size"]


@dataclass(frozen=True)
class Size:
    """What a model's folder tells of its size; None where it does not."""

    parameters: int | None = None
    sides: int | None = None
    """Inputs plus outputs of all linear layers that take an adapter: times the rank, the adapter's parameters."""
    context: int | None = None
    vocabulary: int = 0


def model_size(folder: Path) -> Size:
    """The size of a model from its configuration and the headers of its safetensors; nothing is loaded."""
    if not (folder / "config.json").is_file():
        return Size()
    config = files.read_json(folder / "config.json")
    config |= config.get("text_config") or {}
    shapes = {name: entry["shape"] for path in files.weight_files(folder) for name, entry in files.header(path).items()}
    linear = [
        shape for name, shape in shapes.items() if len(shape) == 2 and not any(word in name for word in NOT_ADAPTED)
    ]
    total = sum(math.prod(shape) for shape in shapes.values())
    # a sliding window bounds what a layer looks back on, not how long a row may be
    context = config.get("max_position_embeddings")
    return Size(total or None, sum(map(sum, linear)) or None, context or None, config.get("vocab_size") or 0)


def disk_needed(recipe: Recipe, size: Size) -> int:
    """Bytes: float32 weights that stages leave, and two checkpoints of each and one being written."""
    total = size.parameters or 0
    rounds = recipe.rounds
    left = total * (1 + rounds * (1 + (recipe.reward.method == "full")))
    sft, reward, policy = _learning(recipe, size)
    return 4 * left + 3 * 16 * (sft + rounds * (reward + policy))


def memory_needed(recipe: Recipe, size: Size) -> int:
    """Bytes at the widest stage: copies of the weights, what learns (5 x: itself, gradient, two moments, the best),
    logits of a pass."""
    total = size.parameters or 0
    sft, reward, policy = _learning(recipe, size)
    copies = {"sft": 1 + (recipe.sft.method == "lora"), "reward": 1, "policy": 3}
    for name, stage in (("sft", recipe.sft), ("reward", recipe.reward)):
        copies[name] -= stage.method == "full"
    if recipe.policy.method == "full":
        copies["policy"] = 2  # reference and reward; the policy itself learns and is drawn from
    if recipe.reward.method == "full":
        copies["policy"] += recipe.reward.ensemble_size - (recipe.policy.method == "full")
    widest = max(
        total * copies["sft"] + 5 * sft, total * copies["reward"] + 5 * reward, total * copies["policy"] + 5 * policy
    )
    return 4 * widest + 8 * recipe.model.tokens_per_pass * size.vocabulary


def _learning(recipe: Recipe, size: Size) -> tuple[int, int, int]:
    """Parameters that learn in sft, reward and policy; the policy's with its critic's, where that is more than a
    head."""
    sft, reward = (_trained(stage.method, stage.lora, size) for stage in (recipe.sft, recipe.reward))
    critic = reward if recipe.policy.ppo.critic == "adapter" else 0
    return sft, reward, _trained(recipe.policy.method, recipe.policy.lora, size) + critic


def _trained(method: Method, lora: Lora, size: Size) -> int:
    if method == "full":
        return size.parameters or 0
    return lora.rank * size.sides if size.sides else (size.parameters or 0) // 20
