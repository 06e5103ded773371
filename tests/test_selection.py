"""Quality filters, duplicates, leaks and balance: what is left out, and why."""

import json
from pathlib import Path
from typing import Any

import pytest
from foreign import put

from towpath.data.refused_rows import FILE
from towpath.data.selection import select
from towpath.data.text_quality import repetition, symbols
from towpath.errors import RecipeError
from towpath.recipe import Recipe
from towpath.records import Prompt
from towpath.run import loading

LOOP = "the cat sat on the mat and " * 6


def load(run: Path, **data: Any) -> Any:
    files = {"prompts": "p.jsonl", "demonstrations": "", "safety": "", "preferences": "", "heldout": 0.0}
    return loading.load_corpus(Recipe.model_validate({"model": {"source": "tiny"}, "data": files | data}), run)


def reasons(corpus: Any) -> dict[str, str]:
    return {f"{row.file}:{row.line}": row.reason for row in corpus.filtered}


def test_nothing_is_left_out_by_default(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x"}, {"id": "c", "prompt": LOOP})
    corpus = load(tmp_path)
    assert len(corpus.prompts) == 3 and not corpus.filtered and not corpus.findings


def test_text_filters_name_the_limit_and_the_value(tmp_path: Path) -> None:
    rows = [
        "short",
        "long " * 100,
        LOOP,
        "{{}}[[<>]]@@##~~ what?",
        "Say that you are an AI, please.",
        "A fine question?",
    ]
    put(tmp_path / "p.jsonl", *({"prompt": row} for row in rows))
    limits = {"min_characters": 6, "max_characters": 200, "max_repetition": 0.5, "max_symbols": 0.3}
    corpus = load(tmp_path, filters=limits | {"banned": [r"\b(an AI)\b"]})
    assert [p.prompt for p in corpus.prompts] == ["A fine question?"]
    assert reasons(corpus) == {
        "p.jsonl:1": "a prompt shorter than data.filters.min_characters = 6 (5)",
        "p.jsonl:2": "a prompt longer than data.filters.max_characters = 200 (500)",
        "p.jsonl:3": "a prompt with more repetition than data.filters.max_repetition = 0.5 (1.00)",
        "p.jsonl:4": "a prompt with more symbols than data.filters.max_symbols = 0.3 (0.55)",
        "p.jsonl:5": r"a prompt that matches data.filters.banned (\ban AI\b)",
    }
    assert [finding.code for finding in corpus.findings] == ["rows-filtered"]
    assert "5 rows are left out: 1 × a prompt shorter" in corpus.findings[0].evidence


def test_demonstrations_are_filtered_with_their_prompts_and_by_their_responses(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", {"id": "a", "prompt": "bad"}, {"id": "b", "prompt": "A good question?"})
    put(
        tmp_path / "d.jsonl",
        {"prompt_id": "a", "prompt": "bad", "response": "A good answer."},
        {"prompt_id": "b", "prompt": "A good question?", "response": "No."},
        {"prompt_id": "b", "prompt": "A good question?", "response": "A good answer."},
    )
    corpus = load(tmp_path, demonstrations="d.jsonl", filters={"min_characters": 5, "min_response_characters": 5})
    assert [d.response for d in corpus.demonstrations] == ["A good answer."]
    assert reasons(corpus)["d.jsonl:2"].startswith("a response shorter than data.filters.min_response_characters")
    assert set(reasons(corpus)) == {"p.jsonl:1", "d.jsonl:1", "d.jsonl:2"}


@pytest.mark.parametrize(
    ("word", "left"), [("a b c d e f", 0.0), ("a b c d a b c d", 1.0), ("x a b c d y a b c d", 0.8)]
)
def test_repetition_is_the_share_of_words_in_repeated_sequences(word: str, left: float) -> None:
    assert repetition(word) == left


def test_symbols_are_no_letters_of_any_script() -> None:
    assert symbols("Wie geht's, Köln? 東京は好きですか。 हिन्दी 1.5 %") == 0.0
    assert symbols("<b>x</b>") == pytest.approx(4 / 8)
    assert symbols("") == 0.0


QUESTION = "How do I boil an egg so that the yolk stays soft and does not run all over the plate"


def copies(run: Path) -> None:
    put(
        run / "p.jsonl",
        {"id": "a", "prompt": QUESTION, "split": "train"},
        {"id": "b", "prompt": f"{QUESTION}?", "split": "train"},
        {"id": "c", "prompt": f"{QUESTION} now", "split": "train"},
        {"id": "d", "prompt": "Another question about trains", "split": "train"},
        {"id": "e", "prompt": "Another question about trains", "split": "heldout"},
    )
    put(
        run / "d.jsonl",
        {"id": "x", "prompt_id": "b", "prompt": f"{QUESTION}?", "response": "Six minutes."},
        {"id": "y", "prompt_id": "a", "prompt": QUESTION, "response": "six minutes"},
        {"id": "z", "prompt_id": "a", "prompt": QUESTION, "response": "Five."},
    )


def test_duplicates_keep_the_first_and_link_its_demonstrations(tmp_path: Path) -> None:
    copies(tmp_path)
    exact = load(tmp_path, demonstrations="d.jsonl", filters={"duplicates": "exact"})
    assert [p.id for p in exact.prompts] == ["a", "c", "d", "e"]
    assert [(d.id, d.prompt_id) for d in exact.demonstrations] == [("x", "a"), ("z", "a")]
    assert reasons(exact) == {
        "p.jsonl:2": "an exact duplicate (of p.jsonl:1)",
        "d.jsonl:2": "an exact duplicate (of d.jsonl:1)",
    }
    near = load(tmp_path, demonstrations="d.jsonl", filters={"duplicates": "near"})
    assert [p.id for p in near.prompts] == ["a", "d", "e"]
    assert reasons(near)["p.jsonl:3"] == "a near duplicate (of p.jsonl:1)"


def test_leaks_leave_the_training_side_out(tmp_path: Path) -> None:
    copies(tmp_path)
    put(tmp_path / "s.jsonl", {"id": "s", "prompt": f"{QUESTION} today", "harmful": False})
    corpus = load(tmp_path, safety="s.jsonl", filters={"leaks": "drop"})
    assert [p.id for p in corpus.prompts] == ["e"]
    assert reasons(corpus)["p.jsonl:4"] == "a leak (the question of p.jsonl:5)"
    assert reasons(corpus)["p.jsonl:1"] == "a leak (the question of s.jsonl:1)"


def groups(run: Path) -> None:
    counts = {"cooking": 60, "travel": 30, "law": 10}
    rows = [{"prompt": f"{domain} {number}?", "domain": domain} for domain, n in counts.items() for number in range(n)]
    put(run / "p.jsonl", *rows)


def counts(corpus: Any) -> dict[str, int]:
    domains = [p.domain for p in corpus.train]
    return {domain: domains.count(domain) for domain in dict.fromkeys(domains)}


def test_balance_by_cap_and_by_weights(tmp_path: Path) -> None:
    groups(tmp_path)
    assert counts(load(tmp_path, balance={"cap": 20})) == {"cooking": 20, "travel": 20, "law": 10}
    weighted = load(tmp_path, balance={"weights": {"cooking": 2, "travel": 1.5}})
    assert counts(weighted) == {"cooking": 20, "travel": 15, "law": 10}
    assert counts(load(tmp_path, balance={"weights": {"law": 0}})) == {"cooking": 30, "travel": 30}
    assert reasons(weighted).popitem()[1] == "left out by data.balance (travel)"
    with pytest.raises(RecipeError, match="names 'cokking'"):
        load(tmp_path, balance={"weights": {"cokking": 2}})


def test_balance_keeps_its_choice_when_rows_are_added(tmp_path: Path) -> None:
    groups(tmp_path)
    before = {p.id for p in load(tmp_path, balance={"cap": 20}).train}
    with (tmp_path / "p.jsonl").open("a") as file:
        file.writelines(json.dumps({"prompt": f"new {number}?", "domain": "new"}) + "\n" for number in range(30))
    assert {p.id for p in load(tmp_path, balance={"cap": 20}).train if p.domain != "new"} == before


def test_rows_left_out_are_listed_in_the_file_of_the_run(tmp_path: Path, chat: Any) -> None:
    from towpath.run import preflight

    put(tmp_path / "p.jsonl", *({"prompt": f"What is {number}?"} for number in range(30)), {"prompt": "x"})
    data = {"prompts": "p.jsonl", "demonstrations": "", "safety": "", "filters": {"min_characters": 3}}
    recipe = Recipe.model_validate({"model": {"source": "tiny"}, "data": data})
    corpus = loading.load_corpus(recipe, tmp_path)
    preflight.check(recipe, tmp_path, corpus, chat)
    (row,) = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert (row["file"], row["line"]) == ("p.jsonl", 31) and "min_characters" in row["reason"]
    assert corpus.counts["filtered_rows"] == {"prompts": 1}


def test_a_wrong_pattern_or_weight_is_refused() -> None:
    for data in ({"filters": {"banned": ["("]}}, {"balance": {"weights": {"a": -1}}}):
        with pytest.raises(ValueError, match=r"regular expression|0 or more"):
            Recipe.model_validate({"data": data})


def test_selection_of_a_default_recipe_returns_the_corpus_itself() -> None:
    from towpath.data.corpus import Corpus

    corpus = Corpus((Prompt("a", "x"),))
    assert select(corpus, Recipe().data, 0) is corpus
