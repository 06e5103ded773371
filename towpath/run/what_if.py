"""What-if of a plan: other GPUs, another size of model, other numbers of pairs and completions than the run's own."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from towpath.errors import RecipeError
from towpath.planning.work import Counts, sampled_pairs
from towpath.recipe import Recipe


@dataclass(frozen=True)
class WhatIf:
    """Another machine, or another size of model and task, than the run's own."""

    on: str = ""
    """Such as 8xH100; empty for this machine."""
    model_size: str = ""
    pairs: int = 0
    completions: int = 0
    devices: Path | None = None

    def require_on(self) -> None:
        """RecipeError where another model is asked of this machine, where speeds are those of the run's own."""
        options = {"--model-size": self.model_size, "--devices": self.devices or ""}
        wanted = [f"{name} {value}" for name, value in options.items() if value]
        if wanted and not self.on:
            rule = "another size of model is planned by formula, for GPUs that are named"
            raise RecipeError(f"{wanted[0]} without --on", rule, "add --on, such as --on 8xH100")


def scaled(recipe: Recipe, counts: Counts, wanted: WhatIf) -> tuple[Recipe, Counts]:
    """The recipe with as many pairs and completions as are wanted, and data that has enough prompts."""
    if wanted.pairs:
        each = max(1, sampled_pairs(recipe, 1000)) / 1000
        prompts = math.ceil(wanted.pairs / each)
        preferences = recipe.preferences.model_copy(update={"prompts": prompts})
        budget = recipe.budget.model_copy(update={"pairs": wanted.pairs * recipe.rounds})
        recipe = recipe.model_copy(update={"preferences": preferences, "budget": budget})
        counts = replace(counts, train=max(counts.train, prompts), pairs=wanted.pairs, pair_answers=None)
    if wanted.completions:
        steps = math.ceil(wanted.completions / recipe.policy.rollout)
        recipe = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"steps": steps})})
    return recipe, counts
