"""Token counts of prompts and answers, cached in the run folder, and records that exceed a limit."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from towpath.data.chat import Chat, Prompted, as_messages
from towpath.data.context_budget import cut_corpus
from towpath.data.corpus import Corpus
from towpath.data.count_cache import CountCache, text_key
from towpath.data.file_cache import code_fingerprint
from towpath.data.refused_rows import Part, RefusedRow, refused_row
from towpath.data.template_renderer import TemplateFailed
from towpath.progress import progress
from towpath.recipe import Recipe
from towpath.records import Demonstration, Prompt, transcript

R = TypeVar("R", bound=Prompt | Demonstration)

ROWS_AT_ONCE = 4096
TEMPLATE_REASON = "the chat template does not render a conversation with these roles"
UNRENDERABLE = -1
"""The count of a conversation that the chat template cannot render."""

Limit = Literal["prompt", "context", "row", "template"]


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """Token limits of a prompt, of a prompt with a new answer, and of a prompt with its demonstration."""

    prompt: int
    new_tokens: int
    context: int | None


@dataclass(frozen=True, slots=True)
class TooLong:
    """A record that exceeds a limit."""

    part: Part
    id: str
    tokens: int
    limit: Limit
    reason: str


def limits_of(recipe: Recipe, context: int | None) -> LengthLimits:
    """The limits of a recipe with a model of `context` tokens."""
    longest = max(recipe.policy.max_new_tokens, recipe.preferences.max_new_tokens, recipe.evaluate.max_new_tokens)
    return LengthLimits(recipe.data.max_prompt_tokens, longest, context)


def model_key(recipe: Recipe) -> str:
    """Identifies the tokenizer and the template of a recipe."""
    return f"{recipe.model.source} {recipe.model.template}"


class TokenLengths:
    """Token counts by text. Without a chat only cached counts are known; others are None, or 0 in an array."""

    def __init__(
        self, chat: Chat | None, cache: Path | None = None, model: str = "", context: int | None = None
    ) -> None:
        self._chat = chat
        tokenizer = _fingerprint(chat) if chat else None
        self._counts = CountCache(cache, {"tokenizer": tokenizer, "model": model, "context": context})
        self.context: int | None = context if chat else self._counts.head.get("context")

    def prompt(self, prompt: Prompted) -> int | None:
        """Tokens of a prompt, including the template; UNRENDERABLE if the template refuses the conversation."""
        chat = self._chat
        return self._count(_prompt_key(prompt), (lambda: prompt_tokens(chat, prompt)) if chat else None)

    def answer(self, text: str) -> int | None:
        """Tokens of an answer, including EOS."""
        chat = self._chat
        return self._count(text_key("a", text), (lambda: len(chat.answer(text))) if chat else None)

    def prompts(self, records: Sequence[Prompt | Demonstration]) -> np.ndarray:
        """Tokens of the prompt of each record, tokenised in blocks."""
        key_R = np.fromiter((_prompt_key(r.messages) for r in records), np.uint64, len(records))
        chat = self._chat

        def measure(some: Sequence[Prompt | Demonstration]) -> list[int]:
            assert chat is not None
            counts = chat.prompt_counts([r.messages for r in some])
            return [UNRENDERABLE if count is None else count for count in counts]

        return self._counts_of("prompts", records, key_R, measure)

    def answers(self, records: Sequence[Demonstration]) -> np.ndarray:
        """Tokens of the response of each demonstration, tokenised in blocks."""
        key_R = np.fromiter((text_key("a", r.response) for r in records), np.uint64, len(records))
        chat = self._chat

        def measure(some: Sequence[Demonstration]) -> list[int]:
            assert chat is not None
            return chat.answer_counts([r.response for r in some])

        return self._counts_of("answers", records, key_R, measure)

    def save(self) -> None:
        """Cache the counts."""
        if self._chat:
            self._counts.save()

    def _count(self, key: int, measure: Callable[[], int] | None) -> int | None:
        count = self._counts.get(key)
        if count is None and measure is not None:
            count = measure()
            self._counts.set(key, count)
        return count

    def _counts_of(
        self, what: str, records: Sequence[R], key_R: np.ndarray, measure: Callable[[Sequence[R]], list[int]]
    ) -> np.ndarray:
        count_R, known_R = self._counts.look_up(key_R)
        missing = np.flatnonzero(~known_R)
        if self._chat is None or not len(missing):
            return count_R
        with progress(f"tokens of {what}", len(missing), "rows") as work:
            for begin in range(0, len(missing), ROWS_AT_ONCE):
                part = missing[begin : begin + ROWS_AT_ONCE]
                count_R[part] = measure([records[position] for position in part.tolist()])
                work.advance(len(part))
        self._counts.add(key_R[missing], count_R[missing])
        return count_R


def _prompt_key(prompt: Prompted) -> int:
    messages = as_messages(prompt)
    return text_key("p" if len(messages) == 1 else "c", transcript(messages))


def find_too_long(corpus: Corpus, lengths: TokenLengths, limits: LengthLimits) -> list[TooLong]:
    """Every record that exceeds a limit, once per limit."""
    parts: tuple[tuple[Part, Sequence[Prompt]], ...] = (("prompts", corpus.prompts), ("safety", corpus.safety))
    shortest = min(limits.prompt, limits.context - limits.new_tokens) if limits.context else limits.prompt
    rows: list[TooLong] = []
    for part, prompts in parts:
        count_R = lengths.prompts(prompts)
        for position in np.flatnonzero((count_R > shortest) | (count_R == UNRENDERABLE)).tolist():
            rows += _prompt(part, prompts[position].id, int(count_R[position]), limits)
    prompt_R = lengths.prompts(corpus.demonstrations)
    total_R = prompt_R + lengths.answers(corpus.demonstrations)
    most = limits.context or np.iinfo(total_R.dtype).max
    for position in np.flatnonzero((total_R > most) | (prompt_R == UNRENDERABLE)).tolist():
        name = corpus.demonstrations[position].id
        if prompt_R[position] == UNRENDERABLE:
            rows.append(TooLong("demonstrations", name, 0, "template", TEMPLATE_REASON))
            continue
        tokens = int(total_R[position])
        reason = f"more tokens than the model's context of {limits.context} ({tokens})"
        rows.append(TooLong("demonstrations", name, tokens, "row", reason))
    return rows


def row_tokens(demonstration: Demonstration, lengths: TokenLengths) -> int:
    """Tokens of a demonstration with its prompt."""
    return (lengths.prompt(demonstration.messages) or 0) + (lengths.answer(demonstration.response) or 0)


def cut_to_budget(corpus: Corpus, lengths: TokenLengths, limits: LengthLimits) -> Corpus:
    """The corpus with conversations cut to the limits, oldest turns first."""
    long_rows = [d for d in corpus.demonstrations if d.history]
    lengths.prompts([*(p for p in (*corpus.prompts, *corpus.safety) if p.history), *long_rows])
    lengths.answers(long_rows)
    longest = limits.prompt
    if limits.context:
        longest = min(longest, limits.context - limits.new_tokens)
    return cut_corpus(
        corpus, lambda p: lengths.prompt(p.messages) or 0, longest, lambda d: row_tokens(d, lengths), limits.context
    )


def drop_too_long(corpus: Corpus, long: Sequence[TooLong]) -> Corpus:
    """The corpus without records that are too long, and without demonstrations of their prompts."""
    if not long:
        return corpus
    left_out = {(one.part, one.id) for one in long}
    orphans = [
        d
        for d in corpus.demonstrations
        if ("prompts", d.prompt_id) in left_out and ("demonstrations", d.id) not in left_out
    ]
    rows = refused_rows(corpus, long)
    rows += [_row(corpus, "demonstrations", d.id, f"its prompt {d.prompt_id!r} is too long") for d in orphans]
    left_out |= {("demonstrations", d.id) for d in orphans}
    return replace(
        corpus,
        prompts=tuple(p for p in corpus.prompts if ("prompts", p.id) not in left_out),
        safety=tuple(p for p in corpus.safety if ("safety", p.id) not in left_out),
        demonstrations=tuple(d for d in corpus.demonstrations if ("demonstrations", d.id) not in left_out),
        refused=(*corpus.refused, *rows),
    )


def refused_rows(corpus: Corpus, long: Sequence[TooLong]) -> list[RefusedRow]:
    """Records that are too long as refused rows, each once."""
    return list({(one.part, one.id): _row(corpus, one.part, one.id, one.reason) for one in reversed(long)}.values())[
        ::-1
    ]


def _row(corpus: Corpus, part: Part, name: str, reason: str) -> RefusedRow:
    return refused_row(part, corpus.locations.get(part, name), reason)


def _prompt(part: Part, name: str, tokens: int, limits: LengthLimits) -> list[TooLong]:
    if tokens == UNRENDERABLE:
        return [TooLong(part, name, 0, "template", TEMPLATE_REASON)]
    records = []
    if tokens > limits.prompt:
        records.append(
            TooLong(
                part, name, tokens, "prompt", f"more tokens than data.max_prompt_tokens = {limits.prompt} ({tokens})"
            )
        )
    if limits.context and tokens > limits.context - limits.new_tokens:
        reason = f"no room for {limits.new_tokens} new tokens in the model's context of {limits.context} ({tokens})"
        records.append(TooLong(part, name, tokens, "context", reason))
    return records


def prompt_tokens(chat: Chat, prompt: Prompted) -> int:
    """Tokens of a prompt, or UNRENDERABLE."""
    try:
        return len(chat.prompt(prompt))
    except TemplateFailed:
        return UNRENDERABLE


def _fingerprint(chat: Chat) -> str:
    """Hash of what decides token counts: tokenizer, template, and the code that applies them."""
    content = [chat.tokenizer.backend_tokenizer.to_str(), chat.template, str(chat.eos), code_fingerprint()]
    return hashlib.sha256("\0".join(content).encode()).hexdigest()
