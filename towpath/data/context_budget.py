"""Fit conversations to the limit of prompt tokens: the oldest turns are left out first, never the system prompt or the
last turn of the user."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

from towpath.data.corpus import Corpus
from towpath.data.texts import normalise
from towpath.records import Conversation, Demonstration, Finding, Prompt

R = TypeVar("R", Prompt, Demonstration)
TokenCount = Callable[[R], int]
"""Tokens of a record, with what must fit beside its prompt."""


def cut_corpus(
    corpus: Corpus,
    prompt_tokens: Callable[[Prompt], int],
    prompt_limit: int,
    row_tokens: Callable[[Demonstration], int],
    row_limit: int | None,
) -> Corpus:
    """The corpus with conversations that fit, and a finding on those that were cut."""
    prompts, prompt_cuts = _cut_all(corpus.prompts, prompt_tokens, prompt_limit)
    prompts, crossing = _without_crossing(prompts, prompt_cuts)
    safety, safety_cuts = _cut_all(corpus.safety, prompt_tokens, prompt_limit)
    rows, row_cuts = _cut_all(corpus.demonstrations, row_tokens, row_limit)
    cuts = prompt_cuts | safety_cuts
    findings = [
        *cut_findings("prompts", cuts.values(), f"data.max_prompt_tokens or the context, {prompt_limit}", list(cuts)),
        *cut_findings("demonstrations", row_cuts.values(), f"the model's context of {row_limit}", list(row_cuts)),
    ]
    if crossing:
        evidence = f"{len(crossing)} prompts are left out: once cut, they are prompts of the other split"
        cause = "what is trained on cannot be judged by"
        findings.append(Finding("history-cut", "warning", evidence, cause, "raise data.max_prompt_tokens"))
    if not findings:
        return corpus
    return replace(corpus, prompts=prompts, safety=safety, demonstrations=rows, findings=(*corpus.findings, *findings))


def _without_crossing(prompts: Sequence[Prompt], cuts: Collection[str]) -> tuple[tuple[Prompt, ...], list[str]]:
    """The prompts without those that became equal to one of the other split when they were cut, and their ids: training
    prompts first, so that the held-out ones stay."""
    if not cuts:
        return tuple(prompts), []
    dropped: list[str] = []
    for split in ("train", "heldout"):
        others = {normalise(p.text) for p in prompts if p.split != split and p.id not in dropped}
        dropped += [p.id for p in prompts if p.split == split and p.id in cuts and normalise(p.text) in others]
    return tuple(p for p in prompts if p.id not in dropped), dropped


def cut_messages(messages: Conversation, tokens: Callable[[Conversation], int], limit: int) -> Conversation:
    """The conversation with as many of its newest turns as fit; unchanged if its last turn alone does not fit."""
    first = next(i for i, message in enumerate(messages) if message.role == "user")
    for start in range(first, len(messages), 2):
        shorter = (*messages[:first], *messages[start:])
        if tokens(shorter) <= limit:
            return shorter
    return messages


def cut_history(record: R, tokens: TokenCount[R], limit: int) -> R:
    """The record with a conversation that fits."""

    def count(messages: Conversation) -> int:
        return tokens(replace(record, history=messages[:-1]))

    return replace(record, history=cut_messages(record.messages, count, limit)[:-1])


class HistoryCutter:
    """Cuts conversations to a limit, and counts those that were cut and their turns."""

    def __init__(self, tokens: Callable[[Conversation], int], limit: int) -> None:
        self.tokens = tokens
        self.limit = limit
        self.turns: dict[Conversation, int] = {}
        """Turns left out of each conversation that was cut."""

    def __call__(self, messages: Conversation) -> Conversation:
        if len(messages) == 1:
            return messages
        shorter = cut_messages(messages, self.tokens, self.limit)
        if len(shorter) < len(messages):
            self.turns[messages] = len(messages) - len(shorter)
        return shorter


def _cut_all(records: Sequence[R], tokens: TokenCount[R], limit: int | None) -> tuple[tuple[R, ...], dict[str, int]]:
    """The records with conversations that fit, and the number of turns left out of each by id."""
    if limit is None:
        return tuple(records), {}
    fitted = tuple(cut_history(record, tokens, limit) if record.history else record for record in records)
    turns = {after.id: len(before.history) - len(after.history) for before, after in zip(records, fitted, strict=True)}
    return fitted, {name: count for name, count in turns.items() if count}


def cut_findings(what: str, turns: Collection[int], limit: str, names: Sequence[str] = ()) -> list[Finding]:
    """A finding on conversations that were cut, with the number of turns left out of each."""
    if not turns:
        return []
    listed = f": {', '.join(names[:8])}{', …' * (len(names) > 8)}" if names else ""
    evidence = f"{len(turns)} {what} are cut to {limit} tokens: their {sum(turns)} oldest turns are left out{listed}"
    remedy = "raise data.max_prompt_tokens if the model should see whole conversations"
    return [Finding("history-cut", "warning", evidence, "a conversation is longer than the limit", remedy)]
