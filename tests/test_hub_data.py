"""Data sets of the datasets library as data of a run: folders that it wrote, and hub:NAME:SPLIT."""

import json
from pathlib import Path
from typing import Any

import pytest

import towpath
from towpath.data import corpus_reader
from towpath.data.corpus_reader import match_files
from towpath.errors import DataError
from towpath.recipe import Data
from towpath.run import arguments

datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")
ROWS = [
    {"prompt": f"How do I cook {name}?", "response": "Boil it.", "domain": "cooking"}
    for name in ("an egg", "rice", "beans", "a potato")
]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": "Boil it."},
        ]
    }
    for row in ROWS
]


def data_of(prompts: str, demonstrations: str = "") -> Data:
    return Data(prompts=prompts, demonstrations=demonstrations, safety="")


def test_a_folder_that_datasets_wrote_is_read_without_it(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).select([2, 0, 1]).save_to_disk(str(tmp_path / "data" / "rows"), num_shards=2)
    datasets.Dataset.from_list(CHATS).save_to_disk(str(tmp_path / "data" / "chats"))
    files = match_files(tmp_path, "data.prompts", "data/rows")
    assert [path.suffix for path in files] == [".arrow", ".arrow"]
    corpus = corpus_reader.read_corpus(tmp_path, data_of("data/rows", "data/chats"), 0)
    assert {p.prompt for p in corpus.prompts} == {row["prompt"] for row in ROWS}
    assert all(d.history[0].content == "Be brief." for d in corpus.demonstrations) and corpus.demonstrations


def test_splits_of_a_folder_are_named(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match=r"both/train"):
        match_files(tmp_path, "data.prompts", "both")
    assert match_files(tmp_path, "data.prompts", "both/test")
    state = tmp_path / "both" / "test" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    with pytest.raises(DataError, match=r"no file \.\./\.\./secret"):
        match_files(tmp_path, "data.prompts", "both/test")


def test_a_data_set_of_the_hub_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of files is a data set for the library, too; it takes no network."""
    source = tmp_path / "sources" / "cooking"
    source.mkdir(parents=True)
    (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    corpus = corpus_reader.read_corpus(run, data_of(f"hub:{source}:train[:75%]"), 0) if run.mkdir() is None else None
    assert corpus is not None and len(corpus.prompts) == 3
    (source / "train.jsonl").unlink()
    again = corpus_reader.read_corpus(run, data_of(f"hub:{source}:train[:75%]"), 0)
    assert [p.id for p in again.prompts] == [p.id for p in corpus.prompts]
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("source", "words"), [("hub:name", "hub:NAME:SPLIT"), ("hub:./nothing:train", "hub:NAME:SPLIT"), ("hub::x", "hub:")]
)
def test_a_data_set_that_cannot_be_had_is_an_error(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as refusal:
        match_files(tmp_path, "data.prompts", source)
    assert "data.prompts" in refusal.value.value


def test_a_damaged_arrow_file_is_a_refused_row(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "rows"))
    (path,) = match_files(tmp_path, "data.prompts", "rows")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not an Arrow stream"):
        corpus_reader.read_corpus(tmp_path, data_of("rows"), 0)


@pytest.mark.filterwarnings("ignore:.*has no fingerprint")
def test_train_takes_data_sets_as_they_are(tmp_path: Path) -> None:
    def reward(prompts: list[str], completions: list[str], domain: list[str]) -> list[float]:
        assert set(domain) == {"cooking"}
        return [-float(len(text)) for text in completions]

    rows = datasets.Dataset.from_list([row | {"prompt": f"{row['prompt']} {i}"} for i in range(3) for row in ROWS])
    trained = towpath.train(
        "grpo",
        model="tiny",
        prompts=rows,
        reward=reward,
        steps=1,
        folder=tmp_path,
        max_new_tokens=3,
        rollout=4,
        group=2,
    )
    assert trained.result["steps"] == 1
    pairs = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert arguments.pairs(pairs)[0][1:] == ("b", "c")
