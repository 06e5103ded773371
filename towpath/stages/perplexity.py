"""What models make of demonstrations they never learned from: the first thing that a policy loses when it forgets."""

import math

from towpath.data.batch import Batch, make_row
from towpath.data.draws import hash_uniform
from towpath.runtime.local import Local
from towpath.stages.job import Job


def heldout(job: Job) -> Batch | None:
    """The demonstrations that fine-tuning kept for validation; None where there are none."""
    demonstrations = {d.id: d for d in job.corpus.demonstrations}
    kept = sorted(demonstrations, key=lambda name: hash_uniform(job.recipe.seed, "sft/validation", name))
    cut = max(1, round(job.recipe.sft.validation * len(kept)))
    rows = [
        make_row(job.chat.prompt(d.prompt), job.chat.answer(d.response))
        for d in (demonstrations[name] for name in kept[:cut])
    ]
    return Batch(rows) if rows else None


def of(runtime: Local, role: str, held: Batch) -> float:
    """Perplexity a token at temperature 1, whatever temperature the runtime draws at."""
    plain = Local(runtime.tokens_per_pass, pad=runtime.pad)
    plain.trunks = runtime.trunks
    plain.roles = runtime.roles
    out = plain.score(role, held, ("logp",))
    return math.exp(-float(out.logp_BT[out.mask_BT].double().mean()))
