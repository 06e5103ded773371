"""Labelled pairs on which the reward model prefers the other answer: a label that slipped, or a model that learned
something else."""

import json
import math
from pathlib import Path
from typing import Any

from towpath.data.batch import Batch
from towpath.hashing import hash_uniform
from towpath.recipe.stage_configs import EvaluateConfig
from towpath.records import Comparison, Label
from towpath.rollout.reward_models import RewardModels
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import completion_row, read_labels
from towpath.store import manifest
from towpath.store.publish import replace_file

FILE = "disagreements.jsonl"


def write(job: Job[EvaluateConfig], models: RewardModels, reward: Path) -> dict[str, int]:
    """Ask the reward model about labelled pairs and keep those on which it says otherwise; how many it was asked
    about, and how many those are."""
    record = manifest.read(reward)
    chosen = _chosen(job, record)
    if not chosen:
        replace_file(job.folder / FILE, "")
        return {"asked": 0, "contradicted": 0}
    completions = job.store.completions()
    prompts = job.store.prompts()
    sides = [(c.a, c.b) if label.choice == "a" else (c.b, c.a) for c, label in chosen]
    rows = [
        completion_row(job, prompts[c.prompt_id], completions[name])
        for (c, _), pair in zip(chosen, sides, strict=True)
        for name in pair
    ]
    scores = models.score(Batch(rows), job.config.policy.rewards).score_B.tolist()
    rows_written: list[dict[str, Any]] = []
    for i, ((c, label), (better, other)) in enumerate(zip(chosen, sides, strict=True)):
        gap = (scores[2 * i + 1] - scores[2 * i]) * record["result"]["std"]
        if gap > 0:
            prompt = prompts[c.prompt_id]
            rows_written.append(
                {
                    "comparison": c.id,
                    "prompt": prompt.prompt,
                    "domain": prompt.domain,
                    "choice": label.choice,
                    "chosen": completions[better].text,
                    "rejected": completions[other].text,
                    "confidence": 1 / (1 + math.exp(-gap)),
                    "held": _held(job, c),
                }
            )
    rows_written.sort(key=lambda row: -row["confidence"])
    replace_file(job.folder / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_written))
    return {"asked": len(chosen), "contradicted": len(rows_written)}


def _chosen(job: Job[EvaluateConfig], record: dict[str, Any]) -> list[tuple[Comparison, Label]]:
    """Decided pairs of the reward model's own labels, people's where there are any; those it was not trained on
    first."""
    stage = next((name for name in reversed(record["inputs"]) if name.startswith("label")), "")
    folder = job.run / "stages" / stage / record["inputs"].get(stage, "")
    limit = job.config.evaluate.disagreements
    if not limit or not (folder / "labels.json").is_file():
        return []
    comparisons = {c.id: c for c in job.store.comparisons()}
    people = {j.comparison for j in job.store.judgements() if j.kind == "person"}
    decided = [
        (comparisons[label.comparison], label)
        for label in read_labels(folder)
        if label.choice in ("a", "b") and label.comparison in comparisons
    ]
    ours = [(c, label) for c, label in decided if c.id in people] or decided
    return sorted(
        ours, key=lambda pair: (not _held(job, pair[0]), hash_uniform(job.config.seed, "disagreements", pair[0].id))
    )[:limit]


def _held(job: Job[EvaluateConfig], comparison: Comparison) -> bool:
    """Whether the reward model was not trained on it."""
    return hash_uniform(job.config.seed, "reward/validation", comparison.prompt_id) < job.config.reward.validation
