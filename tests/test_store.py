"""The ledger and atomic publication, with real SQLite, PostgreSQL and kills."""

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from conftest import new_database
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

import towpath
from towpath.errors import DataError, ResourceError
from towpath.records import Comparison, Completion, Judgement, Label, Message, Prompt
from towpath.store import ledger, publish, schema
from towpath.store.exchange import export_pairs, import_judgements
from towpath.store.store import Store

PACKAGE = Path(towpath.__file__).parent


@pytest.fixture
def store(location):
    with Store.open(location) as opened:
        fill(opened)
        yield opened


@pytest.fixture
def file_store(tmp_path):
    """A store for tests that apply to files only."""
    with Store.open(tmp_path / "led ger%?.db") as opened:
        fill(opened)
        yield opened


def awkward_text(number):
    """Return text of an untrained model that could break a table or a line format."""
    return f'Because,\r "\x1f\u2028\r\n{number}";\n'


def fill(store):
    store.add_prompts([Prompt("p1", "Why?\rSay.", about=("x", "y"), harmful=True)])
    store.add_completions(
        [
            Completion(f"c{i}", "p1", "sft", awkward_text(i), (1, 2), (-0.1, -0.25), "stop", {"top_k": 3})
            for i in range(3)
        ]
    )
    store.add_comparisons([Comparison("k2", "p1", "c1", "c2"), Comparison("k1", "p1", "c0", "c1")])


def make_judgement(comparison="k1", rater="ann", choice="a", **more):
    return Judgement(f"{comparison}/{rater}/1", comparison, rater, "person", choice, **more)


def killed_by_fault(script, fault, *arguments):
    """Return whether a process that runs a script with a fault point was killed there."""
    code = (
        "import sys; from pathlib import Path; location = sys.argv[1] if '://' in sys.argv[1] else Path(sys.argv[1])\n"
        + script
    )
    return (
        subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], env=os.environ | {"TOWPATH_FAULT": fault}, check=False
        ).returncode
        == -9
    )


def connect_sqlite(store):
    return sqlite3.connect(store._engine.url.database)


def test_records_round_trip(store):
    assert store.prompts()["p1"] == Prompt("p1", "Why?\rSay.", about=("x", "y"), harmful=True)
    assert store.completions("sft")["c2"] == Completion(
        "c2", "p1", "sft", awkward_text(2), (1, 2), (-0.1, -0.25), "stop", {"top_k": 3}
    )
    assert store.completions("base") == {}
    more = {"comment": "odd", "cost": 0.014, "details": {"safety": {"choice": "b"}}}
    judgement = make_judgement(
        shown="ba", strength=3, milliseconds=12, guideline="g", at="2026-01-01T00:00:00+00:00", **more
    )
    store.add_judgements([judgement])
    assert store.judgements() == [judgement]


def test_repeated_rows_are_ignored_and_order_is_kept(store):
    fill(store)
    store.add_comparisons([Comparison("k0", "p1", "c0", "c2", round=2), Comparison("k0", "p1", "c2", "c0", round=2)])
    assert [c.id for c in store.comparisons()] == ["k2", "k1", "k0"]
    assert store.comparisons(2) == [Comparison("k0", "p1", "c0", "c2", round=2)]
    assert store.counts() == {"prompts": 1, "completions": 3, "comparisons": 3, "judgements": 0, "labels": 0}


def test_completion_of_an_unknown_prompt_is_refused(store):
    with pytest.raises(DataError, match="needs its prompt"):
        store.add_completions([Completion("c9", "nowhere", "sft", "x", (1,), (-0.1,), "stop")])
    assert "c9" not in store.completions()


def test_repeated_judgement_is_ignored(store):
    assert store.add_judgements([make_judgement(), make_judgement()]) == 1
    assert store.add_judgements([make_judgement(), make_judgement(milliseconds=900, at="2026-01-01")]) == 0
    assert store.add_judgements([Judgement("another key", "k1", "ann", "person", "a")]) == 0
    assert len(store.judgements()) == 1
    assert store.judgements()[0].at


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_judgement(choice="b"), "never changed"),
        (make_judgement(strength=3), "strength 3"),
        (Judgement("another key", "k1", "ann", "person", "b"), "never changed"),
        (Judgement("k1/ann/1", "k2", "ann", "person", "a"), "belongs to k1"),
        (make_judgement(comparison="nowhere"), "known comparison"),
    ],
    ids=["choice", "strength", "key", "comparison", "unknown"],
)
def test_contradiction_rejects_the_whole_batch(store, other, message):
    store.add_judgements([make_judgement()])
    with pytest.raises(DataError, match=message):
        store.add_judgements([make_judgement(comparison="k2", rater="bob"), other])
    assert [j.rater for j in store.judgements()] == ["ann"]


