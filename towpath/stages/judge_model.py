"""Judge model stage: train the held-out reward model of the evaluation on labels that are reserved for it, and measure
how far it can be trusted."""

from typing import Any

from towpath.hashing import hash_uniform
from towpath.recipe.stage_configs import RewardConfig
from towpath.records import Finding
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import Pair, is_reserved, labelled_pairs, split_pairs
from towpath.stages.reward_measure import measure
from towpath.stages.reward_scorer import judge_model_job
from towpath.stages.reward_training import train_member

MIN_PAIRS = 40
"""Reserved pairs below which there is no judge."""
MAX_MEASURED = 600
"""Pairs that it is measured on: enough for an interval of four points to either side."""
MORE = "raise evaluate.reserved_labels, or add labels"


def run(job: Job[RewardConfig]) -> dict[str, Any]:
    """Train one reward model on the reserved pairs, and measure it on held-out ones and on those that the policy's
    reward model is trained on, which it has not seen."""
    job = judge_model_job(job)
    pairs: list[Pair] = []
    others: list[Pair] = []
    for pair in labelled_pairs(job):
        (pairs if is_reserved(job.config, pair.prompt) else others).append(pair)
    if len(pairs) < MIN_PAIRS:
        unfit = f"{len(pairs)} reserved labels, and a held-out reward model needs {MIN_PAIRS}: {MORE}"
        job.findings.append(_finding(unfit))
        return {"pairs": len(pairs), "unfit": unfit}
    training, held_out = split_pairs(job, pairs, at_least_one_prompt=True)
    others.sort(key=lambda pair: hash_uniform(job.config.seed, "evaluate/measured", pair.comparison.id))
    others = others[: max(MAX_MEASURED - len(held_out), 0)]
    member = train_member(job, 1, training, held_out, others)
    result = measure(job, held_out + others, member.held_out_B, member.std)
    result |= {
        "reserved": len(pairs),
        "pairs": len(training),
        "train_accuracy": member.train_accuracy,
        "mean": member.mean,
        "std": member.std,
    }
    low, high = result["interval"]
    result["unfit"] = ""
    if low <= 0.5:
        accuracy = (
            f"{result['accuracy']:.0%} of {result['n']} labels that it was not trained on [{low:.0%}, {high:.0%}]"
        )
        result["unfit"] = f"the held-out reward model is right on {accuracy}, which may be chance: {MORE}"
        job.findings.append(_finding(result["unfit"]))
    return result


def _finding(unfit: str) -> Finding:
    cause = "a judge that guesses gives a win rate near one half, whatever the policy learned"
    return Finding("weak-judge", "warning", unfit, cause, "or choose another judge: evaluate.judges")
