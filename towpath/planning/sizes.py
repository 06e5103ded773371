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
TOKENS_PER_PASS = 1024
"""What `auto` is on a CPU."""
GPU_BYTES = 2, 18
"""Of a frozen parameter in 16 bits; of a trained one with its low bits, gradient, sum of gradients and moments."""
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


def gigabytes(amount: int) -> str:
    """Bytes as GB or MB."""
    return f"{amount / 1e9:,.1f} GB" if amount >= 1e9 else f"{amount / 1e6:,.0f} MB"


CHECKPOINT_BYTES = 3 * 16
"""Of a trained parameter: its value, gradient sums and moments in three checkpoints, two kept and one being written."""


def disk_by_stage(recipe: Recipe, size: Size, reward: Size | None = None) -> dict[str, int]:
    """Bytes of the weights that each stage leaves, and of its checkpoints, rounds together. `reward` is the size of the
    model that the reward model begins with, if that is not the tuned model."""
    whole = BYTES * (size.parameters or 0)
    scorer_whole = BYTES * ((reward or size).parameters or 0) if recipe.reward.method == "full" else 0
    sft, scorer, policy = _trained_parameters(recipe, size, reward)
    return {
        "sft": whole + CHECKPOINT_BYTES * sft,
        "reward": recipe.rounds * (scorer_whole + CHECKPOINT_BYTES * scorer),
        "policy": recipe.rounds * (whole + CHECKPOINT_BYTES * policy),
    }


def disk_needed(recipe: Recipe, size: Size, reward: Size | None = None) -> int:
    """Bytes of all stages."""
    return sum(disk_by_stage(recipe, size, reward).values())


def gpu_memory_needed(
    recipe: Recipe, size: Size, reward: Size | None = None, classifiers: int = 0, parts: int = 1
) -> int:
    """Bytes of the largest stage on a GPU, besides its passes."""
    stages = stage_parameters(recipe, size, reward, classifiers).values()
    return max(stage.bytes(*GPU_BYTES, parts) for stage in stages)


@dataclass(frozen=True)
class StageParameters:
    """Parameters that a stage has in memory."""

    frozen: int
    trained: int
    full: bool
    """Whether whole weights are trained, which several workers divide; adapters are whole on each."""

    def bytes(self, frozen: int, trained: int, parts: int = 1) -> int:
        """By those of a frozen and of a trained parameter, where models are divided into parts."""
        shared = frozen * self.frozen + (trained * self.trained if self.full else 0)
        return -(-shared // parts) + (0 if self.full else trained * self.trained)


def stage_parameters(
    recipe: Recipe, size: Size, reward: Size | None = None, classifiers: int = 0
) -> dict[str, StageParameters]:
    """The parameters of each stage that trains."""
    total = size.parameters or 0
    scorer_total = (reward or size).parameters or 0
    sft, scorer, policy = _trained_parameters(recipe, size, reward)
    trains_reward = recipe.reward.method == "full" and recipe.reward.is_trained
    # of a model that is trained whole, the weights are among the trained parameters
    scorers = scorer_total * (recipe.reward.ensemble_size if trains_reward else 1)
    if reward is None and not trains_reward:
        scorers = 0  # an adapter on the policy's own model
    own = total * (2 if recipe.policy.method == "lora" else 1)
    return {
        "sft": StageParameters(2 * total if recipe.sft.method == "lora" else 0, sft, recipe.sft.method == "full"),
        "reward": StageParameters(0 if trains_reward else scorer_total, scorer, trains_reward),
        "policy": StageParameters(scorers + classifiers + own, policy, recipe.policy.method == "full"),
    }


def _trained_parameters(recipe: Recipe, size: Size, reward: Size | None) -> tuple[int, int, int]:
    """Parameters trained in sft, reward and policy; those of the policy include a critic with an adapter."""
    sft = _trained(recipe.sft.method, recipe.sft.lora, size)
    scorer = _trained(recipe.reward.method, recipe.reward.lora, reward or size) if recipe.reward.is_trained else 0
    critic = 0
    if recipe.policy.ppo.critic == "adapter":
        critic = _trained(recipe.reward.method, recipe.reward.lora, size)
    return sft, scorer, _trained(recipe.policy.method, recipe.policy.lora, size) + critic


def _trained(method: Method | Literal["none"], lora: Lora, size: Size) -> int:
    if method == "none":
        return 0
    if method == "full":
        return size.parameters or 0
    return lora.rank * size.lora_sides if size.lora_sides else (size.parameters or 0) // UNKNOWN_LORA_SHARE
