"""Perplexity of the demonstrations that supervised fine-tuning holds out."""

import math
from collections.abc import Sequence

from towpath.data.batch import Batch, make_row
from towpath.data.chat import Chat
from towpath.hashing import hash_uniform
from towpath.records import Demonstration
from towpath.runtime.contract import Runtime


def split_demonstrations(
    demonstrations: Sequence[Demonstration], seed: int, validation: float
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Demonstrations to train on and held-out ones, at least one."""
    by_id = {d.id: d for d in demonstrations}
    order = sorted(by_id, key=lambda name: hash_uniform(seed, "sft/validation", name))
    cut = max(1, round(validation * len(order)))
    return [by_id[name] for name in sorted(order[cut:])], [by_id[name] for name in order[:cut]]


def demonstration_batch(chat: Chat, demonstrations: Sequence[Demonstration]) -> Batch:
    """Demonstrations as rows; the loss covers the response."""
    return Batch([make_row(chat.prompt(d.prompt), chat.answer(d.response)) for d in demonstrations])


def perplexity(runtime: Runtime, role: str, batch: Batch) -> float:
    """Perplexity per token, at temperature 1."""
    out = runtime.score(role, batch, ("logp",))
    return math.exp(-float(out.logp_BT[out.mask_BT].double().mean()))
