"""Search space of a sweep: ranges of the recipe, default ranges of every algorithm, and all that cannot be searched."""

from pathlib import Path
from typing import Any

import pytest

from towpath.errors import RecipeError
from towpath.recipe import Recipe
from towpath.recipe.reader import check, override
from towpath.sweep.space import ALGORITHM_KEYS, SearchRange, parse_space, recipe_settings, usual_ends, with_settings


def recipe_of(*assignments: str, **space: Any) -> Recipe:
    tables = override({"sweep": {"space": {key.replace("__", "."): row for key, row in space.items()}}}, [*assignments])
    return check(Recipe, tables, "recipe.toml")


def error_of(recipe: Recipe) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_space(recipe)
    assert caught.value.rule and caught.value.fix
    return caught.value


def test_ranges_of_the_recipe():
    recipe = recipe_of(
        policy__learning_rate={"low": 1e-6, "high": 1e-4, "log": True},
        policy__group={"choices": [4, 8]},
        policy__epochs={"low": 1, "high": 4},
        policy__temperature={"low": 0.7, "high": 1.0, "step": 0.1},
    )
    space = parse_space(recipe)
    assert space["policy.learning_rate"] == SearchRange("policy.learning_rate", 1e-6, 1e-4, log=True)
    assert space["policy.group"].choices == (4, 8)
    assert space["policy.epochs"].whole and space["policy.epochs"].step == 1
    assert space["policy.temperature"].at(0.4) == pytest.approx(0.8)
    assert recipe_settings(recipe, space)["policy.group"] == 1


def test_key_without_quotes_is_the_same_range():
    nested = check(Recipe, {"sweep": {"space": {"policy": {"kl": {"coef": {"low": 0.01, "high": 0.1}}}}}}, "r")
    assert parse_space(nested) == parse_space(recipe_of(policy__kl__coef={"low": 0.01, "high": 0.1}))


@pytest.mark.parametrize("algo", ALGORITHM_KEYS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_default_space_of_every_algorithm(algo: str, method: str):
    recipe = recipe_of(f"policy.algo={algo}", f"policy.method={method}")
    space = parse_space(recipe)
    assert set(space) == set(ALGORITHM_KEYS[algo])
    for key, search_range in space.items():
        for share in (0.0, 0.5, 0.999):
            item = search_range.at(share)
            assert search_range.contains(item)
            with_settings(recipe, {key: item})
    rate = space["policy.learning_rate"]
    assert (rate.low, rate.high) == ((5e-6, 1e-4) if method == "lora" else (1e-6, 5e-6))
    assert rate.log


def test_default_epochs_are_those_of_the_algorithm():
    assert parse_space(recipe_of("policy.algo=ppo"))["policy.epochs"].row() == {"low": 4, "high": 16, "log": True}
    assert usual_ends("4-16 for PPO, 1-2 for grpo, rloo and reinforce", "rloo", "lora") == (1, 2)
    assert usual_ends("200 or more", "ppo", "lora") is None


@pytest.mark.parametrize(
    ("key", "row", "words"),
    [
        ("policy.learning_rat", {"low": 1, "high": 2}, "did you mean policy.learning_rate"),
        ("sft.learning_rate", {"low": 1e-5, "high": 1e-4}, "not a key of [policy]"),
        ("data.heldout", {"low": 0.1, "high": 0.2}, "all trials share the inputs"),
        ("policy.algo", {"choices": ["ppo", "grpo"]}, "which stages are needed"),
        ("policy.validation_prompts", {"choices": [8, 16]}, "same validation prompts"),
        ("policy.dpo.beta", {"low": 0.1, "high": 0.2}, "not used by ppo"),
        ("policy.kl", {"low": 0.1, "high": 0.2}, "a table"),
        ("policy.learning_rate", {"low": -1.0, "high": 1.0}, "greater than 0"),
        ("policy.ppo.lam", {"low": 0.9, "high": 1.5}, "less than or equal to 1"),
        ("policy.schedule", {"choices": ["linear", "square"]}, "'linear', 'cosine' or 'constant'"),
        ("policy.learning_rate", {"low": 1e-4, "high": 1e-6}, "low must be below high"),
        ("policy.kl.coef", {"low": 0, "high": 1, "log": True}, "begins above 0"),
        ("policy.learning_rate", {"lo": 1e-4, "high": 1e-6}, "no key 'lo'"),
        ("policy.learning_rate", {"low": "a", "high": 1e-6}, "are numbers"),
        ("policy.epochs", {"low": 1.5, "high": 4}, "whole number"),
        ("policy.group", {"choices": [4]}, "two values or more"),
        ("policy.group", {"choices": [4, 8], "low": 1}, "not both"),
        ("policy.group", {}, "low and high, or choices"),
        ("policy.learning_rate", {"low": 1e-6, "high": 1e-4, "log": True, "step": 1e-6}, "without log"),
    ],
)
def test_what_cannot_be_searched(key: str, row: Any, words: str):
    error = error_of(check(Recipe, {"sweep": {"space": {key: row}}}, "recipe.toml"))
    assert words in str(error) and key in error.value


def test_keys_without_effect_are_refused():
    assert "full" in str(error_of(recipe_of("policy.method=full", policy__lora__alpha={"low": 16, "high": 64})))
    assert "no rollouts" in str(error_of(recipe_of("policy.algo=dpo", policy__kl__coef={"low": 0.1, "high": 0.2})))


def test_space_and_sweep_do_not_change_a_recipe_of_a_stage():
    from towpath.recipe.stage_configs import STAGE_CONFIGS

    assert all("sweep" not in config.sections() for config in STAGE_CONFIGS.values())


def test_clip_keeps_values_in_the_range():
    assert SearchRange("policy.epochs", 1, 8, True, whole=True).clip(9.7) == 8
    assert SearchRange("policy.group", choices=(4, 8), whole=True).clip(7) == 8
    assert SearchRange("x", 0.1, 0.5, step=0.2).clip(0.27) == pytest.approx(0.3)
    assert not SearchRange("x", 0.0, 1.0).contains(True)


def test_recipe_file_with_ranges(tmp_path: Path):
    from towpath import recipe

    path = tmp_path / "recipe.toml"
    path.write_text('[sweep]\ntrials = 8\n[sweep.space]\n"policy.kl.coef" = { low = 0.01, high = 0.1, log = true }\n')
    assert list(parse_space(recipe.load(path))) == ["policy.kl.coef"]
