"""Preference files of other tools: every format is read, every invalid row is reported."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from foreign import CONVERSATION, PLAIN, SHARED, TRANSCRIPT, imported_rows, lines, put, read, real_rows, turn

from towpath.data import conversations, formats
from towpath.data.formats import read_preferences, write_preferences
from towpath.data.row_files import UnusableRow
from towpath.errors import DataError
from towpath.records import Message, Prompt, Role
from towpath.store.store import Store

HUMAN = "\n\nHuman: "
ASSISTANT = "\n\nAssistant: "


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_plain_pairs_in_every_file_type(tmp_path: Path, suffix: str):
    rows = [PLAIN, {"prompt": 'How,\n"so"?', "chosen": "x\ny", "rejected": "z"}]
    path = tmp_path / f"p.{suffix}"
    if suffix == "csv":
        path.write_text('prompt,chosen,rejected\nWhy?,Because.,No.\n"How,\n""so""?","x\ny",z\n')
        result = read_preferences(path)
    else:
        result = read(path, *rows)
    assert imported_rows(result) == [("Why?", "Because.", "No."), ('How,\n"so"?', "x\ny", "z")]
    assert result.refused == []
    assert {c.source for c in result.completions} == {"import:p"} and {c.token_ids for c in result.completions} == {()}
    assert {(j.rater, j.kind, j.details["import"]) for j in result.judgements} == {("import:p", "person", "import:p")}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {
                "prompt": [turn("user", "Why?")],
                "chosen": [turn("assistant", "Yes")],
                "rejected": [turn("assistant", "No")],
            },
            ("Why?", "Yes", "No"),
        ),
        (
            {"prompt": CONVERSATION, "chosen": [turn("assistant", "Yes")], "rejected": [turn("assistant", "No")]},
            (TRANSCRIPT, "Yes", "No"),
        ),
        (
            {"chosen": [*CONVERSATION, turn("assistant", "Yes")], "rejected": [*CONVERSATION, turn("assistant", "No")]},
            (TRANSCRIPT, "Yes", "No"),
        ),
        (
            {
                "prompt": "Why?",
                "chosen": [turn("user", "Why?"), turn("assistant", "Yes")],
                "rejected": [turn("user", "Why?"), turn("assistant", "No")],
            },
            ("Why?", "Yes", "No"),
        ),
        (
            {
                "chosen": [turn("system", "Be brief."), turn("user", "Why?"), turn("assistant", "Yes")],
                "rejected": [turn("system", "Be brief."), turn("user", "Why?"), turn("assistant", "No")],
            },
            ("System: Be brief.\n\nUser: Why?", "Yes", "No"),
        ),
        ({"chosen": f"{HUMAN}Why?{ASSISTANT}Yes", "rejected": f"{HUMAN}Why?{ASSISTANT}No"}, ("Why?", "Yes", "No")),
        (
            {
                "chosen": f"{HUMAN}Hi{ASSISTANT}Hello{HUMAN}Why?{ASSISTANT} Yes\n",
                "rejected": f"{HUMAN}Hi{ASSISTANT}Hello{HUMAN}Why?{ASSISTANT}No",
            },
            (TRANSCRIPT, "Yes", "No"),
        ),
        (
            {"prompt": f"{HUMAN}Hi{ASSISTANT}Hello{HUMAN}Why?{ASSISTANT}", "chosen": "Yes", "rejected": "No"},
            (TRANSCRIPT, "Yes", "No"),
        ),
        (
            {"instruction": "Shorten.", "input": "A text", "chosen": "Text", "rejected": "A"},
            ("Shorten.\n\nA text", "Text", "A"),
        ),
        ({"prompt": "Why?", "a": "No", "b": "Yes", "choice": "b"}, ("Why?", "Yes", "No")),
        ({"prompt": "Why?", "response_a": "Yes", "response_b": "No", "winner": "model_a"}, ("Why?", "Yes", "No")),
        (
            {"prompt": "Why?", "response_a": "Yes", "response_b": "No", "winner": "tie (bothbad)"},
            ("Why?", "both_bad", ""),
        ),
        (
            {
                "conversation_a": [turn("user", "Why?"), turn("assistant", "Yes")],
                "conversation_b": [turn("user", "Why?"), turn("assistant", "No")],
                "winner": "model_a",
            },
            ("Why?", "Yes", "No"),
        ),
        ({"prompt": "Why?", "answers": ["Yes", "No"]}, ("Why?", "Yes", "No")),
        (
            {
                "instruction": "Why?",
                "completions": [{"response": "No", "overall_score": 2.5}, {"response": "Yes", "overall_score": 7}],
            },
            ("Why?", "Yes", "No"),
        ),
        (
            {"prompt": "Why?", "answers": [{"answer": "No", "rank": 2}, {"answer": "Yes", "rank": 1}]},
            ("Why?", "Yes", "No"),
        ),
        ({"prompt": "Why?", "answers": ["No", "Yes"], "scores": [0.1, 0.2]}, ("Why?", "Yes", "No")),
        ({"prompt": "Why?", "responses": ["No", "Yes"], "ranks": [1, 1]}, ("Why?", "tie", "")),
    ],
)
def test_preference_formats_of_other_tools(tmp_path: Path, row: dict[str, Any], expected: tuple[str, str, str]):
    result = read(tmp_path / "p.jsonl", row)
    assert (imported_rows(result), result.refused) == ([expected], [])


BAD_ROWS: list[tuple[Any, str]] = [
    ({"prompt": "Why?", "chosen": "  ", "rejected": "No."}, "empty answer"),
    ({"prompt": " ", "chosen": "x", "rejected": "y"}, "empty prompt"),
    ({"prompt": "Why?", "chosen": "Same.", "rejected": " Same."}, "identical answers"),
    ({"prompt": "Why?", "chosen": 3, "rejected": "y"}, "chosen is not text"),
    ({"prompt": "Why?", "chosen": None, "rejected": "y"}, "empty answer"),
    ("not json", "not JSON"),
    ("[1]", "not an object"),
    ({"chosen": f"{HUMAN}a{ASSISTANT}x", "rejected": f"{HUMAN}b{ASSISTANT}y"}, "the prompt is not shared"),
    (
        {"chosen": f"{HUMAN}a{HUMAN}b{ASSISTANT}x", "rejected": f"{HUMAN}a{HUMAN}b{ASSISTANT}y"},
        "roles out of order: user, user, assistant",
    ),
    ({"chosen": f"{HUMAN}a{ASSISTANT}", "rejected": f"{HUMAN}a{ASSISTANT}y"}, "empty answer"),
    (
        {"chosen": f"{HUMAN}a{ASSISTANT}b{HUMAN}{ASSISTANT}x", "rejected": f"{HUMAN}a{ASSISTANT}b{HUMAN}{ASSISTANT}y"},
        "chosen has an empty turn",
    ),
    (
        {"chosen": f"{HUMAN}a{ASSISTANT}b{HUMAN}c", "rejected": f"{HUMAN}a{ASSISTANT}y"},
        "chosen does not end with an answer",
    ),
    ({"chosen": "", "rejected": f"{HUMAN}a{ASSISTANT}y"}, "chosen is empty"),
    ({"chosen": "x", "rejected": "y"}, "no transcript"),
    (
        {"chosen": [turn("user", "a")], "rejected": [turn("user", "b")], "prompt": "p"},
        "roles out of order: user where the assistant",
    ),
    ({"chosen": [turn("tool", "a")], "rejected": [turn("user", "b")]}, "unknown role 'tool'"),
    ({"chosen": [1], "rejected": [2]}, "not a list of {role"),
    ({"prompt": "\ud800", "chosen": "x", "rejected": "y"}, "half a character"),
    ({"prompt": "a\0b", "chosen": "x", "rejected": "y"}, "NUL"),
    ({**PLAIN, "strength": 7}, "strength 7"),
    ({**PLAIN, "kind": "dog"}, "kind 'dog'"),
    ({**PLAIN, "margin": "much"}, "margin 'much'"),
    ({**PLAIN, "at": "noon"}, "at 'noon'"),
    ({**PLAIN, "provenance": "{}"}, "provenance cannot be read"),
    ({"prompt": "", "chosen": None, "rejected": None}, "chosen is empty"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_invalid_row_is_reported_with_file_line_and_reason(tmp_path: Path, row: Any, reason: str):
    result = read(tmp_path / "p.jsonl", PLAIN, "", row, {**PLAIN, "prompt": "How?"})
    (refusal,) = result.refused
    assert refusal.startswith("p.jsonl:3: ") and reason in refusal
    assert [prompt for prompt, _, _ in imported_rows(result)] == ["Why?", "How?"]


def test_line_numbers_of_refused_rows(tmp_path: Path):
    path = tmp_path / "p.csv"
    path.write_text('prompt,chosen,rejected\n"one\ntwo",x,\nWhy?,x,y,z\n')
    assert [r.split(": ")[0] for r in read_preferences(path).refused] == ["p.csv:2", "p.csv:4"]
    path = tmp_path / "p.json"
    path.write_text(
        '[\n {"prompt": "Why?",\n  "chosen": "x", "rejected": "y"},\n {"prompt": "How?", "chosen": "", "rejected": '
        '"y"}\n, 3]'
    )
    assert read_preferences(path).refused == ["p.json:4: empty answer", "p.json:5: not an object"]
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "Why?", "chosen": "x", "rejected": "y"}\r\n{"prompt": "\xff", "chosen": "x", '
        b'"rejected": "y"}\r\n'
    )
    result = read_preferences(path)
    assert result.refused == ["p.jsonl:2: not UTF-8"] and len(result.judgements) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.csv", b'prompt,chosen,rejected\nWhy?,x,y\n"open,x,y\nHow?,x,y\n', "p.csv:3: not CSV"),
        ("p.csv", b"prompt,chosen,rejected\n\xff,x,y\n", "p.csv:2: not UTF-8"),
        ("p.json", b'[{"prompt": "Why?", "chosen": "x", "rejected": "y"},\n{"prom', "p.json:2: not JSON"),
        (
            "p.json",
            b'[{"prompt": "Why?", "chosen": "x", "rejected": "y"}\n{}]',
            "p.json:2: not JSON: a comma is missing",
        ),
        ("p.json", b'[{"prompt": "Why?", "chosen": "x", "rejected": "y"}]\n[]', "text after the end of the list"),
        (
            "p.json",
            b'{"prompt": "Why?", "chosen": "x", "rejected": "y"}\n{"prompt": 1}',
            "p.json:2: no chosen and rejected (keys: prompt)",
        ),
        ("p.parquet", b"PAR1 not really", "p.parquet:1: not Parquet"),
    ],
)
def test_unparsable_files_report_the_line(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    result = read_preferences(tmp_path / name)
    assert any(reason in refusal for refusal in result.refused), result.refused


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", b""),
        ("p.json", b"[]"),
        ("p.txt", b"x"),
        ("p.jsonl", b'{"text": "x"}'),
        ("p.jsonl.gz", b"x"),
        ("none.jsonl", None),
        ("folder", "folder"),
    ],
)
def test_files_without_preferences_are_refused(tmp_path: Path, name: str, content: bytes | str | None):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=name):
        read_preferences(tmp_path / name)


def test_folder_with_compressed_files(tmp_path: Path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    put(tmp_path / "set" / "data" / "a.parquet", PLAIN)
    (tmp_path / "set" / "b.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"prompt": "How?", "answers": ["x", "y", "z"]}).encode())
    )
    (tmp_path / "set" / "README.md").write_text("words")
    result = read_preferences(tmp_path / "set")
    assert sorted(prompt for prompt, _, _ in imported_rows(result)) == ["How?", "How?", "How?", "Why?"]
    assert result.refused == []
    assert {c.source for c in result.completions} == {"import:set"}


def test_ranking_becomes_all_pairs_of_one_group(tmp_path: Path):
    result = read(
        tmp_path / "r.jsonl",
        {"prompt": "Why?", "answers": ["best", "good", "fair", "poor"]},
        {"prompt": "How?", "answers": ["one"]},
    )
    assert result.refused == ["r.jsonl:2: 1 answers: a ranking has two or more"]
    order = ["best", "good", "fair", "poor"]
    assert sorted(imported_rows(result)) == sorted(
        ("Why?", order[i], order[j]) for i in range(4) for j in range(i + 1, 4)
    )
    assert len({j.details["group"] for j in result.judgements}) == 1 and len(result.completions) == 4
    assert Counter(j.details["gap"] for j in result.judgements) == {1: 3, 2: 2, 3: 1}


def message(
    name: str, parent: str | None, role: str, text: str, rank: int | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "message_id": name,
        "parent_id": parent,
        "role": role,
        "text": text,
        "rank": rank,
        "message_tree_id": "m0",
    } | more


TREE = [
    message("m0", None, "prompter", "Why?"),
    message("m1", "m0", "assistant", "Good", 0),
    message("m2", "m0", "assistant", "Bad", 2),
    message("m3", "m0", "assistant", "Fair", 1),
    message("m4", "m1", "prompter", "And how?"),
    message("m5", "m4", "assistant", "So", 1),
    message("m6", "m4", "assistant", "Thus", 0),
    message("m7", "m2", "prompter", "Alone?"),
    message("m8", "m7", "assistant", "Lone"),
]
DEEP = "User: Why?\n\nAssistant: Good\n\nUser: And how?"


def test_ranked_replies_of_a_tree_become_pairs_with_conversation_history(tmp_path: Path):
    result = read(tmp_path / "t.jsonl", *TREE)
    assert sorted(imported_rows(result)) == sorted(
        [("Why?", "Good", "Bad"), ("Why?", "Good", "Fair"), ("Why?", "Fair", "Bad"), (DEEP, "Thus", "So")]
    )
    assert result.refused == []
    assert Counter(j.details["group"] for j in result.judgements) == {"m0": 3, "m4": 1}


def nested(name: str) -> dict[str, Any]:
    (own,) = (m for m in TREE if m["message_id"] == name)
    return {k: v for k, v in own.items() if k != "parent_id"} | {
        "replies": [nested(m["message_id"]) for m in TREE if m["parent_id"] == name]
    }


def test_nested_and_flat_trees_are_equal(tmp_path: Path):
    flat = read(tmp_path / "t.jsonl", *TREE)
    (tmp_path / "n").mkdir()
    deep = read(tmp_path / "n" / "t.jsonl", {"message_tree_id": "m0", "prompt": nested("m0")})
    assert sorted(imported_rows(deep)) == sorted(imported_rows(flat)) and deep.refused == []
    assert {c.id for c in deep.comparisons} == {c.id for c in flat.comparisons}


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({2: {"rank": None}}, ["t.jsonl:3: no rank, beside other replies"]),
        (
            {1: {"text": " "}},
            [
                "t.jsonl:2: message m1: empty text",
                "t.jsonl:5: its parent 'm1'",
                "t.jsonl:6: the conversation before it is not whole: 'm1'",
                "t.jsonl:7: the conversation before it is not whole: 'm1'",
            ],
        ),
        ({7: {"parent_id": "gone"}}, ["t.jsonl:8: its parent 'gone'"]),
        ({3: {"message_id": "m2"}}, ["t.jsonl:4: message_id 'm2' is there already, in line 3"]),
        ({8: {"role": "dog"}}, ["t.jsonl:9: message m8: role 'dog'"]),
        ({2: {"text": "Good "}}, ["t.jsonl:3: identical answers"]),
        (
            {4: {"role": "assistant"}},
            ["t.jsonl:6: roles out of order: user, assistant, assistant", "t.jsonl:7: roles out of order"],
        ),
        (
            {0: {"parent_id": "m4"}},
            [
                "t.jsonl:2: the messages run in a circle",
                "t.jsonl:3: the messages",
                "t.jsonl:4: the messages",
                "t.jsonl:6: the messages",
                "t.jsonl:7: the",
            ],
        ),
        ({5: {"rank": 0.5}}, ["t.jsonl:6: message m5: rank 0.5"]),
    ],
)
def test_invalid_tree_messages_are_reported_by_line(tmp_path: Path, change: dict[int, Any], refused: list[str]):
    result = read(tmp_path / "t.jsonl", *[row | change.get(i, {}) for i, row in enumerate(TREE)])
    assert len(result.refused) == len(refused), result.refused
    assert all(any(is_.startswith(should) for is_ in result.refused) for should in refused), result.refused


def test_equal_ranks_become_a_tie(tmp_path: Path):
    result = read(tmp_path / "t.jsonl", *[row | ({"rank": 1} if row["message_id"] == "m6" else {}) for row in TREE])
    assert (DEEP, "tie", "") in imported_rows(result)


def test_repeated_import_adds_nothing(tmp_path: Path):
    rows = [PLAIN, {"prompt": "How?", "answers": ["x", "y"]}]
    with Store.open(tmp_path / "a.db") as store:
        (tmp_path / "b").mkdir()
        first = read(tmp_path / "p.jsonl", rows[0])
        assert formats.add_to_store(store, first) == {"prompts": 1, "completions": 2, "comparisons": 1, "judgements": 1}
        assert formats.add_to_store(store, read(tmp_path / "p.jsonl", rows[0])) == {
            "prompts": 0,
            "completions": 0,
            "comparisons": 0,
            "judgements": 0,
        }
        # The swapped pair of another rater in another file is the same comparison.
        other = read(
            tmp_path / "b" / "q.jsonl", {"prompt": "Why?", "chosen": "No.", "rejected": "Because.", "rater": "ann"}
        )
        assert formats.add_to_store(store, other) == {"prompts": 0, "completions": 0, "comparisons": 0, "judgements": 1}
        assert len({j.choice for j in store.judgements()}) == 2


def test_better_answer_is_a_or_b_at_random_and_display_order_is_unknown(tmp_path: Path):
    result = read(
        tmp_path / "p.jsonl", *[{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(200)]
    )
    assert 70 < sum(j.choice == "a" for j in result.judgements) < 130
    assert {(j.shown, j.details["shown"]) for j in result.judgements} == {("ab", "unknown")}
    known = read(
        tmp_path / "q.jsonl",
        *[{"prompt": f"{i}?", "a": f"yes {i}", "b": f"no {i}", "choice": "a", "shown": "ab"} for i in range(50)],
    )
    assert {(j.choice, j.shown) for j in known.judgements} == {("a", "ab"), ("b", "ba")}


def test_duplicate_and_contradicting_rows_of_a_rater_are_refused(tmp_path: Path):
    turned = {"prompt": "Why?", "chosen": "No.", "rejected": "Because."}
    result = read(
        tmp_path / "p.jsonl", PLAIN, PLAIN, turned, turned | {"rater": "ann", "strength": 3}, turned | {"annotator": 7}
    )
    assert result.refused == ["p.jsonl:2: the same judgement as p.jsonl:1", result.refused[1]]
    assert result.refused[1].startswith("p.jsonl:3: p.jsonl:1 has choice ") and "`rater`" in result.refused[1]
    assert [(j.rater, j.strength) for j in result.judgements] == [("import:p", 1), ("ann", 3), ("7", 1)]


def test_judgement_columns_are_kept(tmp_path: Path):
    row = PLAIN | {
        "rater": "ann",
        "strength": 2,
        "kind": "judge",
        "margin": 1.5,
        "milliseconds": 900,
        "at": "2026-01-01T00:00:00Z",
        "comment": "hm",
        "guideline": "g1",
    }
    (j,) = read(tmp_path / "p.jsonl", row | {"group": 3, "domain": "law"}).judgements
    assert (j.rater, j.strength, j.kind, j.milliseconds, j.at, j.comment, j.guideline) == (
        "ann",
        2,
        "judge",
        900,
        "2026-01-01T00:00:00Z",
        "hm",
        "g1",
    )
    assert (j.details["margin"], j.details["group"]) == (1.5, "3")
    result = read(tmp_path / "q.jsonl", PLAIN | {"domain": "law"}, name="lawyers", kind="judge", rater="gpt")
    assert [(j.rater, j.kind) for j in result.judgements] == [("gpt", "judge")] and result.prompts[0].domain == "law"
    assert result.completions[0].source == "import:lawyers"


def test_known_prompts_keep_id_and_split(tmp_path: Path):
    own = [Prompt("mine", "Why?", domain="x"), Prompt("held", "How  is it?", split="heldout")]
    result = read(tmp_path / "p.jsonl", PLAIN, PLAIN | {"prompt": "how is it"}, PLAIN | {"prompt": "New?"}, prompts=own)
    assert [(p.id[:4], p.split) for p in result.prompts] == [
        ("mine", "train"),
        (result.prompts[1].id[:4], "heldout"),
        (result.prompts[2].id[:4], "train"),
    ]


def test_id_with_other_content_in_the_ledger_is_refused(tmp_path: Path):
    with Store.open(tmp_path / "a.db") as store:
        result = read(tmp_path / "p.jsonl", PLAIN)
        store.add_prompts([Prompt(result.prompts[0].id, "Something else?")])
        with pytest.raises(DataError, match="means something else"):
            formats.add_to_store(store, result)
        assert store.counts()["judgements"] == 0


def test_transcript_round_trip():
    messages = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?")]
    assert conversations.parse_transcript(conversations.format_transcript(messages)) == messages
    with pytest.raises(UnusableRow, match="mark of another turn"):
        conversations.format_transcript([Message("user", "a\n\nHuman: b")])


@pytest.mark.parametrize(
    ("roles", "error"),
    [
        ("user", ""),
        ("system user", ""),
        ("user assistant user", ""),
        ("system user assistant user", ""),
        ("user user", "roles out of order: user, user"),
        ("assistant user", "roles out of order: assistant, user"),
        ("user assistant", "roles out of order: user, assistant"),
        ("user system user", "roles out of order: user, system, user"),
        ("", "roles out of order: (none)"),
    ],
)
def test_order_of_roles(roles: str, error: str):
    assert conversations.role_error([Message(cast(Role, role), "x") for role in roles.split()]) == error


def test_csv_fields_may_be_long(tmp_path: Path):
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\nWhy?," + "x" * 200_000 + ",y\n")
    result = read_preferences(tmp_path / "p.csv")
    assert result.refused == [] and max(len(c.text) for c in result.completions) == 200_000


def usable(line: bytes) -> bool:
    """Whether a line of HH is a usable pair, by an independent parser."""
    row = json.loads(line)
    halves = [re.split(r"\n\n(?=Human:|Assistant:)", row[side]) for side in ("chosen", "rejected")]
    roles = [[part.partition(":")[0] for part in half[1:]] for half in halves]
    spoken = all(part.partition(":")[2].strip() for half in halves for part in half[1:])
    turns = all(names == ["Human", "Assistant"] * (len(names) // 2) for names in roles)
    return spoken and turns and halves[0][:-1] == halves[1][:-1]


@real_rows
def test_hh_transcripts_import(tmp_path: Path):
    result = read_preferences(SHARED / "hh_harmless_open.jsonl")
    rows = [line for line in (SHARED / "hh_harmless_open.jsonl").read_bytes().split(b"\n") if line.strip()]
    bad = [f"hh_harmless_open.jsonl:{n}" for n, line in enumerate(rows, 1) if not usable(line)]
    assert [refusal.partition(": ")[0] for refusal in result.refused] == bad and 0 < len(bad) < 20
    assert len(result.judgements) == len(rows) - len(bad)
    prompt, better, worse = imported_rows(result)[0]
    row = json.loads(rows[0])
    assert (
        row["chosen"].endswith(better)
        and row["rejected"].endswith(worse)
        and prompt.startswith("User: what are some pranks")
    )
    with Store.open(tmp_path / "a.db") as store:
        assert formats.add_to_store(store, result)["judgements"] == len(result.judgements)
        write_preferences(store, tmp_path / "out.jsonl", "transcripts")
    assert sorted(imported_rows(read_preferences(tmp_path / "out.jsonl"))) == sorted(imported_rows(result))


@real_rows
def test_oasst_trees_import():
    result = read_preferences(SHARED / "oasst1_en_validation_open.jsonl")
    messages = lines(SHARED / "oasst1_en_validation_open.jsonl")
    ids = {m["message_id"] for m in messages}
    replies: dict[str, list[Any]] = {}
    for m in messages:
        if m["role"] == "assistant" and m["parent_id"] in ids:
            replies.setdefault(m["parent_id"], []).append(m["rank"])
    ranked = [[rank for rank in ranks if rank is not None] for ranks in replies.values()]
    pairs = sum(len(ranks) * (len(ranks) - 1) // 2 for ranks in ranked)
    kinds = Counter(
        "no rank" if "no rank" in r else "no parent" if "its parent" in r else "pair" for r in result.refused
    )
    assert len(result.judgements) + kinds["pair"] == pairs > 700 and kinds["pair"] < 5
    assert kinds["no rank"] == sum(rank is None for ranks in replies.values() if len(ranks) > 1 for rank in ranks)
    assert kinds["no parent"] == sum(m["parent_id"] is not None and m["parent_id"] not in ids for m in messages)
    assert all(j.choice in ("a", "b") for j in result.judgements)
