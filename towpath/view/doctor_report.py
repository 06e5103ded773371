"""Output of the doctor: findings for a terminal, for scripts, and as a page."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from towpath import __version__
from towpath.health.history import Curve
from towpath.metrics import METRICS, form, label
from towpath.records import Finding
from towpath.run.record import average_neighbours
from towpath.store.jsonl import is_number
from towpath.view.charts import Chart, ReferenceLine, Series, draw
from towpath.view.foreign.log import Log
from towpath.view.foreign.names import Kind
from towpath.view.format import number
from towpath.view.html import render

SEVERITIES = {"critical": "critical", "warning": "warning", "info": "info"}
TONES = {"critical": "fail", "error": "fail", "warning": "undecided", "info": "quiet"}
MAIN_METRICS: dict[Kind, tuple[str, ...]] = {
    "policy": ("reward", "kl", "entropy", "length", "grad_norm"),
    "pairs": ("loss", "accuracy", "chosen", "pairs_loss", "grad_norm"),
    "sft": ("loss", "grad_norm"),
    "reward": ("loss", "accuracy", "grad_norm"),
    "training": ("loss", "grad_norm"),
}
"""The metrics that are charted without findings."""
STAGE_TITLES: dict[Kind, str] = {"reward": "reward model", "sft": "SFT"}
FINDING_METRICS = {
    "not-finite": ("loss", "policy_loss", "grad_norm", "learning_rate"),
    "gradient-zero": ("grad_norm", "reward_std"),
    "throughput-falling": ("seconds_generate", "seconds_score", "seconds_optimise", "length"),
    "memory-growing": ("memory_bytes", "length"),
    "missing-eos": ("finish_rate", "length"),
    "truncated": ("finish_rate", "length"),
    "sampler-mismatch": ("sampler_error", "kl"),
    "duplicate-prompts": ("prompts_distinct",),
    "critic-broken": ("explained_variance", "value_loss"),
    "reward-overfit": ("accuracy", "loss"),
    "label-noise": ("accuracy", "loss"),
    "learning-rate-high": ("clip_fraction", "approx_kl", "kl", "reward", "loss", "grad_norm", "learning_rate"),
    "learning-rate-low": ("kl", "approx_kl", "reward", "learning_rate"),
    "kl-penalty-too-strong": ("kl", "kl_coef", "reward"),
    "no-kl-penalty": ("kl", "kl_coef", "reward"),
    "kl-rising": ("kl", "kl_coef", "reward"),
    "kl-negative": ("kl", "sampler_error"),
    "reward-hacking": ("reward", "watched/", "score", "kl"),
    "length-hacking": ("length", "reward_length_corr", "reward"),
    "reward-out-of-distribution": ("score", "score_spread"),
    "reward-unbounded": ("reward",),
    "repetition": ("repetition", "distinct_2", "reward"),
    "diversity-collapse": ("distinct_2", "opening", "entropy", "reward"),
    "refusing": ("refusal", "harmless_refusal", "reward"),
    "safety-traded": ("harmful_refusal", "reward"),
    "format-shift": ("lists", "code"),
    "domain-forgotten": ("domain/", "reward/"),
}
"""Metrics charted beside a finding, besides those that its evidence names."""
PLAIN_WORDS = ("kl", "reward", "score", "entropy", "length", "loss")
"""Metrics whose names are ordinary words."""
MAX_CHARTS = 3
MAX_FAMILY = 9
MIN_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings on one log, the most likely cause first, and the checks that lacked a metric."""

    log: Log
    findings: tuple[Finding, ...]
    missing_signals: tuple[str, ...]


def step_from_one(step: int | None) -> int | None:
    """A step counted from 1."""
    return None if step is None else step + 1


def count_findings(findings: Sequence[Finding]) -> str:
    """The number of findings of each severity, in words."""
    parts = []
    for severity, word in SEVERITIES.items():
        count = sum(_severity(finding) == severity for finding in findings)
        plural = "s" if severity == "warning" and count > 1 else ""
        if count:
            parts.append(f"{count} {word}{plural}")
    return ", ".join(parts) or "no findings"


