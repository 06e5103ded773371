"""Reward hacking: the reward rises and quality does not, by a watched source, by length, or by out-of-distribution
scores."""

from collections.abc import Iterator

import numpy as np

from towpath.health import overoptimisation
from towpath.health.detectors.kl import is_material
from towpath.health.history import Curve, History
from towpath.health.signals import (
    MIN_POINTS,
    change,
    first_level,
    first_step_where,
    first_value,
    last_level,
    noise,
    slope_of_changes,
)
from towpath.recipe import Limits
from towpath.records import Finding

ABSURD_REWARD = 1e8
"""A mean reward that is wrong at any scale."""
LENGTH_REMEDY = (
    "balance the labels by length, compare the reward model with a length-only baseline, or set "
    "policy.rewards.length_limit"
)
MIN_LENGTH_EFFECT = 0.5
"""The smallest gain from longer answers that counts, in standard deviations of the reward between answers."""
MAX_SCORE = 3.0
"""A mean score of a normalised reward model that is out of distribution."""


def reward_hacking(history: History, limits: Limits) -> Iterator[Finding]:
    """A watched source falls, or does not rise, while the reward rises."""
    rose, sure = change(history.curve("reward"))
    if sure < limits.z_threshold:
        return
    for name, curve in history.family("watched/").items():
        fell, surprise = change(curve)
        flat = surprise < 1 and sure > 2 * limits.z_threshold and len(curve) >= 10
        fallen = surprise <= -limits.z_threshold
        if not fallen and not flat:
            continue
        past = overoptimisation.describe_overoptimisation(history, f"watched/{name}")
        its = f"fell by {-fell:.2g}" if fallen else "did not rise"
        evidence = f"reward rose by {rose:.2g} (z-score {sure:.0f}) while {_short_name(name)} {its}{past}"
        longer = change(history.curve("length"))[1]
        corr = last_level(history.curve("reward_length_corr").values)
        ruled = (
            (f"length: the score's correlation with it is {corr:.2f}",)
            if abs(corr) < limits.length_correlation and longer < 2 * limits.z_threshold
            else ()
        )
        remedy = (
            "stop; have people rate the answers with the highest scores, train the reward model on them, and raise "
            "policy.kl.coef"
        )
        cause = "the policy exploits what the reward measures instead of quality"
        step = int(curve.steps[int(np.argmax(curve.values))])
        yield Finding("reward-hacking", "critical" if fallen else "warning", evidence, cause, remedy, step, ruled)
        return


def _short_name(name: str) -> str:
    return f"'{name.removeprefix('given:').removeprefix('python:').removeprefix('rule:')}'"


def length_hacking(history: History, limits: Limits) -> Iterator[Finding]:
    """The score correlates with length, or length explains the gain."""
    corr = history.curve("reward_length_corr")
    length = history.curve("length")
    if not len(corr):
        yield from _length_hacking_by_steps(history, limits)
        return
    if len(corr) < 3 or not last_level(corr.values, 5) > limits.length_correlation:
        return
    longer, surprise = change(length)
    grown = surprise > limits.z_threshold and longer > 0.1 * max(first_level(length.values), 1e-9)
    evidence = f"the score's correlation with length is {last_level(corr.values, 5):.2f}"
    worth = last_level(history.curve("length_worth").values, 5)
    evidence += f", one more token earns {worth:.2g}" if worth > 0 else ""
    evidence += f"; {_describe_growth(length)}" if grown else ""
    cause = "the reward pays for length" + (
        ": the labels, or the reward model, prefer longer answers" if _has_reward_model(history) else ""
    )
    step = first_step_where(corr, corr.values > limits.length_correlation)
    yield Finding("length-hacking", "critical" if grown else "warning", evidence, cause, LENGTH_REMEDY, step)


def _describe_growth(length: Curve) -> str:
    return f"answers grew from {first_value(length):.0f} to {last_level(length.values):.0f} tokens"


