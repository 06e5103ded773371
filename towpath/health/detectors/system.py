"""The machinery: numbers that are none, gradients that are zero, time and memory."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import History
from towpath.health.signals import last
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
            remedy = "go back to the last good checkpoint with a lower learning rate; use float32; bound the reward (policy.rewards.clip)"
            yield Finding("not-finite", "critical", evidence, "a number grew beyond what its type can hold", remedy, step)
            return


def still(history: History, _limits: Limits) -> Iterator[Finding]:
    """No gradient at all, where the policy is meant to learn."""
    norm, weight = history.curve("grad_norm"), history.curve("policy_weight")
    learning = ~np.isin(norm.steps, weight.steps[weight.values == 0]) if len(weight) else np.ones(len(norm), dtype=bool)
    values = norm.values[learning]
    if len(values) >= 3 and not values[-3:].any():
        evidence = "the gradient's norm is exactly 0 in three steps running"
        cause = "nothing reaches the weights: they are frozen, every advantage is the same, or the loss is masked out"
        yield Finding(
            "gradient-zero", "critical", evidence, cause, "look at reward_std, at policy.group and at what is trained", int(norm.steps[learning][-3])
        )


def slower(history: History, _limits: Limits) -> Iterator[Finding]:
    """Steps take longer and longer, and answers are not longer by as much."""
    parts = [history.curve(f"seconds_{phase}") for phase in ("generate", "score", "optimise")]
    parts = [part.values for part in parts if len(part) >= 16]
    if not parts or len({len(part) for part in parts}) > 1:
        return
    seconds = np.sum(parts, axis=0)
    quarter = len(seconds) // 4
    before, now = float(np.median(seconds[1 : 2 * quarter])), float(np.median(seconds[-quarter:]))
    length = history.curve("length").values
    grown = float(np.median(length[-quarter:]) / max(np.median(length[1 : 2 * quarter]), 1e-9)) if len(length) == len(seconds) else 1.0
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


DETECTORS = (unfinite, still)
RESOURCES = (slower, swelling)
