"""Learning from pairs: labels the wrong way round, labels that say nothing, and preferred answers that become
improbable."""

from collections.abc import Iterator

import numpy as np

from towpath.health import rates
from towpath.health.detectors.supervised import CHANCE
from towpath.health.history import Curve, History
from towpath.health.signals import last, since
from towpath.recipe import Limits
from towpath.records import Finding

CLEARLY = 0.1
"""Accuracy away from one half that is no accident over several logs."""
FALL = 0.3
"""Share of the log-probability of preferred answers by which it may become more negative."""


def _held_accuracy(history: History) -> Curve:
    held = history.look("pairs_accuracy")
    return held if len(held) else history.look("accuracy")


def _on_pairs(history: History) -> bool:
    return rates.kind(history) in ("pairs", "reward") and len(history.curve("loss")) > 0


def swapped(history: History, limits: Limits) -> Iterator[Finding]:
    """What is learned is the opposite of what held-out pairs say."""
    trained = history.curve("accuracy")
    held = _held_accuracy(history)
    if not _on_pairs(history) or len(held) < 2 or len(trained) < 6:
        return
    right = last(trained.values, max(3, len(trained) // 4))
    wrong = float(np.mean(held.values[-2:]))
    if right < 0.5 + CLEARLY or wrong > 0.5 - CLEARLY:
        return
    evidence = f"{right:.0%} right on the pairs trained on, {wrong:.0%} on held-out pairs: worse than chance"
    remedy = "look at which column is chosen and which is rejected in the training file and in the held-out file"
    step = since(held, held.values < 0.5)
    cause = "chosen and rejected are swapped in one of the two sets"
    yield Finding(
        "labels-swapped", "critical", evidence, cause, remedy, step, ("overfitting: that ends at chance, not below it",)
    )


def uninformative(history: History, limits: Limits) -> Iterator[Finding]:
    """Accuracy stays at one half though the model moves: the labels hold nothing that it can learn."""
    trained = history.curve("accuracy")
    held = _held_accuracy(history)
    if not _on_pairs(history) or len(trained) < 8 or history.steps < 40:
        return
    later = trained.values[len(trained) // 2 :]
    mean = float(later.mean())
    error = float(later.std() / np.sqrt(len(later)))
    if last(history.curve("loss").values, max(3, len(trained) // 4)) < 0.9 * CHANCE:
        return
    by_training = mean - 0.5 > max(CLEARLY / 2, limits.z_threshold * error)
    by_held_out = float(np.mean(held.values[-2:])) > 0.5 + CLEARLY / 2 if len(held) >= 2 else by_training
    if by_held_out and (by_training or float(np.mean(held.values[-2:])) > 0.5 + CLEARLY):
        return
    evidence = f"{mean:.0%} ± {2 * error:.0%} right on pairs in the second half of training, where guessing gives 50 %"
    evidence += f"; {np.mean(held.values[-2:]):.0%} on held-out pairs" if len(held) else ""
    cause = (
        "the labels do not go with anything that the model sees: random, mixed up, or about something outside the text"
    )
    remedy = "read twenty pairs; check how chosen and rejected were made; measure how often raters agree"
    yield Finding("label-noise", "warning", evidence, cause, remedy, int(trained.steps[0]))


def displaced(history: History, limits: Limits) -> Iterator[Finding]:
    """Preferred answers become improbable too: the margin grows because rejected answers fall faster (arXiv
    2410.08847)."""
    logp = history.curve("chosen_logp")
    ratio = history.curve("chosen")
    gap = history.curve("gap")
    if len(logp) < 6 or len(ratio) < 6:
        return
    begun = float(logp.values[:3].max())
    now = last(logp.values)
    fallen = (begun - now) / max(abs(begun), 1e-9)
    if fallen < FALL or not last(ratio.values) < 0:
        return
    evidence = f"the log-probability of chosen answers fell from {begun:.3g} to {now:.3g}"
    evidence += (
        f"; their reward is {last(ratio.values):.2g} while the margin is {last(gap.values):.2g}" if len(gap) else ""
    )
    cause = "beta is too small, or the learning rate too high, for these pairs: likelihood moves away from both answers"
    remedy = (
        "raise beta, lower the learning rate, end earlier, or add a likelihood term on the chosen answers "
        "(rpo_alpha, SFT loss)"
    )
    step = since(logp, logp.values < begun - FALL * abs(begun))
    yield Finding("likelihood-displacement", "critical" if fallen > 1.0 else "warning", evidence, cause, remedy, step)


DETECTORS = (swapped, uninformative, displaced)
