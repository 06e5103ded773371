"""Labelled pairs on which the reward model prefers the rejected answer: a wrong label, or a wrong reward model."""

import json
import math
from pathlib import Path
from typing import Any

from towpath.data.batch import Batch
from towpath.data.conversations import prompt_cells
from towpath.hashing import hash_uniform
from towpath.recipe.stage_configs import EvaluateConfig
from towpath.records import Comparison, Label
from towpath.rollout.reward_models import RewardScorer
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import LABELS, completion_row, is_held_out, read_labels
from towpath.stages.reward_scorer import answer_of
from towpath.store import manifest
from towpath.store.publish import replace_file

FILE = "disagreements.jsonl"


def write(job: Job[EvaluateConfig], models: RewardScorer, reward: Path) -> dict[str, int]:
    """Score labelled pairs and write those on which the reward model disagrees, the most confident first; returns how
    many were scored and written."""
    record = manifest.read(reward)
    pairs = _sampled_pairs(job, record)
    if not pairs:
        replace_file(job.folder / FILE, "")
        return {"asked": 0, "contradicted": 0}
    completions = job.store.completions()
    prompts = job.store.prompts()
    sides = [(c.a, c.b) if label.choice == "a" else (c.b, c.a) for c, label in pairs]
    # chosen and rejected answers alternate
    answers = [
        (prompts[c.prompt_id], completions[name]) for (c, _), pair in zip(pairs, sides, strict=True) for name in pair
    ]
    rows = [completion_row(job, prompt, completion) for prompt, completion in answers]
    texts = [answer_of(prompt, completion) for prompt, completion in answers]
    scores = models.score(Batch(rows), texts, job.config.policy.rewards).score_B.tolist()
    disagreements: list[dict[str, Any]] = []
    for i, ((c, label), (chosen, rejected)) in enumerate(zip(pairs, sides, strict=True)):
        # scores are normalised: times their standard deviation the difference is in log odds
        gap = (scores[2 * i + 1] - scores[2 * i]) * record["result"]["std"]
        if gap <= 0:
            continue
        prompt = prompts[c.prompt_id]
        disagreements.append(
            {
                "comparison": c.id,
                **prompt_cells(prompt),
                "domain": prompt.domain,
                "choice": label.choice,
                "chosen": completions[chosen].text,
                "rejected": completions[rejected].text,
                "confidence": 1 / (1 + math.exp(-gap)),
                "held": is_held_out(job.config, prompt),
            }
        )
    disagreements.sort(key=lambda row: -row["confidence"])
    replace_file(job.folder / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in disagreements))
    return {"asked": len(pairs), "contradicted": len(disagreements)}


def _sampled_pairs(job: Job[EvaluateConfig], record: dict[str, Any]) -> list[tuple[Comparison, Label]]:
    """At most `evaluate.disagreements` decided pairs of the reward model's labels, held-out pairs first; only pairs
    that people judged, if there are any."""
    stage = next((name for name in reversed(record["inputs"]) if name.startswith("label")), "")
    folder = job.run / "stages" / stage / record["inputs"].get(stage, "")
    limit = job.config.evaluate.disagreements
    if not limit or not (folder / LABELS).is_file():
        return []
    prompts = job.store.prompts()
    comparisons = {c.id: c for c in job.store.comparisons()}
    people = {j.comparison for j in job.store.judgements() if j.kind == "person"}
    decided = [
        (comparisons[label.comparison], label)
        for label in read_labels(folder)
        if label.choice in ("a", "b") and label.comparison in comparisons
    ]
    candidates = [(c, label) for c, label in decided if c.id in people] or decided

    def order(pair: tuple[Comparison, Label]) -> tuple[bool, float]:
        comparison = pair[0]
        draw = hash_uniform(job.config.seed, "disagreements", comparison.id)
        return not is_held_out(job.config, prompts[comparison.prompt_id]), draw

    return sorted(candidates, key=order)[:limit]
