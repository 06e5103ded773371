"""Work and memory do not grow with the rows of a run where they need not."""

import gzip
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from foreign import put

from towpath.data import corpus, corpus_reader, count_cache, data_summary, row_files
from towpath.data.batch import Batch, make_row
from towpath.data.chat import Chat
from towpath.data.token_lengths import TokenLengths
from towpath.errors import DataError
from towpath.recipe import Decoding, Recipe
from towpath.records import Comparison, Completion, Judgement, Message, Prompt
from towpath.run import loading, status
from towpath.run.plan import plan_labels
from towpath.stages import generation, reward_training
from towpath.stages.loop import columns
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
    read = loading.load_corpus(made, large)
    forbid_reading(monkeypatch)
    summary = loading.recorded_summary(made, large)
    assert (summary.digests, summary.train, summary.note) == (read.digests, 60, "")
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


def draws(count: int) -> list[generation.Draw]:
    return [(Prompt(f"p{number}", f"What is {number}?"), "0", Decoding()) for number in range(count)]


def completion_of(draw: generation.Draw) -> Completion:
    prompt, stream, _ = draw
    return Completion(f"sft/{stream}/{prompt.id}", prompt.id, "sft", "Yes.", (1, 2), (-0.5, -0.25), "stop")


def test_sampling_writes_blocks_and_continues_after_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "DRAWS_AT_ONCE", 4)
    monkeypatch.setattr(generation, "_open", lambda *_: None)
    blocks: list[list[str]] = []

    def complete(_job: Any, _engine: Any, some: Any, *_: Any) -> list[Completion]:
        blocks.append([prompt.id for prompt, *_ in some])
        return [completion_of(draw) for draw in some]

    monkeypatch.setattr(generation, "_complete", complete)
    job: Any = SimpleNamespace(name="sample")
    path = tmp_path / "completions-sft.jsonl"
    every = draws(10)
    generation.sample_to_file(job, path, "", every, "sft", 8, "sample")
    whole = path.read_bytes()
    assert [len(block) for block in blocks] == [4, 4, 2]
    assert list(generation.iterate_completions(path)) == [completion_of(draw) for draw in every]
    lines = whole.splitlines(keepends=True)
    for rows, begins in ((10, None), (9, 8), (8, 8), (7, 4), (3, 0), (0, 0)):
        blocks.clear()
        path.write_bytes(b"".join(lines[:rows]) + (lines[rows][:20] if rows < 10 else b""))
        generation.sample_to_file(job, path, "", every, "sft", 8, "sample")
        assert path.read_bytes() == whole
        assert (int(blocks[0][0][1:]) if blocks else None) == begins


def test_answers_of_comparisons_come_in_blocks_without_what_is_not_asked_for(ledger: Store) -> None:
    comparisons = ledger.comparisons()
    for c, prompt, a, b in ledger.answers_of(comparisons):
        assert (prompt.id, a.id, b.id, a.token_ids) == (c.prompt_id, c.a, c.b, ())
    assert [c.id for c, *_ in ledger.answers_of(comparisons, tokens=True)] == [c.id for c in comparisons]


@pytest.mark.parametrize("text", ["plain", "  <|im_end|> a", "<|im_start|>system", "東京 🙂\n\n", "x" * 900, ""])
def test_counts_of_a_block_are_those_of_single_texts(chat: Chat, text: str) -> None:
    history = [Message("user", "Hi"), Message("assistant", text or "Yes"), Message("user", text or "Why?")]
    prompts: list[Any] = [text, "between", history, text]
    assert chat.prompt_counts(prompts) == [len(chat.prompt(prompt)) for prompt in prompts]
    assert chat.answer_counts([text, "Six."]) == [len(chat.answer(text)), len(chat.answer("Six."))]


def test_token_counts_are_cached_for_blocks_and_single_texts(chat: Chat, tmp_path: Path) -> None:
    path = count_cache.path_of(tmp_path, "token_lengths")
    records = [Prompt(f"{number}", "word " * number) for number in range(1, 50)]
    lengths = TokenLengths(chat, path, "model", 512)
    counts = lengths.prompts(records).tolist()
    assert counts == [len(chat.prompt(record.prompt)) for record in records]
    assert lengths.prompt("another text") == len(chat.prompt("another text"))
    lengths.save()
    cached = TokenLengths(None, path, "model")
    assert cached.context == 512 and cached.prompts(records).tolist() == counts
    assert cached.prompt("another text") == len(chat.prompt("another text")) and cached.prompt("unknown") is None
    assert TokenLengths(None, path, "other model").prompts(records).tolist() == [0] * len(records)
    path.write_bytes(b"broken")
    assert TokenLengths(None, path, "model").prompt("another text") is None


def test_digest_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PIECE", 3)
    records = [Prompt(f"p{number}", f"Ü{number}", about=("a",), history=(Message("user", "x"),)) for number in range(8)]
    rows = [asdict(record) for record in records]
    for content, plain in ((records, rows), ([records, records[:2]], [rows, rows[:2]]), ([], []), ("x", "x")):
        expected = json.dumps(plain, sort_keys=True, default=list)
        assert corpus.digest(content) == hashlib.sha256(expected.encode()).hexdigest()


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet", "p.jsonl.gz"])
def test_rows_are_streamed_with_the_hash_of_the_file(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": f"What is {number}?", "split": "train"} for number in range(30)]
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        row_files.write_rows(path, rows)
    made = recipe_of(data=DATA | {"prompts": name})
    read = loading.load_corpus(made, tmp_path)
    assert [p.prompt for p in read.prompts] == [row["prompt"] for row in rows]
    assert read.files == {name: hashlib.sha256(path.read_bytes()).hexdigest()}
    last = read.prompts[-1].id
    assert read.locations.get("prompts", last).startswith(f"{name}:3")


def test_features_of_some_prompts_are_the_first_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (2, 3, 2)
    beats_BK = np.zeros((7, 3), np.float32)
    for winner, loser in ((0, 1), (3, 0), (4, 2), (6, 0)):  # a row, and the position of an answer in its prompt
        beats_BK[winner, loser] = 1.0
    place_B = np.concatenate([np.arange(size) for size in sizes])
    rows = [make_row([number], [number, number]) for number in range(7)]
    batch = Batch(rows, columns(beats=beats_BK, place=place_B), sizes, frozenset({"beats"}))
    feature_BD = torch.arange(14.0).reshape(7, 2) ** 2

    def score(_role: str, some: Batch, _wants: object) -> Any:
        return SimpleNamespace(last_BD=feature_BD[[int(row.ids[0]) for row in some.rows]])

    runtime: Any = SimpleNamespace(score=score)
    every = reward_training._differences(reward_training._last_states(runtime, batch), batch)
    monkeypatch.setattr(reward_training, "MAX_PROBED", 2)
    some = reward_training._differences(reward_training._last_states(runtime, batch), batch)
    assert len(every) == 4 and len(some) == 3 and (some == every[:3]).all()
    assert every[0].tolist() == (feature_BD[0] - feature_BD[1]).tolist()
