"""The ledger and the publishing of folders, with real SQLite and real kills."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from towpath.errors import DataError, ResourceError
from towpath.records import Comparison, Completion, Judgement, Label, Prompt
from towpath.store import publish
from towpath.store.exchange import export_pairs, import_judgements
from towpath.store.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "led ger%.db") as opened:
        opened.add_prompts([Prompt("p1", "Why?", about=("x", "y"), harmful=True)])
        opened.add_completions([Completion(f"c{i}", "p1", "sft", f"Because {i}.", (1, 2), (-0.1, -0.25), "stop", {"top_k": 3}) for i in range(3)])
        opened.add_comparisons([Comparison("k1", "p1", "c0", "c1"), Comparison("k2", "p1", "c1", "c2")])
        yield opened


def said(comparison="k1", rater="ann", choice="a", **more):
    return Judgement(f"{comparison}/{rater}/1", comparison, rater, "person", choice, **more)


def test_records_come_back_as_they_went(store):
    assert store.prompts()["p1"] == Prompt("p1", "Why?", about=("x", "y"), harmful=True)
    assert store.completions("sft")["c2"].logprobs == (-0.1, -0.25)
    assert store.completions("base") == {}
    assert [c.id for c in store.comparisons(1)] == ["k1", "k2"]
    store.add_comparisons([Comparison("k1", "p1", "c0", "c1")])
    assert store.counts()["comparisons"] == 2


def test_a_judgement_told_twice_is_one_and_told_otherwise_is_refused(store):
    assert store.add_judgements([said(), said()]) == 1
    assert store.add_judgements([said()]) == 0
    with pytest.raises(DataError, match="never changed"):
        store.add_judgements([said(choice="b")])
    with pytest.raises(DataError, match="known comparison"):
        store.add_judgements([said(comparison="nowhere")])
    assert len(store.judgements()) == 1
    assert store.judgements()[0].at


@pytest.mark.parametrize("statement", ["UPDATE judgements SET choice = 'b'", "DELETE FROM judgements"])
def test_judgements_cannot_be_changed_even_by_hand(store, statement):
    store.add_judgements([said()])
    engine = create_engine(f"sqlite:///{store._engine.url.database}")
    with pytest.raises(IntegrityError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_what_was_acknowledged_is_synchronous(store):
    with store._engine.connect() as connection:
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


def test_labels_are_replaced_not_added(store):
    store.put_labels([Label("k1", "a", 1.0, 1), Label("k2", "tie", 1.0, 1)])
    store.put_labels([Label("k1", "b", 2.0, 3)])
    assert [label.choice for label in store.labels()] == ["b", "tie"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_pairs_go_out_and_judgements_come_in(store, tmp_path, suffix):
    path = tmp_path / f"pairs.{suffix}"
    assert export_pairs(store, path) == 2
    filled = path.read_text().replace('"choice": ""', '"choice": "a"') if suffix == "jsonl" else path.read_text().replace(",,,", ",a,2,bob")
    path.write_text(filled)
    assert import_judgements(store, path, rater="ann") == (2, 0)
    assert import_judgements(store, path, rater="ann") == (0, 2)
    assert export_pairs(store, path) == 0
    assert {j.rater for j in store.judgements()} == {"ann" if suffix == "jsonl" else "bob"}


def test_one_bad_row_and_nothing_is_added(store, tmp_path):
    path = tmp_path / "said.jsonl"
    path.write_text('{"comparison": "k1", "choice": "a"}\n{"comparison": "k9", "choice": "a"}\nnot json\n{"comparison": "k2", "choice": "c"}\n')
    with pytest.raises(DataError) as error:
        import_judgements(store, path, rater="ann")
    for line in ("said.jsonl:2", "said.jsonl:3", "said.jsonl:4"):
        assert line in str(error.value)
    assert store.judgements() == []


def test_published_folders_verify_and_damage_is_passed_over(tmp_path):
    for n in (1, 2, 10):
        publish.publish(tmp_path / f"step_{n}", lambda place, n=n: (place / "x").write_text(str(n)))
    assert publish.newest(tmp_path, "step") == (tmp_path / "step_10", [])
    (tmp_path / "step_10" / "x").write_text("broken")
    assert publish.newest(tmp_path, "step") == (tmp_path / "step_2", [tmp_path / "step_10"])


@pytest.mark.parametrize("fault", ["write:1", "fsync:1", "rename:1"])
def test_killed_at_any_point_a_folder_is_there_whole_or_not_at_all(tmp_path, fault):
    script = (
        "from pathlib import Path; from towpath.store import publish\n"
        f"publish.publish(Path({str(tmp_path)!r}) / 'step_1', lambda p: (p / 'x').write_text('1'))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"TOWPATH_FAULT": fault}, check=False)
    assert done.returncode == -9
    folder = tmp_path / "step_1"
    assert not folder.exists() or publish.verified(folder)
    assert folder.exists() == fault.startswith("rename")
    publish.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == (["step_1"] if folder.exists() else [])


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    publish.replace_file(path, "old")
    script = f"from pathlib import Path; from towpath.store import publish; publish.replace_file(Path({str(path)!r}), 'new')"
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"TOWPATH_FAULT": "fsync:1"}, check=False)
    assert path.read_text() == "old"


def test_a_full_disk_is_told_with_its_remedy(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def write(place: Path) -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)

    with pytest.raises(ResourceError, match="no space left"):
        publish.publish(tmp_path / "step_1", write)
    assert list(tmp_path.iterdir()) == []