def test_new_round_may_contradict(store):
    store.add_judgements([make_judgement(), Judgement("k1/ann/2", "k1", "ann", "person", "b", round=2)])
    assert [j.choice for j in store.judgements()] == ["a", "b"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE judgements SET choice = 'b'",
        "DELETE FROM judgements",
        "INSERT OR REPLACE INTO judgements VALUES (1, 'new', 'k2', 'bob', 'person', 'b', 'ab', 1, 0, 1, '', '', '', "
        "0, '{}')",
        "INSERT OR REPLACE INTO judgements VALUES (9, 'k1/ann/1', 'k2', 'bob', 'person', 'b', 'ab', 1, 0, 1, '', '', "
        "'', 0, '{}')",
        "REPLACE INTO judgements VALUES (9, 'new', 'k1', 'ann', 'person', 'b', 'ab', 1, 0, 1, '', '', '', 0, '{}')",
        "INSERT INTO judgements SELECT * FROM judgements WHERE true ON CONFLICT DO UPDATE SET choice = 'b'",
    ],
)
def test_sqlite_judgements_are_append_only(file_store, statement):
    file_store.add_judgements([make_judgement()])
    before = file_store.judgements()
    connection = connect_sqlite(file_store)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"), connection:
        connection.execute(statement)
    connection.close()
    assert file_store.judgements() == before


@pytest.mark.parametrize(
    "statement", ["UPDATE judgements SET choice = 'b'", "DELETE FROM judgements", "TRUNCATE judgements CASCADE"]
)
def test_postgresql_judgements_are_append_only(postgres_server, statement):
    with Store.open(new_database(postgres_server)) as store:
        fill(store)
        store.add_judgements([make_judgement()])
        before = store.judgements()
        with pytest.raises(DatabaseError, match="append-only"), store._engine.begin() as connection:
            connection.exec_driver_sql(statement)
        assert store.judgements() == before


def test_labels_are_replaced(store):
    store.replace_labels([Label("k1", "a", 1.0, 1), Label("k2", "tie", 1.0, 1)])
    store.replace_labels([Label("k1", "b", 2.0, 3)])
    assert store.labels() == [Label("k1", "b", 2.0, 3), Label("k2", "tie", 1.0, 1)]
    with pytest.raises(DataError):
        store.replace_labels([Label("k1", "tie", 1.0, 1), Label("nowhere", "a", 1.0, 1)])
    assert store.labels()[0] == Label("k1", "b", 2.0, 3)
    store.replace_labels([Label("k2", "a", 1.0, 4, 0.8, "dawid-skene")])
    assert store.labels()[1] == Label("k2", "a", 1.0, 4, 0.8, "dawid-skene")


@pytest.mark.parametrize("location", ["{}/new/deep/a.db", "sqlite:///{}/a.db"], ids=["path", "url"])
def test_sqlite_is_synchronous(tmp_path, location):
    with Store.open(location.format(tmp_path)) as store, store._engine.connect() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("synchronous", "journal_mode", "foreign_keys")
        ]
    assert pragmas == [2, "wal", 1]


def test_connection_lost_within_a_batch_of_writes_fails_all_of_it(postgres_server):
    """Every caller gets the cause, nothing of the batch is stored, and the next write has a new connection."""
    insert = "INSERT INTO settings VALUES ('{}', '1')"
    terminate = "SELECT pg_terminate_backend(pg_backend_pid())"
    collected = Event()
    with Store.open(new_database(postgres_server)) as store:
        batch = [store.submit_write(lambda _: collected.wait(10))]
        for statement in (insert.format("before"), terminate, insert.format("after")):
            batch.append(store.submit_write(lambda c, statement=statement: c.execute(text(statement)).rowcount))
        collected.set()
        for write in batch[1:]:
            with pytest.raises(ResourceError, match="terminating connection due to administrator command"):
                write.result(10)
        assert store.submit_write(lambda c: c.execute(text(insert.format("next"))).rowcount).result(10) == 1
        names = store.read(lambda c: [row.name for row in c.execute(schema.settings.select())])
        assert names == ["next"]


def test_migrations_match_the_schema(store):
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_migration_from_a_path_with_spaces(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "site packages %" / "towpath", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import sys, towpath; from towpath.store.store import Store; Store.open('a b.db').close(); "
        "print(towpath.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site packages %")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert "site packages %" in done.stdout
    assert (tmp_path / "a b.db").is_file()


