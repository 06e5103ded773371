"""Losses that should fall: of demonstrations, of pairs, of a reward model."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from towpath.health import rates
from towpath.health.history import Curve, History
from towpath.health.signals import change, first, last, noise, rolling_median, shared, since
from towpath.recipe import Limits
from towpath.records import Finding

Sign = tuple[int, int, str]
"""First step, weight, words."""
AT_ONCE = 5
"""Logs in which single updates, and no trend, are to blame."""
UNTAUGHT = 4.5
"""Nats a token above which a model knows nothing of what it is taught."""
CHANCE = float(np.log(2))
"""The loss of a model of pairs that knows nothing."""
CONFIDENT = 1.0
"""Nats by which a loss exceeds the model's own entropy where it is confidently wrong."""
FLAT = 0.05
"""Share of a loss that it must lose over the middle half of a run to count as falling."""
LEAST_POINTS = 6
"""Logs of a loss that its course is judged by."""
RISE = 0.05
"""Share by which a held-out loss must rise from its best to count as overfit."""


def is_supervised(history: History) -> bool:
    """Whether the loss is one that should fall: no rollouts are scored."""
    return (
        bool(len(history.curve("loss"))) and not len(history.curve("reward")) and not len(history.curve("policy_loss"))
    )


def overshoot_signs(history: History) -> Iterator[Sign]:
    """Signs in the loss that updates are too large."""
    loss = history.curve("loss")
    yield from _rose(loss)
    overfits = any(True for _ in overfit(history, Limits()))
    if not overfits:
        yield from _rose(history.look("loss"))
    if not is_supervised(history):
        return
    signs = [*_spike(history), *_confidently_wrong(history), *_stuck(history), *_likelihood_lost(history)]
    yield from signs
    if signs and rates.excess(history) > rates.FAR_ABOVE:
        yield int(loss.steps[0]), 1 + (rates.excess(history) > rates.ABSURD), rates.words(history)


def _rose(loss: Curve) -> Iterator[Sign]:
    """A loss that stands well above where it began."""
    if len(loss) < 4:
        return
    begun = loss.values[0]
    now = last(loss.values)
    if now > 1.2 * max(begun, 1e-9) and now - begun > 3 * min(noise(loss.values), begun):
        yield since(loss, loss.values > 1.2 * begun), 3, f"the loss rose from {begun:.3g} to {now:.3g}"


