"""How large a model is, and what a run with it takes of disk and memory; nothing is loaded."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.recipe import Lora, Method, Recipe


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
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shapes = {name: entry["shape"] for path in sorted(folder.glob("*.safetensors")) for name, entry in _header(path).items()}
    linear = [shape for name, shape in shapes.items() if len(shape) == 2 and not any(word in name for word in ("embed", "lm_head", "wte", "wpe"))]
    total = sum(math.prod(shape) for shape in shapes.values())
    return Size(total or None, sum(map(sum, linear)) or None, _context(config), config.get("vocab_size") or 0)


def _context(config: dict[str, Any]) -> int | None:
    """Positions the model knows, and sees at once: beyond a sliding window, training and drawing would differ from the model's own reading."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return min((n for n in (config.get("max_position_embeddings"), window) if n), default=None)


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    with path.open("rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}


def disk_needed(recipe: Recipe, size: Size) -> int:
    """Bytes: float32 weights that stages leave, and two checkpoints of each and one being written."""
    total, rounds = size.parameters or 0, recipe.rounds
    left = total * (1 + rounds * (1 + (recipe.reward.method == "full")))
    sft, reward, policy = _learning(recipe, size)
    return 4 * left + 3 * 16 * (sft + rounds * (reward + policy))


def memory_needed(recipe: Recipe, size: Size) -> int:
    """Bytes at the widest stage: copies of the weights, what learns (5 x: itself, gradient, two moments, the best), logits of a pass."""
    total = size.parameters or 0
    sft, reward, policy = _learning(recipe, size)
    copies = {"sft": 1 + (recipe.sft.method == "lora"), "reward": 1, "policy": 3}
    for name, stage in (("sft", recipe.sft), ("reward", recipe.reward)):
        copies[name] -= stage.method == "full"
    if recipe.policy.method == "full":
        copies["policy"] = 2  # reference and reward; the policy itself learns and is drawn from
    if recipe.reward.method == "full":
        copies["policy"] += recipe.reward.members - (recipe.policy.method == "full")
    widest = max(total * copies["sft"] + 5 * sft, total * copies["reward"] + 5 * reward, total * copies["policy"] + 5 * policy)
    return 4 * widest + 8 * recipe.model.tokens_per_pass * size.vocabulary


def _learning(recipe: Recipe, size: Size) -> tuple[int, int, int]:
    """Parameters that learn in sft, reward and policy; the policy's with its critic's, where that is more than a head."""
    sft, reward = (_trained(stage.method, stage.lora, size) for stage in (recipe.sft, recipe.reward))
    critic = reward if recipe.policy.ppo.critic == "adapter" else 0
    return sft, reward, _trained(recipe.policy.method, recipe.policy.lora, size) + critic


def _trained(method: Method, lora: Lora, size: Size) -> int:
    if method == "full":
        return size.parameters or 0
    return lora.rank * size.sides if size.sides else (size.parameters or 0) // 20


def memory_available() -> int | None:
    """Bytes that Linux says can be had, within the limit of the container; None elsewhere."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    kilobytes = dict(line.split(":") for line in path.read_text().splitlines())
    free = int(kilobytes["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    told = limit.read_text().strip() if limit.is_file() else "max"
    return min(free, int(told)) if told.isdigit() else free
