"""Requeue completions that exploit the reward model: people compare them with those from before training."""

from typing import Any

from towpath.recipe.stage_configs import StageConfig
from towpath.records import Comparison, Completion, Finding
from towpath.stages.job import Job
from towpath.store import jsonl, manifest
from towpath.store.task_queue import Task

CODES = ("reward-hacking", "length-hacking")
MAX_PAIRS = 20


def requeue_hacked_samples(job: Job[StageConfig], stopped: str) -> int:
    """Add the highest-scored completions of the last validation to the rating queue, if training stopped because of
    reward hacking; returns their number."""
    sample_prefix = _sample_prefix(job)
    if not stopped.startswith(CODES) or not sample_prefix:
        return 0
    rows = jsonl.read(job.folder / "samples.jsonl")
    last = max(row["step"] for row in rows)
    initial = {row["prompt_id"]: row["text"] for row in rows if row["step"] == -1}
    ranked = sorted((row for row in rows if row["step"] == last and "score" in row), key=lambda row: -row["score"])
    pairs = [row for row in ranked if initial.get(row["prompt_id"], row["text"]) != row["text"]][:MAX_PAIRS]
    prefix = f"{sample_prefix}.exploited.{job.folder.name[:6]}"
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
        f"the {len(pairs)} answers with the highest reward are in the rating queue, each beside the answer from before "
        "training"
    )
    remedy = (
        f"judge them (`towpath serve {job.run}`, `towpath label judge`); `towpath run {job.run}` then runs labels, "
        "reward model and policy again"
    )
    job.findings.append(
        Finding("exploited-queued", "info", evidence, "the reward model was not trained on such answers", remedy)
    )
    return len(pairs)


def _sample_prefix(job: Job[StageConfig]) -> str:
    """The prefix of comparison ids of the sample stage that the reward model was trained on; empty without one."""
    reward = next((folder for name, folder in reversed(job.inputs.items()) if name.startswith("reward")), None)
    if reward is None or not (reward / "manifest.json").is_file():
        return ""
    inputs: dict[str, Any] = manifest.read(reward).get("inputs", {})
    return next(
        (str(fingerprint)[:6] for name, fingerprint in reversed(inputs.items()) if name.startswith("sample")), ""
    )
