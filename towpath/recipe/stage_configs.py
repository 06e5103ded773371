"""The part of a recipe that each stage gets: one record for each kind of stage. A stage that reads a section its record
does not have fails, and pyright reports it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from towpath.recipe.cluster import Cluster
from towpath.recipe.data import Data
from towpath.recipe.engine import EngineConfig
from towpath.recipe.evaluate import Evaluate, Gates
from towpath.recipe.health import Health
from towpath.recipe.model import Model
from towpath.recipe.policy import Policy
from towpath.recipe.preferences import Judge, LabelBudget, Preferences
from towpath.recipe.recipe import Recipe
from towpath.recipe.reward import Reward
from towpath.recipe.sft import Sft


@dataclass(frozen=True)
class StageConfig:
    """What every stage reads; fields have the names of the recipe's sections."""

    seed: int
    model: Model
    cluster: Cluster

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """The sections of this kind of stage."""
        return cls(**{name: getattr(recipe, name) for name in cls.sections()})

    @classmethod
    def sections(cls) -> tuple[str, ...]:
        """The names of the sections."""
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True)
class SamplingConfig(StageConfig):
    """Configuration of a stage that samples completions."""

    engine: EngineConfig
    data: Data


@dataclass(frozen=True)
class PairsConfig(StageConfig):
    """Configuration of a stage that reads comparisons."""

    preferences: Preferences
    reward: Reward
    evaluate: Evaluate


@dataclass(frozen=True)
class TrainingConfig(StageConfig):
    """Configuration of a stage that trains."""

    health: Health


@dataclass(frozen=True)
class SftConfig(TrainingConfig):
    """Configuration of the `sft` stage."""

    sft: Sft


@dataclass(frozen=True)
class BaselineConfig(SamplingConfig, PairsConfig):
    """Configuration of the `baseline` stage."""

    sft: Sft
    judge: Judge
    gates: Gates


@dataclass(frozen=True)
class SampleConfig(SamplingConfig):
    """Configuration of the `sample` stage."""

    sft: Sft
    preferences: Preferences


@dataclass(frozen=True)
class LabelConfig(PairsConfig):
    """Configuration of the `label` stage."""

    data: Data
    judge: Judge
    budget: LabelBudget
    policy: Policy


@dataclass(frozen=True)
class RewardConfig(TrainingConfig, PairsConfig):
    """Configuration of the `reward` stage."""

    gates: Gates


@dataclass(frozen=True)
class PolicyConfig(TrainingConfig, SamplingConfig, PairsConfig):
    """Configuration of the `policy` stage."""

    policy: Policy


@dataclass(frozen=True)
class EvaluateConfig(BaselineConfig):
    """Configuration of the `evaluate` stage."""

    policy: Policy


STAGE_CONFIGS: Mapping[str, type[StageConfig]] = {
    "sft": SftConfig,
    "baseline": BaselineConfig,
    "sample": SampleConfig,
    "label": LabelConfig,
    "judge_model": RewardConfig,
    "reward": RewardConfig,
    "policy": PolicyConfig,
    "evaluate": EvaluateConfig,
}
