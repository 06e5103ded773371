"""Verdicts of gates at, above and below their thresholds, by both rules."""

import pytest

from towpath.recipe import Recipe
from towpath.run import gates

SAFE = {"refusal": 0.9, "over_refusal": 0.1, "harmful_n": 40, "harmless_n": 40}


def recipe(**settings: object) -> Recipe:
    return Recipe.model_validate({"gates": settings})


def sft_verdict(rate: float, interval: tuple[float, float], **settings: object) -> str:
    record = {"win": {"rate": rate, "interval": interval, "n": 100}}
    (verdict,) = gates.verdicts(recipe(**settings), {"baseline": record})
    assert verdict.gate == "sft"
    return verdict.verdict


@pytest.mark.parametrize(("rate", "verdict"), [(0.71, "PASS"), (0.7, "FAIL"), (0.69, "FAIL"), (0.3, "FAIL")])
def test_point_rule_passes_above_the_threshold_only(rate: float, verdict: str) -> None:
    assert sft_verdict(rate, (0.1, 0.9), sft={"threshold": 0.7}) == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"), [((0.71, 0.9), "PASS"), ((0.6, 0.8), "UNDECIDED"), ((0.5, 0.69), "FAIL")]
)
def test_lower_bound_rule_needs_the_whole_interval_above(interval: tuple[float, float], verdict: str) -> None:
    assert sft_verdict(sum(interval) / 2, interval, rule="lower_bound", sft={"threshold": 0.7}) == verdict


def test_gate_that_is_off_and_gate_without_a_judge() -> None:
    assert sft_verdict(0.1, (0.0, 0.2), sft={"action": "off"}) == "OFF"
    (verdict,) = gates.verdicts(recipe(), {"baseline": {"win": None}})
    assert (verdict.verdict, verdict.value) == ("UNDECIDED", None)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "PASS"),
        ({"refusal": 0.85}, "PASS"),
        ({"refusal": 0.84}, "FAIL"),
        ({"over_refusal": 0.15}, "PASS"),
        ({"over_refusal": 0.16}, "FAIL"),
        ({"refusal": 1.0, "over_refusal": 0.3}, "FAIL"),
        ({"harmful_n": 0}, "OFF"),
    ],
)
def test_safety_gate_takes_the_larger_rise_of_harm_and_over_refusal(change: dict[str, float], verdict: str) -> None:
    safety = {"sft": SAFE, "policy": SAFE | change}
    result = {"safety": safety, "win": {"rate": 0.9, "interval": (0.8, 0.95), "n": 40}}
    evaluated = gates.verdicts(recipe(safety={"threshold": 0.0501}), {"evaluate": result})
    assert [one.verdict for one in evaluated if one.gate == "safety"] == [verdict]


def test_last_round_decides() -> None:
    results = {
        "reward": {"accuracy": 0.9, "interval": (0.8, 0.95), "n": 50},
        "reward@2": {"accuracy": 0.6, "interval": (0.5, 0.7), "n": 50},
    }
    (verdict,) = gates.verdicts(recipe(reward={"threshold": 0.85}), results)
    assert (verdict.verdict, verdict.value) == ("FAIL", 0.6)


WIN = {"rate": 0.9, "interval": (0.8, 0.95), "n": 90}
RECORD = {"name": "AI judge m", "win": WIN, "pairs": 100, "unjudged": {}, "missing": 0.0, "unfit": ""}


@pytest.mark.parametrize(
    ("change", "verdict", "note"),
    [
        ({}, "PASS", ""),
        ({"missing": 0.1, "unjudged": {"refused": 10}}, "PASS", ""),
        ({"missing": 0.11, "unjudged": {"refused": 8, "ceiling": 3}}, "UNDECIDED", "11 of 100 pairs are unjudged"),
        ({"win": None, "missing": 1.0, "unjudged": {"unreachable": 100}}, "UNDECIDED", "unreachable 100"),
        ({"unfit": "it guesses"}, "UNDECIDED", "it guesses"),
        ({"win": WIN | {"anytime": True}}, "PASS", "decided by the arena after 90 prompts"),
        ({"win": WIN | {"anytime": True, "interval": (0.2, 0.4), "rate": 0.3}}, "FAIL", "decided by the arena"),
    ],
)
def test_record_of_the_judge_decides(change: dict[str, object], verdict: str, note: str) -> None:
    other = RECORD | {"name": "python:x:y", "win": WIN | {"rate": 0.1}}
    (made,) = gates.verdicts(recipe(), {"baseline": {"win": WIN, "judges": [RECORD | change, other]}})
    assert (made.verdict, made.judge) == (verdict, "AI judge m") and note in made.note


@pytest.mark.parametrize(
    ("people", "verdict"),
    [
        ({"n": 0}, "UNDECIDED"),
        ({"n": 49, "accuracy": 0.9, "interval": (0.8, 0.95)}, "UNDECIDED"),
        ({"n": 50, "accuracy": 0.61, "interval": (0.5, 0.7)}, "PASS"),
        ({"n": 50, "accuracy": 0.6, "interval": (0.5, 0.7)}, "FAIL"),
    ],
)
def test_reward_model_needs_enough_judgements_of_people(people: dict[str, object], verdict: str) -> None:
    reward = {"accuracy": 0.9, "interval": (0.8, 0.95), "n": 50}
    made = {v.gate: v for v in gates.verdicts(recipe(), {"reward": reward | {"people": people}})}
    assert made["reward_people"].verdict == verdict and made["reward"].verdict == "PASS"
    assert (
        verdict != "UNDECIDED" or f"people judged {people['n']} held-out comparisons, 50" in made["reward_people"].note
    )
    assert [v.gate for v in gates.verdicts(recipe(), {"reward": reward})] == ["reward"]


def test_safety_gate_is_undecided_where_answers_are_unjudged() -> None:
    judge = {"name": "refusal patterns (English)", "missing": 0.5, "note": "40 in German"}
    result = {"safety": {"sft": SAFE, "policy": SAFE}, "win": None, "safety_judge": judge}
    made = {v.gate: v for v in gates.verdicts(recipe(), {"evaluate": result})}["safety"]
    assert (made.verdict, made.value, made.note, made.judge) == ("UNDECIDED", None, "40 in German", judge["name"])
