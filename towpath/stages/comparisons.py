"""Judged pairs for algorithms that learn from them directly: batches, and how held-out pairs fare."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towpath.algos.contract import means
from towpath.data.batch import Batch, Row
from towpath.data.draws import hash_uniform
from towpath.data.intervals import wilson
from towpath.errors import DataError
from towpath.runtime.local import Local
from towpath.stages.job import Job
from towpath.stages.loop import minibatches
from towpath.stages.reward import Pair, completion_row, decided

Numbers = dict[str, float]


class Comparisons:
    """Pairs as rows, the chosen first; or, for algorithms that take answers one by one, rows called desirable or
    not."""

    def __init__(self, job: Job, runtime: Local, algo: Any) -> None:
        self.job = job
        self.runtime = runtime
        self.algo = algo
        self.cfg = job.recipe.policy
        self.paired = getattr(algo, "PAIRED", True)
        seed = job.recipe.seed
        pairs = decided(job)
        place = {p.prompt.id: hash_uniform(seed, "reward/validation", p.prompt.id) for p in pairs}
        # of few prompts one at least
        within = max(job.recipe.reward.validation, min(place.values(), default=0.0) + 1e-12)
        held, shown = ([p for p in pairs if (place[p.prompt.id] < within) == kept] for kept in (True, False))
        if not held or not shown:
            fix = "collect more labels, or change reward.validation"
            raise DataError(
                f"{len(shown)} pairs to train on and {len(held)} held out",
                "both must hold pairs; prompts do not cross the split",
                fix,
            )
        self.shown, self.held, self.judged = self._batch(shown), self._batch(held), len(held)
        size = max(1, self.cfg.batch // 2) if self.paired else self.cfg.batch
        self.steps = minibatches(self.shown.groups, size, self.cfg.epochs, seed, f"{job.name}/order")

    def _batch(self, pairs: list[Pair]) -> Batch:
        rows = [completion_row(self.job, p.prompt, c) for p in pairs for c in (p.chosen, p.rejected)]
        batch = self.runtime.grounded(Batch(rows, {}, () if not self.paired else (2,) * len(pairs)))
        with torch.no_grad():
            ref_logp_BT = self.runtime.score("reference", batch, ("logp",)).logp_BT
        desirable_B = torch.arange(len(rows), device=self.runtime.device) % 2 == 0
        return batch.with_columns(ref_logp=ref_logp_BT, desirable=desirable_B)

    def batch(self, step: int, _knobs: Numbers) -> tuple[Batch, Numbers]:
        """The pairs of a step."""
        return self._pointed(self.shown.take(self.steps[step])), {}

    def validate(self) -> Numbers:
        """Loss, accuracy and margins of held-out pairs."""
        runtime = self.runtime
        batch = self._pointed(self.held)
        metrics: dict[str, tuple[float, float]] = {}
        with torch.no_grad():
            for part in batch.micro_batches(runtime.tokens_per_pass):
                out = runtime.forward("policy", part, ("logp",))
                for name, (total, weight) in self.algo.loss(out, part, self.cfg, {})[1].items():
                    before = metrics.get(name, (0.0, 0.0))
                    metrics[name] = before[0] + total, before[1] + weight
        found = means(metrics)
        low, high = wilson(found["accuracy"] * self.judged, self.judged)
        return {f"pairs_{name}": x for name, x in found.items()} | {"pairs_low": low, "pairs_high": high}

    def _pointed(self, batch: Batch) -> Batch:
        """With the reference point, where answers come one by one: the mean log-ratio of answers put under other
        prompts, at least zero; zero where all are to one prompt."""
        if self.paired:
            return batch
        mixed = crossed(batch.rows)
        if not mixed:
            return batch.with_columns(point=torch.zeros(len(batch), device=self.runtime.device))
        said = self.runtime.grounded(Batch(mixed))
        with torch.no_grad():
            ours, theirs = (self.runtime.score(name, said, ("logp",)) for name in ("policy", "reference"))
        gap_B: Tensor = torch.where(ours.mask_BT, ours.logp_BT - theirs.logp_BT, 0.0).sum(1)
        return batch.with_columns(point=gap_B.mean().clamp(min=0.0).expand(len(batch)).clone())


def crossed(rows: Sequence[Row]) -> list[Row]:
    """Every answer under the nearest prompt before it, round the circle, that is another than its own; nothing where
    there is no other."""
    asked = [row.ids[: row.start] for row in rows]
    names = [prompt.tobytes() for prompt in asked]
    if len(set(names)) < 2:
        return []
    found = []  # of the last row, round the circle
    before = max(i for i, name in enumerate(names) if name != names[-1]) - len(rows)
    for i, row in enumerate(rows):
        before = i - 1 if names[i - 1] != names[i] else before
        found.append(Row(np.concatenate([asked[before], row.ids[row.start :]]), len(asked[before])))
    return found
