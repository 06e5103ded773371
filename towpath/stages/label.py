"""Judgements into the ledger: by a simulated rater, or by people whom the run waits for."""

import hashlib
import json
from pathlib import Path
from typing import Any

from towpath.data.draws import share
from towpath.errors import Waiting
from towpath.feedback import aggregation, agreement, simulated
from towpath.records import Comparison, Judgement, Label, as_row
from towpath.stages.job import Job
from towpath.store.publish import replace_file


def run(job: Job) -> dict[str, Any]:
    """Collect judgements for the comparisons of this run, then derive the labels."""
    comparisons = mine(job)
    if job.recipe.preferences.raters == "simulated":
        _simulate(job, comparisons)
    ours = {c.id for c in comparisons}
    ours_only = set(_raters(job)) if job.recipe.preferences.raters == "simulated" else None
    judgements = [j for j in job.store.judgements() if j.comparison in ours and _counts(j, ours_only)]
    labels = aggregation.majority(judgements)
    decided = [label for label in labels if label.choice in ("a", "b")]
    needed = job.recipe.preferences.min_labels
    if len(decided) < needed:
        label = f"`towpath label export {job.run} --to pairs.jsonl`, fill in `choice`, `towpath label import {job.run} pairs.jsonl`"
        fix = f"{label}, then `towpath run {job.run}`"
        raise Waiting(f"labels: {len(decided)} of {needed} decided", "preferences.min_labels", fix)
    job.store.put_labels(labels)
    replace_file(job.folder / "labels.json", json.dumps([as_row(label) for label in labels], indent=0))
    rate, n = agreement.pairwise_agreement(judgements)
    kinds = {j.rater: j.kind for j in judgements}
    return {
        "comparisons": len(comparisons), "judgements": len(judgements), "decided": len(decided),
        "ties": sum(label.choice == "tie" for label in labels), "both_bad": sum(label.choice == "both_bad" for label in labels),
        "agreement": {"rate": rate, "n": n}, "ceiling": agreement.ceiling(rate) if n else None,
        "raters": kinds, "simulated": "simulated" in kinds.values(),
    }  # fmt: skip


def _raters(job: Job) -> list[str]:
    """Two simulated raters; other settings or another seed make other raters, so that nothing said before is taken for theirs."""
    cfg = job.recipe.preferences
    character = f"{job.recipe.seed}/{cfg.noise}/{cfg.tie_margin}/{cfg.both_bad}/{simulated.GUIDELINE}"
    mark = hashlib.blake2b(character.encode(), digest_size=3).hexdigest()
    return [f"simulated-{number}-{mark}" for number in (1, 2)]


def read(folder: Path) -> list[Label]:
    """The labels that a label stage derived."""
    return [Label(**row) for row in json.loads((folder / "labels.json").read_text())]


def mine(job: Job) -> list[Comparison]:
    """Comparisons that the sample stages of this very recipe made, in all rounds so far."""
    prefixes = {path.name[:6] for stage, path in job.inputs.items() if stage.startswith("sample")}
    return [c for c in job.store.comparisons() if c.id.split(".")[0] in prefixes]


def _counts(judgement: Judgement, raters: set[str] | None) -> bool:
    """With simulated raters theirs alone count; with people, every judgement that no simulation made."""
    return judgement.rater in raters if raters is not None else judgement.kind != "simulated"


def _simulate(job: Job, comparisons: list[Comparison]) -> None:
    cfg, seed = job.recipe.preferences, job.recipe.seed
    completions, prompts = job.store.completions(), job.store.prompts()
    judged = {j.key for j in job.store.judgements()}
    made = []
    for c in comparisons:
        raters = _raters(job)[: 1 + (share(seed, "overlap", c.id) < cfg.overlap)]
        for rater in raters:
            a, b = ((completions[x].text, completions[x].finish == "stop") for x in (c.a, c.b))
            judgement = simulated.judge(c, prompts[c.prompt_id], a, b, rater, seed, cfg)
            if judgement.key not in judged:
                made.append(judgement)
    job.store.add_judgements(made)
