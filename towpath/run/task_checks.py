"""Whether the tasks of lm-evaluation-harness that a recipe names exist: known before a run, not hours later."""

from importlib.util import find_spec
from pathlib import Path

from towpath.recipe import Evaluate
from towpath.records import Finding

CAUSE = "evaluate.tasks are run by lm-evaluation-harness"


def check_tasks(evaluate: Evaluate, run: Path) -> list[Finding]:
    """An error for a missing harness, a missing folder, or names that the harness does not know."""
    if not evaluate.tasks:
        return []
    if find_spec("lm_eval") is None:
        return [Finding("tasks", "error", "evaluate.tasks without lm-eval", CAUSE, "pip install towpath[eval]")]
    folder = run / evaluate.task_folder
    if evaluate.task_folder and not folder.is_dir():
        evidence = f"evaluate.task_folder = {evaluate.task_folder!r}: no folder {folder}"
        return [Finding("tasks", "error", evidence, "it is relative to the run folder", "correct the path")]
    from towpath.stages.task_scores import task_manager

    manager = task_manager(evaluate, run)
    unknown = [name for name in evaluate.tasks if not manager.match_tasks([name])]
    if not unknown:
        return []
    evidence = f"evaluate.tasks: no task {', '.join(map(repr, unknown))}"
    fix = "correct the names (`lm-eval ls tasks`), or name the folder of your own tasks in evaluate.task_folder"
    return [Finding("tasks", "error", evidence, CAUSE, fix)]
