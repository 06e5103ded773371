"""Supervised losses: of demonstrations, of preference pairs, of a reward model."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from towpath.health import learning_rates
from towpath.health.history import Curve, History
from towpath.health.signals import align, change, first_level, first_step_where, last_level, noise, rolling_median
from towpath.recipe import Limits
from towpath.records import Finding

Sign = tuple[int, int, str]
"""First step, weight, description."""
SUDDEN_LOGS = 5
"""Logs within which a change is that of single updates, not a trend."""
UNTRAINED_LOSS = 4.5
"""Nats a token of a model that has learned nothing of the data."""
CHANCE_LOSS = float(np.log(2))
"""The loss of a pairwise model at chance."""
OVERCONFIDENCE = 1.0
"""Nats by which the loss of an overconfident model exceeds its entropy."""
MIN_FALL = 0.05
"""Relative fall over the middle half of a run from which a loss counts as falling."""
MIN_LOGS = 6
"""Logs from which the course of a loss is judged."""
OVERFIT_RISE = 0.05
"""Relative rise of a held-out loss from its best that counts as overfitting."""


def is_supervised(history: History) -> bool:
    """Whether the loss should fall: there are no rollouts."""
    return (
        bool(len(history.curve("loss"))) and not len(history.curve("reward")) and not len(history.curve("policy_loss"))
    )


def loss_signs(history: History) -> Iterator[Sign]:
    """Signs in the loss that the learning rate is too high."""
    loss = history.curve("loss")
    yield from _risen_loss(loss)
    overfits = any(True for _ in overfit(history, Limits()))
    if not overfits:
        yield from _risen_loss(history.validation_curve("loss"))
    if not is_supervised(history):
        return
    signs = [*_loss_spike(history), *_confidently_wrong(history), *_stuck_loss(history), *_lost_likelihood(history)]
    yield from signs
    if signs and learning_rates.excess_factor(history) > learning_rates.SUSPECT_FACTOR:
        yield (
            int(loss.steps[0]),
            1 + (learning_rates.excess_factor(history) > learning_rates.ABSURD_FACTOR),
            learning_rates.describe_excess(history),
        )


def _risen_loss(loss: Curve) -> Iterator[Sign]:
    """A loss that stays well above its start."""
    if len(loss) < 4:
        return
    start = loss.values[0]
    now = last_level(loss.values)
    if now > 1.2 * max(start, 1e-9) and now - start > 3 * min(noise(loss.values), start):
        yield first_step_where(loss, loss.values > 1.2 * start), 3, f"the loss rose from {start:.3g} to {now:.3g}"


def _loss_spike(history: History) -> Iterator[Sign]:
    """A loss that rose well above its start, and came down again."""
    loss = history.curve("loss")
    if len(loss) < MIN_LOGS:
        return
    start = float(loss.values[0])
    fine = len(loss) >= 24
    if _is_suspect_rate(history) and learning_rates.training_kind(history) in ("pairs", "reward"):
        start = min(start, CHANCE_LOSS)  # the first log may be a mean over steps that already were too large
    smooth = rolling_median(loss.values) if fine else loss.values
    usual = min(noise(loss.values[len(loss) // 2 :]), noise(loss.values))
    peak = float(smooth.max())
    if peak - start > max(0.1 * abs(start), 4 * usual if np.isfinite(usual) else 0.0):
        step = int(loss.steps[fine + int(np.argmax(smooth > start + 0.5 * (peak - start)))])
        yield step, 2 if peak < 1.5 * start else 3, f"the loss rose from {start:.3g} to {peak:.3g} before it fell"


def _confidently_wrong(history: History) -> Iterator[Sign]:
    """Overconfident predictions: the loss exceeds the model's entropy."""
    steps, loss, entropy = align(history.curve("loss"), history.curve("token_entropy"))
    if history.facts.get("stage") != "sft" or len(loss) < MIN_LOGS:
        return
    gap = rolling_median(loss - entropy) if len(loss) >= 24 else loss - entropy
    usual = 0.0 if _is_suspect_rate(history) else loss[0] - entropy[0]
    if gap.max() - usual > OVERCONFIDENCE and gap.max() > 0.2 * float(np.median(loss)):
        where = int(np.argmax(gap))
        words = (
            f"the loss of {loss[where]:.3g} exceeds the model's entropy of {entropy[where]:.3g} nats: it is "
            "overconfident"
        )
        yield int(steps[where]), 1, words


def _lost_likelihood(history: History) -> Iterator[Sign]:
    """Chosen answers that become improbable within a few logs, which the pairwise loss does not show."""
    logp = history.curve("chosen_logp")
    if len(logp) < MIN_LOGS:
        return
    start = -float(logp.values[0])
    early = -rolling_median(logp.values[: SUDDEN_LOGS + 2])
    times = float(early.max()) / max(start, 1e-9)
    if times > 2:
        words = (
            f"chosen answers lost {early.max() - start:.3g} nats of log-probability within {SUDDEN_LOGS} logs, "
            f"{start:.3g} at the start"
        )
        yield int(logp.steps[1 + int(np.argmax(early > 2 * start))]), 2 if times < 4 else 3, words


