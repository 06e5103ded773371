"""A policy that does not move: steps too small, or a penalty that allows none."""

from collections.abc import Iterator

import numpy as np

from towpath.health import rates
from towpath.health.history import History
from towpath.health.kl_limit import kl_limit
from towpath.health.signals import change, last, noise, rolling_median
from towpath.recipe import Limits
from towpath.records import Finding

STILL = 2e-5
"""Nats a token between two policies below which they are the same."""
GRACE = 6
"""Steps before a run is said not to move."""


def too_small(history: History, limits: Limits) -> Iterator[Finding]:
    """The policy goes nowhere: no distance and the same reward, because steps are small; or the same reward because
    a penalty outweighs it."""
    kl = history.curve("kl")
    reward = history.curve("reward")
    planned = history.facts.get("steps", history.facts.get("policy.steps", 0))
    if (
        max(len(kl), len(reward)) < GRACE
        or history.steps < min(float(planned) / 5, 100)
        or change(reward)[1] > limits.z_threshold
    ):
        return
    if not len(kl):
        yield from _without_kl(history, limits)
        return
    coef = last(history.curve("kl_coef").values)
    step = _update_size(history)
    near = (
        last(np.abs(kl.values)) < limits.kl_low and float(np.abs(kl.values[len(kl) // 4 :]).max()) < 2 * limits.kl_low
    )
    seen = f"after {history.steps} steps KL is {last(kl.values):.2g} nats and reward {_flat(history)}"
    if near and (step < STILL or (np.isnan(step) and not coef > 1)):
        ruled = (f"a penalty that holds it: updates move it by {step:.1g} nats a token",) if step < STILL else ()
        cause = "the learning rate is too small for these steps to be seen" + rates.in_brackets(history)
        yield Finding(
            "learning-rate-low",
            "warning",
            seen,
            cause,
            "raise the learning rate threefold to tenfold",
            int(kl.steps[0]),
            ruled,
        )
        return
    cost = coef * last(kl.values)
    spread = last(history.curve("reward_std").values)
    # not logged: a penalty beyond the noise of the mean reward is one that learning would have to outweigh
    if np.isnan(spread):
        cost = coef * float(np.median(np.abs(kl.values[len(kl) // 2 :])))
        spread = noise(reward.values)
    costly = cost > spread and last(kl.values) < kl_limit(history, limits).warn
    if (near and (coef > 0 or step > STILL)) or costly or _pulled_back(history, limits):
        ruled = (
            (f"a learning rate that is too small: updates move it by {step:.1g} nats a token",) if step > STILL else ()
        )
        outweighs = (
            f"; the penalty takes {cost:.2g} an answer where rewards differ by {spread:.2g}" if cost > spread else ""
        )
        cause = "the KL penalty" + (f" of {coef:.3g}" if coef > 0 else "") + " outweighs what there is to gain"
        yield Finding(
            "kl-penalty-too-strong",
            "warning",
            seen + outweighs,
            cause,
            "lower policy.kl.coef to a fifth, 0.01 at least",
            int(kl.steps[0]),
            ruled,
        )


def _pulled_back(history: History, limits: Limits) -> bool:
    """Whether the KL peaked early, well below its limit, and fell to less than half: a penalty took it back."""
    kl = history.curve("kl")
    smooth = rolling_median(kl.values)
    if history.facts.get("policy.kl.alarm") or len(smooth) < 20:
        return False
    peak = int(smooth.argmax())
    now = last(kl.values, len(kl) // 4)
    return (
        peak < len(smooth) // 2
        and smooth[peak] < kl_limit(history, limits).warn
        and limits.kl_low / 10 < now < smooth[peak] / 2
    )


def _update_size(history: History) -> float:
    """Nats a token between the policy before and after updates; without it the distance to the reference, which no
    update can have gone beyond."""
    moved = history.curve("approx_kl")
    per_token = history.curve("kl_per_token")
    if len(moved):
        return last(moved.values)
    if len(per_token) and not history.facts.get("policy.kl.alarm"):
        return float(np.median(np.abs(per_token.values[len(per_token) // 2 :])))
    return float("nan")


def _without_kl(history: History, limits: Limits) -> Iterator[Finding]:
    """Neither reward nor entropy nor length has moved, and the rates add up to next to nothing."""
    travel = rates.travel(history)
    if not travel < 1e-4 or history.steps < 20:
        return
    for name in ("reward", "entropy", "length"):
        curve = history.curve(name)
        if (
            len(curve)
            and abs(change(curve)[1]) > limits.z_threshold
            and abs(change(curve)[0]) > 0.02 * abs(float(np.mean(curve.values)))
        ):
            return
    seen = f"after {history.steps} steps reward {_flat(history)}, and neither entropy nor length has moved"
    cause = (
        f"the learning rate is too small for these steps to be seen{rates.in_brackets(history)}: AdamW has moved no "
        f"weight by more than {travel:.1g}"
    )
    yield Finding(
        "learning-rate-low",
        "warning",
        seen,
        cause,
        "raise the learning rate tenfold",
        int(history.curve("reward").steps[0]),
    )


def _flat(history: History) -> str:
    reward = history.curve("reward")
    moved, surprise = change(reward)
    if not np.isfinite(noise(reward.values)):
        return "is not known"
    return f"has moved by {moved:+.2g}, {abs(surprise):.1f} deviations of its noise"


DETECTORS = (too_small,)
