"""Rollouts and the critic: ends, mismatched samplers, prompts told twice, a critic that misleads."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import History
from towpath.health.signals import first, last, since, sustained
from towpath.recipe import Limits
from towpath.records import Finding


def endless(history: History, limits: Limits) -> Iterator[Finding]:
    """No answer ends, or too few."""
    curve = history.curve("finish_rate")
    if len(curve) < 3:
        return
    now = float(np.mean(curve.values[-3:]))
    if now <= 0.02:
        evidence = f"{now:.0%} of answers end by themselves; they are {last(history.curve('length').values):.0f} tokens long"
        cause = (
            "EOS cannot be drawn, or is not what the model was taught to end with: it is masked, equal to the pad token, or missing in the template"
        )
        remedy = "look at EOS in tokenizer, template and sampling settings (`towpath check`)"
        yield Finding("missing-eos", "critical", evidence, cause, remedy, since(curve, curve.values <= 0.02))
    elif now < limits.finish_rate or first(curve.values) - now > 0.3:
        evidence = f"{now:.0%} of answers end within policy.max_new_tokens, {first(curve.values):.0%} at the start"
        remedy = "raise policy.max_new_tokens, or policy.rewards.eos_penalty"
        yield Finding(
            "truncated", "warning", evidence, "answers are cut off before they end", remedy, since(curve, curve.values < limits.finish_rate)
        )


def mismatched(history: History, limits: Limits) -> Iterator[Finding]:
    """What drew the answers is not what is trained."""
    curve = history.curve("sampler_error")
    if len(curve) < 2 or not last(curve.values) > limits.sampler_error:
        return
    now = last(curve.values)
    evidence = f"log-probabilities of sampler and trainer differ by {now:.2g} a token"
    cause = "rollouts are drawn otherwise than they are scored: temperature, top-k or top-p, other weights, or another precision"
    remedy = "score with the sampler's settings; refresh its weights before each rollout; where an engine of its own draws, set engine.correction"
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
    curve, loss = history.curve("explained_variance"), history.curve("value_loss")
    if len(curve) < 4:
        return
    worst = -sustained(-curve.values, 4)
    if not worst < limits.explained_variance:
        return
    grew = len(loss) >= 4 and last(loss.values) > 10 * max(first(loss.values), 1e-9)
    evidence = f"explained variance was {worst:.2g} for four steps and is {last(curve.values):.2g}; a constant has 0"
    evidence += f"; its loss grew from {first(loss.values):.2g} to {last(loss.values):.2g}" if grew else ""
    remedy = "use policy.ppo.critic = 'head', lower policy.ppo.critic_learning_rate, or give it policy.ppo.critic_warmup"
    step = int(curve.steps[int(np.argmax(curve.values < limits.explained_variance))])
    grave = worst < 2 * limits.explained_variance and last(curve.values, 4) < limits.explained_variance
    yield Finding("critic-broken", "critical" if grave else "warning", evidence, "advantages are worse than without a critic", remedy, step)


DETECTORS = (endless, mismatched, doubled, misleading)