def _severity(finding: Finding) -> str:
    """The severity; an error of the check counts as critical."""
    return "critical" if finding.severity == "error" else finding.severity


def _when(finding: Finding) -> str:
    if finding.first_step is None:
        return ""
    return ", before training" if finding.first_step < 0 else f", from step {finding.first_step + 1}"


def lines(diagnoses: Sequence[Diagnosis], width: int) -> str:
    """The findings of every log, the metrics that were recognised, and what could not be checked."""
    text = "\n\n".join("\n".join(_lines(diagnosis, max(width, MIN_WIDTH))) for diagnosis in diagnoses)
    # Names of columns may hold control characters.
    printable = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    return printable.encode("utf-8", "replace").decode()


def _lines(diagnosis: Diagnosis, width: int) -> Iterator[str]:
    log = diagnosis.log
    known = len(log.mapped_columns) + len(log.unused)
    yield log.source
    recognised = "" if log.own else f", {known} of {known + len(log.unknown)} metrics recognised"
    summary = f"{log.dialect}: {log.steps} logged steps, the last {log.last + 1}{recognised}"
    yield from textwrap.wrap(f"{summary}; {count_findings(diagnosis.findings)}", width)
    for index, finding in enumerate(diagnosis.findings, 1):
        yield ""
        yield f"{index}. {finding.severity.upper()} {finding.code}{_when(finding)}"
        parts = [("evidence", finding.evidence), ("cause", finding.cause)]
        parts += [("ruled out", cause) for cause in finding.ruled_out]
        for title, text in (*parts, ("remedy", finding.remedy)):
            yield from _indented(title, text, width)
    yield from _basis(diagnosis, width)


def _basis(diagnosis: Diagnosis, width: int) -> Iterator[str]:
    """What was read of the log, and what could not be checked."""
    log = diagnosis.log
    renamed = {name: column for name, column in log.mapped_columns.items() if name != column.ours and not log.own}
    mapped = [
        f"{name} as {column.ours}" + (" (validation)" if column.phase == "validation" else "")
        for name, column in renamed.items()
    ]
    parts = [
        ("not checked", list(diagnosis.missing_signals)),
        ("note", list(log.notes)),
        ("mapped", [", ".join(mapped)] if mapped else []),
        ("not used", [", ".join(log.unused)] if log.unused else []),
        ("unknown", [", ".join(log.unknown)] if log.unknown else []),
    ]
    if any(texts for _, texts in parts):
        yield ""
    for title, texts in parts:
        for index, text in enumerate(texts):
            yield from _indented(title if index == 0 else "", text, width)


def _indented(title: str, text: str, width: int) -> list[str]:
    if not text:
        return []
    return textwrap.wrap(
        text,
        width,
        initial_indent=f"   {title:<12}",
        subsequent_indent=" " * 15,
        break_long_words=False,
        break_on_hyphens=False,
    )


def as_json(source: str, diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    """Findings for scripts; steps are numbered as in the log."""
    return {
        "findings": [_finding_row(one.log, finding) for one in diagnoses for finding in one.findings],
        "source": source,
        "steps": max((one.log.steps for one in diagnoses), default=0),
        "metrics": [_log_row(one) for one in diagnoses],
    }


def _finding_row(log: Log, finding: Finding) -> dict[str, Any]:
    stage = f"{STAGE_TITLES[log.kind]}: " if log.own and log.kind in STAGE_TITLES else ""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "first_step": None if finding.first_step is None else finding.first_step + log.first_step,
        "evidence": stage + finding.evidence,
        "cause": finding.cause,
        "remedy": finding.remedy,
        "ruled_out": list(finding.ruled_out),
    }


def _log_row(diagnosis: Diagnosis) -> dict[str, Any]:
    log = diagnosis.log
    return {
        "source": log.source,
        "of": log.dialect,
        "kind": log.kind,
        "recognised": {name: column.ours for name, column in log.mapped_columns.items()},
        "not_used": dict(log.unused),
        "not_recognised": list(log.unknown),
        "not_judged": list(diagnosis.missing_signals),
        "notes": list(log.notes),
    }


