"""Seconds of work at the speeds of a machine.

Sampling has a cost for each token step however few rows there are, one for each row in it, which grows with the tokens
before it, and one for each token of a prompt; passes have a cost for each token, and optimizer steps one for each.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from towpath.planning.work import Counts, Work

ROWS_AT_ONCE = 256
"""Rows that an engine samples together."""
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 20.0, 0.05
"""Between two checkpoints, and the largest share of the time that they take (towpath.stages.loop)."""


@dataclass(frozen=True)
class Speed:
    """Seconds of each unit of work on one worker."""

    step: float
    """Of one token step of sampling."""
    row: float
    """Of each row in a token step, besides."""
    context: float
    """Of each token that such a row has before it, besides."""
    prompt: float
    """Of a token of a prompt that is sampled from."""
    greedy: float
    """Of a token step of a few greedy answers, which are sampled in float32."""
    score: Mapping[str, float]
    """Of a token that is scored, by unit of work."""
    train: Mapping[str, float]
    """Of a token that is trained on, by stage, with the layers and the method of that stage."""
    optimizer: Mapping[str, float]
    """Of an optimizer step, by stage."""
    load: float
    """Of loading the model once."""
    first: Mapping[str, float] = field(default_factory=dict)
    """Of the first batch of a stage that trains, besides: memory is touched for the first time."""
    checkpoint: Mapping[str, float] = field(default_factory=dict)
    """Of a checkpoint of a stage."""
    export: Mapping[str, float] = field(default_factory=dict)
    """Of writing the model of a stage that is done."""
    rows_at_once: int = ROWS_AT_ONCE


@dataclass(frozen=True)
class Measurement:
    """What a trial on a machine has shown."""

    counts: Counts
    speed: Speed
    peaks: Mapping[str, int]
    """The most bytes of memory of each worker while each part of the trial ran; the controller's are divided among
    them."""
    sampled_rows: int
    """Rows, and columns of each, of the cache that the trial of sampling had while its memory was counted."""
    sampled_columns: int
    number_bytes: int
    """Of a number in the cache of sampled answers."""


def trained_as(stage: str) -> str:
    """The stage whose speeds of training another one has."""
    return "reward" if stage == "judge_model" else stage


def saving_seconds(stage: str, training: float, speed: Speed) -> float:
    """Seconds of a stage's checkpoints while it trains for so long, the last one included, and of the model in the
    end."""
    name = trained_as(stage)
    each = speed.checkpoint.get(name, 0.0)
    count = 1
    if training >= CHECKPOINT_SECONDS:
        count += 1 + int((training - CHECKPOINT_SECONDS) / max(CHECKPOINT_SECONDS, each / CHECKPOINT_SHARE))
    return each * count + speed.export.get(name, 0.0)


def seconds_of(stage: str, works: Iterable[Work], speed: Speed, workers: int = 1) -> dict[str, float]:
    """Seconds of each part of a stage, divided over workers."""
    parts: dict[str, float] = {}
    for work in works:
        parts[work.part] = parts.get(work.part, 0.0) + _seconds(stage, work, speed, workers)
    return parts


def _seconds(stage: str, work: Work, speed: Speed, workers: int) -> float:
    if work.kind == "sample":
        return _sampling(work, speed, workers)
    if work.kind == "greedy":
        return work.rows * work.longest * speed.greedy
    if work.kind == "score":
        return work.tokens * speed.score[work.unit] / workers
    trained = trained_as(stage)
    return work.tokens * speed.train[trained] / workers + work.steps * speed.optimizer[trained]


def _sampling(work: Work, speed: Speed, workers: int) -> float:
    """Batches of rows, each as long as its longest answer; rows that have ended cost nothing more."""
    if work.rows <= 0:
        return 0.0
    rows = work.rows / workers
    batches = math.ceil(rows / speed.rows_at_once)
    row = speed.row + speed.context * tokens_before(work.prompt, work.answer, work.longest)
    return batches * speed.step * work.longest + rows * work.answer * row + rows * work.prompt * speed.prompt


def tokens_before(prompt: float, answer: float, longest: float) -> float:
    """Mean tokens before a sampled one. Half an answer where all are as long as their mean, half the longest where most
    tokens are of the longest: between them."""
    return prompt + (answer + longest) / 4
