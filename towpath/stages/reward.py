"""Reward stage: train the reward model on labels, and measure it on held-out prompts.

B rows (answers), K models of the ensemble.
"""

import zipfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from towpath.data.batch import Batch
from towpath.evals import reward_accuracy as evals
from towpath.health.diagnosis import diagnose
from towpath.health.history import history_from_rows
from towpath.progress import print_note
from towpath.recipe import Rewards
from towpath.recipe.stage_configs import RewardConfig
from towpath.records import Completion, Finding, Prompt
from towpath.stages import evidence, pretrained_reward
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import Pair, completion_row, decided_pairs, split_pairs
from towpath.stages.people_accuracy import people_accuracy
from towpath.stages.reward_measure import answers_by_prompt, gaps, lengths, measure
from towpath.stages.reward_scorer import answer_of, open_reward_model
from towpath.stages.reward_training import FROZEN_FEATURES, train_member


def run(job: Job[RewardConfig]) -> dict[str, Any]:
    """Train the members of the ensemble, each with its own seed and data order, and measure their mean score."""
    cfg = job.config.reward
    if not cfg.is_trained:
        return pretrained_reward.run(job)
    training, held_out = split_pairs(job, decided_pairs(job))
    members = [train_member(job, number, training, held_out) for number in range(1, cfg.ensemble_size + 1)]
    scores_KB = np.stack([member.held_out_B for member in members])
    result = measure(job, held_out, scores_KB.mean(0), float(np.mean([member.std for member in members])))
    result |= {
        "train_accuracy": members[0].train_accuracy,
        "mean": members[0].mean,
        "std": members[0].std,
        "pairs": len(training),
    }
    if len(members) > 1:
        result["members"] = [float((gaps(held_out, scores_B) > 0).mean()) for scores_B in scores_KB]
        result["disagreement"] = float(scores_KB.std(0).mean())
    result["length_only_accuracy"] = evals.length_only_accuracy(*lengths(job, training), *lengths(job, held_out))
    result["train_validation_gap"] = result["train_accuracy"] - result["accuracy"]
    label_stage = next(stage for stage in reversed(job.inputs) if stage.startswith("label"))
    labels = job.result_of(label_stage)
    if result["accuracy"] < job.config.gates.reward.threshold:
        result["diagnosis"] = _diagnose_labels(job, training, held_out, labels["agreement"])
    result["ceiling"] = labels["ceiling"]
    result |= people_accuracy(job, partial(_scores, job))
    if job.config.health.act != "off":
        history = history_from_rows((), {f"reward.result.{key}": value for key, value in result.items()})
        job.findings += diagnose(history, job.config.health.limits)
    return result


def _scores(job: Job[RewardConfig], answers: Sequence[tuple[Prompt, Completion]]) -> np.ndarray:
    """Scores of answers by the reward model that this stage has saved."""
    model = open_reward_model(job, job.launch(training=False), job.folder)
    batch = Batch([completion_row(job, prompt, completion) for prompt, completion in answers])
    texts = [answer_of(prompt, completion) for prompt, completion in answers]
    return model.score(batch, texts, Rewards()).score_B.numpy()


def _diagnose_labels(
    job: Job[RewardConfig], training: list[Pair], held_out: list[Pair], agreement: dict[str, Any]
) -> dict[str, Any] | None:
    """Add a finding on why the accuracy is below the gate's threshold, from linear probes of the frozen features."""
    cfg = job.config
    path = job.folder / FROZEN_FEATURES
    if not path.is_file():
        return None
    try:
        arrays = np.load(path)
        features = {name: arrays[name] for name in ("shown", "held")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print_note(f"{path}: {error}: the labels are not diagnosed")
        return None
    probes = []
    for name, pairs in (("shown", training), ("held", held_out)):
        ordered = _in_row_order(pairs)[: len(features[name])]
        texts = [(p.chosen.text, p.rejected.text) for p in ordered]
        ids = [p.comparison.id for p in ordered]
        probes.append(evidence.pair_features(ids, features[name], texts, [p.label.strength for p in ordered]))
    rater_agreement = (agreement["rate"], agreement["n"]) if agreement["n"] else None
    ridge = cfg.reward.fit_head or 300.0
    target = cfg.gates.reward.threshold
    diagnosis = evidence.diagnose_labels(probes[0], probes[1], rater_agreement, target, ridge, cfg.seed)
    if diagnosis:
        cause = f"{diagnosis['verdict']} (from a linear probe of the frozen model)"
        evidence_text = "; ".join(diagnosis["evidence"])
        job.findings.append(Finding("reward-data", "warning", evidence_text, cause, diagnosis["action"]))
    return diagnosis


def _in_row_order(pairs: list[Pair]) -> list[Pair]:
    """Pairs in the order of `_differences`: by the row of the chosen answer, then by that of the rejected one. Of two
    pairs of the same answers the last counts."""
    groups = answers_by_prompt(pairs)
    row = {c: i for i, c in enumerate(c for group in groups.values() for c in group)}
    by_rows = {(row[p.chosen.id], row[p.rejected.id]): p for p in pairs}
    return sorted(by_rows.values(), key=lambda p: (row[p.chosen.id], row[p.rejected.id]))
