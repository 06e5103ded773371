"""`towpath explain`, and suggestions for unknown recipe keys: sections, names of other libraries, case."""

import pytest
from typer.testing import CliRunner

from towpath import __version__, algos
from towpath.cli.app import app
from towpath.errors import RecipeError
from towpath.recipe import Recipe, aliases, explain
from towpath.recipe.reader import _item_keys, check, keys

KNOWN = keys(Recipe)
SECTIONS = [
    key for key, info in KNOWN.items() if isinstance(info.annotation, type) and hasattr(info.annotation, "model_fields")
]


@pytest.mark.parametrize("section", SECTIONS)
def test_section_is_explained_by_its_keys(section: str) -> None:
    rows = explain(section)
    assert rows and all(row["key"].startswith(f"{section}.") for row in rows)


def test_explain_prints_the_documented_example() -> None:
    result = CliRunner().invoke(app, ["explain", "reward"])
    assert result.exit_code == 0 and "reward.learning_rate = 0.0002" in result.stdout
    assert "policy.rewards" not in result.stdout


def test_key_takes_precedence_over_a_section_of_the_same_name() -> None:
    assert [row["key"] for row in explain("policy.kl.coef")] == ["policy.kl.coef"]
    assert {row["key"] for row in explain("num_generations")} == {"policy.group"}


def test_version_option() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout.strip() == f"towpath {__version__}"


def test_every_alias_names_existing_keys() -> None:
    missing = {target for targets in aliases.ALIASES.values() for target in targets}
    missing -= {*KNOWN, *_item_keys(Recipe)}
    assert not missing
    own_words = {key.rpartition(".")[2] for key in KNOWN}
    assert all(word == word.lower() for word in aliases.ALIASES)
    both = {"beta", "value_clip", "critic_learning_rate", "target_kl"}
    assert {word for word in aliases.ALIASES if word in own_words} <= both


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"beta": 0.1}, "policy.kl.coef, policy.dpo.beta or policy.kto.beta"),
        ({"policy": {"beta": 0.1}}, "policy.kl.coef"),
        ({"num_generations": 8}, "policy.group"),
        ({"policy": {"num_generations": 8}}, "policy.group"),
        ({"max_completion_length": 256}, "policy.max_new_tokens"),
        ({"GRPO": {}}, "policy.grpo"),
        ({"learning_rate": 1e-5}, "sft.learning_rate, reward.learning_rate or policy.learning_rate"),
        ({"sft": {"lr": 1e-5}}, "sft.learning_rate"),
        ({"per_device_train_batch_size": 8}, "sft.batch, reward.batch or policy.batch"),
        ({"polcy": {}}, "policy"),
        ({"preferences": {"people": 0.4}}, "preferences.human_share?"),
        ({"policy": {"lora": {"top": 4}}}, "policy.lora.last_n_layers?"),
        ({"policy": {"rewards": {"sources": [{"of": "model"}]}}}, "policy.rewards.sources[].source?"),
        ({"policy": {"rewards": {"sources": [{"wieght": 1.0}]}}}, "policy.rewards.sources[].weight?"),
        ({"engine": {"of": "vllm"}}, "engine.type?"),
    ],
)
def test_unknown_key_suggests_the_intended_one(tables: dict, key: str) -> None:
    with pytest.raises(RecipeError) as error:
        check(Recipe, tables, "recipe.toml")
    assert f"did you mean {key}" in str(error.value)


def test_algorithm_in_capitals_suggests_lower_case() -> None:
    with pytest.raises(RecipeError, match=r"policy\.algo = 'GRPO'") as error:
        algos.data_of("GRPO")
    assert error.value.fix == "use 'grpo'"
