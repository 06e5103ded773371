"""Judgements into the ledger: by a simulated rater, or by people whom the run waits for."""

from typing import Any

from towpath.data.draws import share
from towpath.errors import Waiting
from towpath.feedback import aggregation, agreement, simulated
from towpath.records import Comparison
from towpath.stages.job import Job


def run(job: Job) -> dict[str, Any]:
    """Collect judgements for the comparisons of this run, then derive the labels."""
    comparisons = mine(job)
    if job.recipe.preferences.raters == "simulated":
        _simulate(job, comparisons)
    ours = {c.id for c in comparisons}
    judgements = [j for j in job.store.judgements() if j.comparison in ours]
    labels = aggregation.majority(judgements)
    decided = [label for label in labels if label.choice in ("a", "b")]
    needed = job.recipe.preferences.min_labels
    if len(decided) < needed:
        label = f"`towpath label export {job.run} --to pairs.jsonl`, fill in `choice`, `towpath label import {job.run} pairs.jsonl`"
        fix = f"{label}, then `towpath run {job.run}`"
        raise Waiting(f"labels: {len(decided)} of {needed} decided", "preferences.min_labels", fix)
    job.store.put_labels(labels)
    rate, n = agreement.pairwise_agreement(judgements)
    kinds = {j.rater: j.kind for j in judgements}
    return {
        "comparisons": len(comparisons), "judgements": len(judgements), "decided": len(decided),
        "ties": sum(label.choice == "tie" for label in labels), "both_bad": sum(label.choice == "both_bad" for label in labels),
        "agreement": {"rate": rate, "n": n}, "ceiling": agreement.ceiling(rate) if n else None,
        "raters": kinds, "simulated": "simulated" in kinds.values(),
    }  # fmt: skip


def mine(job: Job) -> list[Comparison]:
    """Comparisons that the sample stages of this very recipe made, in all rounds so far."""
    prefixes = {path.name[:6] for stage, path in job.inputs.items() if stage.startswith("sample")}
    return [c for c in job.store.comparisons() if c.id.split(".")[0] in prefixes]


def _simulate(job: Job, comparisons: list[Comparison]) -> None:
    cfg, seed = job.recipe.preferences, job.recipe.seed
    completions, prompts = job.store.completions(), job.store.prompts()
    judged = {j.key for j in job.store.judgements()}
    made = []
    for c in comparisons:
        raters = ["simulated-1"] + (["simulated-2"] if share(seed, "overlap", c.id) < cfg.overlap else [])
        for rater in raters:
            a, b = ((completions[x].text, completions[x].finish == "stop") for x in (c.a, c.b))
            judgement = simulated.judge(c, prompts[c.prompt_id], a, b, rater, seed, cfg)
            if judgement.key not in judged:
                made.append(judgement)
    job.store.add_judgements(made)
