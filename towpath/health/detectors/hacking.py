"""The reward rises and quality does not: by a watched source, by length, by the scale of the scores."""

from collections.abc import Iterator

import numpy as np

from towpath.health import overoptimisation
from towpath.health.detectors.distance import is_material
from towpath.health.history import Curve, History
from towpath.health.signals import LEAST, change, first, last, noise, origin, since, slope_of_changes
from towpath.recipe import Limits
from towpath.records import Finding

ABSURD = 1e8
"""A mean reward that no scale excuses."""
SHORTER = (
    "balance the labels by length or train the reward model with a length-only baseline in view; set "
    "policy.rewards.length_limit"
)
WORTH_IT = 0.5
"""Deviations of the reward between answers that growth must earn where the reward pays for length."""
STRANGE = 3.0
"""A normalised reward model's score that its own scale calls strange."""


def hacked(history: History, limits: Limits) -> Iterator[Finding]:
    """A watched source falls, or stands still, while the reward rises."""
    rose, sure = change(history.curve("reward"))
    if sure < limits.z_threshold:
        return
    for name, curve in history.family("watched/").items():
        fell, surprise = change(curve)
        flat = surprise < 1 and sure > 2 * limits.z_threshold and len(curve) >= 10
        fallen = surprise <= -limits.z_threshold
        if not fallen and not flat:
            continue
        past = overoptimisation.told(history, f"watched/{name}")
        its = f"fell by {-fell:.2g}" if fallen else "did not rise"
        evidence = f"reward rose by {rose:.2g} ({sure:.0f} deviations) while {_short(name)} {its}{past}"
        longer = change(history.curve("length"))[1]
        corr = last(history.curve("reward_length_corr").values)
        ruled = (
            (f"length: the score's correlation with it is {corr:.2f}",)
            if abs(corr) < limits.length_correlation and longer < 2 * limits.z_threshold
            else ()
        )
        remedy = (
            "stop; have the answers with the highest scores rated, train the reward model again on them, and raise "
            "policy.kl.coef"
        )
        cause = "the policy has found what the reward takes for quality"
        step = int(curve.steps[int(np.argmax(curve.values))])
        yield Finding("reward-hacking", "critical" if fallen else "warning", evidence, cause, remedy, step, ruled)
        return


def _short(name: str) -> str:
    return f"'{name.removeprefix('given:').removeprefix('python:').removeprefix('rule:')}'"


def by_length(history: History, limits: Limits) -> Iterator[Finding]:
    """The score goes with length, and length goes up."""
    corr = history.curve("reward_length_corr")
    length = history.curve("length")
    if not len(corr):
        yield from _by_length_over_steps(history, limits)
        return
    if len(corr) < 3 or not last(corr.values, 5) > limits.length_correlation:
        return
    longer, surprise = change(length)
    grown = surprise > limits.z_threshold and longer > 0.1 * max(first(length.values), 1e-9)
    evidence = f"the score's correlation with length is {last(corr.values, 5):.2f}"
    worth = last(history.curve("length_worth").values, 5)
    evidence += f", a token more earns {worth:.2g}" if worth > 0 else ""
    evidence += f"; {_growth(length)}" if grown else ""
    cause = "the reward pays for length" + (
        ": its labels, or its model, prefer what is longer" if _by_model(history) else ""
    )
    step = since(corr, corr.values > limits.length_correlation)
    yield Finding("length-hacking", "critical" if grown else "warning", evidence, cause, SHORTER, step)


def _growth(length: Curve) -> str:
    return f"answers grew from {origin(length):.0f} to {last(length.values):.0f} tokens"


