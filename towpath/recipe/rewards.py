"""`[policy.rewards]`: what completions are rewarded for."""

from typing import Literal

from towpath.recipe.reader import Section, value


class Source(Section):
    """One reward source."""

    source: str = value(
        "model",
        "model, model:SOURCE, rule:NAME, math, json:FILE, command:PROGRAM, python:MODULE:FUNCTION, or an http(s) "
        "address",
        why="model is the run's reward model; model:SOURCE one from elsewhere, see docs/rewards.md",
    )
    weight: float = value(1.0, "weight of its score")


class CommandLimits(Section):
    """Limits of the reward source command:PROGRAM, for each answer; an answer that exceeds one is not scored."""

    seconds: float = value(10.0, "seconds that the program may take", "1-60", gt=0)
    memory: int = value(2048, "MiB of address space that it may use", "256-8192", ge=16)
    output: int = value(256, "KiB that it may write", ge=1)
    parallel: int = value(0, "programs that run at once; 0 for the number of cores", ge=0)


class Rewards(Section):
    """Reward sources, their aggregation, and shaping."""

    sources: list[Source] = value([Source()], "reward sources")
    watch: list[str] = value(
        [],
        "sources that are measured and not rewarded: any of policy.rewards.sources but model",
        why="if they fall while the reward rises, the reward is being hacked",
    )
    combine: Literal["sum", "mean", "min", "cautious"] = value(
        "sum",
        "weighted sum, weighted mean, minimum, or mean minus `std_penalty` standard deviations of the sources",
        why="min and cautious are pessimistic: one wrong source cannot raise the reward alone",
    )
    ensemble: Literal["mean", "min", "cautious"] = value(
        "mean",
        "aggregation of an ensemble of reward models: mean, minimum, or mean minus `std_penalty` standard deviations",
        why="see reward.ensemble_size",
    )
    std_penalty: float = value(1.0, "standard deviations subtracted by `cautious`", "0.5-2", ge=0)
    clip: float = value(
        0.0,
        "clip scores to plus or minus this; 0 for no clipping",
        "1-10",
        "one outlier must not outweigh a batch",
        ge=0,
    )
    missing_eos: Literal["subtract", "replace"] = value(
        "subtract", "answer without EOS: subtract `eos_penalty`, or replace the score by minus `eos_penalty`"
    )
    eos_penalty: float = value(1.0, "penalty of an answer without EOS", "0-1", ge=0)
    length_limit: int = value(0, "answers longer than this are penalised per token; 0 for none", ge=0)
    length_penalty: float = value(0.01, "penalty of each token beyond `length_limit`", ge=0)
    repetition_penalty: float = value(0.0, "weight of the share of repeated trigrams, subtracted", "0-2", ge=0)
    diversity_bonus: float = value(
        0.0, "weight of the share of bigrams that no other answer of the rollout has, added", "0-1", ge=0
    )
    max_unscored: float = value(
        0.25,
        "share of a rollout's answers that sources may leave unscored; they are not trained on, and more stop the run",
        "0-0.5",
        ge=0,
        lt=1,
    )
    command: CommandLimits = value(CommandLimits(), "limits of the source command:PROGRAM")
    domains: dict[str, float] = value({}, "factor of the reward of each domain; 1 by default")
