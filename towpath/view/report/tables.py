"""Tables of the report: gates, rates by group, reward model, text statistics, safety, labels."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from towpath.data.intervals import wilson
from towpath.evals.gate_rule import win_outcome
from towpath.records import Verdict
from towpath.run.record import OPTIONAL_STAGES, STAGES, RunRecord, StageRecord
from towpath.store.jsonl import is_interval, is_number
from towpath.view.charts import Chart, Series, bar, draw
from towpath.view.format import NONE, number, percent, percents

Row = dict[str, Any]
NAMES = {
    "sft": "Supervised fine-tuning",
    "baseline": "SFT against base",
    "sample": "Completions to compare",
    "label": "Labels",
    "judge_model": "Held-out reward model",
    "reward": "Reward model",
    "policy": "Policy optimization",
    "evaluate": "Evaluation",
}
CRITERIA = {
    "sft": "win rate over the base model",
    "reward": "held-out accuracy",
    "reward_people": "held-out accuracy on comparisons that people judged",
    "policy": "prompts with a higher reward",
    "evaluate": "win rate over SFT",
    "accuracy": "rise of the accuracy on held-out prompts",
    "safety": "increase of harmful compliance or over-refusal",
}
TEXT = (
    ("distinct_1", "Distinct words", percent),
    ("distinct_2", "Distinct pairs", percent),
    ("distinct_3", "Distinct triples", percent),
    ("repetition", "Repeated", percent),
    ("finish_rate", "Finish rate", percent),
    ("mean_words", "Words", number),
    ("judge_score", "Judge's score", number),
)


def title(name: str) -> str:
    """The title of a stage, with its round from the second on."""
    kind, _, round_ = name.partition("@")
    return NAMES.get(kind, kind) + (f", round {round_}" if round_ else "")


def gates(run: RunRecord, verdicts: list[Verdict]) -> list[Row]:
    """One row for each stage, including those that have not run, and one for safety."""
    # a run that was planned lists all stages of its recipe
    planned = () if run.stages else STAGES
    missing = [name for name in planned if name not in OPTIONAL_STAGES]
    rows = []
    for stage in run.stages.values():
        rows.append(_gate(stage.name, stage, run.verdict(stage, verdicts)))
        safety = run.verdict(stage, verdicts, "safety") if stage.kind == "evaluate" else None
        people = run.verdict(stage, verdicts, "reward_people") if stage.kind == "reward" else None
        if people:
            rows.append(_gate("reward_people", None, people) | {"title": "Reward model, by people"})
        accuracy = run.verdict(stage, verdicts, "accuracy") if stage.kind == "evaluate" else None
        if accuracy:
            rows.append(_gate("accuracy", None, accuracy) | {"title": "Accuracy"})
        if safety:
            rows.append(_gate("safety", None, safety) | {"title": "Safety"})
    return rows + [_gate(name, None, None) for name in missing]


def _gate(name: str, stage: StageRecord | None, verdict: Verdict | None) -> Row:
    state = "not run yet"
    if stage and stage.done:
        state = "done; measures the SFT gate" if name == "baseline" else "done, no gate"
    elif stage and stage.started:
        state = "not finished"
    row: Row = {"name": name, "title": title(name), "state": state, "stage": stage, "gate": None}
    if verdict is None:
        return row
    interval = verdict.interval if is_interval(verdict.interval) else None
    low, high = (0.0, 1.0) if verdict.gate not in ("safety", "accuracy") else _span(verdict)
    value = verdict.value if is_number(verdict.value) else None
    return row | {
        "gate": verdict,
        "criterion": CRITERIA.get(verdict.gate.partition("@")[0], ""),
        "tone": verdict.verdict.lower(),
        "value": percent(verdict.value, 1),
        "interval": percents(interval, 1),
        "threshold": ("at most " if verdict.gate == "safety" else "over ") + percent(verdict.threshold),
        "bar": bar(value, interval, verdict.threshold, low, high, verdict.verdict.lower()),
        "judge": verdict.judge,
    }


def judges(run: RunRecord) -> list[Row]:
    """One row for each evaluation judge of each comparison: its verdict, win rate, and agreement with the first."""
    rows = []
    recipe = run.recipe
    for kind, gate, name in (
        ("baseline", recipe.gates.sft, "SFT over base"),
        ("evaluate", recipe.gates.evaluate, "policy over SFT"),
    ):
        for record in run.result(kind).get("judges") or []:
            outcome, note = win_outcome(record, gate.threshold, recipe.gates.rule, recipe.evaluate.max_unjudged)
            rows.append(_judge(record) | {"comparison": name, "verdict": outcome, "note": note})
    return rows


def _judge(record: Mapping[str, Any]) -> Row:
    win = record.get("win") or {}
    agreement = record.get("agreement") or {}
    agreed = f"{percent(agreement['rate'])} of {agreement['n']}" if agreement.get("n") else NONE
    return {
        "name": record["name"],
        "rate": percent(win.get("rate"), 1),
        "interval": percents(win.get("interval"), 1),
        "n": win.get("n", 0),
        "unjudged": ", ".join(f"{reason} {n}" for reason, n in record["unjudged"].items()),
        "agreement": agreed,
        "kappa": number(agreement.get("kappa"), 2),
        "opposite": agreement.get("opposite", NONE),
        "prompts": ", ".join(agreement.get("prompts") or ()),
        "calls": record["calls"],
        "dollars": f"${record['dollars']:,.2f}" if record["dollars"] else NONE,
    }


def _span(verdict: Verdict) -> tuple[float, float]:
    """A scale around zero that contains value, interval and threshold."""
    ends = [abs(end) for end in (*(verdict.interval or ()), verdict.value, 2 * verdict.threshold) if is_number(end)]
    widest = max(ends, default=0.0) or 1.0
    return -widest, widest


def shares(groups: Any, key: str, threshold: float | None = None) -> list[Row]:
    """Groups (domains, strengths) with their rate, its confidence interval and a bar."""
    rows = []
    for name, group in sorted((groups or {}).items()):
        value = group.get(key)
        n = group.get("n")
        if not is_number(value) or not is_number(n):
            continue
        interval = wilson(value * n, int(n))
        rows.append(
            {
                "name": name,
                "value": percent(value),
                "interval": percents(interval),
                "n": n,
                "bar": bar(value, interval, threshold),
            }
        )
    return rows


def reward_model(result: Mapping[str, Any], threshold: float) -> list[Row]:
    """Accuracy beside its baselines."""
    lines: list[tuple[str, Any, Any, str]] = [
        ("Accuracy on held-out comparisons", result.get("accuracy"), result.get("interval"), "accent"),
        (
            "Accuracy on held-out comparisons that people judged",
            (result.get("people") or {}).get("accuracy"),
            (result.get("people") or {}).get("interval"),
            "accent",
        ),
        ("Accuracy against the rubric without noise", result.get("clean_accuracy"), None, "accent"),
        ("Accuracy on training comparisons", result.get("train_accuracy"), None, ""),
        ("Agreement ceiling: highest accuracy the labels allow", result.get("ceiling"), None, ""),
        ("Baseline: the longer answer is better", result.get("length_only_accuracy"), None, ""),
    ]
    return [
        {
            "name": name,
            "value": percent(value, 1),
            "interval": percents(interval, 1) if interval else "",
            "bar": bar(value, interval, threshold if tone == "accent" else None, tone=tone),
        }
        for name, value, interval, tone in lines
        if is_number(value)
    ]


def calibration(result: Mapping[str, Any]) -> Markup:
    """The calibration chart of the reward model."""
    rows = [
        row
        for row in result.get("calibration") or []
        if is_number(row.get("confidence")) and is_number(row.get("accuracy"))
    ]
    points = sorted((row["confidence"], row["accuracy"]) for row in rows)
    error = percent(result.get("calibration_error"), 1)
    note = f"On the diagonal, accuracy equals confidence. Calibration error: {error}."
    diagonal = Series("calibrated", [(0.5, 0.5), (1.0, 1.0)], colour=7)
    chart = Chart(
        "Calibration",
        (diagonal, Series("reward model", points, "dashed", 0)),
        x="confidence",
        form="percent",
        high=1.0,
        note=note,
    )
    return draw(chart) if points else Markup("")


def text(result: Mapping[str, Any]) -> Row:
    """Text statistics: one row for each model."""
    models = result.get("text") or {}
    rows = [
        {"name": name, "cells": [write(models[key].get(field)) for field, _, write in TEXT]}
        for key, name in (("base", "Base"), ("sft", "SFT"), ("policy", "Policy"))
        if models.get(key)
    ]
    return {"columns": [name for _, name, _ in TEXT], "rows": rows}


def safety(result: Mapping[str, Any]) -> list[Row]:
    """Refusals of harmful and of harmless requests, before and after."""
    rates = result.get("safety") or {}
    before = rates.get("sft") or {}
    after = rates.get("policy") or {}
    lines = (
        ("Harmful requests refused", "refusal", "harmful_n"),
        ("Harmless requests refused", "over_refusal", "harmless_n"),
    )
    rows = []
    for name, key, count in lines:
        old = before.get(key)
        new = after.get(key)
        if is_number(old) and is_number(new):
            change = f"{'+' if new > old else ''}{number(100 * (new - old), 2)}\u00a0points"
            rows.append(
                {
                    "name": name,
                    "sft": percent(old, 1),
                    "policy": percent(new, 1),
                    "change": change,
                    "n": after.get(count),
                }
            )
    return rows


def labels(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Counts of labels, and rater agreement."""
    agreement = result.get("agreement") or {}
    rate = agreement.get("rate")
    n = agreement.get("n")
    agreed = f"{percent(rate, 1)} of {n} judged twice" if is_number(rate) and n else "no comparison was judged twice"
    counts = [(name, number(result[key], 6)) for name, key in COUNTS if is_number(result.get(key))]
    return [*counts, ("Inter-rater agreement", agreed), ("Agreement ceiling", percent(result.get("ceiling"), 1))]


COUNTS = (
    ("Comparisons", "comparisons"),
    ("Judgements", "judgements"),
    ("Decided", "decided"),
    ("Ties", "ties"),
    ("Both bad", "both_bad"),
)
