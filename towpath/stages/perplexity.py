"""Perplexity of held-out demonstrations: what a policy that forgets loses first."""

import math

from towpath.data.batch import Batch, make_row
from towpath.data.draws import hash_uniform
from towpath.runtime.contract import Runtime
from towpath.stages.job import Job


def heldout_demonstrations(job: Job) -> Batch | None:
    """The demonstrations that supervised fine-tuning held out; None where there are none."""
    demonstrations = {d.id: d for d in job.corpus.demonstrations}
    order = sorted(demonstrations, key=lambda name: hash_uniform(job.recipe.seed, "sft/validation", name))
    cut = max(1, round(job.recipe.sft.validation * len(order)))
    chosen = [demonstrations[name] for name in order[:cut]]
    rows = [make_row(job.chat.prompt(d.prompt), job.chat.answer(d.response)) for d in chosen]
    return Batch(rows) if rows else None


def perplexity(runtime: Runtime, role: str, batch: Batch) -> float:
    """Perplexity per token, at temperature 1."""
    out = runtime.score(role, batch, ("logp",))
    return math.exp(-float(out.logp_BT[out.mask_BT].double().mean()))
