"""Memory of each stage on one device, by what takes it: models, gradients, optimizer, a pass or the cache of answers
that are sampled, the head, and the process itself.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from towpath.models.pass_memory import LOGITS_BYTES, ModelShape, head_rows, token_bytes, tokens_that_fit
from towpath.planning.amounts import Source
from towpath.planning.sizes import (
    BYTES,
    GPU_BYTES,
    TOKENS_PER_PASS,
    Size,
    StageParameters,
    gigabytes,
    gpu_memory_needed,
    stage_parameters,
)
from towpath.planning.speed import ROWS_AT_ONCE, Measurement
from towpath.planning.work import Counts, Work, answer_length, stage_work
from towpath.recipe import Recipe

PROCESS = 450e6
"""Bytes of Python with its libraries on a CPU, and of the driver's context on a GPU."""
SAMPLED_LOGITS = 8
"""Bytes of a logit while a token is drawn."""
CACHE_STRIDE = 16
"""Columns that a cache is rounded up to (towpath.rollout.cache)."""
SHARE_OF_GPU = 0.6
"""Of its memory that models may take where they are not divided over GPUs; the rest is for passes."""
SAMPLES = ("sample", "baseline", "policy", "evaluate")
"""Stages that sample."""


@dataclass(frozen=True)
class DeviceLimits:
    """The device that a plan counts for."""

    on_gpu: bool
    bytes: int | None = None
    """Of a GPU, or what this machine has available."""
    share: int = 1
    """Workers on it."""
    parts: int = 1
    """Workers that models are divided over."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one worker in a stage."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int | None = 0
    """Of a pass; None where the configuration of the model does not say its shape."""
    cache: int = 0
    """Keys and values of the answers that are sampled together; sampling and training take turns."""
    head: int = 0
    """Logits of the tokens that are computed at a time."""
    process: int = 0
    tokens_per_pass: int = 0
    measured: int | None = None
    """The most that a trial of this stage's work took on this machine, what was counted above included."""

    @property
    def source(self) -> Source:
        """Where the total is from."""
        return "formula" if self.measured is None else "measured"

    @property
    def total(self) -> int:
        """The most at a time."""
        if self.measured is not None:
            return self.measured
        fixed = self.weights + self.gradients + self.optimizer + self.head + self.process
        return fixed + max(self.activations or 0, self.cache)


def cache_bytes(shape: ModelShape, rows: float, columns: float, width: int) -> int:
    """Keys and values of so many rows, each number of so many bytes."""
    return round(2 * rows * columns * shape.layers * shape.keys * width)


def cache_columns(prompt: float, answer: float, on_gpu: bool) -> int:
    """Columns of the cache of answers of this length to prompts of which the longest has this one. On a CPU it doubles
    whenever it is full, and what it had before stays in the heap."""
    columns = CACHE_STRIDE * math.ceil(max(prompt, 1) / CACHE_STRIDE)
    if on_gpu:
        return max(columns, CACHE_STRIDE * math.ceil((prompt + answer) / CACHE_STRIDE))
    held = columns
    while columns < prompt + answer:
        columns *= 2
        held = columns + columns // 2
    return held


def stage_memories(
    recipe: Recipe,
    device: DeviceLimits,
    shape: ModelShape | None,
    sizes: tuple[Size, Size | None, int],
    stages: Collection[str],
    counts: Counts | None = None,
    number_bytes: int = 0,
) -> dict[str, StageMemory]:
    """The memory of these kinds of stage. `sizes`: of the model, of the one that the reward model begins with where it
    is another, and parameters of other reward models. `number_bytes`: of a number in the cache, where it is known."""
    parameters = stage_parameters(recipe, *sizes)
    parameters["judge_model"] = parameters["reward"]
    model = sizes[0].parameters or 0
    # on a CPU the pages of a model's file count while it is read
    copies = 1 if device.on_gpu else 2
    one = StageParameters(copies * model, 0, True)
    memories = {}
    for stage in stages:
        own = parameters.get(stage, one)
        if stage in ("label", "sft") and not own.trained:
            continue
        if stage == "evaluate":
            scorer = sizes[1].parameters or 0 if sizes[1] else 0
            own = replace(one, frozen=copies * max(model, scorer))
        memory = _training(recipe, device, shape, own)
        if stage in ("sample", "baseline"):  # nothing is scored or trained
            memory = replace(memory, activations=0, head=0, tokens_per_pass=0)
        if stage in SAMPLES and shape:
            width = number_bytes or (GPU_BYTES[0] if device.on_gpu else BYTES)
            samples = _samples(recipe, stage, counts, device.share)
            cache = max(
                cache_bytes(shape, rows, cache_columns(prompt, answer, device.on_gpu), width)
                for rows, prompt, answer in samples
            )
            most = max(rows for rows, _, _ in samples)
            memory = replace(
                memory, cache=cache, head=max(memory.head, round(most * shape.vocabulary * SAMPLED_LOGITS))
            )
        memories[stage] = memory
    return memories


