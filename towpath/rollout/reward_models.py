"""Reward models in a runtime: the role `reward`, and `reward-2`, `reward-3`, ... of an ensemble."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from towpath.algos.contract import Outputs
from towpath.data.batch import Batch
from towpath.recipe import Reward, Rewards
from towpath.rewards import shaping
from towpath.runtime.contract import RoleSpec, Runtime

WEIGHTS = "reward.safetensors"
"""Adapter and head of a reward model, in the folder that the reward stage writes."""


def member_folder(stage: Path, number: int) -> Path:
    """Folder of one member's weights, counted from 1."""
    return stage / ("weights" if number == 1 else f"weights-{number}")


def member_role(number: int) -> str:
    """Role of one member, counted from 1."""
    return "reward" if number == 1 else f"reward-{number}"


def reward_roles(section: Reward, tuned_model: Path, stage: Path) -> dict[str, RoleSpec]:
    """The reward models that a reward stage trained, frozen; their scores are normalised."""
    lora = section.lora if section.method == "lora" else None
    roles = {}
    for number in range(1, section.ensemble_size + 1):
        folder = member_folder(stage, number)
        model = str(tuned_model if lora else folder)
        roles[member_role(number)] = RoleSpec(model, lora, head="scalar", init=folder / WEIGHTS)
    return roles


@dataclass
class RewardModels:
    """The reward models of a runtime as one judge."""

    runtime: Runtime
    roles: tuple[str, ...]

    def score(self, batch: Batch, rewards: Rewards, wants: tuple[str, ...] = ()) -> Outputs:
        """Scores [B], aggregated over the ensemble; `wants` is what else is wanted of the first member."""
        out = self.runtime.score(self.roles[0], batch, ("score", *wants))
        others = [self.runtime.score(role, batch, ("score",)).score_B for role in self.roles[1:]]
        if others:
            scores_KB = np.stack([scores.numpy() for scores in (out.score_B, *others)])
            out.spread_B = torch.from_numpy(scores_KB.std(0)).to(out.score_B)
            out.score_B = torch.from_numpy(shaping.combine_ensemble(scores_KB, rewards)).to(out.score_B)
        return out
