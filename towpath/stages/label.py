"""Judgements to labels: collected from whoever judges, made into one label a comparison, with what they are worth."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from towpath.data.intervals import accuracy_ceiling
from towpath.errors import DataError, Waiting
from towpath.feedback import (
    aggregation,
    agreement,
    blend,
    calibration,
    dawid_skene,
    judge_runner,
    judging,
    rater_quality,
)
from towpath.recipe.stage_configs import LabelConfig
from towpath.records import Comparison, Judgement, Label, as_row
from towpath.stages import annotate
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import LABELS
from towpath.store import manifest, rater_stats
from towpath.store.publish import replace_file
from towpath.store.store import Store

ENOUGH_AUDITED = 30
"""Words of people on a judge's pairs from which its certainty is calibrated."""


def run(job: Job[LabelConfig]) -> dict[str, Any]:
    """Collect judgements for the comparisons of this run, then derive the labels."""
    who = job.config.preferences.raters
    propensity = {}
    report = None
    comparisons = [] if who == "recorded" else mine(job)
    if who == "recorded":
        comparisons, judgements = annotate.recorded(job)
    elif who == "simulated":
        judgements = annotate.simulate(job, comparisons)
    elif who == "people":
        judgements = annotate.people(job, comparisons)
    elif who == "judge":
        judgements = annotate.machines(job, comparisons)
    else:
        judgements, propensity = annotate.blended(job, comparisons)
    annotate.require_some(comparisons)
    if who in ("judge", "blend"):
        labels, report = _blended(job, judgements, propensity)
    else:
        labels = (
            dawid_skene.consensus_labels(judgements)
            if job.config.preferences.aggregate == "dawid_skene"
            else aggregation.majority_labels(judgements)
        )
    _require(job, comparisons, judgements, labels)
    job.store.replace_labels(labels)
    replace_file(job.folder / LABELS, text_of(labels))
    job.findings.extend(rater_quality.rater_findings(rater_quality.measure_quality(judgements)))
    return _summarise(comparisons, judgements, labels) | ({"judge": report} if report else {})


def _blended(
    job: Job[LabelConfig], judgements: Sequence[Judgement], propensity: dict[str, float]
) -> tuple[list[Label], dict[str, Any] | None]:
    """Labels of people, judge and rules together, and how the judge stands beside people, where enough people judged
    its pairs."""
    name = judging.rater_name(judge_runner.judge_settings(job.config.judge, job.run))
    words = _words(job, judgements)
    rows = calibration.audit_rows(judgements, name, propensity, words)
    rate, n = agreement.pairwise_agreement([j for j in judgements if j.kind in rater_quality.PEOPLE])
    enough = len(rows) >= ENOUGH_AUDITED
    calibrations = {name: calibration.calibrate(rows)} if enough else {}
    right = min(max(accuracy_ceiling(rate), 0.55), 1.0) if n else 1.0
    report = asdict(calibration.judge_report(rows, job.config.seed)) if enough else None
    gaps = {comparison: 2 * (a - b) / max(a + b, 1) for comparison, (a, b) in words.items()}
    return blend.blend_labels(judgements, calibrations, rater_accuracy=right, gaps=gaps), report


def _words(job: Job[LabelConfig], judgements: Sequence[Judgement]) -> dict[str, tuple[int, int]]:
    """How many words either answer of every judged comparison has."""
    comparisons = {j.comparison for j in judgements}
    completions = job.store.completions()
    count = {name: len(c.text.split()) for name, c in completions.items()}
    return {c.id: (count[c.a], count[c.b]) for c in job.store.comparisons() if c.id in comparisons}


