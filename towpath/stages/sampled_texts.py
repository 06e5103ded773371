"""A sample of a run's prompts and answers as tokens, and what a plan counts of its data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from towpath.data.chat import Chat
from towpath.data.corpus import Corpus
from towpath.models import base
from towpath.planning.work import Counts
from towpath.recipe import Recipe

SAMPLED = 400
"""Texts of each kind that are tokenised."""


@dataclass(frozen=True)
class Texts:
    """A sample of a run's rows."""

    chat: Chat
    prompts: Sequence[list[int]]
    answers: Sequence[list[int]]
    """Responses of the demonstrations; of training prompts, where there are none, random tokens."""


def read_texts(recipe: Recipe, run: Path, corpus: Corpus) -> Texts:
    """Evenly spaced prompts and responses as tokens."""
    chat = Chat(base.load_tokenizer(base.find(recipe.model.source, run)), recipe.model.template)
    prompts = [chat.prompt(p.messages) for p in some(corpus.train)]
    answers = [chat.answer(d.response) for d in some(corpus.demonstrations)]
    if not answers:
        draw = np.random.default_rng(0)
        answers = [draw.integers(3, len(chat.tokenizer), recipe.policy.max_new_tokens).tolist()]
    return Texts(chat, prompts or [[1]], answers)


def count_tokens(recipe: Recipe, corpus: Corpus, texts: Texts) -> Counts:
    """What a plan needs to know of the data; lengths are means of the sample."""
    prompt = mean(texts.prompts)
    heldout = [texts.chat.prompt(p.messages) for p in (*some(corpus.heldout), *some(corpus.safety))]
    prompts = [*texts.prompts, *heldout]
    demonstrated = mean([texts.chat.prompt(d.messages) for d in some(corpus.demonstrations)])
    return Counts(
        len(corpus.train),
        len(corpus.heldout),
        len(corpus.safety),
        sum(p.harmful for p in corpus.safety),
        len(corpus.demonstrations),
        prompt,
        demonstrated + mean(texts.answers) if corpus.demonstrations else 0.0,
        longest_prompt=max(map(len, prompts)),
    )


def some(records: Sequence[Any]) -> Sequence[Any]:
    """Evenly spaced ones."""
    return records[:: max(1, len(records) // SAMPLED)][:SAMPLED]


def mean(rows: Sequence[Sequence[int]]) -> float:
    return sum(map(len, rows)) / len(rows) if rows else 0.0
