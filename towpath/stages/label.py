"""Label stage: collect judgements and derive one label for each comparison."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
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

MIN_AUDITED = 30
"""Judgements by people of the judge's pairs from which its certainty is calibrated."""


def run(job: Job[LabelConfig]) -> dict[str, Any]:
    """Collect judgements for the comparisons of this run, then derive the labels."""
    cfg = job.config.preferences
    propensity: dict[str, float] = {}
    report = None
    comparisons = [] if cfg.raters == "recorded" else run_comparisons(job)
    if cfg.raters == "recorded":
        comparisons, judgements = annotate.recorded_judgements(job)
    elif cfg.raters == "simulated":
        judgements = annotate.simulated_judgements(job, comparisons)
    elif cfg.raters == "people":
        judgements = annotate.human_judgements(job, comparisons)
    elif cfg.raters == "judge":
        judgements = annotate.machine_judgements(job, comparisons)
    else:
        judgements, propensity = annotate.blended_judgements(job, comparisons)
    if not comparisons:
        fix = "fix the files of data.preferences, or add prompts"
        raise DataError("no comparisons to label", "labels come from comparisons", fix)
    if cfg.raters in ("judge", "blend"):
        labels, report = _blended_labels(job, judgements, propensity)
    elif cfg.aggregate == "dawid_skene":
        labels = dawid_skene.consensus_labels(judgements)
    else:
        labels = aggregation.majority_labels(judgements)
    _require_min_labels(job, comparisons, judgements, labels)
    job.store.replace_labels(labels)
    replace_file(job.folder / LABELS, labels_json(labels))
    job.findings.extend(rater_quality.rater_findings(rater_quality.measure_quality(judgements)))
    return _summarise(comparisons, judgements, labels) | ({"judge": report} if report else {})


def _blended_labels(
    job: Job[LabelConfig], judgements: Sequence[Judgement], propensity: dict[str, float]
) -> tuple[list[Label], dict[str, Any] | None]:
    """Labels from people, judge and rules together, and the judge's report where people audited enough of its pairs."""
    name = judging.rater_name(judge_runner.judge_settings(job.config.judge, job.run))
    word_counts = _word_counts(job, judgements)
    rows = calibration.audit_rows(judgements, name, propensity, word_counts)
    rate, n = agreement.pairwise_agreement([j for j in judgements if j.kind in rater_quality.PEOPLE])
    is_audited = len(rows) >= MIN_AUDITED
    calibrations = {name: calibration.calibrate(rows)} if is_audited else {}
    rater_accuracy = min(max(accuracy_ceiling(rate), 0.55), 1.0) if n else 1.0
    report = asdict(calibration.judge_report(rows, job.config.seed)) if is_audited else None
    gaps = {comparison: 2 * (a - b) / max(a + b, 1) for comparison, (a, b) in word_counts.items()}
    return blend.blend_labels(judgements, calibrations, rater_accuracy=rater_accuracy, gaps=gaps), report


def _word_counts(job: Job[LabelConfig], judgements: Sequence[Judgement]) -> dict[str, tuple[int, int]]:
    """The number of words of both answers, for every judged comparison."""
    names = {j.comparison for j in judgements}
    comparisons = [c for c in job.store.comparisons() if c.id in names]
    return {c.id: (len(a.text.split()), len(b.text.split())) for c, _, a, b in job.store.answers_of(comparisons)}


def _require_min_labels(
    job: Job[LabelConfig], comparisons: Sequence[Comparison], judgements: Sequence[Judgement], labels: Sequence[Label]
) -> None:
    """Require `preferences.min_labels` decided labels: raise Waiting if people can still add some, else DataError."""
    raters = job.config.preferences.raters
    needed = job.config.preferences.min_labels
    count = Counter(label.choice for label in labels)
    decided = count["a"] + count["b"]
    if decided >= needed:
        return
    value = f"labels: {decided} of {needed} decided"
    if raters in ("people", "blend") and _has_open_seats(job, comparisons, judgements):
        by_hand = (
            f"`towpath label export {job.run} --to pairs.jsonl`, fill in `choice`, `towpath label import {job.run} "
            "pairs.jsonl`"
        )
        fix = f"`towpath serve {job.run}` opens the rating page; or {by_hand}; then `towpath run {job.run}`"
        raise Waiting(value, "preferences.min_labels", fix)
    unjudged = {c.id for c in comparisons} - {j.comparison for j in judgements}
    undecided = f"{count['tie']} ties, {count['both_bad']} both bad, {len(unjudged)} without a judgement"
    value += f", and no more will come of {len(comparisons)} comparisons: {undecided}"
    judge_findings = [finding for finding in job.findings if finding.code == "judge"]
    rule = "; ".join(["preferences.min_labels decided labels are needed", *(f.evidence for f in judge_findings)])
    raise DataError(value, rule, judge_findings[0].remedy if judge_findings else _more_labels(raters))