def _stuck_loss(history: History) -> Iterator[Sign]:
    """A loss that does not fall over the middle half of the run, with a rate far above the usual."""
    loss = history.curve("loss")
    if len(loss) < MIN_LOGS or not _is_suspect_rate(history):
        return
    quarter = len(loss) // 4
    middle = loss.values[quarter : 3 * quarter + 1]
    count = min(len(middle) // 2, max(3, len(middle) // 4))
    start = first_level(middle, count)
    ended = last_level(middle, count)
    if start - ended < MIN_FALL * abs(start):
        yield int(loss.steps[quarter]), 1, f"the loss stays at {ended:.3g} and no longer falls"


def _is_suspect_rate(history: History) -> bool:
    """Whether the rate is far enough above the usual one that one symptom is enough."""
    return learning_rates.excess_factor(history) > learning_rates.SUSPECT_FACTOR


def learning_rate_too_low(history: History, limits: Limits) -> Iterator[Finding]:
    """A loss that does not change because the learning rate is too low."""
    loss = history.curve("loss")
    if not is_supervised(history) or len(loss) < 6 or history.steps < 10 or not np.isfinite(loss.values).all():
        return
    moved, surprise = change(loss)
    start = first_level(loss.values)
    share = abs(moved) / max(abs(start), 1e-9)
    if share > 0.02 or (
        share > 0.005 and abs(surprise) > 2 * limits.z_threshold and moved < 0 and not _is_far_below_usual(history)
    ):
        return
    if learning_rates.training_kind(history) == "pairs" and _policy_moved(history):
        return
    travel = learning_rates.max_weight_change(history)
    low = learning_rates.USUAL[learning_rates.training_kind(history)][0]
    if np.isfinite(travel) and travel > 1e-3:
        return
    same_policy = len(history.curve("chosen")) > 0  # and it has not moved, as was checked above
    known_rate = learning_rates.training_kind(history) == "reward" or learning_rates.peak_rate(history) < low / 2
    grave = start > UNTRAINED_LOSS or same_policy or (np.isfinite(travel) and known_rate)
    evidence = f"after {history.steps} steps the loss changed from {start:.4g} by {moved:+.2g}, {share:.1%}"
    cause = f"the learning rate is too low for so few steps{learning_rates.rate_note(history)}"
    if np.isfinite(travel):
        size = learning_rates.WEIGHT_SIZE
        cause += f": AdamW has moved no weight by more than {travel:.1g} where weights are about {size:g}"
    remedy = "raise the learning rate tenfold to a hundredfold, or train for more steps"
    yield Finding("learning-rate-low", "warning" if grave else "info", evidence, cause, remedy, int(loss.steps[0]))


def _is_far_below_usual(history: History) -> bool:
    return learning_rates.peak_rate(history) < learning_rates.USUAL[learning_rates.training_kind(history)][0]


def _policy_moved(history: History) -> bool:
    """Whether the log-ratio to the reference, times beta, has moved at all."""
    sizes = [
        np.abs(history.curve(name).values[len(history.curve(name)) // 2 :])
        for name in ("chosen", "rejected")
        if len(history.curve(name))
    ]
    return bool(sizes) and max(float(np.median(size)) for size in sizes) > 0.01


def overfit(history: History, limits: Limits) -> Iterator[Finding]:
    """A held-out loss that rises from its best while the training loss falls."""
    held = (
        history.validation_curve("pairs_loss")
        if len(history.validation_curve("pairs_loss"))
        else history.validation_curve("loss")
    )
    loss = history.curve("loss")
    if len(held) < 3 or len(loss) < 4 or not np.isfinite(held.values).all():
        return
    best = float(held.values.min())
    now = float(np.mean(held.values[-2:]))
    best_at = int(np.argmin(held.values))
    if now - best <= max(OVERFIT_RISE * abs(best), 2 * _scatter(held.values)) or best_at >= len(held) - 2:
        return
    at_best = first_level(loss.after(int(held.steps[best_at]) - 1).values)
    trained = last_level(loss.values)
    if not trained < 0.9 * at_best and not trained < 0.7 * best:
        return
    evidence = (
        f"the held-out loss rose from {best:.3g} at step {int(held.steps[best_at]) + 1} to {now:.3g}; the "
        f"training loss fell to {trained:.3g}"
    )
    grave = now > max(1.2 * best, float(held.values[0]))
    remedy = "stop at the best held-out loss; fewer epochs, more data, LoRA, or a lower learning rate"
    step = int(held.steps[best_at])
    finding = Finding(
        "overfit", "critical" if grave else "warning", evidence, "the model memorises the training rows", remedy, step
    )
    yield replace(finding, code="reward-overfit") if learning_rates.training_kind(history) == "reward" else finding


def _scatter(values: np.ndarray) -> float:
    """The noise of a short curve; 0 with too few points."""
    scatter = noise(values)
    return scatter if np.isfinite(scatter) and len(values) > 5 else 0.0


DETECTORS = (learning_rate_too_low, overfit)
