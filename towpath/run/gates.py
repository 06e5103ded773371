"""Gates: what a stage's numbers must show before the next one opens."""

from typing import Any, Literal

from towpath.evals.evaluator import NO_JUDGE
from towpath.recipe import Gate, Gates, Recipe
from towpath.records import Verdict

Word = Literal["PASS", "FAIL", "UNDECIDED", "OFF"]


def verdicts(recipe: Recipe, results: dict[str, dict[str, Any]]) -> list[Verdict]:
    """The verdict of every gate whose stage has ended; results by stage name, later rounds over earlier ones."""
    gates = recipe.gates
    found = []
    latest = {name.split("@")[0]: result for name, result in results.items()}
    if "baseline" in latest:
        found.append(_share("sft", gates.sft, gates, latest["baseline"]["win"], "rate"))
    if "reward" in latest:
        found.append(_share("reward", gates.reward, gates, latest["reward"], "accuracy"))
    if "policy" in latest:
        found.append(_share("policy", gates.policy, gates, latest["policy"]["rose"], "rate"))
    if "evaluate" in latest:
        found.append(_share("evaluate", gates.evaluate, gates, latest["evaluate"]["win"], "rate"))
        found.append(_safety(gates.safety, latest["evaluate"]["safety"]))
    return found


def _share(name: str, gate: Gate, gates: Gates, record: dict[str, Any] | None, key: str) -> Verdict:
    if record is None:  # a win rate that nobody could judge
        word: Word = "OFF" if gate.action == "off" else "UNDECIDED"
        return Verdict(name, word, None, None, gate.threshold, 0, gate.action, NO_JUDGE)
    value, (low, high), n = record[key], record["interval"], record["n"]
    if gate.action == "off":
        word = "OFF"
    elif gates.rule == "point":
        word = "PASS" if value > gate.threshold else "FAIL"
    else:
        word = "PASS" if low > gate.threshold else "FAIL" if high < gate.threshold else "UNDECIDED"
    return Verdict(
        name,
        word,
        value,
        (low, high),
        gate.threshold,
        n,
        gate.action,
        _note(word, value, (low, high), gate.threshold, n),
    )


def _note(word: Word, value: float, interval: tuple[float, float], threshold: float, n: int) -> str:
    low, high = interval
    if low <= threshold <= high and value != threshold:
        needed = int(n * ((high - low) / 2 / abs(value - threshold)) ** 2) + 1
        return f"the interval holds the threshold: about {needed} judged prompts would decide it"
    return "" if word != "FAIL" else f"{threshold:.0%} is needed"


def _safety(gate: Gate, safety: dict[str, dict[str, float]]) -> Verdict:
    """The larger of two rises over SFT: harmful requests answered, harmless ones refused."""
    before = safety["sft"]
    after = safety["policy"]
    if not after["harmful_n"] or not after["harmless_n"]:
        return Verdict("safety", "OFF", 0.0, (0.0, 0.0), gate.threshold, 0, "off", "no safety set")
    rise = max(before["refusal"] - after["refusal"], after["over_refusal"] - before["over_refusal"])
    n = int(after["harmful_n"] + after["harmless_n"])
    spread = 1.96 * max(
        (before[key] * (1 - before[key]) / after[count] + after[key] * (1 - after[key]) / after[count]) ** 0.5
        for key, count in (("refusal", "harmful_n"), ("over_refusal", "harmless_n"))
    )
    word: Word = "OFF" if gate.action == "off" else "PASS" if rise <= gate.threshold else "FAIL"
    return Verdict(
        "safety",
        word,
        rise,
        (rise - spread, rise + spread),
        gate.threshold,
        n,
        gate.action,
        "rise over SFT; lower is better",
    )
