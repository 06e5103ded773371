"""A policy that does not change: the learning rate is too low, or the KL penalty too strong."""

from collections.abc import Iterator

import numpy as np

from towpath.health import learning_rates
from towpath.health.history import History
from towpath.health.kl_limit import kl_limit
from towpath.health.signals import change, last_level, noise, rolling_median
from towpath.recipe import Limits
from towpath.records import Finding

SAME_POLICY_KL = 2e-5
"""Nats a token below which two policies count as the same."""
MIN_STEPS = 6
"""Steps from which a policy can be called stalled."""


def stalled_policy(history: History, limits: Limits) -> Iterator[Finding]:
    """No KL and no gain because updates are small, or no gain because the KL penalty outweighs it."""
    kl = history.curve("kl")
    reward = history.curve("reward")
    planned = history.facts.get("steps", history.facts.get("policy.steps", 0))
    if (
        max(len(kl), len(reward)) < MIN_STEPS
        or history.steps < min(float(planned) / 5, 100)
        or change(reward)[1] > limits.z_threshold
    ):
        return
    if not len(kl):
        yield from _without_kl(history, limits)
        return
    coef = last_level(history.curve("kl_coef").values)
    step = _update_size(history)
    near = (
        last_level(np.abs(kl.values)) < limits.kl_low
        and float(np.abs(kl.values[len(kl) // 4 :]).max()) < 2 * limits.kl_low
    )
    evidence = (
        f"after {history.steps} steps KL is {last_level(kl.values):.2g} nats and reward {_describe_reward(history)}"
    )
    if near and (step < SAME_POLICY_KL or (np.isnan(step) and not coef > 1)):
        ruled = (
            (f"a strong KL penalty: updates move the policy by {step:.1g} nats a token",)
            if step < SAME_POLICY_KL
            else ()
        )
        cause = "the learning rate is too low" + learning_rates.rate_note(history)
        yield Finding(
            "learning-rate-low",
            "warning",
            evidence,
            cause,
            "raise the learning rate threefold to tenfold",
            int(kl.steps[0]),
            ruled,
        )
        return
    cost = coef * last_level(kl.values)
    spread = last_level(history.curve("reward_std").values)
    # Not logged: the penalty is compared with the noise of the mean reward instead.
    if np.isnan(spread):
        cost = coef * float(np.median(np.abs(kl.values[len(kl) // 2 :])))
        spread = noise(reward.values)
    costly = cost > spread and last_level(kl.values) < kl_limit(history, limits).warn
    if (near and (coef > 0 or step > SAME_POLICY_KL)) or costly or _is_pulled_back(history, limits):
        ruled = (
            (f"a learning rate that is too low: updates move the policy by {step:.1g} nats a token",)
            if step > SAME_POLICY_KL
            else ()
        )
        outweighs = (
            f"; the penalty is {cost:.2g} an answer where rewards differ by {spread:.2g}" if cost > spread else ""
        )
        cause = "the KL penalty" + (f" of {coef:.3g}" if coef > 0 else "") + " outweighs the possible gain in reward"
        yield Finding(
            "kl-penalty-too-strong",
            "warning",
            evidence + outweighs,
            cause,
            "lower policy.kl.coef to a fifth, at least 0.01",
            int(kl.steps[0]),
            ruled,
        )


def _is_pulled_back(history: History, limits: Limits) -> bool:
    """Whether the KL peaked early, well below its limit, and fell to less than half: the penalty pulled it back."""
    kl = history.curve("kl")
    smooth = rolling_median(kl.values)
    if history.facts.get("policy.kl.alarm") or len(smooth) < 20:
        return False
    peak = int(smooth.argmax())
    now = last_level(kl.values, len(kl) // 4)
    return (
        peak < len(smooth) // 2
        and smooth[peak] < kl_limit(history, limits).warn
        and limits.kl_low / 10 < now < smooth[peak] / 2
    )


def _update_size(history: History) -> float:
    """Nats a token of an update; if it is not logged the KL to the reference, which is an upper bound."""
    moved = history.curve("approx_kl")
    per_token = history.curve("kl_per_token")
    if len(moved):
        return last_level(moved.values)
    if len(per_token) and not history.facts.get("policy.kl.alarm"):
        return float(np.median(np.abs(per_token.values[len(per_token) // 2 :])))
    return float("nan")


def _without_kl(history: History, limits: Limits) -> Iterator[Finding]:
    """Reward, entropy and length are unchanged, and the learning rates add up to almost nothing."""
    travel = learning_rates.max_weight_change(history)
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
    evidence = f"after {history.steps} steps reward {_describe_reward(history)}, entropy and length are unchanged"
    cause = (
        f"the learning rate is too low{learning_rates.rate_note(history)}: AdamW has moved no "
        f"weight by more than {travel:.1g}"
    )
    yield Finding(
        "learning-rate-low",
        "warning",
        evidence,
        cause,
        "raise the learning rate tenfold",
        int(history.curve("reward").steps[0]),
    )


def _describe_reward(history: History) -> str:
    reward = history.curve("reward")
    moved, surprise = change(reward)
    if not np.isfinite(noise(reward.values)):
        return "is not known"
    return f"changed by {moved:+.2g} (z-score {abs(surprise):.1f})"


DETECTORS = (stalled_policy,)
