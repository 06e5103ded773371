"""What the doctor says, for a terminal, for a script and as a page."""

import hashlib
import re
import textwrap
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from towpath import __version__
from towpath.health.history import Curve
from towpath.records import Finding
from towpath.run.record import MAX_POINTS
from towpath.store.jsonl import is_number
from towpath.view.charts import Chart, Mark, Series, draw
from towpath.view.foreign.log import Log
from towpath.view.foreign.names import OURS, Kind
from towpath.view.format import duration, number, percent, percents, size

SEVERITIES = ("critical", "warning", "info")
TONES = {"critical": "fail", "error": "fail", "warning": "undecided", "info": "quiet"}
SHARES = {
    "clip_fraction",
    "finish_rate",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "repetition",
    "opening",
    "refusal",
    "harmful_refusal",
    "harmless_refusal",
    "prompts_distinct",
    "accuracy",
    "pairs_accuracy",
    "lists",
    "code",
}
"""Numbers that are told in per cent."""
MAIN: dict[Kind, tuple[str, ...]] = {
    "policy": ("reward", "kl", "entropy", "length", "grad_norm"),
    "pairs": ("loss", "accuracy", "chosen", "pairs_loss", "grad_norm"),
    "sft": ("loss", "grad_norm"),
    "reward": ("loss", "accuracy", "grad_norm"),
    "training": ("loss", "grad_norm"),
}
"""What one looks at first."""
STAGE: dict[Kind, str] = {"reward": "reward model", "sft": "SFT"}
"""Whose finding it is, where a run has several stages."""
BESIDE = {
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
"""Curves drawn beside a finding, besides those its evidence names."""
MOST_CHARTS = 3
NARROW = 60


@dataclass(frozen=True, slots=True)
class Told:
    """What the doctor says of one log: findings, the likeliest cause first, and what could not be looked for."""

    log: Log
    findings: tuple[Finding, ...]
    blind: tuple[str, ...]


def shown_step(step: int | None) -> int | None:
    """A step as people count, from 1."""
    return None if step is None else step + 1


def count(findings: Sequence[Finding]) -> str:
    """How many of each severity, in words."""
    told = [(severity, sum(_severity(f) == severity for f in findings)) for severity in SEVERITIES]
    words = {"critical": "critical", "warning": "warning", "info": "to know"}
    said = [f"{n} {words[severity]}{'s' if severity == 'warning' and n > 1 else ''}" for severity, n in told if n]
    return ", ".join(said) or "nothing found"


def _severity(finding: Finding) -> str:
    """A value that is refused before a run is as grave as what is worst in one."""
    return "critical" if finding.severity == "error" else finding.severity


def lines(told: Sequence[Told], width: int) -> str:
    """The findings of every log, what was recognised, and what could not be judged."""
    text = "\n\n".join("\n".join(_of_one(one, max(width, NARROW))) for one in told)
    # A column's name is anybody's text: it must not steer the terminal.
    return (
        "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)
        .encode("utf-8", "replace")
        .decode()
    )


def _of_one(told: Told, width: int) -> Iterator[str]:
    log = told.log
    known = len(log.taken) + len(log.unused)
    yield log.source
    foreign = f", {known} of {known + len(log.unknown)} metrics known" if not log.own else ""
    told_of = f"{log.dialect}: {log.steps} steps told of, the last {log.last + 1}{foreign}; {count(told.findings)}"
    yield from textwrap.wrap(told_of, width)
    for place, finding in enumerate(told.findings, 1):
        yield ""
        step = shown_step(finding.first_step)
        at = "" if step is None else ", before training" if (finding.first_step or 0) < 0 else f", from step {step}"
        yield f"{place}. {finding.severity.upper()} {finding.code}{at}"
        parts = [
            ("evidence", finding.evidence),
            ("cause", finding.cause),
            *(("ruled out", cause) for cause in finding.ruled_out),
        ]
        for word, text in (*parts, ("remedy", finding.remedy)):
            yield from _hanging(word, text, width)
    yield from _account(told, width)


def _account(told: Told, width: int) -> Iterator[str]:
    """What the judgement rests on."""
    log = told.log
    others = {theirs: taken for theirs, taken in log.taken.items() if theirs != taken.ours}
    taken = [
        f"{theirs} as {taken.ours}" + (" (validation)" if taken.phase == "validation" else "")
        for theirs, taken in others.items()
    ]
    parts = [
        ("not judged", told.blind),
        ("note", log.notes),
        ("taken", () if log.own else taken),
        ("not used", list(log.unused)),
        ("not known", log.unknown),
    ]
    if any(texts for _, texts in parts):
        yield ""
    for word, texts in parts:
        joined = [", ".join(texts)] if word in ("taken", "not used", "not known") and texts else texts
        for place, text in enumerate(joined):
            yield from _hanging(word if place == 0 else "", text, width)


def _hanging(word: str, text: str, width: int) -> list[str]:
    if not text:
        return []
    return textwrap.wrap(
        text,
        width,
        initial_indent=f"   {word:<11}",
        subsequent_indent=" " * 14,
        break_long_words=False,
        break_on_hyphens=False,
    )


def as_json(source: str, told: Sequence[Told]) -> dict[str, Any]:
    """Findings for scripts; steps are numbered as the log numbers them."""
    return {
        "findings": [_row(one.log, finding) for one in told for finding in one.findings],
        "source": source,
        "steps": max((one.log.steps for one in told), default=0),
        "metrics": [_metrics(one) for one in told],
    }


def _row(log: Log, finding: Finding) -> dict[str, Any]:
    step = None if finding.first_step is None else finding.first_step + log.begins
    stage = f"{STAGE[log.kind]}: " if log.own and log.kind in STAGE else ""
    told = {
        "code": finding.code,
        "severity": finding.severity,
        "first_step": step,
        "evidence": stage + finding.evidence,
    }
    return told | {"cause": finding.cause, "remedy": finding.remedy, "ruled_out": list(finding.ruled_out)}


def _metrics(told: Told) -> dict[str, Any]:
    log = told.log
    return {
        "source": log.source,
        "of": log.dialect,
        "kind": log.kind,
        "recognised": {theirs: taken.ours for theirs, taken in log.taken.items()},
        "not_used": dict(log.unused),
        "not_recognised": list(log.unknown),
        "not_judged": list(told.blind),
        "notes": list(log.notes),
    }


def page(title: str, found: Sequence[Told]) -> str:
    """One self-contained page: findings with the curves they speak of, and what the judgement rests on."""
    environment = Environment(
        loader=PackageLoader("towpath.view"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {told.__name__: told for told in (number, percent, percents, duration, size)}
    report = environment.get_template("report.html")  # whose look and whose script this page has
    style, script = ("".join(report.blocks[name](report.new_context())) for name in ("style", "script"))
    said = {
        "title": title,
        "outcome": count([f for one in found for f in one.findings]),
        "logs": [_section(one) for one in found],
    }
    look = {"style": Markup(style), "script": Markup(script), "style_hash": _hash(style), "script_hash": _hash(script)}
    return (
        environment.get_template("doctor.html")
        .render(said | look | {"version": __version__})
        .encode("utf-8", "replace")
        .decode()
    )


def _hash(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _section(told: Told) -> dict[str, Any]:
    log = told.log
    rows = [
        {"theirs": theirs, "ours": taken.ours, "phase": taken.phase, "says": taken.says or OURS.get(taken.ours, "")}
        for theirs, taken in log.taken.items()
    ]
    cards = [
        {
            "finding": f,
            "tone": TONES[f.severity],
            "step": shown_step(f.first_step),
            "charts": _drawn(log, _spoken_of(log, f), f),
        }
        for f in told.findings
    ]
    main = [] if cards else _drawn(log, list(MAIN[log.kind]))
    return {
        "log": log,
        "told": told,
        "last": log.last + 1,
        "count": count(told.findings),
        "rows": rows,
        "findings": cards,
        "main": main,
    }


def _spoken_of(log: Log, finding: Finding) -> list[str]:
    """The curves a finding speaks of: those its words name, those that belong beside it, else what one looks at
    first."""
    words = set(
        re.findall(r"[a-z][a-z0-9_/]*", " ".join((finding.evidence, finding.cause, *finding.ruled_out)).lower())
    )
    told = {*log.history.train, *log.history.validation}
    named = [
        name
        for name in OURS
        if name in words
        and name in told
        and ("_" in name or name in ("kl", "reward", "score", "entropy", "length", "loss"))
    ]
    beside = list(BESIDE.get(finding.code, ()))
    return list(dict.fromkeys([*beside, *named])) or list(MAIN[log.kind])


def _drawn(log: Log, names: Sequence[str], finding: Finding | None = None) -> list[Markup]:
    """A chart for each of these names that was told, training and validation in one; a family in one chart."""
    step = shown_step(finding.first_step) if finding else None
    marks = (
        (Mark("x", float(step), f"from step {step}", "bad"),)
        if step is not None and finding and finding.severity != "info"
        else ()
    )
    figures = [draw(_chart(log, name, marks)) for name in names]
    return [figure for figure in figures if figure][:MOST_CHARTS]


def _chart(log: Log, name: str, marks: tuple[Mark, ...]) -> Chart:
    if name.endswith("/"):
        family = [(full, log.history.curve(full)) for full in sorted(log.history.train) if full.startswith(name)][:9]
        series = [
            Series(full.removeprefix(name), _points(curve), colour=place % 9)
            for place, (full, curve) in enumerate(family)
        ]
        return Chart(name.strip("/").capitalize(), series, marks)
    train = log.history.curve(name)
    look = log.history.validation_curve(name)
    series = [Series("training", _points(train), colour=0), Series("validation", _points(look), "dashed", 1)]
    broken = int((~np.isfinite(train.values)).sum() + (~np.isfinite(look.values)).sum())
    note = f"No finite number at {broken} steps." if broken else ""
    alarm = log.history.facts.get("policy.kl.alarm")
    if name == "kl" and is_number(alarm):
        marks = (*marks, Mark("y", float(alarm), f"alarm {number(alarm)}", "bad"))
    shown = [line for line in series if line.points]
    words = " ".join("KL" if word == "kl" else word for word in name.split("_"))
    title = f"{words[0].upper()}{words[1:]}" + (f": {OURS[name]}" if OURS.get(name) else "")
    return Chart(title, shown, marks if shown else (), form="percent" if name in SHARES else "number", note=note)


def _points(curve: Curve) -> list[tuple[float, float]]:
    """Finite points, steps counted from 1, thinned by averaging neighbours to what a chart can show."""
    told = [(float(s) + 1, float(v)) for s, v in zip(curve.steps, curve.values, strict=True) if np.isfinite(v)]
    size = -(-len(told) // MAX_POINTS) or 1
    groups = [told[at : at + size] for at in range(0, len(told), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
