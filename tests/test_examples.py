"""Prompt and demonstration files of other tools, and the files that a run reads."""

from pathlib import Path

import pytest
from foreign import CONVERSATION, SHARED, TRANSCRIPT, put, real_rows, turn

from towpath.data import corpus_reader
from towpath.data.examples import read_examples, write_examples
from towpath.errors import DataError
from towpath.recipe import Data


def test_prompt_and_demonstration_formats(tmp_path: Path):
    examples = read_examples(
        put(
            tmp_path / "d.jsonl",
            {"id": 5, "prompt": "One?", "response": "1", "domain": "x"},
            {"instruction": "Two", "input": "more", "output": "2"},
            {"messages": [*CONVERSATION, turn("assistant", "Three")]},
            {"messages": [turn("user", "Four?")]},
            {"question": "Five?", "label": "unsafe"},
            {"conversations": [{"from": "human", "value": "Six?"}, {"from": "gpt", "value": "6"}]},
            {"prompt": [turn("user", "Seven?")], "completion": [turn("assistant", "7")]},
            {
                "id": 8,
                "instruction": "Eight",
                "instances": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}],
            },
            {"prompt": "One?", "response": "1"},
            {"prompt": "", "response": "x"},
            {"prompt": "Nine?", "response": " "},
            {"text": "x"},
            {"id": 5, "prompt": "Other?"},
            {"prompt": "Five?"},
        )
    )
    assert [(d.text, d.response) for d in examples.demonstrations] == [
        ("One?", "1"),
        ("Two\n\nmore", "2"),
        (TRANSCRIPT, "Three"),
        ("Six?", "6"),
        ("Seven?", "7"),
        ("Eight\n\na", "b"),
        ("Eight\n\nc", "d"),
    ]
    assert [p.prompt for p in examples.prompts if p.prompt in ("Four?", "Five?")] == ["Four?", "Five?"]
    assert (
        {p.prompt for p in examples.prompts if p.harmful} == {"Five?"}
        and examples.prompts[0].id == "5"
        and examples.demonstrations[0].prompt_id == "5"
    )
    assert [r.partition(": ")[0] for r in examples.refused] == [f"d.jsonl:{n}" for n in (9, 10, 11, 12, 13, 14)]
    assert (
        "the same prompt and answer as d.jsonl:1" in examples.refused[0]
        and "belongs to another prompt, at d.jsonl:1" in examples.refused[4]
    )


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_written_examples_are_read_by_a_run(tmp_path: Path, suffix: str):
    rows = [
        {"id": f"x{i}", "prompt": f"What is {i}?", "response": f"It, is\n{i}", "harmful": i % 2 == 0} for i in range(6)
    ]
    examples = read_examples(put(tmp_path / "theirs.jsonl", *rows))
    write_examples(tmp_path / f"p.{suffix}", examples.prompts)
    write_examples(tmp_path / f"d.{suffix}", examples.demonstrations)
    corpus = corpus_reader.read_corpus(
        tmp_path, Data(prompts=f"p.{suffix}", demonstrations=f"d.{suffix}", safety="", heldout=0.0), 0
    )
    assert corpus.prompts == examples.prompts and corpus.demonstrations == examples.demonstrations
    with pytest.raises(DataError, match="nothing to write"):
        write_examples(tmp_path / "none.jsonl", [])


def test_column_mapping(tmp_path: Path):
    put(tmp_path / "p.jsonl", {"ask": "Why?", "say": "So."})
    assert "no prompt (keys: ask, say)" in read_examples(tmp_path / "p.jsonl").refused[0]
    (d,) = read_examples(tmp_path / "p.jsonl", {"ask": "prompt", "say": "response"}).demonstrations
    assert (d.prompt, d.response) == ("Why?", "So.")


@real_rows
@pytest.mark.parametrize(
    ("name", "prompts", "demonstrations"),
    [
        ("dolly_short_4k.jsonl", 4000, 4000),
        ("self_instruct_user_oriented_252.jsonl", 252, 252),
        ("xstest_prompts.csv", 450, 0),
        ("simple_safety_tests.csv", 100, 0),
    ],
)
def test_real_prompts_and_demonstrations_import(name: str, prompts: int, demonstrations: int):
    examples = read_examples(SHARED / name)
    doubles = sum("the same prompt" in refusal for refusal in examples.refused)
    assert len(examples.refused) == doubles < 3
    assert (len(examples.prompts), len(examples.demonstrations)) == (
        prompts - doubles,
        max(0, demonstrations - doubles),
    )
    if name.startswith("xstest"):
        assert sum(p.harmful for p in examples.prompts) == 200
