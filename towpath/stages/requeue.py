"""Answers that a reward model was taken in by go back to people: beside the answer training began from, in the
rating queue."""

from typing import Any

from towpath.recipe.stage_configs import StageConfig
from towpath.records import Comparison, Completion, Finding
from towpath.stages.job import Job
from towpath.store import jsonl, manifest
from towpath.store.task_queue import Task

CODES = ("reward-hacking", "length-hacking")
MOST = 20


def put_back(job: Job[StageConfig], stopped: str) -> int:
    """Where training ended because the reward is exploited: the highest-scored answers of the last look, as new
    pairs. How many there are."""
    samples = _samples(job)
    if not stopped.startswith(CODES) or not samples:
        return 0
    rows = jsonl.read(job.folder / "samples.jsonl")
    last = max(row["step"] for row in rows)
    initial = {row["prompt_id"]: row["text"] for row in rows if row["step"] == -1}
    ranked = sorted((row for row in rows if row["step"] == last and "score" in row), key=lambda row: -row["score"])
    pairs = [row for row in ranked if initial.get(row["prompt_id"], row["text"]) != row["text"]][:MOST]
    prefix = f"{samples}.exploited.{job.folder.name[:6]}"
    completions = []
    comparisons = []
    for row in pairs:
        name = f"{prefix}.{row['prompt_id']}"
        for side, text, source in (("a", row["text"], "policy"), ("b", initial[row["prompt_id"]], "sft")):
            completions.append(Completion(f"{name}.{side}", row["prompt_id"], source, text, (), (), "stop"))
        comparisons.append(Comparison(name, row["prompt_id"], f"{name}.a", f"{name}.b", job.round))
    prompts = job.corpus.by_id
    job.store.add_prompts([prompts[c.prompt_id] for c in comparisons])
    job.store.add_completions(completions)
    job.store.add_comparisons(comparisons)
    job.store.add_tasks([Task(c.id, prompts[c.prompt_id].domain, "exploits the reward") for c in comparisons])
    evidence = (
        f"{len(pairs)} answers that the reward model scores highest are in the rating queue, each beside the one "
        "training began from"
    )
    remedy = (
        f"judge them (`towpath serve {job.run}`, `towpath label judge`); `towpath run {job.run}` then runs labels, "
        "reward model and policy again"
    )
    job.findings.append(
        Finding("exploited-queued", "info", evidence, "the reward model has not seen their like", remedy)
    )
    return len(pairs)


def _samples(job: Job[StageConfig]) -> str:
    """The mark of the comparisons this policy's reward model learned from."""
    reward = next((folder for name, folder in reversed(job.inputs.items()) if name.startswith("reward")), None)
    if reward is None or not (reward / "manifest.json").is_file():
        return ""
    inputs: dict[str, Any] = manifest.read(reward).get("inputs", {})
    return next(
        (str(fingerprint)[:6] for name, fingerprint in reversed(inputs.items()) if name.startswith("sample")), ""
    )
