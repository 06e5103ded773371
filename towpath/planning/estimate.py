"""Time of each stage, from its work and the speeds of a machine, with a range."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from towpath.planning.amounts import Source
from towpath.planning.speed import Speed, saving_seconds, seconds_of, trained_as
from towpath.planning.work import ALL_DECIDED, FEW_DECIDED, Counts, Work, answer_length, stage_work
from towpath.recipe import Recipe

SPREAD: Mapping[Source, tuple[float, float]] = {
    "measured": (0.85, 1.15),
    "formula": (0.6, 1.4),
    "assumption": (0.33, 3.0),
}
"""How far seconds may be off, one way and the other."""
SHORT, LONG = 0.7, 1.15
"""Mean answer of the low and the high case over the likely one, where it is not measured."""
LOADS = {"sft": 1, "baseline": 2, "sample": 2, "judge_model": 1, "reward": 1, "policy": 2, "evaluate": 9}
"""How many times a stage loads a model."""
STAGE_SECONDS = 2.0
"""Of a stage besides: reading, checks, findings, reports."""


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage."""

    stage: str
    low: float
    likely: float
    high: float
    parts: Mapping[str, float]
    """Of the likely case."""
    source: Source
    """Where the speeds are from."""
    per_step: float | None = None
    """Of one optimizer step of fine-tuning or the reward model, or of one rollout with its updates."""


def stage_times(
    recipe: Recipe, counts: Counts, stages: Collection[str], speed: Speed, source: Source, workers: int = 1
) -> list[StageTime]:
    """The time of these kinds of stage, as far as they compute, in order, rounds counted."""
    likely = stage_work(recipe, counts, stages)
    longest = recipe.policy.max_new_tokens
    mean = answer_length(counts, longest)
    known = counts.answer_tokens is not None
    low, high = (
        replace(
            counts,
            answer_tokens=mean * (1.0 if known else factor),
            decided=decided if counts.decided is None else counts.decided,
        )
        for factor, decided in ((SHORT, FEW_DECIDED), (LONG, ALL_DECIDED))
    )
    few, many = (stage_work(recipe, own, stages) for own in (low, high))
    spread = SPREAD[source]
    times = []
    for stage, works in likely.items():
        if not works:
            continue
        rounds = recipe.rounds if stage in ("sample", "reward", "policy", "evaluate") else 1
        parts = seconds_of(stage, works, speed, workers)
        fixed = LOADS[stage] * speed.load + STAGE_SECONDS + speed.first.get(trained_as(stage), 0.0)
        parts["loading and saving"] = fixed + saving_seconds(stage, sum(parts.values()), speed)
        total = sum(parts.values())
        ends = [
            sum(seconds_of(stage, own[stage], speed, workers).values()) + parts["loading and saving"]
            for own in (few, many)
        ]
        times.append(
            StageTime(
                stage,
                rounds * ends[0] * spread[0],
                rounds * total,
                rounds * ends[1] * spread[1],
                {name: rounds * seconds for name, seconds in parts.items()},
                source,
                _per_step(stage, works, parts, recipe),
            )
        )
    return times


def _per_step(stage: str, works: Sequence[Work], parts: Mapping[str, float], recipe: Recipe) -> float | None:
    steps = sum(work.steps for work in works if work.kind == "train")
    if not steps:
        return None
    if stage != "policy":
        return parts["training"] / steps
    if "rollouts" not in parts:
        return parts["training"] / steps
    return sum(parts[name] for name in ("rollouts", "scores of rollouts", "training")) / recipe.policy.steps
