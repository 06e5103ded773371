"""Stage fingerprints of a plan, without running it, and notes of gates."""

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from towpath.data.corpus import Corpus
from towpath.evals import gate_rule
from towpath.feedback import simulated_rater
from towpath.recipe import Recipe
from towpath.recipe.reader import Section, keys, merge
from towpath.recipe.stage_configs import STAGE_CONFIGS
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
        ("people", BUNDLED, set()),  # people judge
        ("simulated", OWN, {"label", "reward", "policy", "evaluate"}),  # the rubric does not judge own data
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
    """A setting of another algorithm does not change the fingerprint of PPO."""

    def by_stage(policy: dict[str, Any]) -> dict[str, str]:
        recipe = Recipe.model_validate({"policy": policy})
        return {stage.name: stage.fingerprint for stage in fingerprint.plan_stages(recipe, tmp_path, BUNDLED, None)}

    before = by_stage({})
    after = by_stage(values)
    assert {name for name in before if before[name] != after[name]} == changed


RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "blend": {"rounds": 2, "preferences": {"raters": "blend"}, "reward": {"use": "always"}},
    "recorded": {"preferences": {"raters": "recorded"}},
    "dpo": {"policy": {"algo": "dpo"}},
    "vllm": {"engine": {"type": "vllm"}, "health": {"act": "auto"}, "preferences": {"raters": "judge"}},
}
OTHER_VALUES = {"policy.algo": ["grpo"], "engine.type": ["vllm", "local"], "evaluate.judges": [["people"]]}
"""Keys that do not take any text."""


def other_values(annotation: Any, value: Any) -> list[Any]:
    """Candidates for another value of a recipe key."""
    if get_origin(annotation) is Literal:
        return [choice for choice in get_args(annotation) if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2, value + 0.1, (value + 1) / 2]
    if isinstance(value, str):
        return [value + "x", 2048, True]  # "auto" stands for a number or for yes or no
    if isinstance(value, list):
        return [value[1:], [*value, *value], ["rule:words:8-35"]]
    return [{"x": 1.0}, {"x": "y"}]


def changed_recipes(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """For every key of the recipe: the recipe with another value of it."""
    values = recipe.model_dump(mode="json")
    for key, field in keys(Recipe).items():
        value = attrgetter(key)(recipe)
        if isinstance(value, Section) or key == "data.preferences":
            continue
        for other in OTHER_VALUES.get(key, other_values(field.annotation, value)):
            try:
                changed = Recipe.model_validate(merge(values, {key: other}))
            except ValidationError:
                continue
            if changed != recipe:
                yield key, changed
                break
        else:
            raise AssertionError(f"{key}: no other value")


@pytest.mark.parametrize("tables", RECIPES.values(), ids=RECIPES)
def test_a_stage_depends_only_on_the_sections_that_it_declares(tmp_path, tables):
    """A key of any other section leaves its fingerprint as it is, unless an input stage changes."""
    (tmp_path / "data" / "preferences").mkdir(parents=True)
    (tmp_path / "data" / "preferences" / "pairs.jsonl").write_text("{}\n")
    recipe = Recipe.model_validate(tables)
    before = {stage.name: stage for stage in fingerprint.plan_stages(recipe, tmp_path, BUNDLED, None)}
    sections_changed = set()
    for key, changed in changed_recipes(recipe):
        section = key.split(".")[0]
        after = {stage.name: stage for stage in fingerprint.plan_stages(changed, tmp_path, BUNDLED, None)}
        for name in before.keys() & after.keys():
            old = before[name]
            new = after[name]
            if old.config != new.config:
                sections_changed.add(section)
            if section in STAGE_CONFIGS[old.kind].sections():
                continue
            assert old.config == new.config, f"{name} does not declare [{section}], and depends on {key}"
            inputs_kept = old.inputs == new.inputs and all(
                before[stage].fingerprint == after[stage].fingerprint for stage in old.inputs
            )
            assert old.fingerprint == new.fingerprint or not inputs_kept, f"{name} depends on {key}"
    assert {"sft", "evaluate", "policy", "model"} <= sections_changed
    assert sections_changed.isdisjoint({"name", "store", "budget", "gates", "track"})


def test_a_stage_has_no_other_sections() -> None:
    for kind, config in STAGE_CONFIGS.items():
        sections = set(config.sections())
        assert sections < set(Recipe.model_fields), kind
        for section in set(Recipe.model_fields) - sections:
            with pytest.raises(AttributeError, match=section):
                getattr(config.from_recipe(Recipe()), section)


def test_note_of_a_failed_gate() -> None:
    """No note far from the threshold; at the threshold a note that the value must exceed it."""
    cases = ((0.5, (0.3, 0.69)), (0.7, (0.6, 0.8)))
    notes = [gate_rule.interval_note("FAIL", value, interval, 0.7, 24) for value, interval in cases]
    assert notes == ["", "the value must exceed the threshold"]
    assert gate_rule.interval_note("FAIL", 0.65, (0.5, 0.8), 0.7, 24).startswith(
        "the interval contains the threshold: about "
    )
