"""Diversity and refusals: repetition within answers, answers that are alike, refusals, lost safety, format changes."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import History
from towpath.health.signals import change, first_level, first_step_where, last_level
from towpath.recipe import Limits
from towpath.records import Finding


def repetition(history: History, limits: Limits) -> Iterator[Finding]:
    """Repetition within answers, or a reward that correlates with it."""
    curve = history.curve("repetition")
    paid = history.curve("reward_repetition_corr")
    if len(curve) < 4:
        return
    start = first_level(curve.values)
    now = last_level(curve.values)
    corr = last_level(paid.values, 5)
    rise = now - start
    sure = change(curve)[1]
    plain = rise > limits.repetition and sure > limits.z_threshold * (len(curve) >= 6)
    risen = plain or (rise > limits.repetition / 3 and sure > 3 * limits.z_threshold)
    bought = corr > limits.repetition_correlation
    if risen or bought:
        evidence = f"{now:.0%} of three-token sequences in an answer are repeated, {start:.0%} at the start"
        evidence += f"; the reward's correlation with that share is {corr:.2f}" if bought else ""
        cause = (
            "the reward pays for repetition" if bought else "the reward does not penalise repetition, or pays for it"
        ) + _reward_note(history)
        remedy = "set policy.rewards.repetition_penalty; raise policy.kl.coef; read the answers with the highest scores"
        step = (
            first_step_where(curve, curve.values > start + min(limits.repetition, 0.5 * rise))
            if risen
            else first_step_where(paid, paid.values > limits.repetition_correlation)
        )
        yield Finding(
            "repetition", "critical" if rise > 2 * limits.repetition else "warning", evidence, cause, remedy, step
        )


def diversity_collapse(history: History, limits: Limits) -> Iterator[Finding]:
    """Answers that are alike: fewer distinct bigrams, one common opening, or low entropy."""
    distinct, opening, entropy = (history.curve(name) for name in ("distinct_2", "opening", "entropy"))
    signs = []
    step = None
    grave = False
    if len(distinct) >= 4:
        start = first_level(distinct.values)
        now = last_level(distinct.values)
        lost = 1 - now / max(start, 1e-9)
        if lost > limits.diversity and change(distinct)[1] < -limits.z_threshold * (len(distinct) >= 6):
            signs.append(f"{lost:.0%} of the distinct two-token sequences are lost")
            step = first_step_where(distinct, distinct.values < (1 - limits.diversity) * start)
            grave = lost > 1.5 * limits.diversity
    if len(opening) >= 3:
        start = first_level(opening.values)
        now = last_level(opening.values)
        if now > 0.5 and now - start > 0.3:
            signs.append(f"{now:.0%} of answers begin with the same tokens, {start:.0%} at the start")
            step = min(first_step_where(opening, opening.values > 0.5), step if step is not None else 10**9)
            grave = grave or now > 0.8
    if len(entropy) >= 6 and last_level(entropy.values) < 0.15 * first_level(entropy.values):
        signs.append(
            f"entropy fell from {first_level(entropy.values):.2f} to {last_level(entropy.values):.2f} nats a token"
        )
        step = step if step is not None else int(entropy.steps[-1])
    if signs:
        remedy = "raise policy.temperature or policy.kl.coef; set policy.rewards.diversity_bonus"
        cause = "the policy converges to few answers" + _reward_note(history)
        yield Finding("diversity-collapse", "critical" if grave else "warning", "; ".join(signs), cause, remedy, step)


def refusals(history: History, limits: Limits) -> Iterator[Finding]:
    """More and more requests are declined, harmless ones too."""
    curve = history.curve("refusal")
    harmless = history.validation_curve("harmless_refusal")
    signs = []
    grave = False
    step = None
    if (
        len(curve) >= 3
        and last_level(curve.values) - first_level(curve.values) > limits.refusal
        and change(curve)[1] > limits.z_threshold * (len(curve) >= 6)
    ):
        signs.append(f"{last_level(curve.values):.0%} of answers decline, {first_level(curve.values):.0%} at the start")
        grave = last_level(curve.values) > 0.5
        step = first_step_where(curve, curve.values > first_level(curve.values) + limits.refusal)
    if len(harmless) >= 3:
        rise = float(np.mean(harmless.values[-2:])) - float(harmless.values[0])
        if rise > max(limits.refusal, _chance_change(history, harmless.values)):
            signs.append(
                f"{np.mean(harmless.values[-2:]):.0%} of harmless requests are declined, {harmless.values[0]:.0%} at "
                "the start"
            )
            step = step if step is not None else int(harmless.steps[-2])
            grave = grave or rise > 2 * limits.refusal
    if signs:
        remedy = "add harmless requests to the prompts and pairs that prefer an answer to a refusal"
        yield Finding(
            "refusing",
            "critical" if grave else "warning",
            "; ".join(signs),
            "the reward pays for refusals",
            remedy,
            step,
        )


def _chance_change(history: History, values: np.ndarray) -> float:
    """A change of 2.5 standard errors with this number of probes."""
    count = (
        max(last_level(history.validation_curve("probes").values) / 2, 1.0)
        if len(history.validation_curve("probes"))
        else 8.0
    )
    p = min(max(float(np.mean(values)), 0.05), 0.95)
    return 2.5 * float(np.sqrt(p * (1 - p) * (1 + 1 / 2) / count))


def safety_regression(history: History, limits: Limits) -> Iterator[Finding]:
    """Harmful requests are declined less and less."""
    curve = history.validation_curve("harmful_refusal")
    if len(curve) < 3:
        return
    fall = float(curve.values[0]) - float(np.mean(curve.values[-2:]))
    if fall > max(limits.refusal, _chance_change(history, curve.values)) and curve.values[-2:].max() < curve.values[0]:
        rose, sure = change(history.curve("reward"))
        evidence = (
            f"{np.mean(curve.values[-2:]):.0%} of harmful requests are declined, {curve.values[0]:.0%} at the start"
        )
        evidence += f", while reward rose by {rose:.2g}" if sure > limits.z_threshold else ""
        cause = "the reward does not measure safety"
        remedy = "raise policy.kl.coef, or add safety pairs: harmful prompts whose refusal is preferred"
        step = first_step_where(curve, curve.values < curve.values[0] - limits.refusal)
        lasts = float(curve.values[0]) - float(np.mean(curve.values[-3:])) > 1.5 * limits.refusal
        yield Finding(
            "safety-traded", "critical" if lasts and len(curve) > 3 else "warning", evidence, cause, remedy, step
        )


def format_shift(history: History, limits: Limits) -> Iterator[Finding]:
    """Lists or code that disappear, or appear in most answers."""
    for name in ("lists", "code"):
        curve = history.curve(name)
        if len(curve) < 6:
            continue
        start = first_level(curve.values)
        now = last_level(curve.values)
        gone = start > 0.1 and now < 0.2 * start
        everywhere = now - start > 0.4
        if (gone or everywhere) and abs(change(curve)[1]) > limits.z_threshold:
            evidence = f"{now:.0%} of answers contain {name}, {start:.0%} at the start"
            cause = f"the reward {'pays for' if everywhere else 'does not pay for'} {name}"
            yield Finding(
                "format-shift",
                "warning",
                evidence,
                cause,
                f"compare pairs with and without {name}",
                int(curve.steps[len(curve) // 2]),
            )


def _reward_note(history: History) -> str:
    rose, sure = change(history.curve("reward"))
    return f" (reward rose by {rose:.2g} meanwhile)" if sure > 3 else ""


DETECTORS = (repetition, diversity_collapse, refusals, safety_regression, format_shift)
