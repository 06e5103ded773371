"""The recipes of docs/cases.md: they are created from the user's own files, and their checks find no error."""

import json
from pathlib import Path

import pytest
from foreign import SHARED, real_rows

from towpath import recipe
from towpath.errors import RecipeError, Waiting
from towpath.records import Judgement
from towpath.run import loading, pipeline
from towpath.run.new_run import create_run
from towpath.run.status import run_verdicts
from towpath.store import arenas
from towpath.store.store import Store

TINY = ["model.source=tiny", "model.template=model", "data.max_prompt_tokens=900"]
CASES = {
    "harmless-dialogue": "hh_harmless_open.jsonl",
    "assistant-oasst": "oasst1_en_validation_open.jsonl",
    "checkable-arithmetic": "",
}


@real_rows
@pytest.mark.parametrize("case", CASES)
def test_recipe_is_created_and_checked(tmp_path: Path, case: str) -> None:
    data = str(SHARED / CASES[case]) if CASES[case] else ""
    create_run(tmp_path / "run", case, data)
    settings = recipe.load(tmp_path / "run", TINY)
    corpus = loading.load_corpus(settings, tmp_path / "run")
    findings = pipeline.examine(settings, tmp_path / "run", corpus)
    assert [f.evidence for f in findings if f.severity == "error"] == []
    assert len(corpus.train) > 400 and len(corpus.heldout) > 80
    if data:
        assert not (tmp_path / "run" / "data").exists(), "the data is read where it is"


def test_recipe_that_reads_own_data_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="without --data"):
        create_run(tmp_path / "run", "harmless-dialogue")
    with pytest.raises(RecipeError, match="with --data"):
        create_run(tmp_path / "run", "quickstart", "mine.jsonl")
    assert not (tmp_path / "run").exists()
    create_run(tmp_path / "run", "harmless-dialogue", "~/hh/*.jsonl")
    assert recipe.load(tmp_path / "run").data.preferences == str(Path("~/hh/*.jsonl").expanduser())


SMALL = [
    *("model.source=tiny", "model.template=model", "model.dtype=float32", "data.max_prompt_tokens=300"),
    *("preferences.max_new_tokens=24", "policy.max_new_tokens=16", "evaluate.max_new_tokens=16", "policy.steps=1"),
    *("policy.rollout=16", "policy.batch=16", "policy.validation_prompts=8", "policy.lora.last_n_layers=0"),
    *("reward.lora.last_n_layers=0", "evaluate.bootstrap=100", "evaluate.prompts=12", "sft.batch=8"),
]


def short_file(path: Path, rows: list[str], longest: int) -> str:
    """The rows that are no longer than so many bytes, in a file."""
    path.write_text("".join(row + "\n" for row in rows if len(row.encode()) <= longest), encoding="utf-8")
    return str(path)


@real_rows
def test_recorded_dialogue_is_judged_by_a_held_out_reward_model(tmp_path: Path) -> None:
    lines = (SHARED / "hh_harmless_open.jsonl").read_text(encoding="utf-8").split("\n")
    create_run(tmp_path / "run", "harmless-dialogue", short_file(tmp_path / "hh.jsonl", lines[:300], 900))
    settings = recipe.load(tmp_path / "run", [*SMALL, "preferences.min_labels=20"])
    pipeline.run(settings, tmp_path / "run", lambda _line: None)
    by_gate = {v.gate: v for v in run_verdicts(settings, tmp_path / "run")}
    assert by_gate["evaluate"].judge.startswith("held-out reward model") and by_gate["evaluate"].n == 12
    assert by_gate["reward"].n > 10
    with Store.open(tmp_path / "run" / "towpath.db") as store:
        assert sum(bool(p.history) for p in store.prompts().values()) > 30
    rows = next((tmp_path / "run" / "stages" / "evaluate").glob("*/answers.jsonl")).read_text(encoding="utf-8")
    assert sum("history" in json.loads(row) for row in rows.splitlines()) > 3


@real_rows
def test_message_trees_are_rated_and_judged_by_people(tmp_path: Path) -> None:
    """Simulated people prefer the longer answer, in the queue of labels and in both arenas."""
    run = tmp_path / "run"
    create_run(run, "assistant-oasst", str(SHARED / "oasst1_en_validation_open.jsonl"))
    people = ["preferences.prompts=24", "preferences.min_labels=8", "preferences.overlap=0", "evaluate.overlap=0"]
    trees = ["data.max_prompt_tokens=200", "reward.validation=0.4"]
    settings = recipe.load(run, [*SMALL, *people, *trees])
    waits = []
    while True:
        try:
            pipeline.run(settings, run, lambda _line: None)
            break
        except Waiting as waiting:
            waits.append(waiting.stage)
            assert len(waits) < 6
        with Store.open(run / "towpath.db") as store:
            judge_as_people(store)
    # a policy that is not better than where it began answers the same, and no arena is needed
    assert waits[:2] == ["baseline", "label"] and waits[2:] in ([], ["evaluate"])
    by_gate = {v.gate: v for v in run_verdicts(settings, run)}
    assert by_gate["sft"].judge == "people (1 rater, arena 1)"
    assert by_gate["evaluate"].judge.startswith("people (")


def judge_as_people(store: Store) -> None:
    """Judge every pair that waits, in the queue and in open arenas."""
    texts = {name: completion.text for name, completion in store.completions().items()}
    done = {j.comparison for j in store.judgements()}
    pairs = [(c.id, texts[c.a], texts[c.b]) for c in store.comparisons()]
    for number in store.read(arenas.open_arenas):
        done |= {j.comparison for j in store.read(arenas.list_judgements, number)}
        pairs += [(m.comparison, m.a, m.b) for m in store.read(arenas.list_matches, number)]
    store.add_judgements(
        Judgement(f"{name}/ann", name, "ann", "person", "a" if len(a) > len(b) else "b")
        for name, a, b in pairs
        if name not in done
    )
