"""Why a text fails a quality filter: its length, repetition, symbols, or a banned pattern."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache

from towpath.recipe.data import Filters
from towpath.records import Demonstration, Prompt

N_GRAM = 4
PUNCTUATION = frozenset(".,;:!?'\"()[]-–—…’‘“”«»„/%&$€£°。、，！？：；「」（）")
"""What prose of any language holds beside letters, digits and spaces."""


def prompt_problem(prompt: Prompt | Demonstration, filters: Filters) -> str:
    """Why the prompt of a record is left out; empty if it is not."""
    length = len(prompt.text)
    if length < filters.min_characters:
        return f"a prompt shorter than data.filters.min_characters = {filters.min_characters} ({length})"
    if filters.max_characters and length > filters.max_characters:
        return f"a prompt longer than data.filters.max_characters = {filters.max_characters} ({length})"
    return _problem("prompt", prompt.text, filters)


def response_problem(demonstration: Demonstration, filters: Filters) -> str:
    """Why a demonstration is left out for its response; empty if it is not."""
    length = len(demonstration.response)
    if length < filters.min_response_characters:
        limit = f"data.filters.min_response_characters = {filters.min_response_characters}"
        return f"a response shorter than {limit} ({length})"
    if filters.max_response_characters and length > filters.max_response_characters:
        limit = f"data.filters.max_response_characters = {filters.max_response_characters}"
        return f"a response longer than {limit} ({length})"
    return _problem("response", demonstration.response, filters)


def _problem(what: str, text: str, filters: Filters) -> str:
    if filters.max_repetition < 1 and (share := repetition(text)) > filters.max_repetition:
        return (
            f"a {what} with more repetition than data.filters.max_repetition = {filters.max_repetition:g} ({share:.2f})"
        )
    if filters.max_symbols < 1 and (share := symbols(text)) > filters.max_symbols:
        return f"a {what} with more symbols than data.filters.max_symbols = {filters.max_symbols:g} ({share:.2f})"
    for pattern in filters.banned:
        if _compiled(pattern).search(text):
            return f"a {what} that matches data.filters.banned ({_plain(pattern)})"
    return ""


def repetition(text: str) -> float:
    """Share of words that lie in sequences of N_GRAM words which occur more than once."""
    words = text.casefold().split()
    counts = Counter(_grams(words))
    if not counts or max(counts.values()) == 1:
        return 0.0
    repeated: set[int] = set()
    for begin, gram in enumerate(_grams(words)):
        if counts[gram] > 1:
            repeated.update(range(begin, begin + N_GRAM))
    return len(repeated) / len(words)


def symbols(text: str) -> float:
    """Share of characters that are neither letters, digits, spaces nor usual punctuation."""
    if not text:
        return 0.0
    # marks combine with letters in many scripts
    odd = sum(not (c.isalnum() or c.isspace() or c in PUNCTUATION or _is_mark(c)) for c in text)
    return odd / len(text)


@cache
def _is_mark(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character).startswith("M")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _plain(pattern: str) -> str:
    """A pattern without brackets, by which reasons are grouped."""
    return pattern.replace("(", "").replace(")", "")


def _grams(words: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[begin : begin + N_GRAM]) for begin in range(len(words) - N_GRAM + 1))
