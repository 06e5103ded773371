"""KL to the reference: rising without a penalty, rising in spite of one, or below zero, which no KL can be."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import History
from towpath.health.kl_limit import answer_length, kl_curve, kl_limit, kl_words
from towpath.health.signals import change, last, lately, origin, since, window
from towpath.recipe import Limits
from towpath.records import Finding

MATERIAL = 0.2
"""A change of the mean reward, in deviations between answers, below which nothing is gained or lost."""
ENOUGH = 12
"""Logs from which it can be told whether a KL buys reward."""
UNHELD = 0.005
"""A coefficient below which nothing holds."""


def unheld(history: History, limits: Limits) -> Iterator[Finding]:
    """KL rises and there is no penalty to speak of."""
    kl = history.curve("kl")
    coef = history.curve("kl_coef")
    limit = kl_limit(history, limits)
    if not len(coef) or not last(coef.values) < UNHELD or len(kl) < 3:
        return
    now = last(kl.values)
    pays = not limit.stated and reward_gained(history, limits)
    if not now > (limit.alarm if pays else limit.warn / 2):
        return
    clipped = history.curve("clip_fraction")
    calm = len(clipped) and last(clipped.values) < limits.clip_fraction
    ruled = (f"steps that are too large: {last(clipped.values):.0%} of tokens clipped",) if calm else ()
    evidence = (
        f"KL is {kl_words(history, now)} and rising, with a coefficient of {last(coef.values):.2g} ({limit.basis})"
    )
    remedy = "set policy.kl.coef to 0.05, and to 0.1 where KL has passed 2"
    step = since(kl, kl.values > limit.warn / 2)
    severity = "critical" if now > limit.warn and not pays else "warning"
    yield Finding(
        "no-kl-penalty",
        severity,
        evidence,
        "nothing holds the policy near the model it began from",
        remedy,
        step,
        ruled,
    )


def rising(history: History, limits: Limits) -> Iterator[Finding]:
    """KL above what is usual, or above the alarm; without a stated alarm a KL that buys reward is worth knowing, not
    a danger."""
    kl = kl_curve(history)
    limit = kl_limit(history, limits)
    if len(kl) < 3 or not last(kl.values) > limit.warn:
        return
    now = last(kl.values)
    above = bool((kl.values[-3:] > limit.alarm).sum() >= 2 and now > limit.alarm)
    if not above and change(kl)[1] < limits.z_threshold and len(kl) >= 6:
        return  # it stands high, but it stands
    severity = "critical" if above else "warning"
    if not limit.stated and reward_gained(history, limits):
        severity = "warning" if above else "info"
    elif not limit.stated and (len(kl) < ENOUGH or not answer_length(history) > 0):
        severity = "warning"
    coef = last(history.curve("kl_coef").values)
    evidence = (
        f"KL is {kl_words(history, now)}, {'above the alarm at' if above else 'alarm at'} {limit.alarm:.3g} "
        f"({limit.basis})"
    )
    gained = change(history.curve("reward"))
    evidence += (
        f"; reward has moved by {gained[0]:+.2g}, {abs(gained[1]):.1f} deviations of its noise"
        if len(history.curve("reward")) >= 6
        else ""
    )
    cause = (
        f"a coefficient of {coef:.3g} does not hold against the reward"
        if np.isfinite(coef)
        else "the policy leaves the model it began from"
    )
    more = max(0.1, 2 * float(np.nan_to_num(coef)))
    remedy = f"raise policy.kl.coef to {more:.2g}, then {2 * more:.2g}; lower the learning rate"
    yield Finding("kl-rising", severity, evidence, cause, remedy, since(kl, kl.values > limit.warn))


def reward_gained(history: History, limits: Limits) -> bool:
    """Whether the reward rose beyond its noise, by more than a trifle, and has not fallen from its best since."""
    rose, surprise = change(history.curve("reward"))
    fallen = lately(history.curve("reward"))
    lost_again = fallen[1] < -2 * limits.z_threshold and -fallen[0] > rose / 2
    below_origin = last(history.curve("reward").values, 5) <= origin(history.curve("reward"))
    return (
        surprise > limits.z_threshold * 2 / 3
        and rose > 0
        and is_material(history, rose)
        and not lost_again
        and not below_origin
    )


def is_material(history: History, change_of_reward: float, least: float = MATERIAL) -> bool:
    """Whether a change of the mean reward counts beside what answers differ by; with enough steps chance makes small
    ones significant."""
    spread = history.curve("reward_std").values
    spread = spread[np.isfinite(spread) & (spread > 0)]
    return not len(spread) or abs(change_of_reward) >= least * float(np.median(spread))


def negative(history: History, limits: Limits) -> Iterator[Finding]:
    """A mean below zero by more than chance: what is scored is not what was drawn."""
    kl = history.curve("kl")
    if len(kl) < 3:
        return
    count = window(kl)
    values = kl.values[-count:]
    rows = float(history.facts.get("policy.rollout", 32))
    spread = last(history.curve("kl_std").values) if len(history.curve("kl_std")) else float(np.std(values)) * rows**0.5
    error = spread / (rows * count) ** 0.5 + 1e-9
    mean = float(values.mean())
    if mean > -limits.kl_low or mean > -limits.z_threshold * error:
        return
    wrong = last(history.curve("sampler_error").values)
    if wrong > limits.sampler_error:
        cause = (
            f"answers are drawn from another distribution than the one scored: log-probabilities differ by {wrong:.2g}"
        )
    else:
        cause = (
            "the distribution that is scored leaves something out that sampling uses: top-k, a least length, a "
            "masked EOS or padding"
        )
    evidence = f"KL is {mean:.2f} nats a prompt, {-mean / error:.1f} standard errors below zero"
    remedy = "draw with temperature alone and score with the same; look at EOS, padding and min_new_tokens"
    yield Finding(
        "kl-negative", "critical" if mean < -0.5 else "warning", evidence, cause, remedy, since(kl, kl.values < 0)
    )


DETECTORS = (unheld, rising, negative)
