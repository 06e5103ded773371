"""Work and memory do not grow with the rows of a run where they need not."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from foreign import put

from towpath.data import corpus_reader, data_summary
from towpath.errors import DataError
from towpath.recipe import Recipe
from towpath.records import Comparison, Completion, Judgement, Prompt
from towpath.run import loading, status
from towpath.run.plan import plan_labels
from towpath.store.judgement_reads import ChoicesDigest, beside_people, choices_digest, newest
from towpath.store.store import Store

DATA = {"prompts": "p.jsonl", "demonstrations": "", "safety": "", "preferences": "", "heldout": 0.0}


def recipe_of(**values: Any) -> Recipe:
    return Recipe.model_validate({"model": {"source": "tiny"}, "data": DATA} | values)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose data counts as large."""
    monkeypatch.setattr(data_summary, "READ_AT_ONCE", 0)
    put(tmp_path / "p.jsonl", *({"prompt": f"What is {number} and {number}?"} for number in range(60)))
    return tmp_path


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the data is read")

    monkeypatch.setattr(corpus_reader, "read_corpus", read)


def test_status_and_plan_read_no_large_data(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe_of()
    corpus = loading.load_corpus(made, large)
    forbid_reading(monkeypatch)
    summary = loading.recorded_summary(made, large)
    assert (summary.digests, summary.train, summary.note) == (corpus.digests, 60, "")
    assert not status.read_status(made, large).data_note
    with Store.open(large / "towpath.db") as store:
        assert plan_labels(made, large, summary, store).pairs == round(60 * (1 + made.preferences.base_share))


def test_status_says_that_large_data_changed_and_a_run_reads_it(large: Path) -> None:
    made = recipe_of()
    loading.load_corpus(made, large)
    before = status.read_status(made, large)
    with (large / "p.jsonl").open("a") as file:
        file.write('{"prompt": "And what is this?"}\n')
    after = status.read_status(made, large)
    assert after.data_note == data_summary.CHANGED and after.stages == before.stages
    assert status.status_lines(after)[0] == f"note: {data_summary.CHANGED}"
    assert len(loading.load_corpus(made, large).train) == 61
    assert not status.read_status(made, large).data_note


def test_status_without_a_record_shows_the_stages_of_the_last_run(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_reading(monkeypatch)
    (large / "current.json").write_text('{"stages": {"sft": "abc", "label@2": "def"}, "waiting_for": ""}')
    state = status.read_status(recipe_of(), large)
    assert state.data_note == data_summary.UNREAD
    assert [(row["name"], row["fingerprint"]) for row in state.stages] == [("sft", "abc"), ("label@2", "def")]


def test_small_data_is_read_where_nothing_is_recorded(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_summary, "READ_AT_ONCE", 1 << 20)
    assert loading.recorded_summary(recipe_of(), large).train == 60


def test_missing_files_are_still_an_error(large: Path) -> None:
    (large / "p.jsonl").unlink()
    with pytest.raises(DataError, match="no file of that name"):
        loading.recorded_summary(recipe_of(), large)


@pytest.fixture
def ledger(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "towpath.db")
    store.add_prompts([Prompt("p", "Why?")])
    store.add_completions([Completion(f"c{i}", "p", "sft", f"{i}", (), (), "stop") for i in range(2)])
    store.add_comparisons([Comparison(f"{prefix}.p.{i}", "p", "c0", "c1") for prefix in ("aa", "bb") for i in range(6)])
    return store


def judgement(number: int, prefix: str = "aa", kind: Any = "person", rater: str = "ann") -> Judgement:
    return Judgement(f"{rater}{prefix}{number}", f"{prefix}.p.{number}", rater, kind, "a", milliseconds=1000)


def digest_by_hand(judgements: list[Judgement]) -> str:
    hashes = [hashlib.blake2b((j.key + j.choice).encode(), digest_size=16).digest() for j in judgements]
    return f"{sum(int.from_bytes(one, 'little') for one in hashes) % 2**128:032x}"


def test_digest_of_judgements_continues_and_notices_retractions(ledger: Store) -> None:
    rows = [judgement(number) for number in range(6)]
    ledger.add_judgements([*rows[:3], judgement(0, "bb")])
    first = ledger.read(choices_digest, ["aa"], ChoicesDigest())
    assert first.hex == digest_by_hand(rows[:3])
    ledger.add_judgements(rows[3:])
    second = ledger.read(choices_digest, ["aa"], first)
    assert second.hex == digest_by_hand(rows) == ledger.read(choices_digest, ["aa"], ChoicesDigest()).hex
    ledger.retract([rows[1].key])
    assert ledger.read(choices_digest, ["aa"], second).hex == digest_by_hand([rows[0], *rows[2:]])
    assert ledger.read(choices_digest, [], ChoicesDigest()).hex == digest_by_hand([])


def test_newest_judgements_and_those_beside_people(ledger: Store) -> None:
    people = [judgement(number) for number in range(5)]
    judge = [judgement(number, kind="judge", rater="judge:m") for number in range(3, 6)]
    ledger.add_judgements([*people, *judge])
    some, count = ledger.read(newest, ("person",), 3)
    assert [j.key for j in some] == [j.key for j in people[2:]] and count == 5
    assert [j.key for j in ledger.read(beside_people, "judge:m", ("person",), 10)] == [j.key for j in judge[:2]]
