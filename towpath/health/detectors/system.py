"""Values that are not finite, constant rewards, zero gradients, throughput and memory."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import Curve, History
from towpath.health.signals import first_step_where, initial_level, last_level
from towpath.recipe import Limits
from towpath.records import Finding

TRAINING_METRICS = ("grad_norm", "loss", "policy_loss", "value_loss", "kl", "reward", "entropy")


def not_finite(history: History, _limits: Limits) -> Iterator[Finding]:
    """NaN or infinity in a metric that training depends on."""
    for name in TRAINING_METRICS:
        curve = history.curve(name)
        bad = ~np.isfinite(curve.values)
        if bad.any():
            step = int(curve.steps[int(np.argmax(bad))])
            evidence = f"{name} is {curve.values[int(np.argmax(bad))]} at step {step + 1}"
            remedy = (
                "continue from the last good checkpoint with a lower learning rate; use float32; bound the reward "
                "(policy.rewards.clip)"
            )
            yield Finding("not-finite", "critical", evidence, "a value overflowed its data type", remedy, step)
            return


def constant_reward(history: History, _limits: Limits) -> Iterator[Finding]:
    """All answers to a prompt get the same reward, from the first step on."""
    reward, spread, ties = (history.curve(name) for name in ("reward", "reward_std", "zero_std_groups"))
    if len(reward) < 3 or not np.isfinite(reward.values).all():
        return
    same = (len(ties) >= 3 and bool((ties.values == 1).all())) or (len(spread) >= 3 and not spread.values.any())
    if not same:
        return
    varied = bool(np.ptp(reward.values))
    evidence = f"the answers to a prompt never differ in reward, which is {last_level(reward.values):.3g}" + (
        "" if varied else " in every step"
    )
    cause = "the reward function gives all answers to a prompt the same number, so every advantage is 0"
    remedy = (
        "print the reward of ten answers: a parser may never match, a column may be missing, a score may be rounded "
        "away"
    )
    yield Finding("reward-constant", "critical", evidence, cause, remedy, int(reward.steps[0]))


def zero_gradient(history: History, _limits: Limits) -> Iterator[Finding]:
    """A gradient norm of exactly 0 while the policy should learn."""
    norm = history.curve("grad_norm")
    weight = history.curve("policy_weight")
    learning = ~np.isin(norm.steps, weight.steps[weight.values == 0]) if len(weight) else np.ones(len(norm), dtype=bool)
    values = norm.values[learning]
    if len(values) < 3 or values[-3:].any():
        return
    step = first_step_where(Curve(norm.steps[learning], values), values == 0)
    evidence = "the gradient norm is exactly 0 in three steps in a row"
    severity = "critical"
    cause = "no gradient reaches the weights: they are frozen, every advantage is the same, or the loss is masked out"
    reward = history.curve("reward")
    if _is_solved(history):
        severity = "info"
        cause = (
            f"answers have a reward of {last_level(reward.values):.3g}, near the highest of the run: little is left to "
            "learn"
        )
    yield Finding(
        "gradient-zero", severity, evidence, cause, "check reward_std, policy.group and which weights are trained", step
    )


def _is_solved(history: History) -> bool:
    """Whether rewards no longer differ because they are near their maximum."""
    reward = history.curve("reward").values
    reward = reward[np.isfinite(reward)]
    if len(reward) < 6:
        return False
    least = float(reward.min())
    most = float(reward.max())
    now = last_level(reward)
    return now > initial_level(reward) and now > most - 0.1 * (most - least)


def falling_throughput(history: History, _limits: Limits) -> Iterator[Finding]:
    """Steps take longer, by more than longer answers explain."""
    parts = [history.curve(f"seconds_{phase}") for phase in ("generate", "score", "optimise")]
    parts = [part.values for part in parts if len(part) >= 16]
    if not parts or len({len(part) for part in parts}) > 1:
        return
    seconds = np.sum(parts, axis=0)
    quarter = len(seconds) // 4
    before = float(np.median(seconds[1 : 2 * quarter]))
    now = float(np.median(seconds[-quarter:]))
    length = history.curve("length").values
    grown = (
        float(np.median(length[-quarter:]) / max(np.median(length[1 : 2 * quarter]), 1e-9))
        if len(length) == len(seconds)
        else 1.0
    )
    if now > 1.8 * before * max(grown, 1.0):
        evidence = f"a step takes {now:.1f} s, {now / before:.1f} times as long as in the first half"
        yield Finding(
            "throughput-falling",
            "warning",
            evidence,
            "the machine is busy with other work, or memory is short",
            "check memory and other processes",
            None,
        )


def growing_memory(history: History, _limits: Limits) -> Iterator[Finding]:
    """Memory that grows at a constant rate; growth from longer rows slows down."""
    curve = history.curve("memory_bytes")
    if len(curve) < 20:
        return
    later = curve.values[len(curve) // 3 :]
    levels = [last_level(part) for part in np.array_split(later, 4)]
    gained = np.diff(levels)
    if gained.min() > 0 and gained[-1] >= 0.7 * gained.mean() and levels[-1] > 1.25 * levels[0]:
        evidence = f"memory grew from {levels[0] / 2**30:.1f} to {levels[-1] / 2**30:.1f} GiB and still grows"
        yield Finding(
            "memory-growing",
            "warning",
            evidence,
            "a memory leak: something is kept at every step",
            "stop and resume before memory runs out",
            int(curve.steps[len(curve) // 3]),
        )


DETECTORS = (not_finite, constant_reward, zero_gradient)
RESOURCES = (falling_throughput, growing_memory)
