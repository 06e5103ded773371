"""`towpath data`: what the data consists of, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import towpath
from foreign import put

from towpath.data.overview import evenness, lengths
from towpath.data.refused_rows import FILE

RECIPE = """
[model]
source = "tiny"
[data]
prompts = "data/*.jsonl"
demonstrations = "d.jsonl"
safety = "s.jsonl"
"""
LONG = "How do I boil an egg so that the yolk stays soft and does not run all over the plate"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "data").mkdir()
    german = {"domain": "german", "language": "de", "difficulty": "hard"}
    put(tmp_path / "data" / "a.jsonl", *({"prompt": f"Was ist {n}?", "split": "train"} | german for n in range(3)))
    put(
        tmp_path / "data" / "b.jsonl",
        {"prompt": LONG, "split": "train"},
        {"prompt": f"{LONG} now", "split": "heldout"},
        {"messages": [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?"))]},
        {"prompt": ""},
    )
    put(tmp_path / "d.jsonl", {"prompt": LONG, "response": "Six minutes.", "style": "short"})
    put(tmp_path / "s.jsonl", {"prompt": "Poison?", "harmful": True}, {"prompt": "Rice?", "harmful": False})
    return tmp_path


def overview(run: Path, *options: str) -> dict[str, Any]:
    result = towpath("data", run, "--json", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_overview_counts_parts_groups_turns_and_what_is_left_out(run: Path) -> None:
    everything = overview(run)
    prompts, demonstrations, safety = everything["parts"]
    assert prompts["rows"] == 6 and prompts["files"] == {"data/a.jsonl": 3, "data/b.jsonl": 3}
    assert prompts["groups"]["domain"] == {"german": 3, "general": 3}
    assert prompts["groups"]["language"] == {"de": 3, "": 3}
    assert prompts["groups"]["difficulty"] == {"hard": 3, "medium": 3} and prompts["evenness"]["difficulty"] == 1.0
    assert prompts["turns"] == {"1": 5, "3": 1}
    assert prompts["lengths"]["prompt"]["least"] == len("Was ist 0?") and prompts["openings"]["how do i"] == 2
    assert demonstrations["groups"]["style"] == {"short": 1} and demonstrations["lengths"]["response"]["most"] == 12
    assert safety["groups"]["harmful"] == {"harmful": 1, "harmless": 1}
    assert everything["duplicates"] == {"prompts": 1, "safety": 0}
    assert everything["leaks"] == {"train-heldout": 1, "demonstrations-heldout": 1}
    assert everything["left_out"] == [
        {"part": "prompts", "reason": "empty prompt", "rows": 1, "first": "data/b.jsonl:4"}
    ]


def test_overview_of_one_part_and_file_and_with_filters(run: Path) -> None:
    (prompts,) = overview(run, "--part", "prompts", "--file", "a.jsonl")["parts"]
    assert prompts["rows"] == 3
    filtered = overview(run, "--set", "data.filters.leaks=drop")
    assert not filtered["leaks"] and {row["reason"] for row in filtered["left_out"]} == {"empty prompt", "a leak"}
    assert len((run / FILE).read_text().splitlines()) == sum(row["rows"] for row in filtered["left_out"])
    assert "no such part" in towpath("data", run, "--part", "prompt").stderr


def test_overview_as_lines_and_as_a_page(run: Path) -> None:
    page = run / "out.html"
    lines = towpath("data", run, "--html", page).stdout
    assert "prompts: 6 rows in 2 files" in lines and "german 50" in lines
    assert "1 training prompts that are held out, too" in lines and "empty prompt" in lines
    text = page.read_text()
    assert "<svg" in text and "Characters of prompts" in text and "data/b.jsonl:4" in text


def test_evenness_and_histogram_by_hand() -> None:
    assert evenness([5, 5]) == pytest.approx(1.0) and evenness([7]) == 1.0
    assert evenness([9, 1]) == pytest.approx(0.469, abs=1e-3)
    values = lengths([10] * 99 + [1000])
    assert (values.least, values.median, values.most) == (10, 10, 1000)
    assert sum(values.counts) == 100 and len(values.edges) == len(values.counts)
