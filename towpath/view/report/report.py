"""Report of a run: summary.json for scripts, report.html for people, and a summary for the terminal."""

import json
import shutil
from pathlib import Path
from typing import Any

from towpath.errors import ResourceError
from towpath.records import Verdict
from towpath.run.record import RunRecord, StageRecord, read_run
from towpath.store.jsonl import is_number
from towpath.store.publish import replace_file
from towpath.view.format import duration, size
from towpath.view.html import render
from towpath.view.report.page import outcome, page, simulation
from towpath.view.report.summary import answer_columns, gate_table

REPORTS = "reports"
PAGE = "report.html"
SUMMARY = "summary.json"
WIN_KEYS = ("rate", "interval", "n", "wins", "ties", "losses", "rule")


def summarise(run: Path, verdicts: list[Verdict]) -> dict[str, Any]:
    """The results of a run; a stage that has not run is absent from `stages`, its results are null."""
    return _summary(read_run(run), verdicts)


def write(run: Path, verdicts: list[Verdict], name: str = "") -> Path:
    """Write RUN/reports/summary.json and RUN/reports/report.html, and return the path of the page."""
    record = read_run(run)
    summary = _summary(record, verdicts)
    html = render(PAGE, page(record, verdicts, summary, name))
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    folder = run / REPORTS
    try:
        replace_file(folder / SUMMARY, text.encode("utf-8", "replace").decode())
        replace_file(folder / PAGE, html)
    except OSError as error:
        rule = "the report is written into the run folder"
        raise ResourceError(f"{folder}: {error.strerror}", rule, "free space or fix the permissions") from error
    return folder / PAGE


def terminal(run: Path, width: int = 0) -> str:
    """Sample answers, the outcome, a table of stages and gates, the cost, and the path of the page."""
    record = read_run(run)
    path = run / REPORTS / SUMMARY
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else _summary(record, [])
    samples = record.result("evaluate").get("samples") or []
    columns = width or shutil.get_terminal_size((120, 24)).columns
    lines = [*answer_columns(samples, columns), summary["outcome"], *gate_table(summary["stages"])]
    if summary["seconds"] is not None:
        lines.append(f"{duration(summary['seconds'])}, at most {size(summary['peak_memory_bytes'])} of memory")
    html = run / REPORTS / PAGE
    if html.exists():
        lines.append(f"report: {html}")
    return "\n".join(lines)


def _summary(run: RunRecord, verdicts: list[Verdict]) -> dict[str, Any]:
    evaluation = run.result("evaluate")
    reward = run.result("reward")
    policy = run.result("policy")
    win = evaluation.get("win") or {}
    stages = {stage.name: _stage_summary(run, stage, verdicts) for stage in run.stages.values() if stage.done}
    kl = evaluation if is_number(evaluation.get("kl_per_prompt")) else policy
    summary = {
        "evaluation_judge": run.evaluation_judge(),
        "stages": stages,
        "kl_per_prompt": kl.get("kl_per_prompt"),
        "kl_interval": kl.get("kl_interval"),
        "win_rate_sft_over_base": _select(run.win_over_base(), WIN_KEYS),
        "win_rate_policy_over_sft": _select(win, WIN_KEYS),
        "length_controlled_win_rate": _select(win.get("length_controlled"), ("rate", "interval")),
        "reward_accuracy": reward.get("accuracy"),
        "length_only_accuracy": reward.get("length_only_accuracy"),
        "agreement_ceiling": reward.get("ceiling"),
        "simulated_labels": bool(simulation(run)),
        "skipped_rows": _skipped_rows(run),
        "seconds": sum(stage["seconds"] or 0 for stage in stages.values()) if stages else None,
        "peak_memory_bytes": max((stage["peak_memory_bytes"] or 0 for stage in stages.values()), default=None),
    }
    return _finite({"outcome": outcome(run, summary)} | summary)


def _skipped_rows(run: RunRecord) -> dict[str, int]:
    """Rows of each part of the data that were skipped, as the stages counted them."""
    rows: dict[str, int] = {}
    for stage in run.stages.values():
        rows |= (stage.manifest.get("data") or {}).get("skipped_rows") or {}
    return rows


def _stage_summary(run: RunRecord, stage: StageRecord, verdicts: list[Verdict]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    gates = {"gate": run.verdict(stage, verdicts)}
    if stage.kind == "evaluate":
        gates["accuracy"] = run.verdict(stage, verdicts, "accuracy")
        gates["safety"] = run.verdict(stage, verdicts, "safety")
    if stage.kind == "reward":
        gates["people"] = run.verdict(stage, verdicts, "reward_people")
    for name, verdict in gates.items():
        if verdict:
            row[name] = {
                "verdict": verdict.verdict,
                "value": verdict.value,
                "interval": list(verdict.interval) if verdict.interval else None,
                "threshold": verdict.threshold,
                "n": verdict.n,
                "note": verdict.note,
                "judge": verdict.judge,
            }
    cost = {key: stage.manifest.get(key) for key in ("seconds", "peak_memory_bytes")}
    return row | cost | {"fingerprint": stage.fingerprint}


def _select(record: dict[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any] | None:
    return {key: record.get(key) for key in keys} if record else None


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not is_number(value) else value
