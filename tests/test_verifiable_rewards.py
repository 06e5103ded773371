"""Rewards that check an answer: mathematics, a reference, a JSON schema, a program of the user."""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import towpath as tp
from towpath.errors import RecipeError, RewardError
from towpath.recipe import Rewards
from towpath.recipe.rewards import CommandLimits
from towpath.rewards import shaping, sources

COLUMNS = {"reference": ["1/2", "4", "x^2 - 1"]}


def score(source: str, answers: list[str], columns: dict[str, list] | None = None, **limits: float) -> list:
    columns = columns or {}
    scorer = sources.load_source(source, columns=list(columns), limits=CommandLimits(**limits))  # pyright: ignore
    return list(scorer(["p"] * len(answers), answers, columns))


def test_mathematical_equality() -> None:
    answers = ["So it is $\\frac{1}{2}$.", "The answer is 4.0", "$(x-1)(x+1)$"]
    assert score("math", answers, COLUMNS) == [1.0, 1.0, 1.0]
    assert score("math", ["0.25", "five", "$x^2$"], COLUMNS) == [0.0, 0.0, 0.0]
    assert score("math:truth", ["<think>3 or 4</think> 3"], {"truth": [3]}) == [1.0]
    assert score("math", ["4", "4"], {"reference": [None, "4"]}) == [None, 1.0]
    with pytest.raises(RewardError, match="no number or expression"):
        score("math", ["4"], {"reference": ["??"]})
    with pytest.raises(RecipeError, match=r"the column 'reference'.*have the columns: truth"):
        sources.load_source("math", columns=["truth"])


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("2 * 7 = 14", True),
        ("The answer is 14.", True),
        ("14.0", True),
        ("$\\boxed{14}$", True),
        ("2 * 7", False),
        ("it is 7 + 7", False),
        ("16 - 2 = 14 - 0", False),
        ("28/2", False),
        ("$2 \\cdot 7$", False),
    ],
)
def test_a_question_is_no_answer(answer: str, right: bool) -> None:
    assert score("math", [answer], {"reference": ["14"]}) == [float(right)]


def test_fractions_in_lowest_terms_are_values() -> None:
    assert score("math", ["1/2", "2/4", "50%", "$\\frac{1}{2}$", "0.5"], {"reference": ["0.5"] * 5}) == [1, 0, 1, 1, 1]
    assert score("math", ["-3", "3", "1,234"], {"reference": ["-3", "-3", "1234"]}) == [1, 0, 1]


def test_reference_text() -> None:
    columns = {"reference": ["Paris", "Berlin", ""]}
    assert score("rule:reference", ["paris.", "Bonn", "x"], columns) == [1.0, 0.0, None]
    assert score("rule:reference:capital", ["<think>hm</think>Rome"], {"capital": ["Rome"]}) == [1.0]


def test_json_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    answers = ['{"age": 3}', 'Here:\n```json\n{"age": 3}\n```', '{"age": "3"}', "{", "3"]
    assert score(f"json:{path}", answers) == [1.0, 1.0, 0.0, 0.0, 0.0]
    path.write_text(json.dumps({"type": "no such type"}))
    with pytest.raises(RecipeError, match="correct the file"):
        sources.load_source(f"json:{path}")
    with pytest.raises(RecipeError, match="No such file"):
        sources.load_source("json:nowhere.json")


PROGRAM = """
import json, os, sys, time
row = json.load(sys.stdin)
answer = row["answer"]
if answer == "sleep":
    time.sleep(60)
if answer == "memory":
    bytearray(2**33)
if answer == "output":
    while True:
        print("x" * 1000)
if answer == "fail":
    sys.exit("broken")
if answer == "child":
    os.execvp("sh", ["sh", "-c", "sleep 60 & sleep 60"])
print("debug")
replies = {"words": "many", "object": json.dumps({"score": 0.5}), "nan": "nan"}
print(replies.get(answer, len(answer) + row.get("extra", 0)))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "score.py"
    path.write_text(PROGRAM)
    return f"command:{sys.executable} {path}"


def test_command_scores_each_answer_from_its_row(program: str) -> None:
    assert score(program, ["ab", "abc", "object"], {"extra": [0, 10, 0]}) == [2.0, 13.0, 0.5]


def test_failures_of_a_command_are_unscored_and_named(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    answers = ["sleep", "memory", "output", "fail", "child", "words", "nan", "ab"]
    scores = score(program, answers, seconds=3.0, memory=512, output=64)
    assert [math.isnan(x) for x in scores] == [True] * 7 + [False] and scores[7] == 2.0
    printed = capsys.readouterr().err
    assert "2 of 8 answers not scored: longer than 3 s" in printed
    deadline = time.monotonic() + 5.0  # a killed process takes a moment where the machine is busy
    while (left := _sleeping()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "children of the program are killed with it"


def _sleeping() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit() and _is_sleep(path.name)]


def _is_sleep(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"sleep\x0060")
    except OSError:
        return False


def test_missing_program_is_refused() -> None:
    with pytest.raises(RecipeError, match="no program 'no-such-program'"):
        sources.load_source("command:no-such-program --fast")
    with pytest.raises(RecipeError, match="No closing quotation"):
        sources.load_source("command:python 'x")


def test_a_source_that_does_not_apply_is_left_out_of_the_combination() -> None:
    scores = np.array([[1.0, -np.inf, -np.inf, np.nan], [2.0, 2.0, -np.inf, 2.0]])
    both = [{"source": "math", "weight": 2.0}, {"source": "rule:prose", "weight": 1.0}]

    def combined(how: str) -> list[float]:
        return shaping.combine_sources(scores, Rewards.model_validate({"sources": both, "combine": how})).tolist()

    assert combined("sum") == pytest.approx([4.0, 2.0, math.nan, math.nan], nan_ok=True)
    assert combined("mean") == pytest.approx([4 / 3, 2.0, math.nan, math.nan], nan_ok=True)
    assert combined("min") == pytest.approx([2.0, 2.0, math.nan, math.nan], nan_ok=True)


@pytest.mark.parametrize("algo", ["grpo", "rloo", "reinforce"])
def test_unscored_answers_are_not_trained_on(tmp_path: Path, tiny_folder: str, algo: str) -> None:
    """Training where some answers have no score, and the error where too many have none."""
    settings = {"steps": 2, "rollout": 8, "max_new_tokens": 4, "dtype": "float32"}
    prompts = [f"Say {number}." for number in range(12)]

    def some(completions, **kwargs):
        return [None if i % 5 == 1 else float(len(text)) for i, text in enumerate(completions)]

    done = tp.train(algo, model=tiny_folder, prompts=prompts, reward=some, folder=tmp_path / "some", **settings)
    unscored = [row["unscored"] for row in done.metrics if "unscored" in row]
    assert unscored and all(0 < share <= 0.5 for share in unscored)
    assert all(math.isfinite(value) for row in done.metrics for value in row.values() if isinstance(value, float))

    def none(completions, **kwargs):
        return [None for _ in completions]

    with pytest.raises(RewardError, match="answers have no score"):
        tp.train(algo, model=tiny_folder, prompts=prompts, reward=none, folder=tmp_path / "none", **settings)
