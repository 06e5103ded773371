"""Demonstrations as rows with a weight for each token, and the perplexity of those that are held out.

B rows, T tokens from the first answer that is trained on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat, turn_text
from towpath.hashing import hash_uniform
from towpath.reasoning import split_reasoning
from towpath.recipe import Sft
from towpath.records import Demonstration
from towpath.runtime.contract import Runtime

NOT_A_PREFIX = "the chat template renders earlier turns in another way once the conversation goes on"


def split_demonstrations(
    demonstrations: Sequence[Demonstration], seed: int, validation: float
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Demonstrations to train on and held-out ones, at least one."""
    by_id = {d.id: d for d in demonstrations}
    order = sorted(by_id, key=lambda name: hash_uniform(seed, "sft/validation", name))
    cut = max(1, round(validation * len(order)))
    return [by_id[name] for name in sorted(order[cut:])], [by_id[name] for name in order[:cut]]


@dataclass(frozen=True, slots=True)
class TrainedRow:
    """Tokens of a conversation, and which of those from `row.start` on are trained on."""

    row: Row
    trained: np.ndarray
    problem: str = ""
    """Why earlier answers are not trained on, although the recipe asks for them."""


def demonstration_batch(
    chat: Chat, demonstrations: Sequence[Demonstration], cfg: Sft, domains: Mapping[str, float] | None = None
) -> Batch:
    """Demonstrations as rows with the column `weight` [B,T]: the weight of the domain on tokens that are trained on, 0
    elsewhere."""
    rows = [demonstration_row(chat, d, cfg) for d in demonstrations]
    longest = max((len(one.trained) for one in rows), default=0)
    weight_BT = np.zeros((len(rows), longest), dtype=np.float32)
    for b, (one, d) in enumerate(zip(rows, demonstrations, strict=True)):
        weight_BT[b, : len(one.trained)] = one.trained * (domains or {}).get(d.domain, 1.0)
    return Batch([one.row for one in rows], {"weight": torch.from_numpy(weight_BT)})


def demonstration_row(chat: Chat, demonstration: Demonstration, cfg: Sft) -> TrainedRow:
    """The conversation of a demonstration; trained on are the response, and with `sft.turns = "all"` the earlier
    answers."""
    prompt = chat.prompt(demonstration.messages)
    ids = np.asarray([*prompt, *chat.answer(demonstration.response)], dtype=np.int64)
    trained = np.zeros(len(ids), dtype=bool)
    trained[len(prompt) :] = True
    if cfg.reasoning == "mask":
        trained[len(prompt) : len(prompt) + _reasoning_length(chat, demonstration.response)] = False
    start = len(prompt)
    problem = ""
    if cfg.turns == "all":
        spans = earlier_answers(chat, demonstration, ids)
        problem = NOT_A_PREFIX if spans is None else ""
        for begin, end in spans or ():
            trained[begin:end] = True
            start = min(start, begin)
    return TrainedRow(Row(ids, start), trained[start:], problem)


def earlier_answers(chat: Chat, demonstration: Demonstration, ids: np.ndarray) -> list[tuple[int, int]] | None:
    """Begin and end of every earlier answer in the tokens of a conversation; None if the tokens of a turn with what
    comes before it are not a prefix of the whole."""
    spans = []
    for number, message in enumerate(demonstration.history):
        if message.role != "assistant":
            continue
        before = chat.prompt(demonstration.history[:number])
        answer = chat.answer(turn_text(message))
        end = len(before) + len(answer)
        if ids[:end].tolist() != [*before, *answer]:
            return None
        spans.append((len(before), end))
    return spans


def _reasoning_length(chat: Chat, response: str) -> int:
    """Tokens of an answer up to the end of its reasoning, with the markers."""
    reasoning, answer = split_reasoning(response)
    if not reasoning:
        return 0
    whole = chat.answer(response)
    return len(whole) - len(_common_end(whole, chat.answer(answer)))


def _common_end(one: Sequence[int], other: Sequence[int]) -> Sequence[int]:
    """The longest end that two sequences share."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def perplexity(runtime: Runtime, role: str, batch: Batch) -> float:
    """Perplexity per token that is trained on, at temperature 1."""
    return math.exp(mean_loss(runtime, role, batch))


def mean_loss(runtime: Runtime, role: str, batch: Batch) -> float:
    """Mean of -log p over the tokens that are trained on."""
    out = runtime.score(role, batch, ("logp",))
    trained_BT = out.mask_BT & (batch.columns["weight"] > 0)
    return -float(out.logp_BT[trained_BT].double().mean())
