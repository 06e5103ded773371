"""What is done about a finding: one knob, one turn, within bounds; then it is watched whether it helped.

Pure: findings, history and the turns made so far in; the next turn, or none, out. A turn that does not help is taken
further, or back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from towpath.health.history import History
from towpath.health.signals import last
from towpath.records import Finding

Knobs = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one knob; with `back` the best weights so far are taken up again, with `stop` training ends."""

    step: int
    knob: str
    before: float
    after: float
    reason: str
    finding: str
    back: bool = False
    stop: bool = False

    @property
    def anew(self) -> bool:
        """Whether it changes what is rewarded."""
        return self.knob.startswith(("domain_weight/", "diversity_bonus", "repetition_penalty"))


@dataclass(frozen=True, slots=True)
class Case:
    """What a remedy looks at."""

    finding: Finding
    history: History
    knobs: Knobs
    step: int
    made: Sequence[Turn]

    def fact(self, key: str, default: float) -> float:
        """A setting of the recipe."""
        value = self.history.facts.get(key, default)
        return float(value) if isinstance(value, int | float) else default

    def turn(self, knob: str, standard: float, after: float, reason: str, back: bool = False) -> Turn | None:
        """The turn, unless it would leave the knob where it is."""
        before = self.knobs.get(knob, standard)
        if abs(after - before) <= 1e-9 + 0.01 * abs(before):
            return None
        return Turn(self.step, knob, before, after, reason, self.finding.code, back)


def next_turn(
    findings: Sequence[Finding], history: History, knobs: Knobs, made: Sequence[Turn], step: int, most: int
) -> Turn | None:
    """The turn for the gravest finding that has a remedy with room left; none while the last turn is still being
    watched."""
    urgent = lost(history) or any(finding.code == "not-finite" for finding in findings)
    if len(made) >= most or (made and step - made[-1].step < rest(history) and not urgent):
        return None
    for finding in findings:
        remedy = REMEDIES.get(finding.code)
        if (
            remedy is None
            or (finding.first_step or 0) < 0
            or (finding.code in ONLY_GRAVE and finding.severity != "critical")
        ):
            continue
        turn = remedy(Case(finding, history, knobs, step, made))
        if turn is not None:
            return turn
    return None


def lost(history: History) -> bool:
    """Whether KL stands beyond policy.kl.stop: without a turn training ends here."""
    stop = history.facts.get("policy.kl.stop")
    return isinstance(stop, int | float) and last(history.curve("kl").values, 1) > stop


def rest(history: History) -> int:
    """Steps for which a turn is watched before another is made."""
    planned = history.facts.get("policy.steps")
    return max(3, round(float(planned) / 20)) if isinstance(planned, int | float) else 5


def helped(turn: Turn, history: History) -> bool | None:
    """Whether what was wrong has become better since a turn; none where it cannot be told yet."""
    if turn.stop or history.steps - 1 - turn.step < rest(history):
        return None
    sign, name = MEASURES.get(turn.finding, (0, ""))
    curve = history.curve(name)
    before = curve.values[curve.steps <= turn.step]
    after = curve.values[curve.steps > turn.step]
    if not sign or len(before) < 2 or len(after) < 2:
        return None
    return bool(sign * (last(after) - last(before)) > 0)


def _hold(case: Case) -> Turn | None:
    """KL runs away: a tenth, then two tenths; where the recipe holds harder than that already, twice and four times
    its own."""
    now = case.knobs.get("kl_coef", 0.0)
    own = case.fact("policy.kl.coef", 0.05)
    most = max(0.2, 4 * own)
    gone = lost(case.history)
    reason = "the policy leaves the tuned model faster than the penalty holds it" + (
        ": back to the best weights" if gone else ""
    )
    turn = case.turn("kl_coef", own, min(most, max(0.1, 2 * now)), reason, back=gone)
    return _calm(case) if turn is None and gone else turn  # held as hard as may be: smaller steps


def _loosen(case: Case) -> Turn | None:
    now = case.knobs.get("kl_coef", 0.0)
    own = case.fact("policy.kl.coef", 0.05)
    spread = last(case.history.curve("reward_std").values)
    fair = spread / 4 if spread > 0 else float("inf")  # a nat then costs a quarter of what rewards differ by
    return case.turn(
        "kl_coef",
        own,
        max(0.01, min(now / 5, fair)),
        "the penalty holds the policy where it is, and the reward stands still",
    )


