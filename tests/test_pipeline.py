"""What a stage's fingerprint depends on, read from the plan: nothing is run."""

from pathlib import Path

import pytest

from towpath.data.corpus import Corpus
from towpath.feedback import simulated_rater
from towpath.recipe import Recipe
from towpath.records import Prompt
from towpath.run import fingerprint

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
def test_another_rubric_judges_anew_what_it_judged_and_nothing_else(tmp_path, monkeypatch, raters, corpus, again):
    before = fingerprints(tmp_path, raters, corpus)
    monkeypatch.setattr(simulated_rater, "GUIDELINE", "another rubric")
    after = fingerprints(tmp_path, raters, corpus)
    assert {name for name in before if before[name] != after[name]} == again