def _require(
    job: Job[LabelConfig], comparisons: Sequence[Comparison], judgements: Sequence[Judgement], labels: Sequence[Label]
) -> None:
    """Wait for people where fewer are decided than the recipe asks for and people can still decide some; else say
    why no more will come."""
    who = job.config.preferences.raters
    needed = job.config.preferences.min_labels
    counted = Counter(label.choice for label in labels)
    decided = counted["a"] + counted["b"]
    if decided >= needed:
        return
    value = f"labels: {decided} of {needed} decided"
    if who in ("people", "blend") and _awaited(job, comparisons, judgements):
        by_hand = (
            f"`towpath label export {job.run} --to pairs.jsonl`, fill in `choice`, `towpath label import {job.run} "
            "pairs.jsonl`"
        )
        fix = f"`towpath serve {job.run}` opens the rating page; or {by_hand}; then `towpath run {job.run}`"
        raise Waiting(value, "preferences.min_labels", fix)
    unjudged = {c.id for c in comparisons} - {j.comparison for j in judgements}
    undecided = [f"{counted['tie']} ties", f"{counted['both_bad']} both bad", f"{len(unjudged)} without a judgement"]
    value += f", and no more will come of {len(comparisons)} comparisons: {', '.join(undecided)}"
    failed = [f.evidence for f in job.findings if f.code == "judge"]
    rule = "; ".join(["preferences.min_labels decided labels are needed", *failed])
    raise DataError(value, rule, _more_labels(job, who, bool(failed)))


def _awaited(job: Job[LabelConfig], comparisons: Sequence[Comparison], judgements: Sequence[Judgement]) -> bool:
    """Whether some comparison still waits for a person: for the first, or for another whose word may decide it."""
    people = Counter(
        comparison for comparison, _ in {(j.comparison, j.rater) for j in judgements if j.kind in rater_quality.PEOPLE}
    )
    seats = job.store.read(rater_stats.open_task_seats)
    return any(seats.get(c.id, 0) > people[c.id] for c in comparisons)


def _more_labels(job: Job[LabelConfig], who: str, judge_failed: bool) -> str:
    """What brings more decided labels, by who judges."""
    if judge_failed:
        return next(f.remedy for f in job.findings if f.code == "judge")
    if who == "recorded":
        return "add preferences, or lower preferences.min_labels"
    fix = "lower preferences.min_labels, or draw more pairs: preferences.prompts, preferences.completions"
    return (
        f"{fix}; ties may come of a judge that follows the order: another judge.model or judge.rubric"
        if who == "judge"
        else fix
    )


def _summarise(
    comparisons: Sequence[Comparison], judgements: Sequence[Judgement], labels: Sequence[Label]
) -> dict[str, Any]:
    rate, n = agreement.pairwise_agreement([j for j in judgements if j.kind in rater_quality.PEOPLE])
    kinds = {j.rater: j.kind for j in judgements}
    return {
        "comparisons": len(comparisons),
        "judgements": len(judgements),
        "decided": sum(label.choice in ("a", "b") for label in labels),
        "ties": sum(label.choice == "tie" for label in labels),
        "both_bad": sum(label.choice == "both_bad" for label in labels),
        "agreement": {"rate": rate, "n": n},
        "ceiling": accuracy_ceiling(rate) if n else None,
        "disputed": len(blend.find_disputes(judgements, labels)),
        "cost": sum(j.cost for j in judgements),
        "raters": kinds,
        "simulated": "simulated" in kinds.values(),
    }


def text_of(labels: Sequence[Label]) -> str:
    """Labels as labels.json holds them."""
    return json.dumps([as_row(label) for label in sorted(labels, key=lambda label: label.comparison)], indent=0)


def restore(folder: Path, store: Store) -> bool:
    """Write a damaged labels.json again from the ledger, where that gives the very bytes of its checksum."""
    record = manifest.read(folder)
    derived = tuple(
        fingerprint[:6] + "." for name, fingerprint in record["inputs"].items() if name.startswith("sample")
    )
    labels = [label for label in store.labels() if not derived or label.comparison.startswith(derived)]
    text = text_of(labels)
    if hashlib.sha256(text.encode()).hexdigest() != record["files"].get(LABELS, {}).get("sha256"):
        return False
    replace_file(folder / LABELS, text)
    return True


def mine(job: Job[LabelConfig]) -> list[Comparison]:
    """Comparisons that the sample stages of this recipe made, in all rounds up to this one."""
    prefixes = {path.name[:6] for stage, path in job.inputs.items() if stage.startswith("sample")}
    return [c for c in job.store.comparisons() if c.id.split(".")[0] in prefixes]