def _calm(case: Case) -> Turn | None:
    """Steps too large: back to the best weights, and a tenth of the rate."""
    scale = case.knobs.get("learning_rate_scale", 1.0)
    return case.turn(
        "learning_rate_scale",
        1.0,
        max(1e-4, scale / 10),
        "updates overshoot: back to the best weights, with smaller steps",
        back=True,
    )


def _hurry(case: Case) -> Turn | None:
    scale = case.knobs.get("learning_rate_scale", 1.0)
    return case.turn("learning_rate_scale", 1.0, min(1e3, scale * 10), "the policy does not move, and nothing holds it")


def _vary(case: Case) -> Turn | None:
    """Sameness: a bonus for what no other answer says, or a penalty that outweighs what is paid for repeating; then
    a higher temperature."""
    worth = 2 * max(last(case.history.curve("reward_std").values), 0.1)
    knob = "diversity_bonus"
    still_paid = False
    if case.finding.code == "repetition":
        paid = 1.5 * last(case.history.curve("repetition_worth").values, 5)
        knob = "repetition_penalty"
        still_paid = paid > worth
        worth = max(worth, np.nan_to_num(paid))
    turns = sum(t.knob == knob for t in case.made)
    if turns == 0 or (still_paid and turns == 1):
        own = case.fact(f"policy.rewards.{knob}", 0.0)
        return case.turn(knob, own, case.knobs.get(knob, own) + worth, "answers grow alike: what repeats is worth less")
    warm = case.fact("policy.temperature", 1.0)
    return case.turn(
        "temperature",
        warm,
        min(1.3 * warm, case.knobs.get("temperature", warm) * 1.1),
        "answers still grow alike: drawn more freely",
    )


def _favour(case: Case) -> Turn | None:
    """A domain is left behind: twice its weight, up to four; one that counted for nothing counts again."""
    domain = case.finding.evidence.split("'")[1] if "'" in case.finding.evidence else ""
    if not domain:
        return None
    weight = case.knobs.get(f"domain_weight/{domain}", case.fact(f"policy.rewards.domains.{domain}", 1.0))
    return case.turn(
        f"domain_weight/{domain}",
        weight,
        min(4.0, 2 * weight) if weight > 0 else 1.0,
        f"the domain '{domain}' falls behind",
    )


def _stop(case: Case) -> Turn:
    return Turn(
        case.step, "", 0.0, 0.0, "the reward is exploited: more training makes it worse", case.finding.code, stop=True
    )


REMEDIES: dict[str, Callable[[Case], Turn | None]] = {
    "not-finite": _calm,
    "learning-rate-high": _calm,
    "learning-rate-low": _hurry,
    "kl-penalty-too-strong": _loosen,
    "kl-rising": _hold,
    "no-kl-penalty": _hold,
    "safety-traded": _hold,
    "repetition": _vary,
    "diversity-collapse": _vary,
    "domain-forgotten": _favour,
    "reward-hacking": _stop,
    "length-hacking": _stop,
}
ONLY_GRAVE = {"kl-rising", "safety-traded", "reward-hacking"}
"""Acted on only where critical: a KL above 1 may be worth it, and a watched source that does not rise may yet."""
MEASURES = {
    "kl-rising": (-1, "kl"),
    "no-kl-penalty": (-1, "kl"),
    "learning-rate-high": (1, "reward"),
    "learning-rate-low": (1, "approx_kl"),
    "kl-penalty-too-strong": (1, "kl"),
    "repetition": (-1, "repetition"),
    "diversity-collapse": (1, "distinct_2"),
}
"""What a turn is judged by: the direction that is better, and the curve."""


def row(turn: Turn) -> dict[str, Any]:
    """A turn as interventions.jsonl has it."""
    told = {
        "step": turn.step,
        "knob": turn.knob,
        "from": turn.before,
        "to": turn.after,
        "reason": turn.reason,
        "finding": turn.finding,
    }
    return told | {"back": turn.back, "stop": turn.stop}


def of_row(told: Mapping[str, Any]) -> Turn:
    """A turn read from interventions.jsonl."""
    return Turn(
        int(told["step"]),
        told["knob"],
        float(told["from"]),
        float(told["to"]),
        told["reason"],
        told["finding"],
        bool(told.get("back")),
        bool(told.get("stop")),
    )
