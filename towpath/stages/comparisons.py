"""Batches of labelled pairs for DPO, IPO, KTO and ORPO, and metrics of held-out pairs.

B rows, T answer tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towpath.algos.contract import means
from towpath.data.batch import Batch, Row
from towpath.data.intervals import wilson
from towpath.recipe.stage_configs import PolicyConfig
from towpath.runtime.contract import Loss, Runtime
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import Pair, completion_row, decided_pairs, split_pairs
from towpath.stages.loop import minibatches

Numbers = dict[str, float]


class Comparisons:
    """Pairs as two rows, the chosen one first; for unpaired algorithms (KTO) as single rows, desirable or not."""

    def __init__(self, job: Job[PolicyConfig], runtime: Runtime, algo: Any) -> None:
        self.job = job
        self.runtime = runtime
        self.algo = algo
        self.config = job.config.policy
        self.paired = getattr(algo, "PAIRED", True)
        training, held_out = split_pairs(job, decided_pairs(job), at_least_one_prompt=True)
        self.training = self._batch(training)
        self.held_out = self._batch(held_out)
        self.held_out_pairs = len(held_out)
        size = max(1, self.config.batch // 2) if self.paired else self.config.batch
        seed = job.config.seed
        self.steps = minibatches(self.training.groups, size, self.config.epochs, seed, f"{job.name}/order")

    def _batch(self, pairs: list[Pair]) -> Batch:
        rows = [completion_row(self.job, p.prompt, c) for p in pairs for c in (p.chosen, p.rejected)]
        sizes = (2,) * len(pairs) if self.paired else ()
        batch = self.runtime.cache_frozen_prefix(Batch(rows, {}, sizes), "reference")
        ref_logp_BT = self.runtime.score("reference", batch, ("logp",), self.config.temperature).logp_BT
        return batch.with_columns(ref_logp=ref_logp_BT, desirable=torch.arange(len(rows)) % 2 == 0)

    def batch(self, step: int, _knobs: Numbers) -> tuple[Batch, Numbers]:
        """The batch of a step."""
        return self._with_reference_point(self.training.take(self.steps[step])), {}

    def validate(self) -> Numbers:
        """Loss, accuracy and margins of held-out pairs."""
        loss = Loss(self.algo.__name__, self.config.model_dump())
        batch = self._with_reference_point(self.held_out)
        metrics = means(self.runtime.forward({"policy": ("logp",)}, batch, loss, self.config.temperature))
        low, high = wilson(metrics["accuracy"] * self.held_out_pairs, self.held_out_pairs)
        return {f"pairs_{name}": x for name, x in metrics.items()} | {"pairs_low": low, "pairs_high": high}

    def _with_reference_point(self, batch: Batch) -> Batch:
        """For unpaired algorithms, add KTO's reference point: the mean log-ratio of mismatched answers, clamped at
        zero; zero if all rows have one prompt."""
        if self.paired:
            return batch
        mismatched = mismatch_prompts(batch.rows)
        if not mismatched:
            return batch.with_columns(point=torch.zeros(len(batch)))
        rows = self.runtime.cache_frozen_prefix(Batch(mismatched), "reference")
        policy, reference = (
            self.runtime.score(role, rows, ("logp",), self.config.temperature) for role in ("policy", "reference")
        )
        log_ratio_B: Tensor = torch.where(policy.mask_BT, policy.logp_BT - reference.logp_BT, 0.0).sum(1)
        return batch.with_columns(point=log_ratio_B.mean().clamp(min=0.0).expand(len(batch)).clone())


def mismatch_prompts(rows: Sequence[Row]) -> list[Row]:
    """Every answer under the nearest earlier prompt, cyclically, that is not its own; empty if all prompts are
    equal."""
    prompts = [row.ids[: row.start] for row in rows]
    names = [prompt.tobytes() for prompt in prompts]
    if len(set(names)) < 2:
        return []
    mismatched = []
    before = max(i for i, name in enumerate(names) if name != names[-1]) - len(rows)
    for i, row in enumerate(rows):
        before = i - 1 if names[i - 1] != names[i] else before
        mismatched.append(Row(np.concatenate([prompts[before], row.ids[row.start :]]), len(prompts[before])))
    return mismatched
