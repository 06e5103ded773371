"""The model card of an export: what the model is, how it was measured and by whom, and its lineage; with the metadata
that the Hugging Face hub reads, evaluation results included."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from towpath.evals.gate_rule import judge_of, undecided_reason
from towpath.recipe import Recipe
from towpath.run.fingerprint import PlannedStage


def model_card(
    recipe: Recipe,
    run: Path,
    policy: PlannedStage,
    evaluation: PlannedStage | None,
    stages: Sequence[PlannedStage],
    adapter: bool,
) -> str:
    """The text of README.md: metadata, base model, training, evaluation, and the fingerprints of all stages."""
    result = evaluation.result() if evaluation else None
    lines = [f"# {recipe.name}: policy", ""]
    reason = undecided_reason(judge_of(result), recipe.evaluate.max_unjudged) if result else ""
    if reason:
        value = "whether this model is better than the one it was trained from was not measured"
        lines += [f"**{reason[:1].upper()}{reason[1:]}**: {value}.", ""]
    method = f"{recipe.policy.algo}, {recipe.policy.method}"
    lines += [f"Base model: `{recipe.model.source}`. Trained with Towpath ({method}).", ""]
    if result:
        kl = f"- KL to the tuned model: {result['kl_per_prompt']:.2f} nats per prompt"
        lines += [*_win_lines(result["win"]), kl, "", *_task_lines(result.get("tasks") or {})]
    if recipe.preferences.raters == "simulated":
        lines += ["Preferences came from a **simulated rater** (a written rubric with noise), not from people.", ""]
    lines += ["## Lineage", "", "| stage | fingerprint |", "|---|---|"]
    lines += [f"| {stage.name} | {stage.fingerprint} |" for stage in stages if stage.done]
    lines += ["", f"Seed {recipe.seed}; weights from policy step {policy.result()['best_step']}.", ""]
    return _metadata(recipe, run, result, adapter) + "\n".join(lines)


def _win_lines(win: dict[str, Any] | None) -> list[str]:
    """The win rate and its judge; nothing if there is no judge."""
    if win is None:
        return []
    low, high = win["interval"]
    return [
        f"- wins over the tuned model on {win['rate']:.1%} of {win['n']} held-out prompts (interval {low:.1%} to "
        f"{high:.1%}), judged by {win['judge']}",
        f"- at equal length: {win['length_controlled']['rate']:.1%}",
    ]


def _task_lines(tasks: Mapping[str, Any]) -> list[str]:
    """A table of the tasks of lm-evaluation-harness, before and after."""
    if not tasks:
        return []
    lines = [
        "## Tasks (lm-evaluation-harness)",
        "",
        "| task | metric | base | tuned | policy |",
        "|---|---|---|---|---|",
    ]
    for task, metrics in tasks.items():
        for metric, row in metrics.items():
            cells = [f"{row[name]['value']:.3f} ± {row[name]['error']:.3f}" for name in ("base", "sft", "policy")]
            lines.append(f"| {task} | {metric} | {' | '.join(cells)} |")
    return [*lines, ""]


def _metadata(recipe: Recipe, run: Path, result: Mapping[str, Any] | None, adapter: bool) -> str:
    """The block of YAML at the beginning, with the results as the hub's `model-index`."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["towpath", "rlhf", recipe.policy.algo.rpartition(".")[2]],
        base_model=recipe.model.source if _is_hub_id(recipe.model.source, run) else None,
        model_name=recipe.name,
        eval_results=_results(recipe, result) if result else None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _is_hub_id(source: str, run: Path) -> bool:
    """Whether a model was fetched from the hub: OWNER/NAME, and no such folder."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None
    return named and not (run / source).exists() and not Path(source).exists()


def _results(recipe: Recipe, result: Mapping[str, Any]) -> list[Any]:
    """Results as the hub's records: win rate with its judge, KL, safety, tasks."""
    from huggingface_hub import EvalResult

    name = f"held-out prompts of {recipe.name}"

    def record(metric: str, value: float, title: str, data: str = "held-out", data_name: str = name) -> Any:
        return EvalResult("text-generation", data, data_name, metric, round(value, 6), metric_name=title)

    rows = []
    win = result.get("win")
    if win:
        rows.append(record("win_rate", win["rate"], f"win rate over the tuned model, judged by {win['judge']}"))
    rows.append(record("kl", result["kl_per_prompt"], "KL to the tuned model, nats per prompt"))
    for task, metrics in (result.get("tasks") or {}).items():
        rows += [record(metric, row["policy"]["value"], metric, task, task) for metric, row in metrics.items()]
    return rows