def _has_open_seats(job: Job[LabelConfig], comparisons: Sequence[Comparison], judgements: Sequence[Judgement]) -> bool:
    """Whether a comparison has fewer judgements by people than seats."""
    raters = {(j.comparison, j.rater) for j in judgements if j.kind in rater_quality.PEOPLE}
    count = Counter(comparison for comparison, _ in raters)
    seats = job.store.read(rater_stats.open_task_seats)
    return any(seats.get(c.id, 0) > count[c.id] for c in comparisons)


def _more_labels(raters: str) -> str:
    """How to get more decided labels, by who judges."""
    if raters == "recorded":
        return "add preferences, or lower preferences.min_labels"
    fix = "lower preferences.min_labels, or sample more pairs: preferences.prompts, preferences.completions"
    if raters == "judge":
        fix += "; a judge that follows the order of the answers gives ties: try another judge.model or judge.rubric"
    return fix


def _summarise(
    comparisons: Sequence[Comparison], judgements: Sequence[Judgement], labels: Sequence[Label]
) -> dict[str, Any]:
    rate, n = agreement.pairwise_agreement([j for j in judgements if j.kind in rater_quality.PEOPLE])
    kinds = {j.rater: j.kind for j in judgements}
    decided = {label.comparison for label in labels if label.choice in ("a", "b")}
    return {
        "comparisons": len(comparisons),
        "judgements": len(judgements),
        "decided": len(decided),
        "decided_answers": len({name for c in comparisons if c.id in decided for name in (c.a, c.b)}),
        "ties": sum(label.choice == "tie" for label in labels),
        "both_bad": sum(label.choice == "both_bad" for label in labels),
        "agreement": {"rate": rate, "n": n},
        "ceiling": accuracy_ceiling(rate) if n else None,
        "disputed": len(blend.find_disputes(judgements, labels)),
        "cost": sum(j.cost for j in judgements),
        "raters": kinds,
        "simulated": "simulated" in kinds.values(),
    }


def labels_json(labels: Sequence[Label]) -> Iterator[str]:
    """The content of labels.json, a label at a time: what `json.dumps` makes of all of them."""
    ordered = sorted(labels, key=lambda label: label.comparison)
    for i, label in enumerate(ordered):
        yield (",\n" if i else "[\n") + json.dumps(as_row(label), indent=0)
    yield "\n]" if ordered else "[]"


def restore(folder: Path, store: Store) -> bool:
    """Restore a damaged labels.json from the ledger; false if that does not give the bytes of its checksum."""
    record = manifest.read(folder)
    prefixes = tuple(
        fingerprint[:6] + "." for name, fingerprint in record["inputs"].items() if name.startswith("sample")
    )
    labels = [label for label in store.labels() if not prefixes or label.comparison.startswith(prefixes)]
    digest = hashlib.sha256()
    for part in labels_json(labels):
        digest.update(part.encode())
    if digest.hexdigest() != record["files"].get(LABELS, {}).get("sha256"):
        return False
    replace_file(folder / LABELS, labels_json(labels))
    return True


def run_comparisons(job: Job[LabelConfig]) -> list[Comparison]:
    """The comparisons of this run's sample stages, in all rounds up to this one."""
    prefixes = {path.name[:6] for stage, path in job.inputs.items() if stage.startswith("sample")}
    return [c for c in job.store.comparisons() if c.id.split(".")[0] in prefixes]
