"""Reward functions are called with keyword arguments by parameter name, as in TRL; a parameter without a value is
refused before training."""

import functools
import json
from dataclasses import replace
from typing import Any

import pytest

import towpath as tp
from towpath.data.corpus_reader import read_corpus
from towpath.errors import RecipeError
from towpath.recipe import Data
from towpath.records import Message
from towpath.rewards.call_adapter import adapt_function
from towpath.run import arguments

PROMPTS = ["1 + 1", "2 + 2"]
ANSWERS = ["2", "5"]
ROWS = {"ground_truth": ["2", "4"]}


def by_name(completions, ground_truth, **kwargs):
    return [completions, ground_truth, sorted(kwargs)]


def defaulted(completions, weight=2.0, ground_truth=None):
    return [completions, weight, ground_truth]


def positional_only(answers, prompts, /):
    return [answers, prompts]


class CallableReward:
    def __call__(self, completions, prompts):
        return [completions, prompts]


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (by_name, [ANSWERS, ["2", "4"], ["prompts"]]),
        (defaulted, [ANSWERS, 2.0, ["2", "4"]]),
        (positional_only, [ANSWERS, PROMPTS]),
        (CallableReward(), [ANSWERS, PROMPTS]),
        (functools.partial(by_name, ground_truth=["x", "y"]), [ANSWERS, ["2", "4"], ["prompts"]]),
        (lambda answers, prompts: [answers, prompts], [ANSWERS, PROMPTS]),
        (lambda p, a: [p, a], [PROMPTS, ANSWERS]),
        (lambda p, a, scale=1.0: [p, a, scale], [PROMPTS, ANSWERS, 1.0]),
        (lambda *args: list(args), [PROMPTS, ANSWERS]),
        (lambda **kwargs: sorted(kwargs), ["completions", "ground_truth", "prompts"]),
        (lambda _prompts, answers: answers, ANSWERS),
        (lambda _x, answers: answers, ANSWERS),
        (lambda *, completions, **_: completions, ANSWERS),
    ],
)
def test_parameters_are_filled_by_name(function: Any, want: Any) -> None:
    assert adapt_function("mine", function, ROWS.keys())(PROMPTS, ANSWERS, ROWS) == want


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        (lambda completions, reference: 0, "reference"),
        (lambda prompts, texts: 0, "texts"),
        (lambda texts: 0, "texts"),
        (lambda completions, a, b, **kwargs: 0, "a, b"),
        (lambda: 0, "takes no arguments"),
        (lambda completion, reference: 0, "completion, reference"),
        (lambda response, prompt: 0, "response, prompt"),
    ],
)
def test_parameter_without_a_value_is_an_error(function: Any, missing: str) -> None:
    with pytest.raises(RecipeError, match=missing) as refused:
        adapt_function("mine", function, ROWS.keys())
    assert "ground_truth" in refused.value.rule and refused.value.fix


def test_conflicting_columns_are_refused() -> None:
    with pytest.raises(RecipeError, match="column 'completions'"):
        arguments.columns([{"prompt": "a", "completions": 1}])
    with pytest.raises(RecipeError, match="twice"):
        arguments.columns([{"prompt": "a", "truth": 1}, {"prompt": "a", "truth": 2}])
    assert arguments.columns(
        [{"prompt": "a", "truth": 1}, {"prompt": "b", "truth": None}, {"prompt": "a", "truth": 1}]
    )[(Message("user", "a"),)] == {"truth": 1}
    for rows in (
        [{"prompt": "a", "truth": 1}, "b"],
        ["b", {"prompt": "a", "truth": 1}],
        [{"prompt": "a", "x": 1}, {"prompt": "b", "y": 1}],
    ):
        with pytest.raises(RecipeError, match=r"prompts\[1\] and prompts\[0\] differ in the column '(truth|x)'"):
            arguments.columns(rows)


CONVERSATIONS = [(Message("system", "Add."), Message("user", prompt)) for prompt in PROMPTS]


def test_conversational_rows_give_messages_as_in_trl() -> None:
    def reward(prompts, completions, ground_truth, **kwargs):
        rows = zip(prompts, completions, ground_truth, strict=True)
        return [prompt[-1]["content"] + answer[0]["content"] + truth for prompt, answer, truth in rows]

    call = adapt_function("mine", reward, ROWS.keys())
    assert call(CONVERSATIONS, ANSWERS, ROWS) == ["1 + 122", "2 + 254"]
    texts = adapt_function("mine", lambda prompts, answers: answers, ())
    assert texts(CONVERSATIONS, ANSWERS, {}) == ANSWERS
    by_position = adapt_function("mine", lambda p, a: p, ())
    assert by_position(CONVERSATIONS, ANSWERS, {}) == ["System: Add.\n\nUser: 1 + 1", "System: Add.\n\nUser: 2 + 2"]
    always = adapt_function("mine", lambda conversations, answers: conversations, ())
    assert always(PROMPTS, ANSWERS, {})[0] == [{"role": "user", "content": "1 + 1"}]
    assert always(CONVERSATIONS, ANSWERS, {})[0][0] == {"role": "system", "content": "Add."}


def test_columns_of_data_files_reach_reward_functions(tmp_path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "1 + 1"}], "reference": "2", "level": 3},
        {"messages": [{"role": "user", "content": "2 + 2"}], "reference": "4"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(prompts="p.jsonl", demonstrations="", safety="", heldout=0.0)
    corpus = read_corpus(tmp_path, data, 0)
    assert corpus.conversational and corpus.column_names == {"reference", "level"}
    assert corpus.columns_of(corpus.prompts) == {"level": [3, None], "reference": ["2", "4"]}
    assert corpus.digests.train != replace(corpus, columns={}).digests.train


def test_trl_reward_signature_is_supported(tmp_path, tiny_folder) -> None:
    """Every completion is scored with the ground truth of its own prompt, in training and in validation."""
    observed: list[tuple[str, str, str]] = []
    rows = [
        {"prompt": f"Say {number}.", "ground_truth": f"truth of Say {number}.", "difficulty": number}
        for number in range(12)
    ]

    def reward(completions, ground_truth, **kwargs):
        assert set(kwargs) == {"prompts", "difficulty"}
        observed.extend(zip(kwargs["prompts"], completions, ground_truth, strict=True))
        return [float(len(text)) for text in completions]

    done = tp.train(
        "grpo",
        model=tiny_folder,
        prompts=rows,
        reward=reward,
        steps=1,
        rollout=8,
        max_new_tokens=4,
        folder=tmp_path,
        dtype="float32",
    )
    assert done.metrics and all(truth == f"truth of {prompt}" for prompt, _, truth in observed)
    assert len({prompt for prompt, _, _ in observed}) > 4


def test_missing_column_is_refused_before_training(tmp_path, tiny_folder) -> None:
    def reward(completions, ground_truth, **kwargs):
        return [0.0 for _ in completions]

    with pytest.raises(RecipeError, match="no value for ground_truth"):
        tp.train(
            "grpo",
            model=tiny_folder,
            prompts=[f"Say {i}." for i in range(12)],
            reward=reward,
            steps=1,
            folder=tmp_path / "x",
        )
    assert not (tmp_path / "x").exists()
