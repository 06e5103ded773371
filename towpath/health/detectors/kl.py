"""KL to the reference: rising without a penalty, rising despite a penalty, or negative."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import History
from towpath.health.kl_limit import answer_length, describe_kl, kl_curve, kl_limit
from towpath.health.signals import change, drop_from_best, first_step_where, first_value, last_level, window_size
from towpath.recipe import Limits
from towpath.records import Finding

MIN_EFFECT = 0.2
"""The smallest change of the mean reward that counts, in standard deviations between answers."""
MIN_LOGS = 12
"""Logs from which it is known whether a KL buys reward."""
NO_PENALTY = 0.005
"""A KL coefficient below which there is in effect no penalty."""


def no_kl_penalty(history: History, limits: Limits) -> Iterator[Finding]:
    """KL rises and the KL coefficient is about zero."""
    kl = history.curve("kl")
    coef = history.curve("kl_coef")
    limit = kl_limit(history, limits)
    if not len(coef) or not last_level(coef.values) < NO_PENALTY or len(kl) < 3:
        return
    now = last_level(kl.values)
    pays = not limit.stated and reward_gained(history, limits)
    if not now > (limit.alarm if pays else limit.warn / 2):
        return
    clipped = history.curve("clip_fraction")
    calm = len(clipped) and last_level(clipped.values) < limits.clip_fraction
    ruled = (f"steps that are too large: {last_level(clipped.values):.0%} of tokens clipped",) if calm else ()
    evidence = (
        f"KL is {describe_kl(history, now)} and rising, with a coefficient of {last_level(coef.values):.2g} "
        f"({limit.basis})"
    )
    remedy = "set policy.kl.coef to 0.05, and to 0.1 where KL has passed 2"
    step = first_step_where(kl, kl.values > limit.warn / 2)
    severity = "critical" if now > limit.warn and not pays else "warning"
    yield Finding(
        "no-kl-penalty", severity, evidence, "no penalty keeps the policy near the reference", remedy, step, ruled
    )


def kl_rising(history: History, limits: Limits) -> Iterator[Finding]:
    """KL above its limit. Without a stated alarm, a KL that buys reward is no danger."""
    kl = kl_curve(history)
    limit = kl_limit(history, limits)
    if len(kl) < 3 or not last_level(kl.values) > limit.warn:
        return
    now = last_level(kl.values)
    above = bool((kl.values[-3:] > limit.alarm).sum() >= 2 and now > limit.alarm)
    if not above and change(kl)[1] < limits.z_threshold and len(kl) >= 6:
        return  # high, but no longer rising
    severity = "critical" if above else "warning"
    if not limit.stated and reward_gained(history, limits):
        severity = "warning" if above else "info"
    elif not limit.stated and (len(kl) < MIN_LOGS or not answer_length(history) > 0):
        severity = "warning"
    coef = last_level(history.curve("kl_coef").values)
    evidence = (
        f"KL is {describe_kl(history, now)}, {'above the alarm at' if above else 'alarm at'} {limit.alarm:.3g} "
        f"({limit.basis})"
    )
    gained = change(history.curve("reward"))
    evidence += (
        f"; reward changed by {gained[0]:+.2g}, a z-score of {abs(gained[1]):.1f}"
        if len(history.curve("reward")) >= 6
        else ""
    )
    cause = (
        f"a KL coefficient of {coef:.3g} is too small for this reward"
        if np.isfinite(coef)
        else "the policy moves away from the reference"
    )
    more = max(0.1, 2 * float(np.nan_to_num(coef)))
    remedy = f"raise policy.kl.coef to {more:.2g}, then {2 * more:.2g}; lower the learning rate"
    yield Finding("kl-rising", severity, evidence, cause, remedy, first_step_where(kl, kl.values > limit.warn))


def reward_gained(history: History, limits: Limits) -> bool:
    """Whether the reward rose significantly and materially, and did not fall from its best."""
    rose, surprise = change(history.curve("reward"))
    fallen = drop_from_best(history.curve("reward"))
    lost_again = fallen[1] < -2 * limits.z_threshold and -fallen[0] > rose / 2
    below_origin = last_level(history.curve("reward").values, 5) <= first_value(history.curve("reward"))
    return (
        surprise > limits.z_threshold * 2 / 3
        and rose > 0
        and is_material(history, rose)
        and not lost_again
        and not below_origin
    )


def is_material(history: History, change_of_reward: float, least: float = MIN_EFFECT) -> bool:
    """Whether a change of the mean reward matters beside the differences between answers; with many steps even small
    changes are significant."""
    spread = history.curve("reward_std").values
    spread = spread[np.isfinite(spread) & (spread > 0)]
    return not len(spread) or abs(change_of_reward) >= least * float(np.median(spread))


def kl_negative(history: History, limits: Limits) -> Iterator[Finding]:
    """A mean KL significantly below zero: the scored distribution is not the sampled one."""
    kl = history.curve("kl")
    if len(kl) < 3:
        return
    count = window_size(kl)
    values = kl.values[-count:]
    rows = float(history.facts.get("policy.rollout", 32))
    spread = (
        last_level(history.curve("kl_std").values)
        if len(history.curve("kl_std"))
        else float(np.std(values)) * rows**0.5
    )
    error = spread / (rows * count) ** 0.5 + 1e-9
    mean = float(values.mean())
    if mean > -limits.kl_low or mean > -limits.z_threshold * error:
        return
    wrong = last_level(history.curve("sampler_error").values)
    if wrong > limits.sampler_error:
        cause = f"sampling and scoring use different distributions: log-probabilities differ by {wrong:.2g}"
    else:
        cause = "scoring ignores something that sampling uses: top-k, a minimum length, a masked EOS or padding"
    evidence = f"KL is {mean:.2f} nats a prompt, {-mean / error:.1f} standard errors below zero"
    remedy = "sample with temperature alone and score with the same; check EOS, padding and min_new_tokens"
    yield Finding(
        "kl-negative",
        "critical" if mean < -0.5 else "warning",
        evidence,
        cause,
        remedy,
        first_step_where(kl, kl.values < 0),
    )


DETECTORS = (no_kl_penalty, kl_rising, kl_negative)