def _spike(history: History) -> Iterator[Sign]:
    """A loss that rose well above where it began, and came down again."""
    loss = history.curve("loss")
    if len(loss) < LEAST_POINTS:
        return
    begun = float(loss.values[0])
    fine = len(loss) >= 24
    if _suspect(history) and rates.kind(history) in ("pairs", "reward"):
        begun = min(begun, CHANCE)  # the first log may be a mean over steps that were too large already
    smooth = rolling_median(loss.values) if fine else loss.values
    usual = min(noise(loss.values[len(loss) // 2 :]), noise(loss.values))
    peak = float(smooth.max())
    if peak - begun > max(0.1 * abs(begun), 4 * usual if np.isfinite(usual) else 0.0):
        step = int(loss.steps[fine + int(np.argmax(smooth > begun + 0.5 * (peak - begun)))])
        yield step, 2 if peak < 1.5 * begun else 3, f"the loss rose from {begun:.3g} to {peak:.3g} before it fell"


def _confidently_wrong(history: History) -> Iterator[Sign]:
    """Predictions that are far surer than they are right: the loss exceeds the model's own entropy."""
    steps, loss, entropy = shared(history.curve("loss"), history.curve("token_entropy"))
    if history.facts.get("stage") != "sft" or len(loss) < LEAST_POINTS:
        return
    gap = rolling_median(loss - entropy) if len(loss) >= 24 else loss - entropy
    usual = 0.0 if _suspect(history) else loss[0] - entropy[0]
    if gap.max() - usual > CONFIDENT and gap.max() > 0.2 * float(np.median(loss)):
        where = int(np.argmax(gap))
        words = (
            f"the loss of {loss[where]:.3g} exceeds the model's own entropy of {entropy[where]:.3g} nats: it is sure "
            "and wrong"
        )
        yield int(steps[where]), 1, words


def _likelihood_lost(history: History) -> Iterator[Sign]:
    """Chosen answers that become improbable within a few logs: a loss of likelihood that the loss of pairs does not
    show."""
    logp = history.curve("chosen_logp")
    if len(logp) < LEAST_POINTS:
        return
    begun = -float(logp.values[0])
    early = -rolling_median(logp.values[: AT_ONCE + 2])
    times = float(early.max()) / max(begun, 1e-9)
    if times > 2:
        words = (
            f"chosen answers lost {early.max() - begun:.3g} nats of log-probability within {AT_ONCE} logs, "
            f"{begun:.3g} at the start"
        )
        yield int(logp.steps[1 + int(np.argmax(early > 2 * begun))]), 2 if times < 4 else 3, words


def _stuck(history: History) -> Iterator[Sign]:
    """A loss that does not fall over the middle half of the run, at a rate far above the usual."""
    loss = history.curve("loss")
    if len(loss) < LEAST_POINTS or not _suspect(history):
        return
    quarter = len(loss) // 4
    middle = loss.values[quarter : 3 * quarter + 1]
    count = min(len(middle) // 2, max(3, len(middle) // 4))
    begun = first(middle, count)
    ended = last(middle, count)
    if begun - ended < FLAT * abs(begun):
        yield int(loss.steps[quarter]), 1, f"the loss stands at {ended:.3g} and no longer falls"


def _suspect(history: History) -> bool:
    """Whether the rate is so far above the usual that one symptom is enough."""
    return rates.excess(history) > rates.FAR_ABOVE


def too_small(history: History, limits: Limits) -> Iterator[Finding]:
    """A loss that does not move because the rate is too low for these steps."""
    loss = history.curve("loss")
    if not is_supervised(history) or len(loss) < 6 or history.steps < 10 or not np.isfinite(loss.values).all():
        return
    moved, surprise = change(loss)
    begun = first(loss.values)
    share = abs(moved) / max(abs(begun), 1e-9)
    if share > 0.02 or (
        share > 0.005 and abs(surprise) > 2 * limits.z_threshold and moved < 0 and not _far_below(history)
    ):
        return
    if rates.kind(history) == "pairs" and _policy_moved(history):
        return
    travel = rates.travel(history)
    low = rates.USUAL[rates.kind(history)][0]
    if np.isfinite(travel) and travel > 1e-3:
        return
    same_policy = len(history.curve("chosen")) > 0  # and it has not moved, as was asked above
    known_rate = rates.kind(history) == "reward" or rates.peak(history) < low / 2
    grave = begun > UNTAUGHT or same_policy or (np.isfinite(travel) and known_rate)
    evidence = f"after {history.steps} steps the loss has moved from {begun:.4g} by {moved:+.2g}, {share:.1%}"
    cause = f"the learning rate is too low to be seen in so few steps{rates.in_brackets(history)}"
    if np.isfinite(travel):
        cause += f": AdamW has moved no weight by more than {travel:.1g} where weights are about {rates.WEIGHT_SIZE:g}"
    remedy = "raise the learning rate tenfold to a hundredfold, or train for more steps"
    yield Finding("learning-rate-low", "warning" if grave else "info", evidence, cause, remedy, int(loss.steps[0]))


def _far_below(history: History) -> bool:
    return rates.peak(history) < rates.USUAL[rates.kind(history)][0]


def _policy_moved(history: History) -> bool:
    """Whether the log-ratio to the reference, times beta, has moved at all."""
    sizes = [
        np.abs(history.curve(name).values[len(history.curve(name)) // 2 :])
        for name in ("chosen", "rejected")
        if len(history.curve(name))
    ]
    return bool(sizes) and max(float(np.median(size)) for size in sizes) > 0.01


def overfit(history: History, limits: Limits) -> Iterator[Finding]:
    """A held-out loss that rises from its best while the loss of training falls on."""
    held = history.look("pairs_loss") if len(history.look("pairs_loss")) else history.look("loss")
    loss = history.curve("loss")
    if len(held) < 3 or len(loss) < 4 or not np.isfinite(held.values).all():
        return
    best = float(held.values.min())
    now = float(np.mean(held.values[-2:]))
    place = int(np.argmin(held.values))
    if now - best <= max(RISE * abs(best), 2 * _scatter(held.values)) or place >= len(held) - 2:
        return
    at_best = first(loss.after(int(held.steps[place]) - 1).values)
    trained = last(loss.values)
    if not trained < 0.9 * at_best and not trained < 0.7 * best:
        return
    evidence = (
        f"the held-out loss rose from {best:.3g} at step {int(held.steps[place]) + 1} to {now:.3g}; the loss of "
        f"training fell to {trained:.3g}"
    )
    grave = now > max(1.2 * best, float(held.values[0]))
    remedy = "end training at the best held-out loss; fewer epochs, more data, LoRA, or a lower rate"
    step = int(held.steps[place])
    finding = Finding(
        "overfit", "critical" if grave else "warning", evidence, "the rows are learned by heart", remedy, step
    )
    yield replace(finding, code="reward-overfit") if rates.kind(history) == "reward" else finding


def _scatter(values: np.ndarray) -> float:
    """Noise of a short curve: of its second differences, and nothing where there are too few."""
    scatter = noise(values)
    return scatter if np.isfinite(scatter) and len(values) > 5 else 0.0


DETECTORS = (too_small, overfit)
