"""Tasks of lm-evaluation-harness before and after training: what the policy has forgotten."""

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from math import hypot
from pathlib import Path
from typing import Any

from towpath.errors import RecipeError
from towpath.progress import progress
from towpath.recipe import Evaluate
from towpath.recipe.stage_configs import EvaluateConfig
from towpath.records import Finding
from towpath.runtime.process import device_named, dtype_named, release_memory
from towpath.stages.job import Job
from towpath.store.publish import replace_file

Scores = dict[str, dict[str, dict[str, float]]]
"""Value and standard error of each metric of each task."""
BATCH = 16


def run(job: Job[EvaluateConfig], models: Mapping[str, Path]) -> dict[str, Any]:
    """Each task's metrics for base, tuned model and policy; adds findings on those that fell."""
    scores: dict[str, Scores] = {}
    folders: dict[Path, str] = {}
    for source, folder in models.items():
        same = folders.setdefault(folder.resolve(), source)
        scores[source] = scores[same] if same in scores else _scores(job, source, folder)
    lower = {(task, metric) for task, metrics in scores["policy"].items() for metric, row in metrics.items()
             if not row["higher_is_better"]}  # fmt: skip
    result = {
        task: {metric: {source: scores[source][task][metric] for source in models} for metric in metrics}
        for task, metrics in scores["policy"].items()
    }
    job.findings.extend(regression_findings(result, lower))
    return result


def regression_findings(result: Mapping[str, Any], lower: set[tuple[str, str]] | None = None) -> list[Finding]:
    """Metrics on which the policy is worse than the tuned model by more than the 95 % interval of the difference;
    `lower` are those whose lower values are better."""
    findings = []
    for task, metrics in result.items():
        for metric, row in metrics.items():
            before, after = row["sft"], row["policy"]
            sign = -1.0 if (task, metric) in (lower or set()) else 1.0
            drop = sign * (before["value"] - after["value"])
            margin = 1.96 * hypot(before["error"], after["error"])
            if margin and drop > margin:
                evidence = f"{task}: {metric} {before['value']:.3f} before, {after['value']:.3f} after; ± {margin:.3f}"
                remedy = "a higher policy.kl.coef, a lower policy.learning_rate or fewer steps"
                cause = "the policy has moved away from what the tuned model could do"
                findings.append(Finding("task-regression", "warning", evidence, cause, remedy))
    return findings


def require_harness() -> None:
    """Raise unless lm-evaluation-harness is installed."""
    if find_spec("lm_eval") is None:
        rule = "evaluate.tasks are run by lm-evaluation-harness"
        raise RecipeError("evaluate.tasks without lm-eval", rule, "pip install towpath[eval], or empty evaluate.tasks")


def _scores(job: Job[EvaluateConfig], source: str, folder: Path) -> Scores:
    """One model's scores; those that an interrupted run has written, or new ones."""
    path = job.folder / f"tasks-{source}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        scores = _measure(job, source, folder)
    replace_file(path, json.dumps(scores, indent=1))
    return scores


def task_manager(evaluate: Evaluate, run: Path) -> Any:
    """The harness's own list of tasks, with those of `evaluate.task_folder`."""
    own = str(run / evaluate.task_folder) if evaluate.task_folder else None
    return import_module("lm_eval.tasks").TaskManager(include_path=own)


def _measure(job: Job[EvaluateConfig], source: str, folder: Path) -> Scores:
    require_harness()
    harness: Any = import_module("lm_eval")
    cfg = job.config.evaluate
    device = device_named(job.config.model.device)
    dtype = str(dtype_named(job.config.model.dtype, device)).removeprefix("torch.")
    with progress(f"{job.name}: tasks of {source}"):
        try:
            report: Any = harness.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(folder), "dtype": dtype, "trust_remote_code": False},
                tasks=list(cfg.tasks),
                limit=cfg.task_limit or None,
                device=str(device),
                batch_size=BATCH,
                task_manager=task_manager(cfg, job.run),
                log_samples=False,
                random_seed=job.config.seed,
                confirm_run_unsafe_code=False,
            )
        except Exception as error:  # process boundary: tasks and their data sets may raise anything
            message = " ".join(str(error).split())[:300] or type(error).__name__
            value = f"evaluate.tasks = {list(cfg.tasks)}: {message}"
            rule = "tasks are those of lm-evaluation-harness, or of evaluate.task_folder, and their data can be read"
            raise RecipeError(value, rule, "fix the names (`lm-eval ls tasks`), or check the network") from None
    release_memory()
    return {task: _metrics(row, report["higher_is_better"].get(task, {})) for task, row in report["results"].items()}


def _metrics(row: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Value, standard error and direction of each metric of a task."""
    metrics = {}
    for name, value in row.items():
        metric, _, kind = name.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}_stderr,{kind}")
        metrics[metric if kind == "none" else f"{metric} ({kind})"] = {
            "value": float(value),
            "error": float(error) if isinstance(error, int | float) else 0.0,
            "higher_is_better": float(higher.get(metric) is not False),
        }
    return metrics