@pytest.mark.parametrize("fault", ["migrate:1", ""])
def test_killed_migration_is_repeated(tmp_path, fault):
    location = tmp_path / "a.db"
    assert killed_by_fault("from towpath.store.store import Store; Store.open(location)", fault, location) == bool(
        fault
    )
    with Store.open(location) as store:
        fill(store)
        assert store.counts()["comparisons"] == 2


@pytest.mark.parametrize(("fault", "raters"), [("commit:1", []), ("commit:2", ["ann"]), ("commit:3", ["ann", "bob"])])
def test_killed_commit_is_atomic(store, location, fault, raters):
    script = (
        "from towpath.store.store import Store; from towpath.records import Judgement, Label; store = "
        "Store.open(location)\n"
        "for who in ('ann', 'bob'):\n"
        "    store.add_judgements([Judgement(f'{k}/{who}', k, who, 'person', 'a') for k in ('k1', 'k2')])\n"
        "store.replace_labels([Label('k1', 'b', 1.0, 1), Label('k2', 'b', 1.0, 1)])"
    )
    store.replace_labels([Label("k1", "a", 1.0, 1)])
    assert killed_by_fault(script, fault, location)
    assert [j.rater for j in store.judgements()] == [who for who in raters for _ in range(2)]
    assert store.labels() == [Label("k1", "a", 1.0, 1)]
    store.add_judgements([make_judgement(rater="cid")])


IMPORT = """
from pathlib import Path
from threading import Event
from towpath.data import formats
from towpath.store.store import Store
found = formats.read_preferences(Path(path), "pairs", rater="ann")
with Store.open(location) as store:
    formats.add_to_store(store, found)
"""


@pytest.mark.parametrize("fault", ["commit:1", "commit:2", "commit:3", "commit:4"])
def test_killed_imports_are_atomic(location, tmp_path, fault):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."}) + "\n" for n in range(50))
    )
    script = f"path = {str(path)!r}\n" + IMPORT
    assert killed_by_fault(script, fault, location) == (fault == "commit:1")
    with Store.open(location) as opened:
        counts = opened.counts()
    assert len({counts[name] for name in ("prompts", "comparisons", "judgements")}) == 1, counts
    assert counts["judgements"] == (0 if fault == "commit:1" else 50)


def test_error_in_a_transaction_rolls_back(store):
    with pytest.raises(DataError), store.transaction():
        store.add_prompts([Prompt("new", "Why?")])
        store.add_comparisons([Comparison("new", "new", "nobody", "nothing")])
    assert "new" not in store.prompts()
    store.add_prompts([Prompt("new", "Why?")])


def test_newer_ledger_version_is_refused(file_store):
    connection = connect_sqlite(file_store)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(DataError, match="version 9999"):
        Store.open(Path(file_store._engine.url.database))


def test_file_that_is_no_database_is_reported(tmp_path):
    (tmp_path / "x.db").write_bytes(b"not a database at all" * 200)
    with pytest.raises(DataError, match="not a database"):
        Store.open(tmp_path / "x.db")


def test_full_sqlite_disk_is_reported(file_store):
    with file_store._engine.connect() as connection:  # the pool returns this connection again
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ResourceError, match="the disk is full"):
        file_store.add_prompts([Prompt("p2", "x" * 100_000)])
    assert list(file_store.prompts()) == ["p1"]


def test_locked_ledger_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "LOCK_TIMEOUT", 0.1)
    with Store.open(tmp_path / "a.db") as store:
        other = connect_sqlite(store)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ResourceError, match="another process"):
            fill(store)
        assert store.counts()["prompts"] == 0
        other.close()
        fill(store)


