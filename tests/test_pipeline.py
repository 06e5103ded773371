"""What a stage's fingerprint depends on, read from the plan: nothing is run."""

from pathlib import Path

import pytest

from towpath import pipeline
from towpath.data.sources import Corpus
from towpath.feedback import simulated
from towpath.recipe import Recipe
from towpath.records import Prompt

CORPUS = Corpus((Prompt("a", "Why?"), Prompt("b", "How?", split="heldout")))


def fingerprints(tmp_path: Path, raters: str) -> dict[str, str]:
    recipe = Recipe.model_validate({"preferences": {"raters": raters}})
    return {stage.name: stage.fingerprint for stage in pipeline.plan(recipe, tmp_path, CORPUS, None)}


@pytest.mark.parametrize(
    ("raters", "again"),
    [("simulated", {"baseline", "label", "reward", "policy", "evaluate"}), ("people", {"baseline", "evaluate"})],
)
def test_another_rubric_judges_anew_what_it_judged_and_nothing_else(tmp_path, monkeypatch, raters, again):
    before = fingerprints(tmp_path, raters)
    monkeypatch.setattr(simulated, "GUIDELINE", "another rubric")
    after = fingerprints(tmp_path, raters)
    assert {name for name in before if before[name] != after[name]} == again