def page(title: str, diagnoses: Sequence[Diagnosis]) -> str:
    """One self-contained page: findings with charts, and the metrics that were read."""
    content = {
        "title": title,
        "outcome": count_findings([finding for one in diagnoses for finding in one.findings]),
        "logs": [_section(one) for one in diagnoses],
        "version": __version__,
    }
    return render("doctor.html", content)


def _section(diagnosis: Diagnosis) -> dict[str, Any]:
    log = diagnosis.log
    rows = [
        {
            "column": name,
            "ours": column.ours,
            "phase": column.phase,
            "description": column.description or _description(column.ours),
        }
        for name, column in log.mapped_columns.items()
    ]
    findings = [
        {
            "finding": finding,
            "tone": TONES[finding.severity],
            "when": _when(finding),
            "charts": _charts(log, _metrics_of(log, finding), finding),
        }
        for finding in diagnosis.findings
    ]
    return {
        "log": log,
        "last": log.last + 1,
        "count": count_findings(diagnosis.findings),
        "rows": rows,
        "findings": findings,
        "missing_signals": diagnosis.missing_signals,
        "main": [] if findings else _charts(log, MAIN_METRICS[log.kind]),
    }


def _description(name: str) -> str:
    return METRICS[name].description if name in METRICS else ""


def _metrics_of(log: Log, finding: Finding) -> list[str]:
    """The metrics to chart beside a finding: those of its code, then those that its text names."""
    text = " ".join((finding.evidence, finding.cause, *finding.ruled_out)).lower()
    words = set(re.findall(r"[a-z][a-z0-9_/]*", text))
    logged = {*log.history.train, *log.history.validation}
    named = [name for name in METRICS if name in words & logged and ("_" in name or name in PLAIN_WORDS)]
    return list(dict.fromkeys([*FINDING_METRICS.get(finding.code, ()), *named])) or list(MAIN_METRICS[log.kind])


def _charts(log: Log, names: Sequence[str], finding: Finding | None = None) -> list[Markup]:
    """Charts of the first of these metrics that were logged, with training and validation in one."""
    references = ()
    step = step_from_one(finding.first_step) if finding else None
    if finding and step is not None and finding.severity != "info":
        references = (ReferenceLine("x", float(step), f"from step {step}", "bad"),)
    figures = [draw(_chart(log, name, references)) for name in names]
    return [figure for figure in figures if figure][:MAX_CHARTS]


def _chart(log: Log, name: str, references: tuple[ReferenceLine, ...]) -> Chart:
    history = log.history
    if name.endswith("/"):
        names = [full for full in sorted(history.train) if full.startswith(name)][:MAX_FAMILY]
        family = [
            Series(full.removeprefix(name), _points(history.curve(full)), colour=index)
            for index, full in enumerate(names)
        ]
        return Chart(name.strip("/").capitalize(), family, references)
    train = history.curve(name)
    validation = history.validation_curve(name)
    series = [Series("training", _points(train), colour=0), Series("validation", _points(validation), "dashed", 1)]
    series = [line for line in series if line.points]
    not_finite = int((~np.isfinite(train.values)).sum() + (~np.isfinite(validation.values)).sum())
    alarm = history.facts.get("policy.kl.alarm")
    if name == "kl" and is_number(alarm):
        references = (*references, ReferenceLine("y", float(alarm), f"alarm {number(alarm)}", "bad"))
    words = label(name)
    title = f"{words[:1].upper()}{words[1:]}"
    return Chart(
        f"{title}: {_description(name)}" if _description(name) else title,
        series,
        references if series else (),
        form="percent" if form(name) == "percent" else "number",
        note=f"Not finite at {not_finite} steps." if not_finite else "",
    )


def _points(curve: Curve) -> list[tuple[float, float]]:
    """Finite points, steps counted from 1, averaged to what a chart can show."""
    points = [(float(s) + 1, float(v)) for s, v in zip(curve.steps, curve.values, strict=True) if np.isfinite(v)]
    return average_neighbours(points)
