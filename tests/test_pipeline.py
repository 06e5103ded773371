"""What a stage's fingerprint depends on, read from the plan: nothing is run."""

from pathlib import Path
from typing import Any

import pytest

from towpath.data.corpus import Corpus
from towpath.feedback import simulated_rater
from towpath.recipe import Recipe
from towpath.records import Prompt
from towpath.run import fingerprint, gates

BUNDLED = Corpus(
    (
        Prompt("a", "Is it safe to eat raw cookie dough?"),
        Prompt("b", "Should I wash mushrooms before cooking them?", split="heldout"),
    )
)
OWN = Corpus((Prompt("a", "Why?"), Prompt("b", "How?", split="heldout")))


def fingerprints(tmp_path: Path, raters: str, corpus: Corpus) -> dict[str, str]:
    recipe = Recipe.model_validate({"preferences": {"raters": raters}})
    return {stage.name: stage.fingerprint for stage in fingerprint.plan_stages(recipe, tmp_path, corpus, None)}


@pytest.mark.parametrize(
    ("raters", "corpus", "again"),
    [
        ("simulated", BUNDLED, {"baseline", "label", "reward", "policy", "evaluate"}),
        ("people", BUNDLED, {"baseline", "evaluate"}),
        ("people", OWN, set()),  # the rubric judges nothing there
    ],
)
def test_changed_rubric_changes_fingerprints_of_stages_that_use_it(tmp_path, monkeypatch, raters, corpus, again):
    before = fingerprints(tmp_path, raters, corpus)
    monkeypatch.setattr(simulated_rater, "GUIDELINE", "another rubric")
    after = fingerprints(tmp_path, raters, corpus)
    assert {name for name in before if before[name] != after[name]} == again


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"grpo": {"clip_low": 0.15}}, set()),
        ({"dpo": {"beta": 0.2}}, set()),
        ({"rewards": {"watch": ["rule:words:8-35"]}}, set()),
        ({"ppo": {"clip": 0.15}}, {"policy", "evaluate"}),
        ({"epochs": 2}, {"policy", "evaluate"}),
    ],
)
def test_fingerprint_contains_only_settings_of_the_stage(tmp_path, values, changed):
    """A setting of another algorithm does not run a finished PPO again."""

    def by_stage(policy: dict[str, Any]) -> dict[str, str]:
        recipe = Recipe.model_validate({"policy": policy})
        return {stage.name: stage.fingerprint for stage in fingerprint.plan_stages(recipe, tmp_path, BUNDLED, None)}

    before = by_stage({})
    after = by_stage(values)
    assert {name for name in before if before[name] != after[name]} == changed


def test_note_of_a_failed_gate() -> None:
    """Far from the threshold nothing but the numbers; at the threshold that it must be exceeded."""
    notes = [
        gates._note("FAIL", value, interval, 0.7, 24) for value, interval in ((0.5, (0.3, 0.69)), (0.7, (0.6, 0.8)))
    ]
    assert notes == ["", "the value must exceed the threshold"]
    assert gates._note("FAIL", 0.65, (0.5, 0.8), 0.7, 24).startswith("the interval contains the threshold: about ")
