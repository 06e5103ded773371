"""Which KL warns and which alarms: per answer where a recipe states an alarm and answers are short, per token
beyond."""

from dataclasses import dataclass

import numpy as np

from towpath.health.history import Curve, History
from towpath.health.signals import last
from towpath.recipe import Limits


@dataclass(frozen=True)
class KLLimit:
    """Nats per answer that warn and that alarm, and how they were chosen."""

    warn: float
    alarm: float
    basis: str
    stated: bool
    """Whether a recipe, or the user, states the alarm."""


def kl_curve(history: History) -> Curve:
    """KL in nats per answer, of training or else of validation."""
    curve = history.curve("kl")
    return curve if len(curve) else history.look("kl")


def answer_length(history: History) -> float:
    """Tokens of an answer lately, estimated where it must be; not a number where nothing tells it."""
    length = history.curve("length")
    return last(length.values if len(length) else history.curve("length_estimate").values)


def kl_limit(history: History, limits: Limits) -> KLLimit:
    """The limits that hold for this run's answers.

    A stated `policy.kl.alarm` holds per answer for answers of up to `kl_short_answer` tokens; every token beyond
    adds `kl_high_per_token` to both limits. Without a stated alarm, as in other trainers' logs, the larger of
    `kl_high` per answer and `kl_high_per_token` per token warns, and twice as much alarms.
    """
    length = answer_length(history)
    alarm = history.facts.get("policy.kl.alarm")
    if isinstance(alarm, int | float):
        beyond = float(np.nan_to_num(max(length - limits.kl_short_answer, 0.0))) * limits.kl_high_per_token
        if beyond <= 0:
            return KLLimit(limits.kl_high, float(alarm), f"limit per answer: policy.kl.alarm = {alarm:g}", True)
        basis = (
            f"policy.kl.alarm = {alarm:g} for {limits.kl_short_answer} tokens and {limits.kl_high_per_token:g} nats "
            "for each of the others"
        )
        return KLLimit(limits.kl_high + beyond, alarm + beyond, f"limit per token: {basis}", True)
    per_token = limits.kl_high_per_token * length
    if not np.isfinite(per_token):
        return KLLimit(
            limits.kl_high, 2 * limits.kl_high, f"limit per answer: {limits.kl_high:g}, lengths are not logged", False
        )
    if per_token <= limits.kl_high:
        return KLLimit(limits.kl_high, 2 * limits.kl_high, f"limit per answer: {limits.kl_high:g}", False)
    return KLLimit(
        per_token,
        2 * per_token,
        f"limit per token: {limits.kl_high_per_token:g} in answers of {length:.0f} tokens",
        False,
    )


def kl_words(history: History, now: float) -> str:
    """A KL per answer, and per token where the length is known."""
    length = answer_length(history)
    per_token = f" ({now / length:.2g} a token)" if length > 0 else ""
    return f"{now:.2f} nats a prompt{per_token}"
