"""Demonstrations as token rows: which tokens of a conversation are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from towpath.data.batch import Row
from towpath.data.chat import Chat, turn_text
from towpath.reasoning import split_reasoning
from towpath.recipe import Sft
from towpath.records import Demonstration, Finding

NOT_A_PREFIX = "the chat template renders earlier turns in another way once the conversation is longer"


@dataclass(frozen=True, slots=True)
class TrainedRow:
    """Tokens of a conversation, and which of those from `row.start` on are trained on."""

    row: Row
    trained: np.ndarray
    problem: str = ""
    """Why earlier answers are not trained on, although the recipe asks for them."""


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


def turn_findings(last_only: Sequence[str], count: int) -> list[Finding]:
    """A finding on conversations of which only the last answer is trained on."""
    if not last_only:
        return []
    names = ", ".join(last_only[:8]) + (", …" if len(last_only) > 8 else "")
    evidence = f"{len(last_only)} of {count} demonstrations train on their last answer only: {names}"
    remedy = "use model.template = 'chatml', or set sft.turns = 'last'"
    return [Finding("sft-turns", "warning", evidence, NOT_A_PREFIX, remedy)]
