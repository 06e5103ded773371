"""Quality of the reward model and its labels: overfitting, label noise, length bias, by the result of its stage."""

from collections.abc import Iterator
from typing import Any

from towpath.health.history import History
from towpath.recipe import Limits
from towpath.records import Finding

NOISY_CEILING = 0.72
"""An agreement ceiling below which labels are too noisy to learn from."""


def _result(history: History, key: str) -> Any:
    return history.facts.get(f"reward.result.{key}")


def overfit_reward_model(history: History, limits: Limits) -> Iterator[Finding]:
    """Accuracy on trained labels far above that on held-out labels."""
    trained, held, n = (_result(history, key) for key in ("train_accuracy", "accuracy", "n"))
    if trained is None or held is None or trained - held <= limits.overfit:
        return
    evidence = f"accuracy {trained:.0%} on training labels, {held:.0%} on {n or 'the'} held-out labels"
    cause = f"it memorised its {_result(history, 'pairs') or ''} pairs".replace("  ", " ")
    remedy = "label more pairs, train for one epoch, or use LoRA; do not optimise a policy against this model"
    ceiling = _result(history, "ceiling")
    ruled = (
        (f"label noise alone: the agreement ceiling is {ceiling:.0%}",) if ceiling and ceiling > NOISY_CEILING else ()
    )
    yield Finding(
        "reward-overfit",
        "critical" if trained - held > 1.5 * limits.overfit else "warning",
        evidence,
        cause,
        remedy,
        -1,
        ruled,
    )


def noisy_labels(history: History, limits: Limits) -> Iterator[Finding]:
    """Raters disagree so often that accuracy is limited."""
    ceiling = _result(history, "ceiling")
    held = _result(history, "accuracy")
    if ceiling is None or held is None or ceiling > NOISY_CEILING or held > NOISY_CEILING + 0.05:
        return
    evidence = (
        f"raters disagree so often that an accuracy of {ceiling:.0%} is the ceiling; the reward model has {held:.0%}"
    )
    cause = "a large share of the labels is wrong"
    remedy = "have pairs judged twice, check raters and guidelines (`towpath label stats`), adjudicate disagreements"
    yield Finding("label-noise", "critical", evidence, cause, remedy, -1)


def length_biased_labels(history: History, limits: Limits) -> Iterator[Finding]:
    """Scores and labels follow length on held-out answers."""
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
        remedy = "balance the labels by length; see the diagnosis of the labels"
        yield Finding("length-hacking", "warning", evidence, "labels prefer longer answers", remedy, -1)


DETECTORS = (overfit_reward_model, noisy_labels, length_biased_labels)
