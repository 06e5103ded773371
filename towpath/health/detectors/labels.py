"""The reward model and what it was trained on: overfit, noisy, or fond of length; from the numbers its stage ended
with."""

from collections.abc import Iterator
from typing import Any

from towpath.health.history import History
from towpath.recipe import Limits
from towpath.records import Finding

NOISY = 0.72
"""A ceiling of accuracy below which raters contradict each other too often to be learned from."""


def _result(history: History, key: str) -> Any:
    return history.facts.get(f"reward.result.{key}")


def overfit(history: History, limits: Limits) -> Iterator[Finding]:
    """Right on the labels it saw, and not on those it did not."""
    seen, held, n = (_result(history, key) for key in ("train_accuracy", "accuracy", "n"))
    if seen is None or held is None or seen - held <= limits.overfit:
        return
    evidence = f"{seen:.0%} right on labels it was trained on, {held:.0%} on {n or 'the'} held-out ones"
    cause = f"it has learned its {_result(history, 'pairs') or ''} pairs by heart".replace("  ", " ")
    remedy = "label more pairs, train for one epoch, or use LoRA; do not optimise against it as it is"
    ceiling = _result(history, "ceiling")
    ruled = (f"noise alone: raters agree enough for {ceiling:.0%}",) if ceiling and ceiling > NOISY else ()
    yield Finding(
        "reward-overfit",
        "critical" if seen - held > 1.5 * limits.overfit else "warning",
        evidence,
        cause,
        remedy,
        -1,
        ruled,
    )


def noisy(history: History, limits: Limits) -> Iterator[Finding]:
    """Raters contradict each other, and the model cannot know better."""
    ceiling = _result(history, "ceiling")
    held = _result(history, "accuracy")
    if ceiling is None or held is None or ceiling > NOISY or held > NOISY + 0.05:
        return
    evidence = (
        f"raters agree so seldom that {ceiling:.0%} is the best accuracy to be had; the reward model has {held:.0%}"
    )
    cause = "a large share of the labels is wrong"
    remedy = "have pairs judged twice, look at raters and guidelines (`towpath label stats`), adjudicate disagreement"
    yield Finding("label-noise", "critical", evidence, cause, remedy, -1)


def long_winded(history: History, limits: Limits) -> Iterator[Finding]:
    """The reward model's scores follow length already on the answers it is measured on."""
    corr, length_only, held = (
        _result(history, key) for key in ("length_correlation", "length_only_accuracy", "accuracy")
    )
    if (
        isinstance(corr, int | float)
        and corr > limits.length_correlation
        and isinstance(length_only, int | float)
        and length_only > 0.75
    ):
        evidence = (
            f"scores correlate {corr:.2f} with length within a prompt; length alone predicts {length_only:.0%} of "
            f"labels (the model {held:.0%})"
        )
        remedy = "balance the labels by length, or pay for concision; see the diagnosis of the labels"
        yield Finding("length-hacking", "warning", evidence, "labels prefer what is longer", remedy, -1)


DETECTORS = (overfit, noisy, long_winded)
