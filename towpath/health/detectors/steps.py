"""Steps too large, steps too small, or a penalty that allows none."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import Curve, History
from towpath.health.signals import change, last, lately, noise, since, sustained
from towpath.recipe import Limits
from towpath.records import Finding

STILL = 2e-5
"""Nats a token between the policy before and after an update, below which it has not moved."""
GRACE = 6
"""Steps before a run is said not to move."""


def too_large(history: History, limits: Limits) -> Iterator[Finding]:
    """Updates that overshoot: clipping, the jump of one update, runaway KL, spikes of the gradient, reward that collapses, answers that repeat."""
    signs = list(_overshooting(history, limits))
    if not signs:
        return
    begun = min(step for step, _, _ in signs)
    weight = sum(w for _, w, _ in signs)
    if weight < 2:
        return
    coef = last(history.curve("kl_coef").values)
    ruled = (f"a penalty that is too small: the jump is that of single updates, at a coefficient of {coef:.3g}",) if coef > 0 else ()
    cause, remedy = (
        "updates are larger than what rollouts can tell" + _rate(history),
        "a tenth of the learning rate, from the last good checkpoint on",
    )
    evidence, severity = "; ".join(text for _, _, text in signs), "critical" if weight >= 3 else "warning"
    yield Finding("learning-rate-high", severity, evidence, cause, remedy, begun, ruled)


def _overshooting(history: History, limits: Limits) -> Iterator[tuple[int, int, str]]:
    """(step, weight, words) of every sign of too large steps."""
    told = {"clip_fraction": "{:.0%} of tokens clipped", "approx_kl": "{:.2g} nats a token in one rollout's updates"}
    for name, words in told.items():
        curve, limit = history.curve(name), getattr(limits, name)
        worst = sustained(curve.values)
        if len(curve) >= 2 and (worst > limit or curve.values.max() > 10 * limit):
            worst = max(worst, float(curve.values.max()) / 10)
            yield int(curve.steps[int(np.argmax(curve.values > limit))]), 2 if worst > 2 * limit else 1, words.format(float(curve.values.max()))
    kl = history.curve("kl")
    jumps = np.diff(kl.values)
    if len(jumps) and jumps.max() > 3:
        yield int(kl.steps[1 + int(jumps.argmax())]), 1, f"KL rose by {jumps.max():.1f} nats in one step"
    norm = history.curve("grad_norm")
    if len(norm) >= 8 and last(norm.values) > 8 * np.median(norm.values[: len(norm) // 2]):
        yield (
            int(norm.steps[-3]),
            1,
            f"the gradient's norm is {last(norm.values):.3g}, {last(norm.values) / np.median(norm.values):.0f} times its usual size",
        )
    reward, rose = history.curve("reward"), change(history.curve("reward"))
    fallen, surprise = lately(reward)
    if surprise < -2 * limits.surprise and rose[0] < 0:
        yield int(reward.steps[-1]), 1, f"reward fell by {-fallen:.2g} from its best"
    for loss in (history.curve("loss"), history.look("loss")):
        yield from _loss_rose(loss)


def _loss_rose(loss: Curve) -> Iterator[tuple[int, int, str]]:
    """A supervised loss that stands well above where it began."""
    if len(loss) < 4:
        return
    begun, now = loss.values[0], last(loss.values)
    if now > 1.2 * max(begun, 1e-9) and now - begun > 3 * min(noise(loss.values), begun):
        yield since(loss, loss.values > 1.2 * begun), 3, f"the loss rose from {begun:.3g} to {now:.3g}"


def too_small(history: History, limits: Limits) -> Iterator[Finding]:
    """The policy goes nowhere: no distance and the same reward, because steps are small; or the same reward because a penalty outweighs it."""
    kl, moved, reward = (history.curve(name) for name in ("kl", "approx_kl", "reward"))
    planned = history.facts.get("steps", history.facts.get("policy.steps", 0))
    if len(kl) < max(GRACE, min(float(planned) / 5, 100)) or change(reward)[1] > limits.surprise:
        return
    coef = last(history.curve("kl_coef").values)
    step = last(moved.values) if len(moved) else float("nan")
    near = last(np.abs(kl.values)) < limits.kl_low and float(np.abs(kl.values[len(kl) // 4 :]).max()) < 2 * limits.kl_low
    seen = f"after {history.steps} steps KL is {last(kl.values):.2g} nats and reward {_flat(history)}"
    if near and (step < STILL or (np.isnan(step) and not coef > 1)):
        ruled = (f"a penalty that holds it: one rollout's updates move it by {step:.1g} nats a token",) if step < STILL else ()
        cause = "the learning rate is too small for these steps to be seen" + _rate(history)
        yield Finding("learning-rate-low", "warning", seen, cause, "raise the learning rate threefold to tenfold", int(kl.steps[0]), ruled)
        return
    cost, spread = coef * last(kl.values), last(history.curve("reward_std").values)
    if (near and coef > 0) or (cost > spread and last(kl.values) < limits.kl_high):
        ruled = (f"a learning rate that is too small: one rollout's updates move it by {step:.1g} nats a token",) if step > STILL else ()
        outweighs = f"; the penalty takes {cost:.2g} an answer where rewards differ by {spread:.2g}" if cost > spread else ""
        cause = f"the KL penalty of {coef:.3g} outweighs what there is to gain"
        yield Finding("held-tight", "warning", seen + outweighs, cause, "lower policy.kl.coef to a fifth, 0.01 at least", int(kl.steps[0]), ruled)


def _flat(history: History) -> str:
    moved, surprise = change(history.curve("reward"))
    return f"has moved by {moved:+.2g}, {abs(surprise):.1f} deviations of its noise"


def _rate(history: History) -> str:
    rate = history.facts.get("policy.learning_rate") if history.facts.get("stage", "policy") == "policy" else None
    if not isinstance(rate, int | float):
        rate = last(history.curve("learning_rate").values, 1)
    return f" (learning rate {rate:.2g})" if np.isfinite(rate) and rate else ""


DETECTORS = (too_large, too_small)
