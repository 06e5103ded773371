"""KL to the tuned model: rising without a hold, rising all the same, or below zero, which no KL can be."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import Curve, History
from towpath.health.signals import change, last, since, window
from towpath.recipe import Limits
from towpath.records import Finding

UNHELD = 0.005
"""A coefficient below which nothing holds."""


def unheld(history: History, limits: Limits) -> Iterator[Finding]:
    """KL rises and there is no penalty to speak of."""
    kl, coef = history.curve("kl"), history.curve("kl_coef")
    if not len(coef) or not last(coef.values) < UNHELD or len(kl) < 3 or not last(kl.values) > limits.kl_high / 2:
        return
    now = last(kl.values)
    held = history.curve("clip_fraction")
    ruled = (
        (f"steps that are too large: {last(held.values):.0%} of tokens clipped",) if len(held) and last(held.values) < limits.clip_fraction else ()
    )
    evidence = f"KL is {now:.2f} nats a prompt and rising, with a coefficient of {last(coef.values):g}"
    remedy, step = "set policy.kl.coef to 0.05, and to 0.1 where KL has passed 2", since(kl, kl.values > limits.kl_high / 2)
    severity = "critical" if now > limits.kl_high else "warning"
    yield Finding("kl-unheld", severity, evidence, "nothing holds the policy near the tuned model", remedy, step, ruled)


def rising(history: History, limits: Limits) -> Iterator[Finding]:
    """KL above what is usual, or above the alarm."""
    kl = _kl(history)
    alarm = history.facts.get("policy.kl.alarm", 2 * limits.kl_high)
    if len(kl) < 3 or not last(kl.values) > limits.kl_high:
        return
    now, above = last(kl.values), bool((kl.values[-3:] > alarm).sum() >= 2 and last(kl.values) > alarm)
    _, surprise = change(kl)
    if not above and surprise < limits.surprise and len(kl) >= 6:
        return  # it stands high, but it stands
    coef = last(history.curve("kl_coef").values)
    evidence = f"KL is {now:.2f} nats a prompt, {'above the alarm at' if above else 'alarm at'} {alarm:g}"
    cause = f"a coefficient of {coef:.3g} does not hold against the reward" if np.isfinite(coef) else "the policy leaves the model it began from"
    more = max(0.1, 2 * float(np.nan_to_num(coef)))
    remedy = f"raise policy.kl.coef to {more:.2g}, then {2 * more:.2g}; lower the learning rate"
    yield Finding("kl-rising", "critical" if above else "warning", evidence, cause, remedy, since(kl, kl.values > limits.kl_high))


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
    if mean > -limits.kl_low or mean > -limits.surprise * error:
        return
    wrong = last(history.curve("sampler_error").values)
    if wrong > limits.sampler_error:
        cause = f"answers are drawn from another distribution than the one scored: log-probabilities differ by {wrong:.2g}"
    else:
        cause = "the distribution that is scored leaves something out that sampling uses: top-k, a least length, a masked EOS or padding"
    evidence = f"KL is {mean:.2f} nats a prompt, {-mean / error:.1f} standard errors below zero"
    remedy = "draw with temperature alone and score with the same; look at EOS, padding and min_new_tokens"
    yield Finding("kl-negative", "critical" if mean < -0.5 else "warning", evidence, cause, remedy, since(kl, kl.values < 0))


def _kl(history: History) -> Curve:
    curve = history.curve("kl")
    return curve if len(curve) else history.look("kl")


DETECTORS = (unheld, rising, negative)
