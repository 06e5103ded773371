"""Export and import round trips: pairs, conversations, transcripts, Argilla, Label Studio."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign import imported_rows, lines, read

from towpath.data import formats, row_files
from towpath.data.formats import read_preferences, write_preferences
from towpath.data.preference_pairs import Imported
from towpath.errors import DataError
from towpath.records import Comparison, Completion, Judgement, Label, Message, Prompt
from towpath.store.store import Store


def make_judgement(comparison: str, rater: str, choice: Any, **more: Any) -> Judgement:
    kind = more.pop("kind", "person")
    return Judgement(
        f"{comparison}/{rater}/{more.get('round', 1)}",
        comparison,
        rater,
        kind,
        choice,
        at="2026-01-01T00:00:00+00:00",
        **more,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Store]:
    """A ledger with all kinds of pairs: decided by several raters, tied, bad, flipped, from a ranking, in a
    conversation, unjudged."""
    texts = ['One, "two"\nthree', "  padded\n", "Four;\r\nfive", "- x\n- y", "\u2028six", "Human: no turn"]
    with Store.open(tmp_path / "ledger.db") as store:
        store.add_prompts(
            [
                Prompt("p1", 'Why,\n"so"?', "law", about=("x", "y"), split="heldout"),
                Prompt("p2", "Why?", history=(Message("user", "Hi"), Message("assistant", "Hello"))),
                Prompt("p3", "Same?"),
            ]
        )
        store.add_completions(
            [
                Completion(f"c{p}{i}", f"p{p}", "sft", text, (1, i), (-0.1, -0.25), "length", {"top_k": 3})
                for p in (1, 2, 3)
                for i, text in enumerate(texts)
            ]
        )
        store.add_comparisons(
            [
                Comparison(f"k{p}.{i}", f"p{p}", f"c{p}{i}", f"c{p}{(i + 1) % 6}", round=2 if i == 4 else 1)
                for p in (1, 2, 3)
                for i in range(5)
            ]
        )
        for p in (1, 2, 3):
            store.add_judgements(
                [
                    make_judgement(f"k{p}.0", "ann", "a", strength=3, milliseconds=900, comment="so"),
                    make_judgement(f"k{p}.0", "bob", "b"),
                    make_judgement(f"k{p}.0", "cy", "a", shown="ba"),
                    make_judgement(f"k{p}.1", "ann", "b", details={"group": f"g{p}", "ranks": [1, 0]}),
                    make_judgement(f"k{p}.2", "ann", "tie"),
                    make_judgement(f"k{p}.3", "ann", "both_bad"),
                    make_judgement(f"k{p}.4", "ann", "a", round=2),
                    make_judgement(
                        f"k{p}.4", "judge:m", "b", kind="judge", cost=0.5, details={"confidence": 1.0}, round=2
                    ),
                ]
            )
        store.replace_labels([Label("k1.0", "a", 2.0, 3, chance=0.9, by="dawid_skene")])
        yield store


def records(imported: Imported | Store) -> list[Any]:
    if isinstance(imported, Store):
        parts = (
            imported.prompts().values(),
            imported.completions().values(),
            imported.comparisons(),
            imported.judgements(),
        )
    else:
        parts = (imported.prompts, imported.completions, imported.comparisons, imported.judgements)
    return [sorted(part, key=lambda r: getattr(r, "key", "") or r.id) for part in parts]


FILES = [
    *[("comparisons", s) for s in ("jsonl", "json", "csv", "parquet")],
    *[("pairs", s) for s in ("jsonl", "json", "csv", "parquet")],
    *[("conversational", s) for s in ("jsonl", "json", "parquet")],
    ("transcripts", "jsonl"),
    ("transcripts", "csv"),
    ("argilla", "json"),
    ("argilla", "jsonl"),
    ("label-studio", "json"),
    ("label-studio", "jsonl"),
]


@pytest.mark.parametrize(("layout", "suffix"), FILES, ids=["-".join(pair) for pair in FILES])
def test_export_import_round_trip(ledger: Store, tmp_path: Path, layout: Any, suffix: str):
    path = tmp_path / f"out.{suffix}"
    written = write_preferences(ledger, path, layout)
    back = read_preferences(path)
    assert back.refused == []
    everything = records(ledger)
    if layout in ("pairs", "conversational", "transcripts"):
        assert (written.rows, len(written.left_out)) == (6, 9)
        exported = {"k1.0", "k1.1", "k2.0", "k2.1", "k3.0", "k3.1"}
        everything[2] = [c for c in everything[2] if c.id in exported]
        everything[3] = [j for j in everything[3] if j.comparison in exported]
        everything[1] = [c for c in everything[1] if any(c.id in (k.a, k.b) for k in everything[2])]
    else:
        assert (written.rows, written.left_out) == (15, [])
    if layout in ("argilla", "label-studio"):
        everything[1] = [
            Completion(c.id, c.prompt_id, c.source, c.text, (), (), c.finish, c.decoding) for c in everything[1]
        ]
    assert records(back) == everything
    with Store.open(tmp_path / "new.db") as other:
        formats.add_to_store(other, back)
        assert records(other) == everything
    assert formats.add_to_store(ledger, back) == {"prompts": 0, "completions": 0, "comparisons": 0, "judgements": 0}


def test_omitted_rows_are_listed_with_reasons(ledger: Store, tmp_path: Path):
    ledger.add_comparisons([Comparison("k9", "p1", "c10", "c12")])
    left = write_preferences(ledger, tmp_path / "out.jsonl").left_out
    assert "k1.2: neither answer is better (tie)" in left and "k1.3: neither answer is better (both_bad)" in left
    assert "k1.4: neither answer is better (tie)" in left and "k9: it has no judgement" in left
    ledger.add_prompts([Prompt("p4", "Why?", history=(Message("system", "x"),))])
    ledger.add_completions(
        [Completion(n, "p4", "sft", t, (), (), "stop") for n, t in (("x", "a\n\nHuman: b"), ("y", "z"))]
    )
    ledger.add_completions(
        [Completion(n, "p3", "sft", t, (), (), "stop") for n, t in (("x3", "a\n\nHuman: b"), ("y3", "z"))]
    )
    ledger.add_comparisons([Comparison("k10", "p4", "x", "y"), Comparison("k11", "p3", "x3", "y3")])
    ledger.add_judgements([make_judgement("k10", "ann", "a"), make_judgement("k11", "ann", "a")])
    left = write_preferences(ledger, tmp_path / "out.jsonl", "transcripts").left_out
    assert any(one.startswith("k10: a system message") for one in left) and any(
        one.startswith("k11: a text holds the mark") for one in left
    )


def test_export_of_weights_margins_sources_and_groups(ledger: Store, tmp_path: Path):
    write_preferences(ledger, tmp_path / "out.jsonl")
    rows = {row["comparison"]: row for row in lines(tmp_path / "out.jsonl")}
    labelled = rows["k1.0"]
    voted = rows["k2.0"]
    turned = rows["k2.1"]
    assert (labelled["chance"], labelled["weight"], labelled["margin"]) == (0.9, 0.8, 2.0)
    assert (voted["chance"], voted["weight"], voted["margin"]) == (
        pytest.approx(2 / 3, abs=1e-5),
        pytest.approx(1 / 3, abs=1e-5),
        2.0,
    )
    assert (turned["chance"], turned["weight"], turned["group"]) == (1.0, 1.0, "g2")
    assert (turned["chosen"], turned["rejected"]) == ("Four;\r\nfive", "  padded\n")
    assert (labelled["source"], labelled["domain"], labelled["split"], voted["split"]) == (
        "person",
        "law",
        "heldout",
        "train",
    )


def test_edited_row_is_a_new_comparison(ledger: Store, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    write_preferences(ledger, path, "comparisons")
    rows = lines(path)
    one, two = (next(row for row in rows if row["comparison"] == name) for name in ("k1.1", "k3.1"))
    one["choice"] = "a"
    two["a"] = "A better text"
    back = read(path, *rows)
    assert back.refused == []
    corrected = [j for j in back.judgements if j.comparison == "k1.1"]
    assert [(j.rater, j.choice) for j in corrected] == [("ann", "b"), ("import:out", "a")]
    assert not [j for j in back.judgements if j.comparison == "k3.1"]
    assert ("Same?", "Four;\r\nfive", "A better text") in imported_rows(back)


def test_inconsistent_records_are_refused(ledger: Store, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    write_preferences(ledger, path)
    row = lines(path)[0]
    known = json.loads(row["provenance"])
    known["judgements"][0]["comparison"] = "another"
    back = read(path, row | {"provenance": json.dumps(known)})
    assert [j.rater for j in back.judgements] == ["import:out"] and not any(
        c.id.startswith("k") for c in back.comparisons
    )


def test_ids_are_unique_within_a_file(ledger: Store, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    write_preferences(ledger, path)
    first = lines(path)[0]
    second = lines(path)[2]
    known = json.loads(second["provenance"])
    known["a"]["id"] = known["comparison"]["a"] = json.loads(first["provenance"])["a"]["id"]
    back = read(path, first, second | {"provenance": json.dumps(known)})
    assert back.refused == [f"out.jsonl:2: id {known['a']['id']!r} is used already for something else"]
    assert len(back.comparisons) == 1


def test_last_verdict_of_a_rater_counts(ledger: Store, tmp_path: Path):
    ledger.add_comparisons([Comparison("k9", "p1", "c10", "c12")])
    ledger.add_judgements([make_judgement("k9", "ann", "b", round=2, strength=3), make_judgement("k9", "ann", "a")])
    write_preferences(ledger, tmp_path / "out.jsonl", "comparisons")
    (row,) = [row for row in lines(tmp_path / "out.jsonl") if row["comparison"] == "k9"]
    assert (row["choice"], row["margin"], row["weight"]) == ("b", 3.0, 1.0)


def argilla_record(**more: Any) -> dict[str, Any]:
    fields = {"prompt": "Why?", "response-1": "Yes", "response-2": "No"}
    return {"id": "1", "fields": fields, "metadata": {}, "suggestions": {}, "responses": {}, "vectors": {}} | more


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        (
            {"preference": [{"value": "response-1", "user_id": "u1"}, {"value": "tie", "user_id": "u2"}]},
            [("argilla:u1", "Yes"), ("argilla:u2", "tie")],
        ),
        (
            {
                "ranking": [
                    {"value": [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2}], "user_id": "u1"}
                ]
            },
            [("argilla:u1", "No")],
        ),
        (
            [
                {
                    "user_id": "u1",
                    "status": "submitted",
                    "values": {"preference": {"value": 2}, "comment": {"value": "hm"}},
                }
            ],
            [("argilla:u1", "No")],
        ),
        (
            {"comment": [{"value": "tie", "user_id": "u1"}], "q": [{"value": "response-1", "user_id": "u1"}]},
            [("argilla:u1", "Yes")],
        ),
        ([], []),
    ],
)
def test_argilla_records_of_both_versions(tmp_path: Path, responses: Any, expected: list[tuple[str, str]]):
    imported = read(tmp_path / "r.json", argilla_record(responses=responses))
    assert imported.refused == [] and len(imported.comparisons) == 1
    assert [
        (j.rater, better if better != "tie" else "tie")
        for j, (_, better, _) in zip(imported.judgements, imported_rows(imported), strict=True)
    ] == expected


def test_argilla_rows_that_do_not_count_are_listed(tmp_path: Path):
    responses = [
        {"user_id": "u1", "status": "draft", "values": {"q": {"value": "a"}}},
        {"user_id": "u2", "status": "submitted", "values": {"q": {"value": "purple"}}},
    ]
    imported = read(
        tmp_path / "r.jsonl",
        argilla_record(responses=responses),
        argilla_record(fields={"prompt": "Why?", "text": "one"}),
    )
    assert (
        imported.refused[0] == "r.jsonl:1: the response of u1 is draft: not counted"
        and "names no answer" in imported.refused[1]
    )
    assert ": no two answers (keys: prompt, text)" in imported.refused[2] and imported.judgements == ()


def test_argilla_labels_are_added_to_the_ledger(ledger: Store, tmp_path: Path):
    path = tmp_path / "records.json"
    write_preferences(ledger, path, "argilla")
    rows = json.loads(path.read_text())
    first = next(row for row in rows if row["id"] == "k1.0")
    assert first["suggestions"] == {"preference": {"value": "a", "score": 0.9, "agent": "person"}} and set(
        first["fields"]
    ) == {"prompt", "answer_a", "answer_b"}
    first["responses"] = {
        "preference": [{"value": "b", "user_id": "u9"}],
        "comment": [{"value": "clearer", "user_id": "u9"}],
    }
    back = read(path, *rows)
    assert formats.add_to_store(ledger, back)["judgements"] == 1
    new = next(j for j in ledger.judgements() if j.rater == "argilla:u9")
    assert (new.comparison, new.choice, new.shown, new.comment, new.kind) == ("k1.0", "b", "ab", "clearer", "person")
    # A repeated import adds nothing; a changed verdict is a new round.
    write_preferences(ledger, path, "argilla")
    rows = json.loads(path.read_text())
    next(row for row in rows if row["id"] == "k1.0")["responses"] = {"preference": [{"value": "b", "user_id": "u9"}]}
    assert formats.add_to_store(ledger, read(path, *rows))["judgements"] == 0
    next(row for row in rows if row["id"] == "k1.0")["responses"] = {"preference": [{"value": "a", "user_id": "u9"}]}
    assert formats.add_to_store(ledger, read(path, *rows))["judgements"] == 1
    assert [(j.choice, j.round) for j in ledger.judgements() if j.rater == "argilla:u9"] == [("b", 1), ("a", 2)]


def task(*annotations: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"prompt": "Why?", "text1": "Yes", "text2": "No"}, "annotations": list(annotations)}


def annotation(selected: str, **more: Any) -> dict[str, Any]:
    result = [{"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": {"selected": selected}}]
    return {
        "id": 1,
        "completed_by": 3,
        "result": result,
        "was_cancelled": False,
        "lead_time": 4.2,
        "created_at": "2026-01-01T00:00:00Z",
    } | more


def test_label_studio_import(tmp_path: Path):
    tie = {"from_name": "verdict", "to_name": "text1", "type": "choices", "value": {"choices": ["tie"]}}
    note = {"from_name": "note", "to_name": "text1", "type": "textarea", "value": {"text": ["both", "fine"]}}
    imported = read(
        tmp_path / "t.json",
        task(
            annotation("right"),
            annotation("left", completed_by={"id": 4, "email": "ann@x.org"}),
            annotation("left", completed_by=5, was_cancelled=True),
        ),
        task(
            annotation("left", completed_by=6, result=[*annotation("left")["result"], tie, note]),
            annotation("x", completed_by=8),
        ),
        task(),
    )
    lines = [(r.split(": ", 1)[1]) for r in imported.refused]
    assert lines == ["the annotation of 5 was cancelled: not counted", "the annotation of 8 names no answer"]
    by_rater = {
        j.rater: (better, j.milliseconds, j.at, j.comment)
        for j, (_, better, _) in zip(imported.judgements, imported_rows(imported), strict=True)
    }
    assert by_rater["label-studio:3"] == ("No", 4200, "2026-01-01T00:00:00Z", "")
    assert by_rater["label-studio:ann@x.org"][0] == "Yes" and by_rater["label-studio:6"][::3] == ("tie", "both fine")
    assert len(imported.comparisons) == 1


def test_label_studio_export_has_predictions(ledger: Store, tmp_path: Path):
    write_preferences(ledger, tmp_path / "t.json", "label-studio")
    rows = {row["data"]["comparison"]: row for row in json.loads((tmp_path / "t.json").read_text())}
    assert rows["k1.1"]["predictions"][0]["result"][0]["value"] == {"selected": "right"}
    assert rows["k1.3"]["predictions"][0]["result"][0]["value"] == {"choices": ["both_bad"]}
    assert "token_ids" in rows["k1.1"]["data"]["provenance"] and "-0.25" not in rows["k1.1"]["data"]["provenance"]


@pytest.mark.parametrize(
    ("name", "layout"),
    [("out.csv", "argilla"), ("out.csv", "conversational"), ("out.xlsx", "pairs"), ("out.jsonl", "xml")],
)
def test_format_and_file_mismatch_is_an_error(ledger: Store, tmp_path: Path, name: str, layout: Any):
    with pytest.raises(DataError):
        write_preferences(ledger, tmp_path / name, layout)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_export_is_atomic(tmp_path: Path, suffix: str):
    path = tmp_path / f"out.{suffix}"
    row_files.write_rows(path, [{"x": "old"}])
    with pytest.raises((TypeError, ValueError)):
        row_files.write_rows(path, [{"x": "new"}, {"x": [object()] if suffix == "csv" else object()}])
    assert list(tmp_path.iterdir()) == [path]
    assert [row for _, row in row_files.read_rows(path)] == [{"x": "old"}]


def test_empty_ledger_writes_no_file(tmp_path: Path):
    with Store.open(tmp_path / "a.db") as store, pytest.raises(DataError, match="nothing to write"):
        write_preferences(store, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
