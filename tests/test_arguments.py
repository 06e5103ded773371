"""Arguments of the Python interface: prompts, pairs, rewards and settings are converted or refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from towpath.errors import RecipeError
from towpath.records import Message
from towpath.rewards import sources
from towpath.run import arguments


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("Why?", "a list of texts"),
        (7, "a list of texts"),
        (["a", None], r"prompts\[1\] = None"),
        (range(3), r"prompts\[0\] = 0"),
        (["a", "  "], r"prompts\[1\]"),
        (["\ud83d"], r"prompts\[0\]"),
        ([[{"role": "assistant", "content": "a"}]], r"prompts\[0\]: prompt: roles out of order"),
        ([[{"role": "user", "content": " "}]], r"prompts\[0\]"),
        ([[]], r"prompts\[0\]"),
    ],
)
def test_invalid_prompts_are_refused(texts, words):
    with pytest.raises(RecipeError, match=words):
        arguments.prompts(texts)


def test_prompts_may_be_a_generator_or_an_array():
    expected = [(Message("user", "a"),), (Message("user", "b"),)]
    assert arguments.prompts(text for text in ("a", "b")) == arguments.prompts(np.array(["a", "b"])) == expected


def test_prompts_may_be_conversations():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    expected = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert arguments.prompts([turns]) == arguments.prompts([{"prompt": turns, "reference": "x"}]) == [expected]
    assert arguments.columns([{"prompt": turns, "reference": "x"}]) == {expected: {"reference": "x"}}
    assert arguments.is_conversational([turns]) and not arguments.is_conversational(["a"])
    whole = [[*turns, {"role": "assistant", "content": answer}] for answer in ("d", "e")]
    assert arguments.pairs([{"chosen": whole[0], "rejected": whole[1]}]) == [(expected, "d", "e")]
    assert arguments.pairs([(turns, "d", "e")]) == [(expected, "d", "e")]


@pytest.mark.parametrize("rows", [None, 7, "abc", {"prompt": "a"}])
def test_pairs_must_be_a_list(rows):
    with pytest.raises(RecipeError, match="pairs = "):
        arguments.pairs(rows)


@pytest.mark.parametrize(
    "rows",
    [
        [1] * 3,
        ["abc"],
        [("a", "b")],
        [{"prompt": "a", "chosen": "b"}],
        [("a", "b", " b ")],
        [("a", "", "b")],
        [("a", "b", None)],
    ],
)
def test_invalid_pairs_are_refused(rows):
    with pytest.raises(RecipeError, match=r"pairs\[0\]"):
        arguments.pairs(rows)


def test_preference_dicts_of_other_libraries_are_pairs():
    assert arguments.pairs([{"prompt": "a", "chosen": "b", "rejected": "c", "score": 1}]) == [
        ((Message("user", "a"),), "b", "c")
    ]


def test_several_rewards_with_weights():
    def mine(_prompts, answers):
        return [1.0 for _ in answers]

    report = arguments.rewards([mine, "rule:prose", {"source": mine, "weight": 0.5}])
    assert [one.get("weight") for one in report] == [None, None, 0.5]
    assert report[0]["source"] == report[2]["source"] and sources.load_source(report[0]["source"])(["p"], ["a"]) == [
        1.0
    ]
    for wrong in ("model", 5, [5], {"weight": 1.0}):
        with pytest.raises(RecipeError, match="reward = "):
            arguments.rewards(wrong)


def test_reward_name_replaces_the_code_fingerprint():
    (one,), (other,) = (
        arguments.rewards({"source": lambda _p, a, w=w: [w for _ in a], "name": "v1"}) for w in (1.0, 2.0)
    )
    assert one == other


def test_python_values_are_converted_to_recipe_values():
    content = {
        "a": np.int64(3),
        "b": np.float32(0.5),
        "c": torch.bfloat16,
        "d": Path("x/y"),
        "e": (1, "z"),
        "f": {"g": True},
        "h": None,
        "i": "torch.x",
        "j": torch.tensor(0.5),
    }
    assert arguments.setting("", content) == {
        "a": 3,
        "b": 0.5,
        "c": "bfloat16",
        "d": "x/y",
        "e": [1, "z"],
        "f": {"g": True},
        "h": None,
        "i": "torch.x",
        "j": 0.5,
    }
    with pytest.raises(RecipeError, match=r"policy\.clip = "):
        arguments.setting("policy.clip", object())
