"""The report of a run: one file for machines, one page for people."""

import hashlib
import json
import os
import shutil
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, Template

from towpath.errors import ResourceError
from towpath.records import Verdict
from towpath.run.record import RunRecord, StageRecord, read_run
from towpath.store.jsonl import is_number
from towpath.view.format import duration, number, percent, percents, size
from towpath.view.report.page import outcome, page, simulation
from towpath.view.report.summary import side_by_side, table

WIN = ("rate", "interval", "n", "wins", "ties", "losses", "rule")


def summarise(run: Path, verdicts: list[Verdict]) -> dict[str, Any]:
    """The numbers of a run that matter; what has not run yet is absent from stages and null elsewhere."""
    return _summary(read_run(run), verdicts)


def write(run: Path, verdicts: list[Verdict], name: str = "") -> Path:
    """RUN/reports/summary.json and RUN/reports/report.html; returns the page's path."""
    found = read_run(run)
    summary = _summary(found, verdicts)
    html = _render(page(found, verdicts, summary, name))
    folder = run / "reports"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        _replace(folder / "report.html", html)
    except OSError as error:
        raise ResourceError(
            f"{folder}: {error.strerror}", "the report is written into the run folder", "free space or mend the rights"
        ) from error
    return folder / "report.html"


def terminal(run: Path, width: int = 0) -> str:
    """The outcome, a table of stages and gates, the cost, the page, and a few prompts answered by all three models."""
    found = read_run(run)
    path = run / "reports" / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else _summary(found, [])
    lines = [
        *table(
            [
                (name, stage["seconds"], stage.get("gate"), stage.get("safety"))
                for name, stage in summary["stages"].items()
            ]
        )
    ]
    if summary["seconds"] is not None:
        lines.append(f"{duration(summary['seconds'])}, at most {size(summary['peak_memory_bytes'])} of memory")
    told = side_by_side(
        found.result("evaluate").get("samples") or [], width or shutil.get_terminal_size((120, 24)).columns
    )
    page = run / "reports" / "report.html"
    return "\n".join([*told, summary["outcome"], *lines, *([f"report: {page}"] if page.exists() else [])])


def _summary(run: RunRecord, verdicts: list[Verdict]) -> dict[str, Any]:
    evaluation = run.result("evaluate")
    reward = run.result("reward")
    policy = run.result("policy")
    win = evaluation.get("win") or {}
    stages = {stage.name: _stage(run, stage, verdicts) for stage in run.stages.values() if stage.done}
    judged = evaluation if is_number(evaluation.get("kl_per_prompt")) else policy
    summary = {
        "evaluation_judge": run.evaluation_judge(),
        "stages": stages,
        "kl_per_prompt": judged.get("kl_per_prompt"),
        "kl_interval": judged.get("kl_interval"),
        "win_rate_sft_over_base": _win(run.win_over_base()),
        "win_rate_policy_over_sft": _win(win),
        "length_controlled_win_rate": _pick(win.get("length_controlled"), ("rate", "interval")),
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
    """How many rows of each part of the data were left out because they cannot be used, as the stages counted them."""
    found: dict[str, int] = {}
    for stage in run.stages.values():
        found |= (stage.manifest.get("data") or {}).get("skipped_rows") or {}
    return found


def _stage(run: RunRecord, stage: StageRecord, verdicts: list[Verdict]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    gates = {"gate": run.verdict(stage, verdicts)}
    if stage.kind == "evaluate":
        gates["safety"] = run.verdict(stage, verdicts, "safety")
    for name, verdict in gates.items():
        if verdict:
            row[name] = {
                "verdict": verdict.verdict,
                "value": verdict.value,
                "interval": list(verdict.interval) if verdict.interval else None,
                "threshold": verdict.threshold,
                "n": verdict.n,
                "note": verdict.note,
            }
    cost = {key: stage.manifest.get(key) for key in ("seconds", "peak_memory_bytes")}
    return row | cost | {"fingerprint": stage.fingerprint}


def _win(win: dict[str, Any] | None) -> dict[str, Any] | None:
    return _pick(win, WIN)


def _pick(record: dict[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any] | None:
    return {key: record.get(key) for key in keys} if record else None


def _finite(value: Any) -> Any:
    """The same with null for what JSON cannot say: a value that is not a number."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not is_number(value) else value


def _render(content: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("towpath.view"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "percents": percents,
        "duration": duration,
        "size": size,
    }
    template = environment.get_template("report.html")
    # The page allows only its own script and style, by their hashes: markup in an answer could not run even if it got
    # through.
    return template.render(content, script_hash=_hash(template, "script"), style_hash=_hash(template, "style"))


def _hash(template: Template, block: str) -> str:
    text = "".join(template.blocks[block](template.new_context()))
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    # An answer may hold half a surrogate pair, which UTF-8 cannot say: it becomes a question mark.
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", errors="replace", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
