"""Runs on own data: the rubric of the bundled recipes judges no gate, even where it is named, and every view states
this first."""

import json
from pathlib import Path
from typing import Any

import pytest

from towpath import recipe
from towpath.data import bundled, corpus_reader
from towpath.data.corpus import Corpus
from towpath.judges.selection import select_judges
from towpath.recipe import Evaluate
from towpath.records import Demonstration, Prompt
from towpath.run import export, pipeline, preflight, status
from towpath.view.report import report

pytestmark = pytest.mark.slow
SHARED = Path(__file__).parents[2] / "shared" / "data"
RECIPE = """
name = "own"
[model]
source = "tiny"
dtype = "float32"
[data]
heldout = 0.3
safety = ""
max_prompt_tokens = 400
[sft]
epochs = 0.5
batch = 8
[preferences]
raters = "recorded"
max_new_tokens = 24
min_labels = 10
[reward]
epochs = 1
batch = 8
[policy]
steps = 1
rollout = 8
batch = 8
epochs = 1
max_new_tokens = 8
validation_prompts = 4
[evaluate]
judges = ["rubric"]
prompts = 8
max_new_tokens = 8
bootstrap = 100
disagreements = 0
[gates]
reward = { threshold = 0.85, action = "warn" }
policy = { threshold = 0.5, action = "warn" }
"""
FIRST = "No evaluation judge fits this data"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def german_pairs() -> list[tuple[str, str, str]]:
    fruits = ["Apfel", "Birne", "Kirsche", "Pflaume", "Traube", "Quitte", "Feige", "Melone"]
    requested = [
        "Wie lagere ich {}?",
        "Wann wird {} reif?",
        "Was koste ich mit {}?",
        "Warum mag man {}?",
        "Wer pflanzt {}?",
    ]
    pairs = []
    for i, fruit in enumerate(fruits):
        for j, question in enumerate(requested):
            pairs.append((question.format(fruit), f"Antwort {i}.{j}: kühl und dunkel.", f"Weiß nicht {i}.{j}"))
    return pairs


def harmless_pairs() -> list[tuple[str, str, str]]:
    """Single turns of HH harmless: prompt, chosen, rejected."""
    path = SHARED / "hh_harmless_open.jsonl"
    if not path.is_file():
        pytest.skip("shared/data is not at hand")
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line) if line.startswith('{"chosen"') else {}
        chosen = str(row.get("chosen", ""))
        rejected = str(row.get("rejected", ""))
        if chosen.count("\n\nHuman:") != 1 or not rejected.startswith(chosen.split("\n\nAssistant:")[0]):
            continue
        prompt, better = chosen.removeprefix("\n\nHuman:").split("\n\nAssistant:", 1)
        worse = rejected.split("\n\nAssistant:", 1)[1]
        if better.strip() and worse.strip() and better != worse and len(prompt) < 200:
            pairs.append((prompt.strip(), better.strip(), worse.strip()))
    return pairs[:120]


@pytest.fixture(scope="module", params=[german_pairs, harmless_pairs])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run on own data with recorded preferences, and its messages."""
    folder = tmp_path_factory.mktemp("own") / "run"
    pairs = request.param()
    write_rows(
        folder / "data/prompts/own.jsonl", [{"prompt": prompt} for prompt in dict.fromkeys(p for p, _, _ in pairs)]
    )
    write_rows(folder / "data/demonstrations/own.jsonl", [{"prompt": p, "response": better} for p, better, _ in pairs])
    write_rows(
        folder / "data/preferences/own.jsonl",
        [{"prompt": p, "chosen": better, "rejected": worse} for p, better, worse in pairs],
    )
    (folder / "recipe.toml").write_text(RECIPE)
    text: list[str] = []
    pipeline.run(recipe.load(folder), folder, text.append, write_report=report.write)
    return folder, text


def test_gates_without_a_judge_are_undecided(run: tuple[Path, list[str]]) -> None:
    folder, text = run
    verdicts = {v.gate: v for v in status.run_verdicts(recipe.load(folder), folder)}
    for gate in ("sft", "evaluate"):
        assert (
            verdicts[gate].verdict == "UNDECIDED" and verdicts[gate].value is None and verdicts[gate].interval is None
        )
        assert f"gate {gate}: UNDECIDED  no evaluation judge fits this data" in text


def test_missing_judge_is_stated_first_in_check_status_summary_report_and_card(
    run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = run
    settings = recipe.load(folder)
    findings = pipeline.examine(settings, folder, corpus_reader.read_corpus(folder, settings.data, settings.seed))
    assert FIRST.lower() in preflight.lines(findings).splitlines()[0]
    assert status.status_lines(status.read_status(settings, folder))[0].startswith(FIRST)
    summary = json.loads((folder / "reports/summary.json").read_text())
    assert (
        next(iter(summary)) == "outcome"
        and summary["outcome"].startswith(FIRST)
        and summary["evaluation_judge"] is None
    )
    for stage in ("sft", "evaluate"):
        assert (
            summary["stages"][stage]["gate"]["verdict"] == "UNDECIDED"
            and summary["stages"][stage]["gate"]["value"] is None
        )
    page = (folder / "reports/report.html").read_text(encoding="utf-8")
    assert FIRST in page[page.index("<body") :][:2500]
    assert "judged by the written rubric" not in page
    assert FIRST in report.terminal(folder)
    card = (export.export(settings, folder, tmp_path / "model", False, False) / "README.md").read_text()
    text = card.split("\n---\n", 1)[1].strip()  # after the metadata
    assert FIRST in text.splitlines()[2] and "preferred" not in card and "wins over" not in card


def test_evaluation_without_a_judge_has_no_rubric_columns(run: tuple[Path, list[str]]) -> None:
    folder, _ = run
    result = json.loads(next(folder.glob("stages/evaluate/*/manifest.json")).read_text())["result"]
    assert result["judge"] is None and result["win"] is None and not result["by_domain"]
    rows = [json.loads(line) for line in next(folder.glob("stages/evaluate/*/answers.jsonl")).read_text().splitlines()]
    assert rows and not any(key.startswith(("rubric", "gold")) or key == "choice" for row in rows for key in row)


def test_rubric_judges_bundled_data_only() -> None:
    folder = bundled.recipes_folder() / "quickstart"
    first = json.loads((folder / "prompts/cooking.jsonl").read_text().splitlines()[0])["prompt"]
    excerpt = json.loads((folder / "demonstrations/cooking.jsonl").read_text().splitlines()[0])
    ours = Corpus(
        (Prompt("a", first), Prompt("b", f" {first.upper()} ")),
        (Demonstration("d", excerpt["prompt"], excerpt["response"]),),
    )
    longer = Corpus((*ours.prompts, Prompt("c", "How do I sort a list in place?")), ours.demonstrations)
    other = Corpus(ours.prompts, (Demonstration("d", excerpt["prompt"], "Another answer."),))
    judges = [select_judges(Evaluate(judges=["rubric"]), "people", corpus) for corpus in (ours, longer, other)]
    assert judges == [("rubric",), (), ()]
