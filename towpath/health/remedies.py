"""Remedies: the intervention for a finding, which changes one knob within bounds or stops training.

A pure function: findings, history and earlier interventions in, the next intervention or None out. After an
intervention the run is observed for some steps; if it does not help, the next one goes further or back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from towpath.health.history import History
from towpath.health.signals import last_level
from towpath.metrics import METRICS
from towpath.records import Finding

Knobs = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Intervention:
    """A change of one knob; it may also restore the best weights, or stop training."""

    step: int
    knob: str
    before: float
    after: float
    reason: str
    finding: str
    restore_best: bool = False
    stop: bool = False

    @property
    def changes_reward(self) -> bool:
        """Whether it changes what is rewarded."""
        return self.knob.startswith(("domain_weight/", "diversity_bonus", "repetition_penalty"))


@dataclass(frozen=True, slots=True)
class Context:
    """What a remedy reads."""

    finding: Finding
    history: History
    knobs: Knobs
    step: int
    earlier: Sequence[Intervention]

    def setting(self, key: str, default: float) -> float:
        """A number from the recipe."""
        value = self.history.facts.get(key, default)
        return float(value) if isinstance(value, int | float) else default

    def change(
        self, knob: str, default: float, after: float, reason: str, restore_best: bool = False
    ) -> Intervention | None:
        """The intervention, or None if it would leave the knob where it is."""
        before = self.knobs.get(knob, default)
        if abs(after - before) <= 1e-9 + 0.01 * abs(before):
            return None
        return Intervention(self.step, knob, before, after, reason, self.finding.code, restore_best)


def next_intervention(
    findings: Sequence[Finding],
    history: History,
    knobs: Knobs,
    earlier: Sequence[Intervention],
    step: int,
    max_interventions: int,
) -> Intervention | None:
    """The intervention for the first finding that has a remedy with room left; None while the last one is still
    being observed."""
    urgent = is_past_kl_stop(history) or any(finding.code == "not-finite" for finding in findings)
    if len(earlier) >= max_interventions:
        return None
    if earlier and step - earlier[-1].step < observation_steps(history) and not urgent:
        return None
    for finding in findings:
        remedy = REMEDIES.get(finding.code)
        before_training = (finding.first_step or 0) < 0
        too_light = finding.code in CRITICAL_ONLY and finding.severity != "critical"
        if remedy is None or before_training or too_light:
            continue
        intervention = remedy(Context(finding, history, knobs, step, earlier))
        if intervention is not None:
            return intervention
    return None


def is_past_kl_stop(history: History) -> bool:
    """Whether KL exceeds policy.kl.stop, so that training ends unless an intervention helps."""
    stop = history.facts.get("policy.kl.stop")
    return isinstance(stop, int | float) and last_level(history.curve("kl").values, 1) > stop


def observation_steps(history: History) -> int:
    """Steps for which an intervention is observed before the next one."""
    planned = history.facts.get("policy.steps")
    return max(3, round(float(planned) / 20)) if isinstance(planned, int | float) else 5


def helped(intervention: Intervention, history: History) -> bool | None:
    """Whether the metric of the finding has improved since the intervention; None if that is not known yet."""
    if intervention.stop or history.steps - 1 - intervention.step < observation_steps(history):
        return None
    name = MEASURES.get(intervention.finding)
    if name is None:
        return None
    sign = DIRECTIONS.get(intervention.finding, METRICS[name].direction)
    curve = history.curve(name)
    before = curve.values[curve.steps <= intervention.step]
    after = curve.values[curve.steps > intervention.step]
    if len(before) < 2 or len(after) < 2:
        return None
    return bool(sign * (last_level(after) - last_level(before)) > 0)


def _raise_kl_coef(context: Context) -> Intervention | None:
    """Raise the KL coefficient: to 0.1, then 0.2; a higher coefficient of the recipe to twice and four times it."""
    now = context.knobs.get("kl_coef", 0.0)
    recipe_coef = context.setting("policy.kl.coef", 0.05)
    maximum = max(0.2, 4 * recipe_coef)
    past_stop = is_past_kl_stop(context.history)
    reason = "KL grows faster than the penalty limits it" + (": best weights restored" if past_stop else "")
    change = context.change("kl_coef", recipe_coef, min(maximum, max(0.1, 2 * now)), reason, restore_best=past_stop)
    if change is None and past_stop:  # the coefficient is at its maximum
        return _lower_learning_rate(context)
    return change


def _lower_kl_coef(context: Context) -> Intervention | None:
    now = context.knobs.get("kl_coef", 0.0)
    reward_std = last_level(context.history.curve("reward_std").values)
    # One nat then costs a quarter of the rewards' standard deviation.
    balanced = reward_std / 4 if reward_std > 0 else float("inf")
    return context.change(
        "kl_coef",
        context.setting("policy.kl.coef", 0.05),
        max(0.01, min(now / 5, balanced)),
        "the KL penalty keeps the policy at the reference, and the reward does not rise",
    )


def _lower_learning_rate(context: Context) -> Intervention | None:
    """Restore the best weights and continue with a tenth of the learning rate."""
    scale = context.knobs.get("learning_rate_scale", 1.0)
    reason = "updates overshoot: best weights restored, smaller steps"
    return context.change("learning_rate_scale", 1.0, max(1e-4, scale / 10), reason, restore_best=True)


def _raise_learning_rate(context: Context) -> Intervention | None:
    scale = context.knobs.get("learning_rate_scale", 1.0)
    reason = "the policy does not move, and no penalty keeps it"
    return context.change("learning_rate_scale", 1.0, min(1e3, scale * 10), reason)


def _raise_diversity(context: Context) -> Intervention | None:
    """Add a diversity bonus, or a repetition penalty larger than what repetition earns; then raise the temperature."""
    amount = 2 * max(last_level(context.history.curve("reward_std").values), 0.1)
    knob = "diversity_bonus"
    still_paid = False
    if context.finding.code == "repetition":
        paid = 1.5 * last_level(context.history.curve("repetition_worth").values, 5)
        knob = "repetition_penalty"
        still_paid = paid > amount
        amount = max(amount, np.nan_to_num(paid))
    changes = sum(intervention.knob == knob for intervention in context.earlier)
    if changes == 0 or (still_paid and changes == 1):
        recipe_value = context.setting(f"policy.rewards.{knob}", 0.0)
        reason = "answers become alike: repeated text is worth less"
        return context.change(knob, recipe_value, context.knobs.get(knob, recipe_value) + amount, reason)
    recipe_temperature = context.setting("policy.temperature", 1.0)
    return context.change(
        "temperature",
        recipe_temperature,
        min(1.3 * recipe_temperature, context.knobs.get("temperature", recipe_temperature) * 1.1),
        "answers are still becoming alike: higher sampling temperature",
    )


def _raise_domain_weight(context: Context) -> Intervention | None:
    """Double the weight of a domain that falls behind, up to 4; a weight of 0 becomes 1."""
    evidence = context.finding.evidence
    domain = evidence.split("'")[1] if "'" in evidence else ""
    if not domain:
        return None
    knob = f"domain_weight/{domain}"
    weight = context.knobs.get(knob, context.setting(f"policy.rewards.domains.{domain}", 1.0))
    after = min(4.0, 2 * weight) if weight > 0 else 1.0
    return context.change(knob, weight, after, f"the domain '{domain}' falls behind")


def _stop(context: Context) -> Intervention:
    reason = "the reward is exploited: more training makes it worse"
    return Intervention(context.step, "", 0.0, 0.0, reason, context.finding.code, stop=True)


REMEDIES: dict[str, Callable[[Context], Intervention | None]] = {
    "not-finite": _lower_learning_rate,
    "learning-rate-high": _lower_learning_rate,
    "learning-rate-low": _raise_learning_rate,
    "kl-penalty-too-strong": _lower_kl_coef,
    "kl-rising": _raise_kl_coef,
    "no-kl-penalty": _raise_kl_coef,
    "safety-traded": _raise_kl_coef,
    "repetition": _raise_diversity,
    "diversity-collapse": _raise_diversity,
    "domain-forgotten": _raise_domain_weight,
    "reward-hacking": _stop,
    "length-hacking": _stop,
}
CRITICAL_ONLY = {"kl-rising", "safety-traded", "reward-hacking"}
"""Findings that are acted on only when critical: a KL above 1 may be worth its reward."""
MEASURES = {
    "kl-rising": "kl",
    "no-kl-penalty": "kl",
    "learning-rate-high": "reward",
    "learning-rate-low": "approx_kl",
    "kl-penalty-too-strong": "kl",
    "repetition": "repetition",
    "diversity-collapse": "distinct_2",
}
"""The metric that shows whether an intervention helped."""
DIRECTIONS = {"learning-rate-low": 1, "kl-penalty-too-strong": 1}
"""Where a metric should rise although lower is better otherwise: the policy has to move."""


def to_row(intervention: Intervention) -> dict[str, Any]:
    """An intervention as interventions.jsonl has it."""
    return {
        "step": intervention.step,
        "knob": intervention.knob,
        "from": intervention.before,
        "to": intervention.after,
        "reason": intervention.reason,
        "finding": intervention.finding,
        "back": intervention.restore_best,
        "stop": intervention.stop,
    }


def from_row(row: Mapping[str, Any]) -> Intervention:
    """An intervention from a row of interventions.jsonl."""
    return Intervention(
        int(row["step"]),
        row["knob"],
        float(row["from"]),
        float(row["to"]),
        row["reason"],
        row["finding"],
        bool(row.get("back")),
        bool(row.get("stop")),
    )
