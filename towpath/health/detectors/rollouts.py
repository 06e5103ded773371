"""Rollouts and the critic: answers that do not end, mismatched samplers, duplicate prompts, a critic that misleads."""

from collections.abc import Iterator

import numpy as np

from towpath.health.detectors.distance import reward_gained
from towpath.health.history import Curve, History
from towpath.health.signals import first, last, origin, since, sustained
from towpath.recipe import Limits
from towpath.records import Finding

NEVER = 0.02
"""Share of answers that end below which none does."""


def endless(history: History, limits: Limits) -> Iterator[Finding]:
    """No answer ever ended, or fewer and fewer do."""
    curve = history.curve("finish_rate")
    if len(curve) < 3:
        return
    now = float(np.mean(curve.values[-3:]))
    began = origin(curve)
    length = last(history.curve("length").values)
    if now <= NEVER and began <= 5 * NEVER and float(curve.values.mean()) <= NEVER:
        none = not curve.values.any()
        pays = reward_gained(history, limits)
        evidence = (
            f"{'none' if none else f'{now:.1%}'} of the answers end by themselves, at no time; they are {length:.0f} "
            "tokens long"
        )
        cause = (
            "EOS cannot be drawn, or was not learned: it is masked, equal to the pad token, or missing in the template"
        )
        remedy = "look at EOS in tokenizer, template, training data and sampling settings (`towpath check`)"
        yield Finding(
            "missing-eos", "critical" if none and not pays else "warning", evidence, cause, remedy, int(curve.steps[0])
        )
    elif now < limits.finish_rate or began - now > 0.3:
        evidence = (
            f"{now:.0%} of answers end within policy.max_new_tokens, {began:.0%} at the start; they are {length:.0f} "
            "tokens long"
        )
        remedy = "raise policy.max_new_tokens, or policy.rewards.eos_penalty"
        step = since(curve, curve.values < min(limits.finish_rate, began - 0.1 if began - now > 0.3 else 1.0))
        ended_once = began >= limits.finish_rate
        severity = "critical" if now <= NEVER and ended_once and not reward_gained(history, limits) else "warning"
        yield Finding("truncated", severity, evidence, "answers are cut off before they end", remedy, step)


def mismatched(history: History, limits: Limits) -> Iterator[Finding]:
    """What drew the answers is not what is trained."""
    curve = history.curve("sampler_error")
    if len(curve) < 2 or not last(curve.values) > limits.sampler_error:
        return
    now = last(curve.values)
    evidence = f"log-probabilities of sampler and trainer differ by {now:.2g} a token"
    cause = (
        "rollouts are drawn otherwise than they are scored: temperature, top-k or top-p, other weights, or another "
        "precision"
    )
    remedy = (
        "score with the sampler's settings; refresh its weights before each rollout; where an engine of its own "
        "draws, set engine.correction"
    )
    grew = now > 3 * max(first(curve.values), 1e-9)
    ruled = (
        ("temperature alone: the difference grows with training, as stale weights make it",)
        if grew
        else ("stale weights: the difference was there at once",)
    )
    yield Finding(
        "sampler-mismatch",
        "critical" if now > 1.5 * limits.sampler_error else "warning",
        evidence,
        cause,
        remedy,
        since(curve, curve.values > limits.sampler_error),
        ruled,
    )


def doubled(history: History, limits: Limits) -> Iterator[Finding]:
    """The same prompt again and again under other names."""
    curve = history.curve("prompts_distinct")
    if len(curve) >= 2 and last(curve.values) < limits.prompts:
        evidence = f"{last(curve.values):.0%} of a rollout's prompts differ from each other"
        remedy = "remove doubles (`towpath check` names them)"
        yield Finding(
            "duplicate-prompts",
            "warning",
            evidence,
            "the same texts stand in the data many times",
            remedy,
            since(curve, curve.values < limits.prompts),
        )


def misleading(history: History, limits: Limits) -> Iterator[Finding]:
    """A critic that foresees worse than a constant would, for four steps running."""
    curve = history.curve("explained_variance")
    loss = history.curve("value_loss")
    if not len(curve):
        yield from _critic_diverges(loss)
    if len(curve) < 4:
        return
    worst = -sustained(-curve.values, 4)
    if not worst < limits.explained_variance:
        return
    grew = len(loss) >= 4 and last(loss.values) > 10 * max(first(loss.values), 1e-9)
    evidence = f"explained variance was {worst:.2g} for four steps and is {last(curve.values):.2g}; a constant has 0"
    evidence += f"; its loss grew from {first(loss.values):.2g} to {last(loss.values):.2g}" if grew else ""
    remedy = (
        "use policy.ppo.critic = 'head', lower policy.ppo.critic_learning_rate, or give it policy.ppo.critic_warmup"
    )
    step = int(curve.steps[int(np.argmax(curve.values < limits.explained_variance))])
    grave = worst < 2 * limits.explained_variance and last(curve.values, 4) < limits.explained_variance
    yield Finding(
        "critic-broken",
        "critical" if grave else "warning",
        evidence,
        "advantages are worse than without a critic",
        remedy,
        step,
    )


def _critic_diverges(loss: Curve) -> Iterator[Finding]:
    """Without explained variance in the log: a value loss that stands at ten times its start."""
    if len(loss) < 12:
        return
    begun = first(loss.values, 5)
    now = last(loss.values, max(5, len(loss) // 4))
    if now > 10 * max(begun, 1e-9):
        evidence = f"the value loss grew from {begun:.2g} to {now:.2g}; explained variance is not logged"
        remedy = "lower the critic's learning rate or vf_coef, bound the returns, or give the critic a warm-up"
        cause = "the critic follows returns that it cannot foresee"
        yield Finding("critic-broken", "warning", evidence, cause, remedy, since(loss, loss.values > 10 * begun))


DETECTORS = (endless, mismatched, doubled, misleading)
