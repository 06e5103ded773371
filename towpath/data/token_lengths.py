"""Token counts of prompts and answers, cached in the run folder, and records that exceed a limit."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from towpath.data.chat import Chat, Prompted, as_messages
from towpath.data.context_budget import cut_corpus
from towpath.data.corpus import Corpus
from towpath.data.file_cache import code_fingerprint, read_cache, write_cache
from towpath.data.refused_rows import Part, RefusedRow, refused_row
from towpath.data.template_renderer import TemplateFailed
from towpath.recipe import Recipe
from towpath.records import Demonstration, transcript

MAX_CACHED = 100_000
"""Cached counts of texts not in the current data; skipped rows are among them, which `status` needs."""

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
    """Token counts by text. Without a chat only cached counts are known; others are None."""

    def __init__(
        self, chat: Chat | None, cache: Path | None = None, model: str = "", context: int | None = None
    ) -> None:
        self._chat = chat
        self._cache = cache
        cached = read_cache(cache)
        tokenizer = _fingerprint(chat) if chat else cached.get("tokenizer", "")
        fits = cached.get("tokenizer") == tokenizer and (chat is not None or cached.get("model") == model)
        self.context: int | None = context if chat else cached.get("context")
        self._head = {"tokenizer": tokenizer, "model": model, "context": context}
        self._cached: dict[str, int] = cached.get("tokens", {}) if fits else {}
        self._used: dict[str, int] = {}
        self._stale = not fits or any(cached.get(key) != value for key, value in self._head.items())

    def prompt(self, prompt: Prompted) -> int | None:
        """Tokens of a prompt, including the template; UNRENDERABLE if the template refuses the conversation."""
        chat = self._chat
        text = transcript(as_messages(prompt))
        return self._count("p", text, (lambda: prompt_tokens(chat, prompt)) if chat else None)

    def answer(self, text: str) -> int | None:
        """Tokens of an answer, including EOS."""
        chat = self._chat
        return self._count("a", text, (lambda: len(chat.answer(text))) if chat else None)

    def save(self) -> None:
        """Cache the counts; counts of other data are dropped if they are most of the cache."""
        tokens = self._cached | self._used
        if len(tokens) > MAX_CACHED + 2 * len(self._used):
            tokens = self._used
        if self._chat and (self._stale or tokens.keys() != self._cached.keys()):
            write_cache(self._cache, self._head | {"tokens": tokens})

    def _count(self, kind: str, text: str, measure: Callable[[], int] | None) -> int | None:
        key = kind + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        count = self._used.get(key, self._cached.get(key))
        if count is None and measure is not None:
            count = measure()
        if count is not None:
            self._used[key] = count
        return count


def find_too_long(corpus: Corpus, lengths: TokenLengths, limits: LengthLimits) -> list[TooLong]:
    """Every record that exceeds a limit, once per limit."""
    parts: tuple[tuple[Part, Sequence], ...] = (("prompts", corpus.prompts), ("safety", corpus.safety))
    records = [
        one
        for part, prompts in parts
        for p in prompts
        for one in _prompt(part, p.id, lengths.prompt(p.messages) or 0, limits)
    ]
    for d in corpus.demonstrations:
        tokens = row_tokens(d, lengths)
        if lengths.prompt(d.messages) == UNRENDERABLE:
            records.append(TooLong("demonstrations", d.id, 0, "template", TEMPLATE_REASON))
        elif limits.context and tokens > limits.context:
            records.append(
                TooLong(
                    "demonstrations",
                    d.id,
                    tokens,
                    "row",
                    f"more tokens than the model's context of {limits.context} ({tokens})",
                )
            )
    return records


def row_tokens(demonstration: Demonstration, lengths: TokenLengths) -> int:
    """Tokens of a demonstration with its prompt."""
    return (lengths.prompt(demonstration.messages) or 0) + (lengths.answer(demonstration.response) or 0)


def cut_to_budget(corpus: Corpus, lengths: TokenLengths, limits: LengthLimits) -> Corpus:
    """The corpus with conversations cut to the limits, oldest turns first."""
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
    return refused_row(part, corpus.locations.get((part, name), f"{name}:0"), reason)


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