def _length_hacking_by_steps(history: History, limits: Limits) -> Iterator[Finding]:
    """Without a logged correlation: the reward follows length from step to step, which explains the gain."""
    reward = history.curve("reward")
    length = history.curve("length")
    ends = history.curve("finish_rate")
    rose = max(
        (moved for moved, sure in (change(reward), _rise_from_start(reward)) if sure > limits.z_threshold), default=0.0
    )
    longer = last_level(length.values) - first_value(length)
    grown = (
        len(length) >= 6
        and longer > 0.2 * max(first_value(length), 1e-9)
        and _rise_from_start(length)[1] > limits.z_threshold
    )
    if not grown or rose <= 0 or not is_material(history, rose, MIN_LENGTH_EFFECT):
        return
    slope, correlation, deviations = slope_of_changes(reward, length)
    explained = slope * longer / rose
    goes_with = deviations > limits.z_threshold and explained > 0.5
    cut_off = len(ends) > 0 and first_value(ends) >= 0.5 and last_level(ends.values) <= 0.2
    if not goes_with and not cut_off:
        return
    evidence = f"{_describe_growth(length)} while reward rose by {rose:.2g}"
    if goes_with:
        evidence += f"; from step to step the reward follows length (correlation {correlation:.2f}), "
        evidence += f"which explains {min(explained, 1):.0%} of the gain"
    evidence += (
        f"; {last_level(ends.values):.0%} of answers still end, {first_value(ends):.0%} at the start" if cut_off else ""
    )
    ruled = ("a broken policy: the reward is higher than at the start",) if cut_off else ()
    half_way = first_value(length) + 0.5 * longer
    step = int(length.steps[int(np.argmax(length.values > half_way))])
    yield Finding(
        "length-hacking",
        "critical" if cut_off or explained > 0.8 else "warning",
        evidence,
        "the reward pays for length",
        LENGTH_REMEDY,
        step,
        ruled,
    )


def _rise_from_start(curve: Curve) -> tuple[float, float]:
    """The change from the first value to the later level and its z-score, for curves that rise at once."""
    values = curve.values[np.isfinite(curve.values)]
    if len(values) < 2 * MIN_POINTS:
        return 0.0, 0.0
    later = values[len(values) // 2 :]
    moved = float(np.median(later)) - first_value(curve)
    scatter = (
        noise(values[1:])
        if len(values) < 4 * MIN_POINTS
        else max(noise(values), float(np.std(values[:MIN_POINTS])) / 2)
    )
    return moved, moved / (scatter * float(np.sqrt(1 + 1 / len(later))))


def out_of_distribution(history: History, limits: Limits) -> Iterator[Finding]:
    """A reward model far outside its normalised scale, or an ensemble that disagrees."""
    score = history.curve("score")
    spread = history.curve("score_spread")
    if _has_reward_model(history) and len(score) >= 3 and abs(last_level(score.values)) > MAX_SCORE:
        evidence = f"the mean score is {last_level(score.values):.1f} where the tuned model has 0 ± 1"
        cause = "the policy's answers are outside the reward model's training distribution"
        remedy = "label answers of this policy and train the reward model again"
        yield Finding(
            "reward-out-of-distribution",
            "warning",
            evidence,
            cause,
            remedy,
            first_step_where(score, np.abs(score.values) > MAX_SCORE),
        )
    elif (
        len(spread) >= 6
        and change(spread)[1] > limits.z_threshold
        and last_level(spread.values) > 1.5 * first_level(spread.values)
    ):
        evidence = (
            f"reward models differ by {last_level(spread.values):.2f}, "
            f"{last_level(spread.values) / first_level(spread.values):.1f} times as much as at the start"
        )
        cause = "the policy's answers are outside the reward models' training distribution"
        remedy = "set policy.rewards.ensemble = 'min', and label answers of this policy"
        yield Finding(
            "reward-out-of-distribution", "warning", evidence, cause, remedy, int(spread.steps[len(spread) // 2])
        )


def unbounded_reward(history: History, limits: Limits) -> Iterator[Finding]:
    """A reward far larger than all before."""
    reward = history.curve("reward")
    finite = reward.values[np.isfinite(reward.values)]
    if not len(finite):
        return
    usual = float(np.median(np.abs(finite))) + 1.0
    wild = (np.abs(reward.values) > 1e4 * usual) | (np.abs(reward.values) > ABSURD_REWARD)
    if wild.any():
        step = int(reward.steps[int(np.argmax(wild))])
        evidence = f"a mean reward of {reward.values[int(np.argmax(wild))]:.2g} where {usual:.2g} is usual"
        yield Finding(
            "reward-unbounded",
            "critical",
            evidence,
            "one answer outweighs all others",
            "set policy.rewards.clip, or fix the source",
            step,
        )


def _has_reward_model(history: History) -> bool:
    sources = history.facts.get("policy.rewards.sources", ())
    return (
        any(isinstance(source, dict) and source.get("source") == "model" for source in sources)
        if isinstance(sources, list | tuple)
        else False
    )


DETECTORS = (reward_hacking, length_hacking, out_of_distribution, unbounded_reward)
