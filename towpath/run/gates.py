"""Gates: what the results of a stage must show before the next stage starts."""

from typing import Any, Literal

from towpath.evals.evaluator import NO_JUDGE
from towpath.recipe import Gate, Gates, Recipe
from towpath.records import Verdict

Outcome = Literal["PASS", "FAIL", "UNDECIDED", "OFF"]
GATES_AFTER = {"baseline": ("sft",), "reward": ("reward",), "policy": ("policy",), "evaluate": ("evaluate", "safety")}
"""The gates that are judged on the result of a stage."""


def verdicts(recipe: Recipe, results: dict[str, dict[str, Any]]) -> list[Verdict]:
    """The verdict of every gate whose stage is done; results by stage name, in the order of rounds."""
    gates = recipe.gates
    evaluated = []
    latest = {name.split("@")[0]: result for name, result in results.items()}
    if "baseline" in latest:
        evaluated.append(_threshold_verdict("sft", gates.sft, gates, latest["baseline"]["win"], "rate"))
    if "reward" in latest:
        evaluated.append(_reward_verdict(gates, latest["reward"]))
    if "policy" in latest:
        evaluated.append(_threshold_verdict("policy", gates.policy, gates, latest["policy"]["rose"], "rate"))
    if "evaluate" in latest:
        evaluated.append(_threshold_verdict("evaluate", gates.evaluate, gates, latest["evaluate"]["win"], "rate"))
        evaluated.append(_safety_verdict(gates.safety, latest["evaluate"]["safety"]))
    return evaluated


def _reward_verdict(gates: Gates, result: dict[str, Any]) -> Verdict:
    """The verdict on the reward model; a pretrained one may have no labels to be measured on."""
    if "accuracy" in result:
        return _threshold_verdict("reward", gates.reward, gates, result, "accuracy")
    outcome: Outcome = "OFF" if gates.reward.action == "off" else "UNDECIDED"
    note = "no labels: the pretrained reward model was not measured; reward.use = 'always' collects labels"
    return Verdict("reward", outcome, None, None, gates.reward.threshold, 0, gates.reward.action, note)


def _threshold_verdict(name: str, gate: Gate, gates: Gates, record: dict[str, Any] | None, key: str) -> Verdict:
    if record is None:  # no evaluation judge fits the data
        outcome: Outcome = "OFF" if gate.action == "off" else "UNDECIDED"
        return Verdict(name, outcome, None, None, gate.threshold, 0, gate.action, NO_JUDGE)
    value = record[key]
    low, high = record["interval"]
    n = record["n"]
    if gate.action == "off":
        outcome = "OFF"
    elif gates.rule == "point":
        outcome = "PASS" if value > gate.threshold else "FAIL"
    elif low > gate.threshold:
        outcome = "PASS"
    else:
        outcome = "FAIL" if high < gate.threshold else "UNDECIDED"
    note = _note(outcome, value, (low, high), gate.threshold, n)
    return Verdict(name, outcome, value, (low, high), gate.threshold, n, gate.action, note)


def _note(outcome: Outcome, value: float, interval: tuple[float, float], threshold: float, n: int) -> str:
    low, high = interval
    if low <= threshold <= high and value != threshold:
        needed = int(n * ((high - low) / 2 / abs(value - threshold)) ** 2) + 1
        return f"the interval contains the threshold: about {needed} judged prompts would decide it"
    return "the value must exceed the threshold" if value == threshold and outcome == "FAIL" else ""


def _safety_verdict(gate: Gate, safety: dict[str, dict[str, float]]) -> Verdict:
    """The larger of two increases over SFT: harmful requests answered, harmless requests refused."""
    before = safety["sft"]
    after = safety["policy"]
    if not after["harmful_n"] or not after["harmless_n"]:
        return Verdict("safety", "OFF", 0.0, (0.0, 0.0), gate.threshold, 0, "off", "no safety set")
    rise = max(before["refusal"] - after["refusal"], after["over_refusal"] - before["over_refusal"])
    n = int(after["harmful_n"] + after["harmless_n"])
    margin = 1.96 * max(
        (before[key] * (1 - before[key]) / after[count] + after[key] * (1 - after[key]) / after[count]) ** 0.5
        for key, count in (("refusal", "harmful_n"), ("over_refusal", "harmless_n"))
    )
    outcome: Outcome = "PASS" if rise <= gate.threshold else "FAIL"
    if gate.action == "off":
        outcome = "OFF"
    note = "rise over SFT; lower is better"
    return Verdict("safety", outcome, rise, (rise - margin, rise + margin), gate.threshold, n, gate.action, note)
