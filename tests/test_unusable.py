"""Unusable rows: reported, counted, listed in a file of the run, and dropped if the recipe says skip."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from foreign import SHARED, put, real_rows

from towpath.data import corpus_reader
from towpath.data.chat import Chat
from towpath.data.corpus import Corpus
from towpath.data.data_summary import DataSummary
from towpath.data.examples import read_examples, write_examples
from towpath.data.refused_rows import FILE, IMPORT_FILE
from towpath.errors import DataError, RecipeError, TowpathError
from towpath.recipe import Data, Recipe
from towpath.records import Finding
from towpath.run import fingerprint, loading, preflight

NOTHING = {"prompts": "", "demonstrations": "", "safety": "", "preferences": ""}
SAFE = [
    {"id": "a", "prompt": "How do I kill a process?", "label": "safe"},
    {"id": "b", "prompt": "How do I kill a man?", "label": "unsafe"},
]
LONG = "word " * 150


def read(run: Path, **values: Any) -> Corpus:
    return corpus_reader.read_corpus(run, Data(**NOTHING | {"heldout": 0.0} | values), 0)


def refused_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def recipe_of(data: dict[str, Any], **sections: Any) -> Recipe:
    return Recipe.model_validate({"model": {"source": "tiny"}, "data": NOTHING | {"heldout": 0.0} | data, **sections})


def find_one(findings: Sequence[Finding], code: str, severity: str) -> Finding:
    some = [f for f in findings if (f.code, f.severity) == (code, severity)]
    assert len(some) == 1, preflight.lines(findings)
    return some[0]


# Harmful labels of the safety set.


def test_safety_row_without_a_harmful_label_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", {"prompt": "Hello?"})
    put(
        tmp_path / "s.jsonl",
        {"prompt": "Poison?", "harmful": True},
        {"prompt": "Bomb?"},
        {"prompt": "Gun?", "harmful": "", "label": "3"},
    )
    with pytest.raises(DataError) as error:
        read(tmp_path, prompts="p.jsonl", safety="s.jsonl")
    assert (
        "2 unusable rows: 2 × nothing says whether it is harmful" in error.value.value
        and "s.jsonl:2" in error.value.value
    )
    assert "say whether they are harmful" in error.value.rule
    assert '`label` (safe or unsafe), or set data.safety_harmful = { "s.jsonl" = true }' in error.value.fix


def test_safe_and_unsafe_labels(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", {"prompt": "Hello?"})
    put(tmp_path / "s.jsonl", *SAFE)
    assert [p.harmful for p in read(tmp_path, prompts="p.jsonl", safety="s.jsonl").safety] == [False, True]


@pytest.mark.parametrize(
    ("rule", "row", "harmful"),
    [
        (True, {}, True),
        (False, {}, False),
        ("bad", {"bad": 1}, True),
        ("bad", {"bad": "no"}, False),
        ("kind", {"kind": "Unsafe", "label": "7"}, True),
        (True, {"harmful": "yes"}, True),
    ],
)
def test_safety_harmful_setting(tmp_path: Path, rule: bool | str, row: dict[str, Any], harmful: bool) -> None:
    put(tmp_path / "p.jsonl", {"prompt": "Hello?"})
    put(tmp_path / "s.jsonl", {"prompt": "Bomb?", **row})
    put(tmp_path / "t.jsonl", *SAFE)
    for key in ("s.jsonl", "s.*"):
        corpus = read(tmp_path, prompts="p.jsonl", safety="[st].jsonl", safety_harmful={key: rule})
        assert [p.harmful for p in corpus.safety] == [harmful, False, True], "a rule is for the files it names"


@pytest.mark.parametrize(
    ("rule", "row", "reason"),
    [
        (True, {"harmful": False}, "the row says harmful = false, data.safety_harmful says true"),
        (True, {"label": "safe"}, "the row says harmful = false, data.safety_harmful says true"),
        ("bad", {}, "no 'bad', which data.safety_harmful names for s.jsonl"),
        ("bad", {"bad": "perhaps"}, "bad is not true or false but 'perhaps'"),
        (None, {"harmful": True, "label": "safe"}, "harmful is true but label is 'safe'"),
    ],
)
def test_contradicting_safety_labels_are_refused(tmp_path: Path, rule: Any, row: dict[str, Any], reason: str) -> None:
    put(tmp_path / "p.jsonl", {"prompt": "Hello?"})
    put(tmp_path / "s.jsonl", {"prompt": "Bomb?", **row})
    with pytest.raises(DataError, match=reason):
        read(tmp_path, prompts="p.jsonl", safety="s.jsonl", safety_harmful={} if rule is None else {"s.jsonl": rule})


def test_safety_harmful_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", {"prompt": "Hello?"})
    put(tmp_path / "s.jsonl", *SAFE)
    with pytest.raises(RecipeError, match=r"'sst\.csv', which is no file of the safety set"):
        read(tmp_path, prompts="p.jsonl", safety="s.jsonl", safety_harmful={"sst.csv": True})


ROWS = [
    {"prompt": "One?", "harmful": True},
    {"prompt": "Two?", "label": "unsafe"},
    {"question": "Three?", "label": "SAFE", "harmful": 0},
    {"messages": [{"role": "user", "content": "Four?"}], "harmful": "yes"},
    {"prompts_final": "Five?", "harmful": "unsafe"},
    {"prompt": "Six?", "harmful": "perhaps"},
    {"prompt": "Seven?", "harmful": True, "label": "safe"},
    {"prompt": "Eight?", "label": "toxic"},
]


def test_corpus_reader_and_example_reader_agree(tmp_path: Path) -> None:
    run = put(tmp_path / "s.jsonl", *ROWS).parent
    theirs = read_examples(tmp_path / "s.jsonl")
    ours = read(run, prompts="s.jsonl", unusable="skip")
    assert {p.prompt: p.harmful for p in ours.prompts} == {p.prompt: p.harmful for p in theirs.prompts}
    assert (
        {str(row).partition(": ")[0] for row in ours.refused}
        == {row.partition(": ")[0] for row in theirs.refused}
        == {"s.jsonl:6", "s.jsonl:7"}
    )
    safety = read(run, prompts="s.jsonl", safety="s.jsonl", unusable="skip").safety
    assert {p.prompt: p.harmful for p in safety} == {
        p.prompt: p.harmful for p in theirs.prompts if p.prompt != "Eight?"
    }


def test_unlabelled_rows_are_not_written_as_harmless(tmp_path: Path) -> None:
    put(tmp_path / "theirs.jsonl", {"prompt": "Bomb?"}, {"prompt": "Gun?"})
    write_examples(tmp_path / "s.jsonl", read_examples(tmp_path / "theirs.jsonl").prompts)
    put(tmp_path / "p.jsonl", {"prompt": "Hello?"})
    with pytest.raises(DataError, match="2 × nothing says whether it is harmful"):
        read(tmp_path, prompts="p.jsonl", safety="s.jsonl")
    write_examples(tmp_path / "s.jsonl", read_examples(tmp_path / "theirs.jsonl", harmful=True).prompts)
    assert [p.harmful for p in read(tmp_path, prompts="p.jsonl", safety="s.jsonl").safety] == [True, True]


@real_rows
def test_public_safety_sets(tmp_path: Path) -> None:
    xstest = SHARED / "xstest_prompts.csv"
    simple = SHARED / "simple_safety_tests.csv"
    prompts = str(SHARED / "dolly_short_4k.jsonl")
    assert sum(p.harmful for p in read(tmp_path, prompts=prompts, safety=str(xstest)).safety) == 200
    with pytest.raises(
        DataError, match=r"100 × nothing says whether it is harmful(.|\n)*simple_safety_tests.csv\" = true"
    ):
        read(tmp_path, prompts=prompts, safety=str(simple))
    both = read(
        tmp_path, prompts=prompts, safety=str(SHARED / "*_*t*s.csv"), safety_harmful={"simple_safety_tests.csv": True}
    )
    assert (len(both.safety), sum(p.harmful for p in both.safety)) == (550, 300)
    for path, rule in ((xstest, None), (simple, True)):
        theirs = read_examples(path, harmful=rule)
        assert {p.prompt: p.harmful for p in theirs.prompts} == {
            p.prompt: p.harmful for p in both.safety if p.prompt in {q.prompt for q in theirs.prompts}
        }


# Refused rows are counted and listed; skip drops them.


def test_refused_rows_are_listed_in_a_file(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", *["{"] * 53, *[{"prompt": " "}] * 7)
    with pytest.raises(DataError) as error:
        read(tmp_path, prompts="p.jsonl")
    message = str(error.value)
    assert (
        "60 unusable rows: 53 × not JSON; 7 × empty prompt" in message
        and "… and 50 more" in message
        and "p.jsonl:5:" in message
        and "p.jsonl:6:" not in message
    )
    assert str(tmp_path / FILE) in message and "data.unusable = 'skip'" in error.value.fix
    assert [(row["file"], row["line"], row["part"]) for row in refused_rows(tmp_path)] == [
        ("p.jsonl", n, "prompts") for n in range(1, 61)
    ]
    assert refused_rows(tmp_path)[59]["reason"] == "empty prompt"


def test_skip_drops_unusable_rows(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", {"id": "x", "prompt": "One?"}, "{", {"id": "x", "prompt": "Two?"}, {"prompt": ""})
    put(
        tmp_path / "d.jsonl",
        {"prompt": "One?", "response": "1"},
        {"prompt": "One?"},
        {"prompt": "Other", "prompt_id": "x", "response": "1"},
    )
    put(tmp_path / "s.jsonl", *SAFE, {"prompt": "Gun?"})
    corpus = read(tmp_path, prompts="p.jsonl", demonstrations="d.jsonl", safety="s.jsonl", unusable="skip")
    assert ([p.prompt for p in corpus.prompts], len(corpus.demonstrations), len(corpus.safety)) == (["One?"], 1, 2)
    places = [f"{row.file}:{row.line}" for row in corpus.refused]
    assert sorted(places) == ["d.jsonl:2", "d.jsonl:3", "p.jsonl:2", "p.jsonl:3", "p.jsonl:4", "s.jsonl:3"]
    with pytest.raises(DataError, match="no prompts are left: 1 rows"):
        put(tmp_path / "q.jsonl", "{")
        read(tmp_path, prompts="q.jsonl", unusable="skip")


def write_mixed_rows(run: Path) -> dict[str, str]:
    """Write usable, too long and broken rows; return the data section."""
    put(
        run / "p.jsonl",
        *({"id": f"p{i}", "prompt": f"What is {i} and {i}?"} for i in range(60)),
        {"id": "long", "prompt": LONG},
        "{",
    )
    rows = [{"prompt_id": f"p{i}", "prompt": f"What is {i} and {i}?", "response": "It is."} for i in range(40)]
    put(
        run / "d.jsonl",
        *rows,
        {"id": "dl", "prompt_id": "long", "prompt": LONG, "response": "Yes."},
        {"prompt": "No answer?"},
    )
    put(run / "s.jsonl", *SAFE, {"id": "sl", "prompt": LONG, "harmful": True})
    return {"prompts": "p.jsonl", "demonstrations": "d.jsonl", "safety": "s.jsonl"}


def test_skip_drops_long_prompts_and_their_demonstrations(tmp_path: Path, chat: Chat) -> None:
    recipe = recipe_of(write_mixed_rows(tmp_path) | {"unusable": "skip"})
    corpus = loading.load_corpus(recipe, tmp_path)
    assert (len(corpus.prompts), len(corpus.demonstrations), len(corpus.safety)) == (60, 40, 2)
    findings = preflight.check(recipe, tmp_path, corpus, chat)
    assert not [f for f in findings if f.code in ("prompt-length", "row-length")]
    skipped = find_one(findings, "rows-skipped", "warning").evidence
    assert (
        skipped.startswith("5 rows are left out:")
        and "2 × more tokens than data.max_prompt_tokens = 256 (p.jsonl:61, s.jsonl:3)" in skipped
    )
    assert {(row["part"], row["line"]) for row in refused_rows(tmp_path)} == {
        ("prompts", 61),
        ("prompts", 62),
        ("demonstrations", 41),
        ("demonstrations", 42),
        ("safety", 3),
    }
    assert corpus.counts["skipped_rows"] == {"prompts": 2, "demonstrations": 2, "safety": 1}


def test_stop_reports_long_rows_with_a_fix(tmp_path: Path, chat: Chat) -> None:
    data = write_mixed_rows(tmp_path)
    for name in ("p.jsonl", "d.jsonl"):
        path = tmp_path / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    findings = preflight.check(recipe_of(data), tmp_path, loading.load_corpus(recipe_of(data), tmp_path), chat)
    finding = find_one(findings, "prompt-length", "error")
    assert finding.evidence.startswith("2 prompts are longer") and str(tmp_path / FILE) in finding.evidence
    assert "data.unusable = 'skip'" in finding.remedy
    assert {(row["part"], row["line"]) for row in refused_rows(tmp_path)} == {("prompts", 61), ("safety", 3)}


def test_outdated_list_of_refused_rows_is_removed(tmp_path: Path, chat: Chat) -> None:
    put(tmp_path / "p.jsonl", "{", {"prompt": "One?"})
    with pytest.raises(DataError):
        read(tmp_path, prompts="p.jsonl")
    put(tmp_path / "p.jsonl", {"prompt": "One?"})
    recipe = recipe_of({"prompts": "p.jsonl"})
    preflight.check(recipe, tmp_path, loading.load_corpus(recipe, tmp_path), chat)
    assert not (tmp_path / FILE).exists()


# Preference files in preflight.


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"How do I tie {i} knots?", "chosen": f"With {i} ropes.", "rejected": "no"} for i in range(count)
    ]


def preflight_findings(run: Path, chat: Chat, unusable: str = "stop", **preferences: Any) -> list[Finding]:
    data = {"prompts": "p.jsonl", "preferences": "pairs.jsonl", "unusable": unusable}
    recipe = recipe_of(data, preferences={"raters": "recorded", "min_labels": 10} | preferences)
    return preflight.check(recipe, run, loading.load_corpus(recipe, run), chat)


def test_check_reads_preference_files(tmp_path: Path, chat: Chat) -> None:
    put(tmp_path / "p.jsonl", {"prompt": "Held?", "split": "heldout"}, {"prompt": "One?"})
    held = {"prompt": "Held?", "chosen": "yes", "rejected": "no"}
    put(
        tmp_path / "pairs.jsonl",
        *pairs(12),
        {"prompt": "Why?", "chosen": "alone"},
        {"prompt": "Why?", "chosen": "x", "rejected": "x"},
        held,
        {"prompt": LONG, "chosen": "x", "rejected": "y"},
    )
    stops = [f for f in preflight_findings(tmp_path, chat) if f.code == "preferences"]
    assert [f.severity for f in stops] == ["error", "error", "warning"]
    assert (
        stops[0].evidence.startswith("2 rows of preferences cannot be used: 1 × ")
        and "pairs.jsonl:13" in stops[0].evidence
    )
    assert (
        stops[1].evidence.startswith("1 comparisons have prompts that are too long")
        and "data.unusable = 'skip'" in stops[1].remedy
    )
    assert "1 of 14 recorded comparisons are left out: their prompts are held out" in stops[2].evidence
    assert {(row["part"], row["file"], row["line"]) for row in refused_rows(tmp_path)} == {
        ("preferences", "pairs.jsonl", n) for n in (13, 14, 16)
    }
    with pytest.raises(TowpathError, match="rows of preferences cannot be used"):
        preflight.require(stops)
    skips = [f for f in preflight_findings(tmp_path, chat, "skip") if f.code == "preferences"]
    assert [f.severity for f in skips] == ["warning"] * 3


def test_check_counts_usable_recorded_labels(tmp_path: Path, chat: Chat) -> None:
    put(tmp_path / "p.jsonl", {"prompt": "One?"})
    put(tmp_path / "pairs.jsonl", *pairs(12))
    assert not [f for f in preflight_findings(tmp_path, chat) if f.code == "labels"]
    few = find_one(preflight_findings(tmp_path, chat, min_labels=13), "labels", "error")
    assert few.evidence == "preferences.min_labels = 13, but the files hold 12 decided comparisons that may be used"
    put(tmp_path / "pairs.jsonl", {"text": "not preferences"})
    assert "no preferences under text" in find_one(preflight_findings(tmp_path, chat), "raters", "error").evidence


def test_label_import_lists_every_refused_row(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('name = "x"\n')
    put(tmp_path / "pairs.jsonl", *pairs(3), *[{"prompt": "Why?", "chosen": "alone"}] * 30)
    command = [
        sys.executable,
        "-m",
        "towpath",
        "label",
        "import",
        str(tmp_path),
        str(tmp_path / "pairs.jsonl"),
        "--as",
        "pairs",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "30 rows refused" in done.stderr and str(tmp_path / IMPORT_FILE) in done.stderr, (
        done.stderr
    )
    rows = [json.loads(line) for line in (tmp_path / IMPORT_FILE).read_text().splitlines()]
    assert [row["line"] for row in rows] == list(range(4, 34))


def test_unread_files_are_a_warning(tmp_path: Path, chat: Chat) -> None:
    folder = tmp_path / "data"
    for name in ("prompts", "preferences"):
        (folder / name).mkdir(parents=True)
    put(folder / "prompts" / "p.jsonl", {"prompt": "One?"})
    (folder / "prompts" / "more.csv").write_text("prompt\nTwo?\n")
    (folder / "prompts" / "plan.json").write_text("{}")  # as in a run folder that is itself the folder of the data
    put(folder / "preferences" / "pairs.jsonl", *pairs(2))
    recipe = recipe_of({"prompts": "data/prompts/*.jsonl", "preferences": "data/preferences/*.jsonl"})
    findings = preflight.check(recipe, tmp_path, loading.load_corpus(recipe, tmp_path), chat)
    unread = find_one(findings, "preferences-unread", "warning")
    assert "data/preferences/pairs.jsonl" in unread.evidence and "preferences.raters = 'simulated'" in unread.cause
    assert find_one(findings, "data-unread", "warning").evidence.endswith("data/prompts/more.csv")


# Held-out prompts of demonstrations.


def test_demonstration_prompts_are_held_out_without_leaks(tmp_path: Path) -> None:
    put(tmp_path / "d.jsonl", *({"prompt": f"What is {i}?", "response": f"{i}."} for i in range(200)))
    corpus = read(tmp_path, demonstrations="d.jsonl", heldout=0.3)
    assert 40 < len(corpus.heldout) < 80 and corpus.random_splits == 200
    held = {p.id for p in corpus.heldout}
    assert len(corpus.demonstrations) == 200 - len(held) and not held & {d.prompt_id for d in corpus.demonstrations}
    put(tmp_path / "d.jsonl", *({"prompt": f"What is {i}?", "response": f"{i}.", "split": "train"} for i in range(200)))
    assert not read(tmp_path, demonstrations="d.jsonl", heldout=0.3).heldout


@pytest.mark.parametrize(
    ("split", "advice"),
    [("train", "every row names its split, so data.heldout has no effect"), ("", "raise data.heldout (now 0)")],
)
def test_remedy_for_missing_heldout_prompts(tmp_path: Path, chat: Chat, split: str, advice: str) -> None:
    put(tmp_path / "p.jsonl", *({"prompt": f"What is {i}?", "split": split} for i in range(5)))
    recipe = recipe_of({"prompts": "p.jsonl"})
    findings = preflight.check(recipe, tmp_path, loading.load_corpus(recipe, tmp_path), chat)
    assert advice in find_one(findings, "prompts", "error").remedy


# Status does not read the data again.


@pytest.mark.parametrize("unusable", ["stop", "skip"])
def test_status_plans_from_the_cached_data_summary(tmp_path: Path, chat: Chat, unusable: str) -> None:
    data = write_mixed_rows(tmp_path) | {"unusable": unusable, "max_prompt_tokens": 2048}
    for name in ("p.jsonl", "d.jsonl"):
        path = tmp_path / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    recipe = recipe_of(data if unusable == "stop" else data | {"max_prompt_tokens": 256})
    corpus = loading.load_corpus(recipe, tmp_path)
    quick = loading.summarise(recipe, tmp_path)
    assert isinstance(quick, DataSummary) and quick.digests == corpus.digests
    expected = [stage.fingerprint for stage in fingerprint.plan_stages(recipe, tmp_path, corpus, None)]
    assert [stage.fingerprint for stage in fingerprint.plan_stages(recipe, tmp_path, quick, None)] == expected
    preflight.check(recipe, tmp_path, corpus, chat)
    (tmp_path / ".cache" / "data_summary.json").unlink()
    assert loading.summarise(recipe, tmp_path).digests == corpus.digests, "known token counts replace a tokenizer"
    put(tmp_path / "p.jsonl", {"id": "p0", "prompt": "What is 0 and 0?"})
    assert loading.summarise(recipe, tmp_path).digests != corpus.digests


def test_label_fingerprint_depends_on_the_heldout_split(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", *({"prompt": f"What is {i}?"} for i in range(40)))
    put(tmp_path / "pairs.jsonl", *pairs(2))
    fingerprints = []
    for heldout in (0.1, 0.4):
        data = {"prompts": "p.jsonl", "preferences": "pairs.jsonl", "heldout": heldout}
        recipe = recipe_of(data, preferences={"raters": "recorded"})
        planned = fingerprint.plan_stages(recipe, tmp_path, loading.load_corpus(recipe, tmp_path), None)
        fingerprints.append(next(stage.fingerprint for stage in planned if stage.name == "label"))
    assert fingerprints[0] != fingerprints[1]


def test_status_loads_no_model_library(tmp_path: Path) -> None:
    put(tmp_path / "p.jsonl", *({"prompt": f"What is {i}?"} for i in range(20)))
    settings = 'name = "x"\n[data]\nprompts = "p.jsonl"\ndemonstrations = ""\nsafety = ""\n'
    (tmp_path / "recipe.toml").write_text(settings)
    script = f"""
import sys
sys.argv = ["towpath", "status", {str(tmp_path)!r}]
from towpath.cli.app import main
try:
    main()
finally:
    loaded = {{"torch", "transformers", "tokenizers", "scipy", "pyarrow"}} & set(sys.modules)
    assert not loaded, loaded
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "policy" in done.stdout, done.stderr


def test_reasons_of_refused_rows_are_counted_in_bounded_memory(tmp_path):
    from benchmarks import malformed

    rows = 100 * len(malformed.KINDS)
    malformed.write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "one.jsonl").write_text('{"prompt": "A usable question?"}\n')
    report = malformed.read(tmp_path)
    assert (report["counted"], report["usable"], report["lines"]) == (rows, 1, rows)
    assert report["reasons"] >= 20
    assert report["mebibytes"] < 50


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_duplicate_columns_are_refused(tmp_path, suffix):
    from towpath.data import row_files

    path = tmp_path / f"rows{suffix}"
    if suffix == ".csv":
        path.write_text("prompt,response,prompt\nwhy,so,how\n")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table([["why"], ["so"], ["how"]], names=["prompt", "response", "prompt"]), path)
    assert list(row_files.read_rows(path)) == [(1, "two columns are named 'prompt'; no row of this file was read")]