def _by_length_over_steps(history: History, limits: Limits) -> Iterator[Finding]:
    """Without a correlation in the log: rewards that go with length from step to step, by so much that growth
    explains the gain."""
    reward = history.curve("reward")
    length = history.curve("length")
    ends = history.curve("finish_rate")
    rose = max((moved for moved, sure in (change(reward), _climbed(reward)) if sure > limits.z_threshold), default=0.0)
    longer = last(length.values) - origin(length)
    grown = len(length) >= 6 and longer > 0.2 * max(origin(length), 1e-9) and _climbed(length)[1] > limits.z_threshold
    if not grown or rose <= 0 or not is_material(history, rose, WORTH_IT):
        return
    slope, correlation, deviations = slope_of_changes(reward, length)
    explained = slope * longer / rose
    goes_with = deviations > limits.z_threshold and explained > 0.5
    cut_off = len(ends) > 0 and origin(ends) >= 0.5 and last(ends.values) <= 0.2
    if not goes_with and not cut_off:
        return
    evidence = f"{_growth(length)} while reward rose by {rose:.2g}"
    if goes_with:
        evidence += f"; from step to step rewards go with length (correlation {correlation:.2f}), "
        evidence += f"which explains {min(explained, 1):.0%} of the gain"
    evidence += f"; {last(ends.values):.0%} of answers still end, {origin(ends):.0%} at the start" if cut_off else ""
    ruled = ("a broken policy: the reward is higher than at the start",) if cut_off else ()
    half_way = origin(length) + 0.5 * longer
    step = int(length.steps[int(np.argmax(length.values > half_way))])
    yield Finding(
        "length-hacking",
        "critical" if cut_off or explained > 0.8 else "warning",
        evidence,
        "the reward pays for length",
        SHORTER,
        step,
        ruled,
    )


def _climbed(curve: Curve) -> tuple[float, float]:
    """From the first logs to the level since: by how much, and by how many deviations; for curves that rise at once
    and then stand."""
    values = curve.values[np.isfinite(curve.values)]
    if len(values) < 2 * LEAST:
        return 0.0, 0.0
    later = values[len(values) // 2 :]
    moved = float(np.median(later)) - origin(curve)
    scatter = noise(values[1:]) if len(values) < 4 * LEAST else max(noise(values), float(np.std(values[:LEAST])) / 2)
    return moved, moved / (scatter * float(np.sqrt(1 + 1 / len(later))))


def strange(history: History, limits: Limits) -> Iterator[Finding]:
    """A reward model far from where it was scaled, or an ensemble that no longer agrees."""
    score = history.curve("score")
    spread = history.curve("score_spread")
    if _by_model(history) and len(score) >= 3 and abs(last(score.values)) > STRANGE:
        evidence = f"the mean score is {last(score.values):.1f} where 0 ± 1 is the tuned model's"
        cause = "the policy's answers lie outside what the reward model was trained on"
        remedy = "label answers of this policy and train the reward model again"
        yield Finding(
            "reward-out-of-distribution",
            "warning",
            evidence,
            cause,
            remedy,
            since(score, np.abs(score.values) > STRANGE),
        )
    elif (
        len(spread) >= 6 and change(spread)[1] > limits.z_threshold and last(spread.values) > 1.5 * first(spread.values)
    ):
        evidence = (
            f"reward models differ by {last(spread.values):.2f}, {last(spread.values) / first(spread.values):.1f} "
            "times as much as at the start"
        )
        cause = "the policy's answers lie outside what they were trained on"
        remedy = "take policy.rewards.ensemble = 'min', and label answers of this policy"
        yield Finding(
            "reward-out-of-distribution", "warning", evidence, cause, remedy, int(spread.steps[len(spread) // 2])
        )


def unbounded(history: History, limits: Limits) -> Iterator[Finding]:
    """A reward of another order than all before."""
    reward = history.curve("reward")
    finite = reward.values[np.isfinite(reward.values)]
    if not len(finite):
        return
    usual = float(np.median(np.abs(finite))) + 1.0
    wild = (np.abs(reward.values) > 1e4 * usual) | (np.abs(reward.values) > ABSURD)
    if wild.any():
        step = int(reward.steps[int(np.argmax(wild))])
        evidence = f"a mean reward of {reward.values[int(np.argmax(wild))]:.2g} where {usual:.2g} is usual"
        yield Finding(
            "reward-unbounded",
            "critical",
            evidence,
            "one answer outweighs all others",
            "set policy.rewards.clip, or mend the source",
            step,
        )


def _by_model(history: History) -> bool:
    sources = history.facts.get("policy.rewards.sources", ())
    return (
        any(isinstance(source, dict) and source.get("source") == "model" for source in sources)
        if isinstance(sources, list | tuple)
        else False
    )


DETECTORS = (hacked, by_length, strange, unbounded)
