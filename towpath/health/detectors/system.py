"""Numbers that are not finite, rewards and gradients that say nothing, time and memory."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import Curve, History
from towpath.health.signals import last, since, start
from towpath.recipe import Limits
from towpath.records import Finding

CRITICAL_NAMES = ("grad_norm", "loss", "policy_loss", "value_loss", "kl", "reward", "entropy")


def unfinite(history: History, _limits: Limits) -> Iterator[Finding]:
    """Not-a-number or infinity where training reads it."""
    for name in CRITICAL_NAMES:
        curve = history.curve(name)
        bad = ~np.isfinite(curve.values)
        if bad.any():
            step = int(curve.steps[int(np.argmax(bad))])
            evidence = f"{name} is {curve.values[int(np.argmax(bad))]} at step {step + 1}"
            remedy = (
                "go back to the last good checkpoint with a lower learning rate; use float32; bound the reward "
                "(policy.rewards.clip)"
            )
            yield Finding(
                "not-finite", "critical", evidence, "a number grew beyond what its type can hold", remedy, step
            )
            return


def constant(history: History, _limits: Limits) -> Iterator[Finding]:
    """Every answer gets the same reward from the first step on."""
    reward, spread, ties = (history.curve(name) for name in ("reward", "reward_std", "zero_std_groups"))
    if len(reward) < 3 or not np.isfinite(reward.values).all():
        return
    same = (len(ties) >= 3 and bool((ties.values == 1).all())) or (len(spread) >= 3 and not spread.values.any())
    if not same:
        return
    varied = bool(np.ptp(reward.values))
    evidence = f"the answers to a prompt never differ in reward, which is {last(reward.values):.3g}" + (
        "" if varied else " in every step"
    )
    cause = "the reward function gives all answers to a prompt the same number, so no advantage differs from 0"
    remedy = (
        "print the reward of ten answers: a parser that never matches, a column that is missing, or a score that is "
        "rounded away"
    )
    yield Finding("reward-constant", "critical", evidence, cause, remedy, int(reward.steps[0]))


def still(history: History, _limits: Limits) -> Iterator[Finding]:
    """No gradient at all, where the policy is meant to learn."""
    norm = history.curve("grad_norm")
    weight = history.curve("policy_weight")
    learning = ~np.isin(norm.steps, weight.steps[weight.values == 0]) if len(weight) else np.ones(len(norm), dtype=bool)
    values = norm.values[learning]
    if len(values) < 3 or values[-3:].any():
        return
    step = since(Curve(norm.steps[learning], values), values == 0)
    evidence = "the gradient's norm is exactly 0 in three steps running"
    severity = "critical"
    cause = "nothing reaches the weights: they are frozen, every advantage is the same, or the loss is masked out"
    reward = history.curve("reward")
    if _solved(history):
        severity = "info"
        cause = (
            f"answers have a reward of {last(reward.values):.3g}, near the highest there was: little is left to "
            "learn from it"
        )
    yield Finding(
        "gradient-zero", severity, evidence, cause, "look at reward_std, at policy.group and at what is trained", step
    )


def _solved(history: History) -> bool:
    """Whether rewards no longer differ because they are near the best that was ever reached."""
    reward = history.curve("reward").values
    reward = reward[np.isfinite(reward)]
    if len(reward) < 6:
        return False
    least = float(reward.min())
    most = float(reward.max())
    now = last(reward)
    return now > start(reward) and now > most - 0.1 * (most - least)


def slower(history: History, _limits: Limits) -> Iterator[Finding]:
    """Steps take longer and longer, and answers are not longer by as much."""
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
            "the machine does something else, or memory runs short",
            "look at memory and at other work",
            None,
        )


def swelling(history: History, _limits: Limits) -> Iterator[Finding]:
    """Memory that only ever grows, and not slower and slower: what longer rows need comes to an end."""
    curve = history.curve("memory_bytes")
    if len(curve) < 20:
        return
    later = curve.values[len(curve) // 3 :]
    marks = [last(part) for part in np.array_split(later, 4)]
    gained = np.diff(marks)
    if gained.min() > 0 and gained[-1] >= 0.7 * gained.mean() and marks[-1] > 1.25 * marks[0]:
        evidence = f"memory grew from {marks[0] / 2**30:.1f} to {marks[-1] / 2**30:.1f} GiB and goes on"
        yield Finding(
            "memory-growing",
            "warning",
            evidence,
            "something is kept at every step",
            "end and resume before it is spent",
            int(curve.steps[len(curve) // 3]),
        )


DETECTORS = (unfinite, constant, still)
RESOURCES = (slower, swelling)
