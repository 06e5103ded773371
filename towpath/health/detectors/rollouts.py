"""Rollouts and critic: answers without EOS, sampler mismatch, duplicate prompts, a broken critic."""

from collections.abc import Iterator

import numpy as np

from towpath.health.detectors.kl import reward_gained
from towpath.health.history import Curve, History
from towpath.health.signals import first_level, first_step_where, first_value, last_level, max_sustained
from towpath.recipe import Limits
from towpath.records import Finding

NO_EOS_RATE = 0.02
"""A finish rate below which answers count as endless."""


def missing_eos_or_truncated(history: History, limits: Limits) -> Iterator[Finding]:
    """No answer ends in EOS, or fewer and fewer do."""
    curve = history.curve("finish_rate")
    if len(curve) < 3:
        return
    now = float(np.mean(curve.values[-3:]))
    began = first_value(curve)
    length = last_level(history.curve("length").values)
    if now <= NO_EOS_RATE and began <= 5 * NO_EOS_RATE and float(curve.values.mean()) <= NO_EOS_RATE:
        none = not curve.values.any()
        pays = reward_gained(history, limits)
        share = "none" if none else f"{now:.1%}"
        evidence = f"{share} of the answers end in EOS, at any step; they are {length:.0f} tokens long"
        cause = "EOS cannot be sampled or was not learned: it is masked, equal to the pad token, or not in the template"
        remedy = "check EOS in tokenizer, template, training data and sampling settings (`towpath check`)"
        yield Finding(
            "missing-eos", "critical" if none and not pays else "warning", evidence, cause, remedy, int(curve.steps[0])
        )
    elif now < limits.finish_rate or began - now > 0.3:
        evidence = (
            f"{now:.0%} of answers end within policy.max_new_tokens, {began:.0%} at the start; they are {length:.0f} "
            "tokens long"
        )
        remedy = "raise policy.max_new_tokens, or policy.rewards.eos_penalty"
        step = first_step_where(
            curve, curve.values < min(limits.finish_rate, began - 0.1 if began - now > 0.3 else 1.0)
        )
        ended_once = began >= limits.finish_rate
        severity = "critical" if now <= NO_EOS_RATE and ended_once and not reward_gained(history, limits) else "warning"
        yield Finding("truncated", severity, evidence, "answers are truncated", remedy, step)


def sampler_mismatch(history: History, limits: Limits) -> Iterator[Finding]:
    """The sampler and the trainer compute different log-probabilities."""
    curve = history.curve("sampler_error")
    if len(curve) < 2 or not last_level(curve.values) > limits.sampler_error:
        return
    now = last_level(curve.values)
    evidence = f"log-probabilities of sampler and trainer differ by {now:.2g} a token"
    cause = "sampling and scoring differ: temperature, top-k or top-p, other weights, or another precision"
    remedy = (
        "score with the sampler's settings; refresh its weights before each rollout; with a separate engine, set "
        "engine.correction"
    )
    grew = now > 3 * max(first_level(curve.values), 1e-9)
    ruled = (
        ("temperature alone: the difference grows with training, as with stale weights",)
        if grew
        else ("stale weights: the difference was there from the first step",)
    )
    yield Finding(
        "sampler-mismatch",
        "critical" if now > 1.5 * limits.sampler_error else "warning",
        evidence,
        cause,
        remedy,
        first_step_where(curve, curve.values > limits.sampler_error),
        ruled,
    )


def duplicate_prompts(history: History, limits: Limits) -> Iterator[Finding]:
    """The same prompts under several ids."""
    curve = history.curve("prompts_distinct")
    if len(curve) >= 2 and last_level(curve.values) < limits.prompts:
        evidence = f"{last_level(curve.values):.0%} of a rollout's prompts are distinct"
        remedy = "remove duplicates (`towpath check` names them)"
        yield Finding(
            "duplicate-prompts",
            "warning",
            evidence,
            "the data holds the same texts many times",
            remedy,
            first_step_where(curve, curve.values < limits.prompts),
        )


def broken_critic(history: History, limits: Limits) -> Iterator[Finding]:
    """A critic that predicts worse than a constant, for four steps in a row."""
    curve = history.curve("explained_variance")
    loss = history.curve("value_loss")
    if not len(curve):
        yield from _diverging_critic(loss)
    if len(curve) < 4:
        return
    worst = -max_sustained(-curve.values, 4)
    if not worst < limits.explained_variance:
        return
    grew = len(loss) >= 4 and last_level(loss.values) > 10 * max(first_level(loss.values), 1e-9)
    evidence = (
        f"explained variance was {worst:.2g} for four steps and is {last_level(curve.values):.2g}; a constant has 0"
    )
    evidence += f"; its loss grew from {first_level(loss.values):.2g} to {last_level(loss.values):.2g}" if grew else ""
    remedy = (
        "use policy.ppo.critic = 'head', lower policy.ppo.critic_learning_rate, or give it policy.ppo.critic_warmup"
    )
    step = int(curve.steps[int(np.argmax(curve.values < limits.explained_variance))])
    grave = worst < 2 * limits.explained_variance and last_level(curve.values, 4) < limits.explained_variance
    yield Finding(
        "critic-broken",
        "critical" if grave else "warning",
        evidence,
        "advantages are worse than without a critic",
        remedy,
        step,
    )


def _diverging_critic(loss: Curve) -> Iterator[Finding]:
    """Without logged explained variance: a value loss of ten times its start."""
    if len(loss) < 12:
        return
    start = first_level(loss.values, 5)
    now = last_level(loss.values, max(5, len(loss) // 4))
    if now > 10 * max(start, 1e-9):
        evidence = f"the value loss grew from {start:.2g} to {now:.2g}; explained variance is not logged"
        remedy = "lower the critic's learning rate or vf_coef, bound the returns, or give the critic a warm-up"
        cause = "the critic cannot predict the returns"
        yield Finding(
            "critic-broken", "warning", evidence, cause, remedy, first_step_where(loss, loss.values > 10 * start)
        )


DETECTORS = (missing_eos_or_truncated, sampler_mismatch, duplicate_prompts, broken_critic)
