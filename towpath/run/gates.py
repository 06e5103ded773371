"""Gates: what the results of a stage must show before the next stage starts."""

from dataclasses import replace
from typing import Any

from towpath.evals.gate_rule import GateOutcome, interval_note, judge_of, threshold_outcome, win_outcome
from towpath.recipe import Gate, Gates, Recipe
from towpath.records import Verdict

GATES_AFTER = {
    "baseline": ("sft",),
    "reward": ("reward", "reward_people"),
    "policy": ("policy",),
    "evaluate": ("evaluate", "accuracy", "safety"),
}
"""The gates that are judged on the result of a stage."""
RATERS = {"person": "people", "simulated": "a simulated rater", "rule": "rules", "judge": "an AI judge"}
"""Who made labels, by the kind of a judgement."""


def verdicts(recipe: Recipe, results: dict[str, dict[str, Any]]) -> list[Verdict]:
    """The verdict of every gate whose stage is done; results by stage name, in the order of rounds."""
    gates = recipe.gates
    evaluated = []
    latest = {name.split("@")[0]: result for name, result in results.items()}
    if "baseline" in latest:
        evaluated.append(_win_verdict("sft", gates.sft, recipe, latest["baseline"]))
    if "reward" in latest:
        evaluated.append(_reward_verdict(gates, latest["reward"], _labelled_by(latest.get("label", {}))))
        if "people" in latest["reward"]:
            evaluated.append(_people_verdict(gates, latest["reward"]["people"]))
    if "policy" in latest:
        evaluated.append(
            _threshold_verdict("policy", gates.policy, gates, latest["policy"]["rose"], "rate", "the reward")
        )
    if "evaluate" in latest:
        evaluated.append(_win_verdict("evaluate", gates.evaluate, recipe, latest["evaluate"]))
        if "accuracy" in latest["evaluate"]:
            evaluated.append(_accuracy_verdict(gates, latest["evaluate"]["accuracy"]))
        evaluated.append(_safety_verdict(gates.safety, latest["evaluate"], recipe.evaluate.max_unjudged))
    return evaluated


def _accuracy_verdict(gates: Gates, accuracy: dict[str, Any]) -> Verdict:
    """The verdict on the rise of the accuracy; UNDECIDED if no answer was checked."""
    gate = gates.accuracy
    if not accuracy["rise"]["n"]:
        outcome: GateOutcome = "OFF" if gate.action == "off" else "UNDECIDED"
        note = f"{accuracy['source']} scored no held-out answer"
        return Verdict("accuracy", outcome, None, None, gate.threshold, 0, gate.action, note, accuracy["source"])
    verdict = _threshold_verdict("accuracy", gate, gates, accuracy["rise"], "rate", accuracy["source"])
    rates = f"{accuracy['sft']['rate']:.1%} before, {accuracy['policy']['rate']:.1%} after"
    return replace(verdict, note=f"{rates}; {verdict.note}" if verdict.note else rates)


def _labelled_by(label: dict[str, Any]) -> str:
    """Who made the labels."""
    kinds = dict.fromkeys((label.get("raters") or {}).values())
    names = " and ".join(RATERS.get(str(kind), str(kind)) for kind in kinds)
    return f"labels of {names}" if names else ""


def _reward_verdict(gates: Gates, result: dict[str, Any], labels: str) -> Verdict:
    """The verdict on the reward model; a pretrained one may have no labels to be measured on."""
    if "accuracy" in result:
        return _threshold_verdict("reward", gates.reward, gates, result, "accuracy", labels)
    outcome: GateOutcome = "OFF" if gates.reward.action == "off" else "UNDECIDED"
    note = "no labels: the pretrained reward model was not measured; reward.use = 'always' collects labels"
    return Verdict("reward", outcome, None, None, gates.reward.threshold, 0, gates.reward.action, note)


def _people_verdict(gates: Gates, record: dict[str, Any]) -> Verdict:
    """The second part of the reward model's gate: accuracy by people's judgements alone."""
    gate = gates.reward_people
    by = "labels of people alone"
    if record["n"] >= gate.min_pairs:
        return _threshold_verdict("reward_people", gate, gates, record, "accuracy", by)
    outcome: GateOutcome = "OFF" if gate.action == "off" else "UNDECIDED"
    value = record.get("accuracy")
    low, high = record.get("interval", (0.0, 1.0))
    note = (
        f"people judged {record['n']} held-out comparisons, {gate.min_pairs} are needed: let them judge more "
        "(preferences.raters = 'blend' or 'people'), or lower gates.reward_people.min_pairs"
    )
    interval = None if value is None else (low, high)
    return Verdict("reward_people", outcome, value, interval, gate.threshold, record["n"], gate.action, note, by)


def _win_verdict(name: str, gate: Gate, recipe: Recipe, result: dict[str, Any]) -> Verdict:
    """The verdict of the first evaluation judge of a stage."""
    if result.get("off"):
        return Verdict(name, "OFF", None, None, gate.threshold, 0, "off", result["off"])
    record = judge_of(result)
    outcome, note = win_outcome(record, gate.threshold, recipe.gates.rule, recipe.evaluate.max_unjudged)
    if gate.action == "off":
        outcome = "OFF"
    judge = record["name"] if record else ""
    win = record["win"] if record else None
    if win is None:
        return Verdict(name, outcome, None, None, gate.threshold, 0, gate.action, note, judge)
    low, high = win["interval"]
    return Verdict(name, outcome, win["rate"], (low, high), gate.threshold, win["n"], gate.action, note, judge)


def _threshold_verdict(name: str, gate: Gate, gates: Gates, record: dict[str, Any], key: str, judge: str) -> Verdict:
    value = record[key]
    low, high = record["interval"]
    outcome = threshold_outcome(value, (low, high), gate.threshold, gates.rule) if gate.action != "off" else "OFF"
    note = interval_note(outcome, value, (low, high), gate.threshold, record["n"])
    return Verdict(name, outcome, value, (low, high), gate.threshold, record["n"], gate.action, note, judge)


def _safety_verdict(gate: Gate, result: dict[str, Any], max_unjudged: float) -> Verdict:
    """The larger of two increases over SFT: harmful requests answered, harmless requests refused."""
    before = result["safety"]["sft"]
    after = result["safety"]["policy"]
    by = result.get("safety_judge") or {"name": "", "missing": 0.0, "note": ""}
    if by["missing"] > max_unjudged:
        outcome: GateOutcome = "OFF" if gate.action == "off" else "UNDECIDED"
        return Verdict("safety", outcome, None, None, gate.threshold, 0, gate.action, by["note"], by["name"])
    if not after["harmful_n"] or not after["harmless_n"]:
        return Verdict("safety", "OFF", 0.0, (0.0, 0.0), gate.threshold, 0, "off", "no safety set")
    rise = max(before["refusal"] - after["refusal"], after["over_refusal"] - before["over_refusal"])
    n = int(after["harmful_n"] + after["harmless_n"])
    margin = 1.96 * max(
        (before[key] * (1 - before[key]) / after[count] + after[key] * (1 - after[key]) / after[count]) ** 0.5
        for key, count in (("refusal", "harmful_n"), ("over_refusal", "harmless_n"))
    )
    outcome = "PASS" if rise <= gate.threshold else "FAIL"
    if gate.action == "off":
        outcome = "OFF"
    note = "rise over SFT; lower is better"
    interval = (rise - margin, rise + margin)
    return Verdict("safety", outcome, rise, interval, gate.threshold, n, gate.action, note, by["name"])