def _samples(recipe: Recipe, stage: str, counts: Counts | None, workers: int) -> list[tuple[float, float, float]]:
    """Rows that one worker samples in one go, their longest prompt, and their answers' length: rows leave as they end,
    most are there when the mean answer ends."""
    if counts is None:
        longest = (recipe.preferences if stage == "sample" else recipe.policy).max_new_tokens
        if stage in ("baseline", "evaluate"):
            longest = recipe.evaluate.max_new_tokens
        return [(ROWS_AT_ONCE, recipe.data.max_prompt_tokens, longest)]
    prompt = max(counts.prompt_tokens, counts.longest_prompt)
    if stage == "policy":
        rows = max(recipe.policy.rollout, recipe.policy.validation_prompts) / workers
        return [(min(ROWS_AT_ONCE, rows), prompt, answer_length(counts, recipe.policy.max_new_tokens))]
    works: Sequence[Work] = stage_work(recipe, counts, [stage])[stage]
    return [
        (min(ROWS_AT_ONCE, work.rows / workers), prompt + work.prompt - counts.prompt_tokens, work.answer)
        for work in works
        if work.kind == "sample"
    ]


def _training(recipe: Recipe, device: DeviceLimits, shape: ModelShape | None, own: StageParameters) -> StageMemory:
    # a weight that trains has low bits on a GPU, and on a CPU a copy of the best checkpoint
    frozen, weight, gradient, moments = (
        (GPU_BYTES[0], 4, 6, 8) if device.on_gpu else (BYTES, 2 * BYTES, BYTES, 2 * BYTES)
    )
    trained = StageParameters(0, own.trained, own.full)
    memory = StageMemory(
        weights=own.bytes(frozen, weight, device.parts),
        gradients=trained.bytes(0, gradient, device.parts),
        optimizer=trained.bytes(0, moments, device.parts),
        process=round(PROCESS),
        tokens_per_pass=TOKENS_PER_PASS if recipe.model.tokens_per_pass == "auto" else recipe.model.tokens_per_pass,
    )
    if shape is None:
        return replace(memory, activations=None)
    checkpointing = recipe.model.gradient_checkpointing
    trains = own.trained > 0
    tokens = memory.tokens_per_pass
    if recipe.model.tokens_per_pass == "auto" and device.on_gpu and device.bytes:
        room = device.bytes // device.share - memory.total
        tokens = tokens_that_fit(room, shape, trains, own.full and trains, checkpointing)
    rows = min(tokens, head_rows(not device.on_gpu, shape.vocabulary))
    return replace(
        memory,
        activations=tokens * token_bytes(shape, trains, own.full and trains, checkpointing),
        head=rows * shape.vocabulary * LOGITS_BYTES,
        tokens_per_pass=tokens,
    )


PARTS_OF: Mapping[str, tuple[str, ...]] = {
    "sft": ("sft",),
    "reward": ("reward",),
    "judge_model": ("reward",),
    "policy": ("policy",),
    "evaluate": ("scoring", "greedy samples"),
}
"""Parts of a trial (towpath.stages.speed) that a stage has."""


def with_measured(
    memories: Mapping[str, StageMemory], trial: Measurement, shape: ModelShape | None
) -> dict[str, StageMemory]:
    """The same with what a trial of the stages' parts took; a stage that samples more rows than it, or longer ones,
    takes that much more."""
    had = 0.0
    if shape:
        had = cache_bytes(shape, trial.sampled_rows, trial.sampled_columns, trial.number_bytes)
        had += trial.sampled_rows * shape.vocabulary * SAMPLED_LOGITS
    measured = {}
    for stage, memory in memories.items():
        parts = [trial.peaks[part] for part in PARTS_OF.get(stage, ()) if part in trial.peaks]
        if stage in SAMPLES and "sampling" in trial.peaks:
            parts.append(trial.peaks["sampling"] + round(memory.cache + memory.head - had))
        measured[stage] = replace(memory, measured=max(parts)) if parts else memory
    return measured


def must_divide(recipe: Recipe, device: DeviceLimits, model: Size, reward: Size | None = None, others: int = 0) -> bool:
    """Whether the largest stage, besides its passes, takes more of a GPU than leaves room for them."""
    return device.bytes is not None and gpu_memory_needed(recipe, model, reward, others) > SHARE_OF_GPU * device.bytes


def memory_parts(memory: StageMemory) -> str:
    """What takes the memory of a stage, by formula, the largest first."""
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        f"a pass of {memory.tokens_per_pass:,} tokens": memory.activations or 0,
        "cache of sampled answers": memory.cache,
        "head": memory.head,
        "process": memory.process,
    }
    known = sorted(((name, amount) for name, amount in parts.items() if amount), key=lambda part: -part[1])
    words = ", ".join(f"{name} {gigabytes(amount)}" for name, amount in known)
    return f"{words} (by formula)" if memory.measured is not None else words
