"""Data sources, splits, duplicates and leaks on real files."""

import csv
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from towpath.data import corpus_reader, curate, texts
from towpath.data.corpus import Corpus
from towpath.errors import DataError
from towpath.hashing import hash_uniform
from towpath.recipe import Data
from towpath.records import Prompt

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
real_rows = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the public sets are not at {SHARED}")


def write(path: Path, *rows: Any) -> Path:
    """Write rows as JSON lines; strings are written unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def read(run: Path, seed: int = 0, **patterns: Any) -> Corpus:
    """A corpus of the named files; the other parts are empty."""
    return corpus_reader.read_corpus(run, Data(**{"prompts": "", "demonstrations": "", "safety": "", **patterns}), seed)


def refused(run: Path, **patterns: Any) -> str:
    """The message of the DataError that reading these files raises."""
    with pytest.raises(DataError) as error:
        read(run, **patterns)
    return str(error.value)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    run = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(QUICKSTART, run / "data")
    return corpus_reader.read_corpus(run, Data(), 0)


def test_quickstart_data_loads_without_findings(quickstart: Corpus) -> None:
    lines = {
        part: sum(len(p.read_text().splitlines()) for p in (QUICKSTART / part).glob("*.jsonl"))
        for part in ("prompts", "demonstrations", "safety")
    }
    result = {
        "prompts": len(quickstart.prompts),
        "demonstrations": len(quickstart.demonstrations),
        "safety": len(quickstart.safety),
    }
    assert result == lines
    assert quickstart.findings == ()
    assert len(quickstart.heldout) >= 200
    assert {p.id for p in quickstart.train}.isdisjoint(p.id for p in quickstart.heldout)
    assert all(quickstart.by_id[d.prompt_id].split == "train" for d in quickstart.demonstrations)


def test_quickstart_has_no_duplicates_and_no_leaks(quickstart: Corpus) -> None:
    result = curate.overlaps(quickstart)
    assert (result.duplicates, result.safety_duplicates, result.leaks, result.complete) == ([], [], [], True)


def test_quickstart_safety_twins_are_contrasting_pairs(quickstart: Corpus) -> None:
    assert len(quickstart.safety) >= 40
    for p in quickstart.safety:
        twin = quickstart.by_id[p.twin]
        assert twin.twin == p.id and twin.harmful != p.harmful


def test_quickstart_card_counts_match_the_data(quickstart: Corpus) -> None:
    card = (QUICKSTART / "CARD.md").read_text()
    prompts = Counter(p.domain for p in quickstart.prompts)
    heldout = Counter(p.domain for p in quickstart.heldout)
    demonstrations = Counter(d.domain for d in quickstart.demonstrations)
    for domain, count in prompts.items():
        held = heldout[domain]
        assert f"| {domain} | {count} | {count - held} | {held} | {demonstrations[domain]} |" in card
    for names in ((d.style for d in quickstart.demonstrations), (p.difficulty for p in quickstart.prompts)):
        for name, count in Counter(names).items():
            assert f"| {name or '(none)'} | {count} |" in card
    harmful = sum(p.harmful for p in quickstart.safety)
    assert f"{harmful} harmful and {len(quickstart.safety) - harmful} harmless" in card


def test_corpus_records_file_hashes(tmp_path: Path) -> None:
    path = write(tmp_path / "data" / "a.jsonl", {"prompt": "Why?"})
    assert read(tmp_path, prompts="data/*.jsonl").files == {
        "data/a.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()
    }


def test_absolute_pattern_and_folder_with_brackets(tmp_path: Path) -> None:
    run = tmp_path / "run [1]"
    write(run / "here.jsonl", {"prompt": "Here?"})
    write(tmp_path / "there.jsonl", {"prompt": "There?"})
    assert [p.prompt for p in read(run, prompts="*.jsonl").prompts] == ["Here?"]
    assert [p.prompt for p in read(run, prompts=str(tmp_path / "th*.jsonl")).prompts] == ["There?"]


def test_pattern_without_files_is_an_error(tmp_path: Path) -> None:
    message = refused(tmp_path, prompts="data/none/*.jsonl")
    assert "data.prompts = 'data/none/*.jsonl'" in message and str(tmp_path) in message


def test_empty_corpus_is_refused(tmp_path: Path) -> None:
    assert "no prompts at all" in refused(tmp_path)


def test_invalid_rows_are_reported_with_reason(tmp_path: Path) -> None:
    write(
        tmp_path / "p.jsonl",
        {"prompt": "Good?"},
        "{broken",
        "[1, 2]",
        {"prompt": "   "},
        {"prompt": 7},
        {"prompt": "x", "split": "test"},
        "",
        {"body": "x"},
        {"prompt": "x", "harmful": "perhaps"},
        {"prompt": "x", "about": [1]},
        '{"prompt": "half \\ud800"}',
        {"prompt": "x", "id": [1]},
    )
    write(
        tmp_path / "d.jsonl",
        {"prompt": "Good?"},
        {"prompt": "Good?", "response": " "},
        {"prompt": "Good?", "response": "Yes."},
    )
    message = refused(tmp_path, prompts="p.jsonl", demonstrations="d.jsonl")
    expected = {
        "p.jsonl:2": "not JSON",
        "p.jsonl:3": "not an object but a list",
        "p.jsonl:4": "empty prompt",
        "p.jsonl:5": "prompt is not text but a number",
        "p.jsonl:6": "unknown split 'test'",
        "p.jsonl:8": "no prompt (keys: body)",
        "p.jsonl:9": "harmful is not true or false",
        "p.jsonl:10": "about is not a list of words",
        "p.jsonl:11": "half a character",
        "p.jsonl:12": "id is not text",
        "d.jsonl:1": "no response",
        "d.jsonl:2": "empty response",
    }
    report = dict(line.strip().split(": ", 1) for line in message.splitlines() if ".jsonl:" in line)
    assert set(report) == set(expected)
    assert all(reason in report[position] for position, reason in expected.items())
    assert message.startswith("12 unusable rows")


def test_long_error_lists_are_shortened(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", *["{"] * 53)
    message = refused(tmp_path, prompts="p.jsonl")
    assert (
        message.startswith("53 unusable rows: 53 × not JSON")
        and "p.jsonl:5:" in message
        and "p.jsonl:6:" not in message
        and "48 more" in message
    )


def test_non_utf8_text_and_empty_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "ok"}\n{"prompt": "\xff"}\n')
    (tmp_path / "b.jsonl").write_text("\n")
    (tmp_path / "c.csv").write_bytes(b"prompt\n\xff\n")
    message = refused(tmp_path, prompts="*.*")
    assert (
        "a.jsonl:2: not UTF-8" in message
        and "b.jsonl:0: the file has no rows" in message
        and "c.csv:2: not UTF-8" in message
    )


def test_unknown_file_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# notes")
    assert "notes.md" in refused(tmp_path, prompts="*")


def test_jsonl_csv_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {
            "id": "a",
            "prompt": "One,\ntwo?",
            "domain": "x",
            "about": ["one", "two"],
            "harmful": True,
            "split": "heldout",
        },
        {"id": "b", "prompt": "“Three”?", "domain": "y", "about": [], "harmful": False, "split": "train"},
    ]
    write(tmp_path / "p.jsonl", *rows)
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "about": ";".join(row["about"])} for row in rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    one, two, three = (read(tmp_path, prompts=f"p.{kind}").prompts for kind in ("jsonl", "csv", "parquet"))
    assert one == two == three
    assert one[0] == Prompt("a", "One,\ntwo?", "x", "medium", ("one", "two"), True, "heldout")


def test_invalid_csv_and_parquet_rows_are_reported_by_row(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt,split\n"two\nlines",train\n,train\nx,train,more\nx\n')
    parquet.write_table(pyarrow.table({"prompt": ["fine", None, ""]}), tmp_path / "p.parquet")
    (tmp_path / "q.parquet").write_bytes(b"no")
    message = refused(tmp_path, prompts="*")
    for report in (
        "p.csv:4: empty prompt",
        "p.csv:5: 3 cells under 2 headings",
        "p.csv:6: 1 cells under 2 headings",
        "p.parquet:2: empty",
        "p.parquet:3: empty",
        "q.parquet:1: not Parquet",
    ):
        assert report in message
    assert message.startswith("6 unusable rows")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "response": "Yes."},
        {"prompt": "Hi?", "completion": "Yes."},
        {"instruction": "Hi?", "output": "Yes."},
        {"instruction": "Hi?", "input": "", "response": "Yes."},
        {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]},
        {"prompt": [{"role": "user", "content": "Hi?"}], "completion": [{"role": "assistant", "content": "Yes."}]},
    ],
)
def test_demonstration_formats_of_other_tools(tmp_path: Path, row: dict[str, Any]) -> None:
    write(tmp_path / "d.jsonl", row)
    result = read(tmp_path, demonstrations="d.jsonl")
    assert [(d.prompt, d.response) for d in result.demonstrations] == [("Hi?", "Yes.")]
    assert [p.prompt for p in result.train] == ["Hi?"]


def test_alpaca_input_is_appended_to_the_instruction(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", {"instruction": "Shorten.", "input": "A long text", "output": "Text"})
    assert read(tmp_path, demonstrations="d.jsonl", heldout=0.0).demonstrations[0].prompt == "Shorten.\n\nA long text"


@pytest.mark.parametrize("roles", [["assistant"], [], ["user", "user", "assistant"], ["user", "system", "user"]])
def test_roles_out_of_order_are_refused(tmp_path: Path, roles: list[str]) -> None:
    write(tmp_path / "d.jsonl", {"messages": [{"role": role, "content": "x"} for role in roles]})
    assert "d.jsonl:1: messages" in refused(tmp_path, demonstrations="d.jsonl")


SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]
ANSWER = {"role": "assistant", "content": "Because."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, *TURNS, ANSWER]},
        {"messages": [*TURNS, ANSWER], "system": "Be brief."},
        {"prompt": [SYSTEM, *TURNS], "completion": [ANSWER]},
        {"prompt": [SYSTEM, *TURNS], "response": "Because."},
        {"prompt": "Why?", "history": [SYSTEM, *TURNS[:2]], "response": "Because."},
        {"instruction": "Why?", "history": [["Hi?", "Hello."]], "system": "Be brief.", "output": "Because."},
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi?"},
                {"from": "gpt", "value": "Hello."},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "Because."},
            ]
        },
        {
            "prompt": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:",
            "system": "Be brief.",
            "response": "Because.",
        },
        {"chosen": [SYSTEM, *TURNS, ANSWER], "rejected": [SYSTEM, *TURNS, {"role": "assistant", "content": "No."}]},
    ],
)
def test_conversations_of_other_tools(tmp_path: Path, row: dict[str, Any]) -> None:
    write(tmp_path / "d.jsonl", row)
    (d,) = read(tmp_path, demonstrations="d.jsonl", heldout=0.0).demonstrations
    roles = ["system", "user", "assistant", "user"]
    assert [m.role for m in d.messages] == roles and (d.prompt, d.response) == ("Why?", "Because.")
    assert d.text == "System: Be brief.\n\nUser: Hi?\n\nAssistant: Hello.\n\nUser: Why?"
    (p,) = read(tmp_path, prompts="d.jsonl", heldout=0.0).prompts
    assert p.messages == d.messages


def test_all_turns_of_a_conversation_are_in_one_split(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        turns = [{"role": "user", "content": f"Question {number}?"}]
        for depth in range(3):
            rows.append({"messages": list(turns)})
            turns += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": f"And {depth}?"}]
    write(tmp_path / "p.jsonl", *rows)
    result = read(tmp_path, prompts="p.jsonl", heldout=0.5)
    splits = [{p.split for p in result.prompts if p.messages[0].content == f"Question {i}?"} for i in range(40)]
    assert all(len(split) == 1 for split in splits) and len(result.heldout) % 3 == 0 and result.heldout


def test_ids_depend_on_content_only(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?"} for i in range(5)]
    write(tmp_path / "a.jsonl", *rows)
    write(tmp_path / "b.jsonl", *reversed(rows))
    one, two = (read(tmp_path, prompts=f"{name}.jsonl") for name in "ab")
    assert {p.id: p.prompt for p in one.prompts} == {p.id: p.prompt for p in two.prompts}
    assert len(one.by_id) == 5


def test_equal_rows_without_ids_are_reported_as_duplicates(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", *[{"prompt": "Same?"}] * 3)
    result = read(tmp_path, prompts="p.jsonl")
    assert len(result.by_id) == 3 and len(curate.overlaps(result).duplicates) == 2


def test_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", {"id": "x", "prompt": "One?"}, {"id": "x", "prompt": "Two?"})
    assert "p.jsonl:2: id 'x' is used already at p.jsonl:1" in refused(tmp_path, prompts="p.jsonl")


def test_safety_ids_may_repeat_prompt_ids(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", {"id": 1, "prompt": "One?"})
    write(
        tmp_path / "s.jsonl",
        {"id": 1, "prompt": "Bad?", "harmful": True, "twin": 2},
        {"id": 2, "prompt": "Fine?", "harmful": False, "twin": 1},
    )
    result = read(tmp_path, prompts="p.jsonl", safety="s.jsonl")
    assert [(p.id, p.twin) for p in result.safety] == [("safety-1", "2"), ("2", "safety-1")]
    assert [f.code for f in result.findings] == ["safety-ids"]


def test_split_depends_on_text_only(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i} and {i}?"} for i in range(400)]
    write(tmp_path / "few.jsonl", *rows[:200])
    write(tmp_path / "many.jsonl", *reversed(rows), {"prompt": "  WHAT is 1   and 1 "})
    few = read(tmp_path, prompts="few.jsonl", heldout=0.3)
    many = read(tmp_path, prompts="many.jsonl", heldout=0.3)
    assert {p.prompt: p.split for p in few.prompts}.items() <= {p.prompt: p.split for p in many.prompts}.items()
    assert 0.22 < len(many.heldout) / 401 < 0.38
    sides = {p.prompt: p.split for p in many.prompts}
    assert sides["  WHAT is 1   and 1 "] == sides["What is 1 and 1?"]
    assert all(
        (p.split == "heldout") == (hash_uniform(0, "heldout", texts.normalise(p.prompt)) < 0.3) for p in many.prompts
    )
    assert {p.prompt for p in read(tmp_path, seed=1, prompts="few.jsonl", heldout=0.3).heldout} != {
        p.prompt for p in few.heldout
    }


def test_explicit_split_is_used(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", *[{"prompt": f"{i}?", "split": "heldout"} for i in range(20)])
    assert len(read(tmp_path, prompts="p.jsonl", heldout=0.0).heldout) == 20


def test_demonstrations_of_heldout_prompts_are_dropped_with_a_finding(tmp_path: Path) -> None:
    write(
        tmp_path / "p.jsonl",
        {"id": "t", "prompt": "Train?", "split": "train", "domain": "x"},
        {"id": "h", "prompt": "Held?", "split": "heldout"},
    )
    write(
        tmp_path / "d.jsonl",
        {"id": "1", "prompt": "train", "response": "a"},
        {"id": "2", "prompt": " held? ", "response": "b"},
        {"id": "3", "prompt": "Only here?", "response": "c"},
        {"id": "4", "prompt": "Withheld?", "response": "d", "split": "heldout"},
    )
    result = read(tmp_path, prompts="p.jsonl", demonstrations="d.jsonl")
    assert [(d.id, result.by_id[d.prompt_id].prompt, d.domain) for d in result.demonstrations] == [
        ("1", "Train?", "x"),
        ("3", "Only here?", "general"),
    ]
    assert [p.prompt for p in result.train] == ["Train?", "Only here?"]
    assert [p.prompt for p in result.heldout] == ["Held?", "Withheld?"]
    assert [(f.code, f.severity) for f in result.findings] == [("demonstrations-heldout", "warning")]
    assert "2 of 4" in result.findings[0].evidence and "2, 4" in result.findings[0].evidence


def test_prompt_id_must_match_the_prompt(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", {"id": "t", "prompt": "Train?"})
    write(tmp_path / "s.jsonl", {"id": "s", "prompt": "Harm?", "harmful": True})
    write(
        tmp_path / "d.jsonl",
        {"prompt": "Other?", "prompt_id": "t", "response": "a"},
        {"prompt": "Harm?", "prompt_id": "s", "response": "a"},
    )
    message = refused(tmp_path, prompts="p.jsonl", demonstrations="d.jsonl", safety="s.jsonl")
    assert (
        "d.jsonl:1: prompt_id 't' has another prompt" in message
        and "d.jsonl:2: prompt_id 's' belongs to the safety set" in message
    )


def test_exact_and_near_duplicates() -> None:
    long = "How do I keep a sourdough starter alive while I travel for several weeks in the summer"
    texts = [
        "How are you?",
        " how  ARE you",
        "Ｈow are you!",
        "Who are you?",
        f"{long}?",
        f"{long}s?",
        "What is C?",
        "What is C++?",
        "What is C#?",
    ]
    pairs = curate.overlaps(Corpus(tuple(Prompt(str(i), text) for i, text in enumerate(texts)))).duplicates
    assert pairs == [("0", "1"), ("0", "2"), ("4", "5")]


def test_leaks_are_found_between_all_parts(tmp_path: Path) -> None:
    long = "Explain in plain words how a bill becomes a law in the parliament of a small country"
    write(
        tmp_path / "p.jsonl",
        {"id": "t1", "prompt": "Same?", "split": "train"},
        {"id": "h1", "prompt": "same", "split": "heldout"},
        {"id": "h2", "prompt": long, "split": "heldout"},
        {"id": "t3", "prompt": "Harm?", "split": "train"},
    )
    write(tmp_path / "d.jsonl", {"id": "d1", "prompt": long + "!?x", "prompt_id": "t4", "response": "So."})
    write(tmp_path / "s.jsonl", {"id": "s1", "prompt": "harm", "harmful": True})
    result = curate.overlaps(read(tmp_path, prompts="p.jsonl", demonstrations="d.jsonl", safety="s.jsonl")).leaks
    assert {(x.between, x.trained, x.evaluated, x.exact) for x in result} == {
        ("train-heldout", "t1", "h1", True),
        ("train-heldout", "t4", "h2", False),
        ("demonstrations-heldout", "d1", "h2", False),
        ("safety-train", "t3", "s1", True),
    }


@real_rows
def test_dolly_splits_without_leaks(tmp_path: Path) -> None:
    dolly = str(SHARED / "dolly_short_4k.jsonl")
    result = read(tmp_path, prompts=dolly, demonstrations=dolly, safety=str(SHARED / "xstest_prompts.csv"))
    assert len(result.prompts) == 4000 and 700 < len(result.heldout) < 900
    left = next(f for f in result.findings if f.code == "demonstrations-heldout")
    assert left.evidence.startswith(f"{4000 - len(result.demonstrations)} of 4000")
    assert len(result.safety) == 450
    assert not any(leak.exact for leak in curate.overlaps(result).leaks if leak.between != "safety-train")


@real_rows
def test_prompts_of_preference_transcripts(tmp_path: Path) -> None:
    result = read(tmp_path, prompts=str(SHARED / "hh_harmless_open.jsonl"), unusable="skip")
    count = sum(bool(line.strip()) for line in (SHARED / "hh_harmless_open.jsonl").read_bytes().split(b"\n"))
    assert len(result.prompts) + len(result.refused) == count and 0 < len(result.refused) < 20
    assert sum(bool(p.history) for p in result.prompts) > 900


@real_rows
def test_prompts_and_demonstrations_of_message_trees(tmp_path: Path) -> None:
    path = str(SHARED / "oasst1_en_validation_open.jsonl")
    lines = (SHARED / "oasst1_en_validation_open.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [json.loads(line) for line in lines]
    user_turns = [m for m in messages if m["role"] == "prompter"]
    result = read(tmp_path, prompts=path, demonstrations=path, heldout=0.0, unusable="skip")
    orphans = [row for row in result.refused if "is not in the file" in row.reason]
    assert len(orphans) == len(result.refused) == 1 and orphans[0].part == "demonstrations"
    assert {p.id for p in result.prompts} == {m["message_id"] for m in user_turns}
    by_id = {m["message_id"]: m for m in messages}
    for p in result.prompts:
        assert p.prompt == by_id[p.id]["text"]
    answered = {m["parent_id"] for m in messages if m["role"] == "assistant"} & by_id.keys()
    assert {d.prompt_id for d in result.demonstrations} == answered
    best = {m["parent_id"]: m["text"] for m in messages if m["role"] == "assistant" and m["rank"] == 0}
    assert all(d.response == best[d.prompt_id] for d in result.demonstrations if d.prompt_id in best)


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", {"harm_area": "x", "body": "Why?"})
    assert "keys: harm_area, body" in refused(tmp_path, prompts="p.jsonl")


def test_near_duplicate_of_a_prompt_on_both_sides_is_a_leak() -> None:
    long = "Explain in plain words how a bill becomes a law in the parliament of a small country"
    prompts = (Prompt("t1", long), Prompt("h1", long, split="heldout"), Prompt("t2", f"{long} so"))
    assert {(x.trained, x.evaluated) for x in curate.overlaps(Corpus(prompts)).leaks} == {("t1", "h1"), ("t2", "h1")}


def test_random_draws_depend_on_seed_stream_and_counters() -> None:
    from towpath.data import draws

    first = draws.uniforms(4, 1, "rollout", 3, "p")
    assert (first == draws.uniforms(4, 1, "rollout", 3, "p")).all()
    for other in ((2, "rollout", 3, "p"), (1, "sample", 3, "p"), (1, "rollout", 4, "p"), (1, "rollout", 3, "q")):
        assert not (first == draws.uniforms(4, *other)).any()
