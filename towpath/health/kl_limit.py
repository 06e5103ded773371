"""Limits of the KL: nats per answer where a recipe states an alarm and answers are short, nats per token otherwise."""

from dataclasses import dataclass

import numpy as np

from towpath.health.history import Curve, History
from towpath.health.signals import last_level
from towpath.recipe import Limits


@dataclass(frozen=True)
class KLLimit:
    """Nats per answer at which to warn and to alarm, and how they were chosen."""

    warn: float
    alarm: float
    basis: str
    stated: bool
    """Whether the recipe, or the user, states the alarm."""


def kl_curve(history: History) -> Curve:
    """KL in nats per answer, of training or else of validation."""
    curve = history.curve("kl")
    return curve if len(curve) else history.validation_curve("kl")


def answer_length(history: History) -> float:
    """Tokens of a recent answer, estimated if they are not logged; NaN if they are not known."""
    length = history.curve("length")
    return last_level(length.values if len(length) else history.curve("length_estimate").values)


def kl_limit(history: History, limits: Limits) -> KLLimit:
    """The limits for this run's answers.

    A stated `policy.kl.alarm` applies per answer to answers of up to `kl_short_answer` tokens; every further token
    adds `kl_high_per_token` to both limits. Without a stated alarm, as in other trainers' logs, the larger of
    `kl_high` per answer and `kl_high_per_token` per token warns, and twice as much alarms.
    """
    length = answer_length(history)
    alarm = history.facts.get("policy.kl.alarm")
    if isinstance(alarm, int | float):
        extra = float(np.nan_to_num(max(length - limits.kl_short_answer, 0.0))) * limits.kl_high_per_token
        if extra <= 0:
            return KLLimit(limits.kl_high, float(alarm), f"limit per answer: policy.kl.alarm = {alarm:g}", True)
        basis = (
            f"policy.kl.alarm = {alarm:g} for {limits.kl_short_answer} tokens and {limits.kl_high_per_token:g} nats "
            "for each further token"
        )
        return KLLimit(limits.kl_high + extra, alarm + extra, f"limit per token: {basis}", True)
    per_token = limits.kl_high_per_token * length
    if np.isfinite(per_token) and per_token > limits.kl_high:
        basis = f"limit per token: {limits.kl_high_per_token:g} in answers of {length:.0f} tokens"
        return KLLimit(per_token, 2 * per_token, basis, False)
    basis = f"limit per answer: {limits.kl_high:g}"
    if not np.isfinite(per_token):
        basis += ", lengths are not logged"
    return KLLimit(limits.kl_high, 2 * limits.kl_high, basis, False)


def describe_kl(history: History, kl: float) -> str:
    """A KL per answer, and per token if the length is known."""
    length = answer_length(history)
    per_token = f" ({kl / length:.2g} a token)" if length > 0 else ""
    return f"{kl:.2f} nats a prompt{per_token}"
