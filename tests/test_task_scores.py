"""Tasks of lm-evaluation-harness before and after training, on a local task and tiny models."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from towpath.data.corpus import Corpus
from towpath.errors import RecipeError
from towpath.models import base
from towpath.recipe import Recipe
from towpath.recipe.reader import check
from towpath.run.fingerprint import plan_stages
from towpath.run.model_card import _task_lines
from towpath.run.task_checks import check_tasks
from towpath.stages import task_scores
from towpath.view.report import extra_evals

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
TASK = """task: counting
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def make_job(folder: Path, **settings: Any) -> Any:
    """What `task_scores` reads of a job."""
    recipe = check(Recipe, {"evaluate": settings, "model": {"device": "cpu", "dtype": "float32"}}, "test")
    (folder / "stage").mkdir()
    return SimpleNamespace(config=recipe, run=folder, folder=folder / "stage", name="evaluate", findings=[])


@pytest.fixture
def run(tmp_path: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = [{"question": f"What is {i}?", "choices": [str(i), str(i + 1)], "answer": i % 2} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "counting.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    shutil.copytree(tiny_folder, tmp_path / "policy")
    model: Any = transformers.LlamaForCausalLM.from_pretrained(tiny_folder)
    model.get_input_embeddings().weight.data.normal_(0, 1.0)
    model.save_pretrained(tmp_path / "policy")
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_three_models_are_compared_on_a_task_of_the_users_own(run: Path) -> None:
    job = make_job(run, tasks=["counting"], task_limit=10, task_folder="tasks")
    tiny = Path(base.find("tiny"))
    models = {"base": tiny, "sft": tiny, "policy": run / "policy"}
    result = task_scores.run(job, models)
    row = result["counting"]["acc"]
    assert set(row) == {"base", "sft", "policy"} and row["base"] == row["sft"]
    assert 0 <= row["policy"]["value"] <= 1 and row["policy"]["error"] > 0
    shutil.rmtree(run / "policy")
    assert task_scores.run(job, models) == result, "an interrupted stage keeps what it has measured"
    (line,) = [line for line in _task_lines(result) if "counting" in line]
    assert f"{row['policy']['value']:.3f}" in line
    (cells,) = [row for row in extra_evals.tasks(result) if row["metric"] == "acc"]
    assert cells["policy"].startswith(f"{row['policy']['value']:.3f} ± ") and cells["name"] == "counting"


def test_a_changed_task_file_evaluates_again(run: Path) -> None:
    recipe = check(Recipe, {"evaluate": {"tasks": ["counting"], "task_folder": "tasks"}}, "test")

    def planned() -> str:
        return plan_stages(recipe, run, Corpus(()), None)[-1].fingerprint

    before = planned()
    assert planned() == before
    with (run / "tasks" / "counting.yaml").open("a") as file:
        file.write("num_fewshot: 2\n")
    assert planned() != before


@pytest.mark.filterwarnings("ignore")
def test_tasks_are_checked_before_a_run(run: Path) -> None:
    def findings(tasks: list[str], folder: str) -> list[str]:
        recipe = check(Recipe, {"evaluate": {"tasks": tasks, "task_folder": folder}}, "test")
        return [finding.evidence for finding in check_tasks(recipe.evaluate, run)]

    assert findings(["counting", "arc_easy"], "tasks") == []
    assert findings(["counting", "nosuchtask"], "tasks") == ["evaluate.tasks: no task 'nosuchtask'"]
    assert findings(["counting"], "") == ["evaluate.tasks: no task 'counting'"]
    assert "no folder" in findings(["counting"], "elsewhere")[0]


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_is_an_error_that_names_it(run: Path) -> None:
    with pytest.raises(RecipeError, match="nosuchtask"):
        task_scores.run(make_job(run, tasks=["nosuchtask"]), {"policy": run / "policy"})


@pytest.mark.parametrize(
    ("before", "after", "error", "lower", "is_finding"),
    [(0.8, 0.6, 0.05, False, True), (0.8, 0.7, 0.05, False, False), (0.6, 0.8, 0.05, False, False),
     (2.0, 3.0, 0.1, True, True), (3.0, 2.0, 0.1, True, False), (0.8, 0.6, 0.0, False, False)],
)  # fmt: skip
def test_a_fall_beyond_the_interval_is_a_finding(
    before: float, after: float, error: float, lower: bool, is_finding: bool
) -> None:
    row = {"sft": {"value": before, "error": error}, "policy": {"value": after, "error": error}}
    findings = task_scores.regression_findings({"t": {"m": row}}, {("t", "m")} if lower else set())
    assert [f.code for f in findings] == ["task-regression"] * is_finding