def test_filesystem_type_of_the_deepest_mount():
    mounts = (
        "/dev/a / ext4 rw 0 0\nhost:/b /mnt/the\\040share nfs4 rw 0 0\n/dev/c /mnt/the\\040share/local ext4 rw 0 "
        "0\n//d/e /größe cifs rw 0 0\n"
    )
    types = {
        name: ledger.filesystem_type(Path(name), mounts)
        for name in ("/mnt/x.db", "/mnt/the share/x.db", "/mnt/the share/local/x.db", "/größe/x.db")
    }
    assert list(types.values()) == ["ext4", "nfs4", "ext4", "cifs"]
    assert {"nfs", "nfs4", "cifs", "smb3", "smbfs"} <= ledger.NETWORK_FILESYSTEMS


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_export_pairs_and_import_judgements(store, tmp_path, suffix):
    path = tmp_path / f"pairs.{suffix}"
    assert export_pairs(store, path, samples={"elsewhere"}) == 0
    assert export_pairs(store, path) == 2
    bom, empty, filled = {"jsonl": ("", '"choice": ""', '"choice": "a"'), "csv": ("\ufeff", '",,,', '",a,2,bob')}[
        suffix
    ]
    path.write_bytes((bom + path.read_bytes().decode().replace(empty, filled)).encode())
    assert import_judgements(store, path, rater="ann") == (2, 0)
    assert import_judgements(store, path, rater="ann") == (0, 2)
    assert export_pairs(store, path) == 0
    assert export_pairs(store, path, include_judged=True) == 2
    if suffix == "csv":
        with path.open(newline="") as file:
            assert [row["b"] for row in csv.DictReader(file)] == [awkward_text(2), awkward_text(1)]
    verdicts = {(j.rater, j.choice, j.strength, j.kind) for j in store.judgements()}
    assert verdicts == {("ann", "a", 1, "person") if suffix == "jsonl" else ("bob", "a", 2, "person")}


def test_sheet_shows_the_whole_conversation(tmp_path):
    with Store.open(tmp_path / "towpath.db") as store:
        history = (Message("user", "Locks?"), Message("assistant", "Canals have them."))
        prompt = Prompt("p", "How do they fill?", history=history)
        store.add_prompts([prompt])
        store.add_completions([Completion(f"c{i}", "p", "sft", str(i), (1,), (-0.1,), "stop") for i in range(2)])
        store.add_comparisons([Comparison("k", "p", "c0", "c1")])
        export_pairs(store, tmp_path / "sheet.jsonl")
    row = json.loads((tmp_path / "sheet.jsonl").read_text())
    assert row["prompt"] == prompt.text and "Canals have them." in row["prompt"]


def test_rows_without_a_choice_are_skipped(store, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("comparison,choice,shown,milliseconds,at\nk1,,,,\n\nk2,both_bad,ba,1500,2026-01-01T00:00:00Z\n")
    assert import_judgements(store, path, rater="ann", kind="judge") == (1, 0)
    judgement = store.judgements()[0]
    assert (judgement.comparison, judgement.shown, judgement.milliseconds, judgement.at, judgement.kind) == (
        "k2",
        "ba",
        1500,
        "2026-01-01T00:00:00Z",
        "judge",
    )
    path.write_text("comparison,choice\nk1,\n")
    with pytest.raises(DataError, match="no judgement in 1 rows"):
        import_judgements(store, path, rater="ann")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"comparison": "k9", "choice": "a"}', "'k9' is not in this run"),
        ('{"comparison": ["k1"], "choice": "a"}', "is not in this run"),
        ("not json", "not JSON"),
        ("[1]", "not an object"),
        ('{"comparison": "k1", "choice": "c"}', "choice 'c'"),
        ('{"comparison": "k1"}', "choice None"),
        ('{"comparison": "k1", "choice": "a", "strength": 0}', "strength 0"),
        ('{"comparison": "k1", "choice": "a", "shown": "left"}', "shown 'left'"),
        ('{"comparison": "k1", "choice": "a", "milliseconds": "²"}', "milliseconds '²'"),
        ('{"comparison": "k1", "choice": "a", "at": "yesterday"}', "at 'yesterday'"),
        ('{"comparison": "k2", "choice": "b"}', "ann judged a at strength 1 as person before and b"),
    ],
)
def test_one_invalid_row_rejects_the_file(store, tmp_path, row, reason):
    path = tmp_path / "said.jsonl"
    path.write_text('{"comparison": "k2", "choice": "a"}\n\n' + row + '\n{"comparison": "k1", "choice": "no"}\n')
    with pytest.raises(DataError) as error:
        import_judgements(store, path, rater="ann")
    first, second = error.value.value.splitlines()
    assert first.startswith("said.jsonl:3: ")
    assert reason in first
    assert second.startswith("said.jsonl:4: choice 'no'")
    assert store.judgements() == []


def test_import_needs_a_rater_and_refuses_contradictions(store, tmp_path):
    path = tmp_path / "said.jsonl"
    path.write_text('{"comparison": "k1", "choice": "b"}\n')
    with pytest.raises(DataError, match="no rater"):
        import_judgements(store, path)
    store.add_judgements([make_judgement()])
    with pytest.raises(DataError, match=r"said\.jsonl:1: k1: ann judged a"):
        import_judgements(store, path, rater="ann")


