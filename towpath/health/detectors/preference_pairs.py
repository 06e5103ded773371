"""Learning from preference pairs: swapped labels, uninformative labels, likelihood displacement."""

from collections.abc import Iterator

import numpy as np

from towpath.health import learning_rates
from towpath.health.detectors.supervised import CHANCE_LOSS
from towpath.health.history import Curve, History
from towpath.health.signals import first_step_where, last_level
from towpath.recipe import Limits
from towpath.records import Finding

MIN_BIAS = 0.1
"""Distance of an accuracy from one half that is not chance over several logs."""
MAX_FALL = 0.3
"""Largest relative fall of the log-probability of chosen answers."""


def _validation_accuracy(history: History) -> Curve:
    held = history.validation_curve("pairs_accuracy")
    return held if len(held) else history.validation_curve("accuracy")


def _learns_from_pairs(history: History) -> bool:
    return learning_rates.training_kind(history) in ("pairs", "reward") and len(history.curve("loss")) > 0


def swapped_labels(history: History, limits: Limits) -> Iterator[Finding]:
    """Accuracy is high on training pairs and below chance on held-out pairs."""
    trained = history.curve("accuracy")
    held = _validation_accuracy(history)
    if not _learns_from_pairs(history) or len(held) < 2 or len(trained) < 6:
        return
    right = last_level(trained.values, max(3, len(trained) // 4))
    wrong = float(np.mean(held.values[-2:]))
    if right < 0.5 + MIN_BIAS or wrong > 0.5 - MIN_BIAS:
        return
    evidence = f"accuracy {right:.0%} on training pairs, {wrong:.0%} on held-out pairs: worse than chance"
    remedy = "check which column is chosen and which is rejected in the training file and in the held-out file"
    step = first_step_where(held, held.values < 0.5)
    cause = "chosen and rejected are swapped in one of the two sets"
    yield Finding(
        "labels-swapped",
        "critical",
        evidence,
        cause,
        remedy,
        step,
        ("overfitting: accuracy would be at chance, not below it",),
    )


def uninformative_labels(history: History, limits: Limits) -> Iterator[Finding]:
    """Accuracy stays at one half although the model changes: the labels are uninformative."""
    trained = history.curve("accuracy")
    held = _validation_accuracy(history)
    if not _learns_from_pairs(history) or len(trained) < 8 or history.steps < 40:
        return
    later = trained.values[len(trained) // 2 :]
    mean = float(later.mean())
    error = float(later.std() / np.sqrt(len(later)))
    if last_level(history.curve("loss").values, max(3, len(trained) // 4)) < 0.9 * CHANCE_LOSS:
        return
    by_training = mean - 0.5 > max(MIN_BIAS / 2, limits.z_threshold * error)
    by_held_out = float(np.mean(held.values[-2:])) > 0.5 + MIN_BIAS / 2 if len(held) >= 2 else by_training
    if by_held_out and (by_training or float(np.mean(held.values[-2:])) > 0.5 + MIN_BIAS):
        return
    evidence = f"accuracy {mean:.0%} ± {2 * error:.0%} in the second half of training, where guessing gives 50 %"
    evidence += f"; {np.mean(held.values[-2:]):.0%} on held-out pairs" if len(held) else ""
    cause = "the labels do not depend on the text: random, mixed up, or about something that the model does not see"
    remedy = "read twenty pairs; check how chosen and rejected were made; measure rater agreement"
    yield Finding("label-noise", "warning", evidence, cause, remedy, int(trained.steps[0]))


def likelihood_displacement(history: History, limits: Limits) -> Iterator[Finding]:
    """Chosen answers become less probable: the margin grows because rejected answers fall faster (arXiv 2410.08847)."""
    logp = history.curve("chosen_logp")
    ratio = history.curve("chosen")
    gap = history.curve("gap")
    if len(logp) < 6 or len(ratio) < 6:
        return
    start = float(logp.values[:3].max())
    now = last_level(logp.values)
    fallen = (start - now) / max(abs(start), 1e-9)
    if fallen < MAX_FALL or not last_level(ratio.values) < 0:
        return
    evidence = f"the log-probability of chosen answers fell from {start:.3g} to {now:.3g}"
    evidence += (
        f"; their reward is {last_level(ratio.values):.2g} while the margin is {last_level(gap.values):.2g}"
        if len(gap)
        else ""
    )
    cause = "beta is too small, or the learning rate too high, for these pairs: probability moves to other answers"
    remedy = (
        "raise beta, lower the learning rate, stop earlier, or add a likelihood term on the chosen answers "
        "(rpo_alpha, SFT loss)"
    )
    step = first_step_where(logp, logp.values < start - MAX_FALL * abs(start))
    yield Finding("likelihood-displacement", "critical" if fallen > 1.0 else "warning", evidence, cause, remedy, step)


DETECTORS = (swapped_labels, uninformative_labels, likelihood_displacement)
