"""Reasoning text of an answer: what stands before the answer proper between markers such as <think> and </think>."""

from collections.abc import Iterator

MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Opening and closing markers of models and templates in use."""


def split_reasoning(text: str) -> tuple[str, str]:
    """The reasoning of an answer, without its markers, and the answer proper.

    A closing marker without an opening one ends reasoning that the chat template opened. Reasoning that does not end
    leaves an empty answer.
    """
    body = text.lstrip()
    for opening, closing in MARKERS:
        if body.startswith(opening):
            reasoning, _, answer = body[len(opening) :].partition(closing)
            return reasoning.strip(), answer.strip()
        before, closed, answer = body.partition(closing)
        if closed and opening not in before:
            return before.strip(), answer.strip()
    return "", text


def final_answer(text: str) -> str:
    """The answer without its reasoning."""
    return split_reasoning(text)[1]


def markers_in(text: str) -> Iterator[str]:
    """The markers that a text contains."""
    return (marker for pair in MARKERS for marker in pair if marker in text)