def test_invalid_csv_rows_are_reported_by_line(store, tmp_path):
    path = tmp_path / "said.csv"
    path.write_text('comparison,prompt,choice\nk1,"one\ntwo\nthree",a\nk9,x,a\nk2,a comma, without quotes,a\n')
    with pytest.raises(DataError) as error:
        import_judgements(store, path, rater="ann")
    assert [line.split(": ")[0] for line in error.value.value.splitlines()] == ["said.csv:5", "said.csv:6"]
    assert "4 cells under 3 headings" in error.value.value


@pytest.mark.parametrize(
    ("name", "content"), [("said.xlsx", b"PK"), ("said.csv", b"\xff\xfe\x00"), ("said.jsonl", None)]
)
def test_unreadable_files_are_reported(store, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        import_judgements(store, tmp_path / name, rater="ann")


def publish_text(location, text):
    return publish.publish(location, lambda folder: (folder / "x").write_text(text))


def test_newest_intact_skips_damaged_folders(tmp_path):
    for n in (1, 2, 10):
        publish_text(tmp_path / f"step_{n}", str(n))
    publish_text(tmp_path / "step_x", "no number")
    publish_text(tmp_path / "other_11", "another prefix")
    assert publish.newest_intact(tmp_path, "step") == (tmp_path / "step_10", [])
    (tmp_path / "step_10" / "x").write_text("20")
    (tmp_path / "step_2" / publish.MANIFEST).unlink()
    assert publish.newest_intact(tmp_path, "step") == (tmp_path / "step_1", [tmp_path / "step_10", tmp_path / "step_2"])
    assert publish.newest_intact(tmp_path / "nowhere", "step") == (None, [])


def test_publish_replaces_damaged_folders_only(tmp_path):
    folder = publish_text(tmp_path / "step_1", "1")
    with pytest.raises(DataError, match="never replaced"):
        publish_text(folder, "2")
    assert (folder / "x").read_text() == "1"
    (folder / "x").write_text("torn")
    publish_text(folder, "2")
    assert publish.is_intact(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("never published")
    with pytest.raises(DataError, match="already exists"):
        publish_text(tmp_path / "mine", "2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "step_1"]


@pytest.mark.parametrize("fault", ["write:1", "fsync:1", "rename:1"])
def test_killed_publish_is_atomic(tmp_path, fault):
    script = (
        "from towpath.store import publish; publish.publish(location / 'deep' / 'step_1', lambda p: (p / "
        "'x').write_text('1'))"
    )
    assert killed_by_fault(script, fault, tmp_path)
    folder = tmp_path / "deep" / "step_1"
    assert folder.exists() == fault.startswith("rename")
    assert publish.is_intact(folder) == folder.exists()
    publish.remove_temporary(tmp_path)
    assert [p.name for p in folder.parent.iterdir()] == (["step_1"] if folder.exists() else [])
    if not folder.exists():
        publish_text(folder, "1")
    assert publish.is_intact(folder)


@pytest.mark.parametrize(
    ("fault", "left"), [("write:1", "old"), ("fsync:1", "old"), ("rename:1", "new"), ("rename:2", "newer")]
)
def test_killed_replace_file_is_atomic(tmp_path, fault, left):
    path = tmp_path / "x.json"
    publish.replace_file(path, "old")
    assert killed_by_fault(
        "from towpath.store import publish\nfor text in ('new', 'newer'): publish.replace_file(location, text)",
        fault,
        path,
    )
    assert path.read_text() == left
    publish.remove_temporary(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_replace_file_does_not_write_in_place(tmp_path):
    path = tmp_path / "x.json"
    publish.replace_file(path, "old")
    with path.open() as reading:
        publish.replace_file(path, "new")
        assert reading.read() == "old"
    assert path.read_text() == "new"


def test_remove_temporary_keeps_other_files(tmp_path):
    (tmp_path / "letter.tmp-notes.txt").write_text("mine")
    (tmp_path / "letter.tmp-0123abcd").write_text("half")
    publish.remove_temporary(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.tmp-notes.txt"]


def test_full_disk_is_reported(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def write(folder: Path) -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)

    with pytest.raises(ResourceError, match="no space left"):
        publish.publish(tmp_path / "step_1", write)
    assert list(tmp_path.iterdir()) == []


def test_fsync_error_is_raised(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        publish_text(tmp_path / "step_1", "1")
    assert list(tmp_path.iterdir()) == []
