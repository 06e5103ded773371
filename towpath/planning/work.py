"""What the stages of a run compute: rows that are sampled, scored and trained on, with their lengths. Arithmetic on the
recipe and on counts of its data alone.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from towpath.evals.jailbreaks import TRANSFORMS
from towpath.recipe import Recipe

Kind = Literal["sample", "greedy", "score", "train"]
UNITS = {
    "score": "log-probabilities by the policy's model",
    "reward": "a score by the reward model",
    "reward/frozen": "the reward model's layers below its adapter",
    "reward/upper": "the layers above",
    "experience": "all that is computed of a rollout before the updates: reference, policy, reward model, critic",
}
DISGUISE_TOKENS = 60
"""By which a transform of a harmful prompt makes it longer, on average."""
PROBE_TOKENS = 24
"""Longest answer to a safety probe while a policy is validated (towpath.rollout.experience)."""
LONGEST_OF_FEW = 1.5
"""The longest of a few answers over the mean."""
DECIDED = 0.8
"""Share of comparisons that become pairs, until labels are there: the others are ties, or near-identical."""
FEW_DECIDED, ALL_DECIDED = 0.3, 1.0
"""That share in the low and the high case: rules find far more ties than people."""
MAX_PROBED = 4096
NORMALISED = 384
SUBSET = 120
"""Prompts and answers that the reward stage scores besides training (towpath.stages.reward_training)."""
SAMPLED_SHARE = 0.8
"""Mean length of a sampled answer over the longest allowed, where neither demonstrations nor completions say."""


@dataclass(frozen=True)
class Counts:
    """What the data of a run has."""

    train: int
    heldout: int
    safety: int
    harmful: int
    demonstrations: int
    prompt_tokens: float
    """Mean of the training prompts, with the template."""
    demonstration_tokens: float
    """Mean of a demonstration, its prompt included."""
    answer_tokens: float | None = None
    """Mean of sampled answers; None where it is not known."""
    pairs: int | None = None
    """Comparisons that are decided by labels; None where there are no labels yet."""
    pair_answers: int | None = None
    """Answers that are in at least one of these pairs."""
    decided: float | None = None
    """Share of comparisons that are decided, where labels of others say it."""
    longest_prompt: int = 0
    """Tokens of the longest prompt that a trial has seen; 0 where it is not known."""


@dataclass(frozen=True)
class Work:
    """Rows of one kind that a stage works on."""

    part: str
    """What for, such as `rollouts`."""
    kind: Kind
    rows: float
    prompt: float
    """Mean tokens of a row's prompt, and of its answer."""
    answer: float
    longest: float = 0.0
    """Longest answer that is sampled."""
    repeats: float = 1.0
    """Epochs, or roles that score the same rows."""
    method: Literal["", "lora", "full"] = ""
    """How the rows are trained on."""
    steps: float = 0.0
    """Optimizer steps."""
    unit: str = "score"
    """What a token that is scored costs, one of UNITS."""

    @property
    def tokens(self) -> float:
        """Of all rows, prompts included."""
        return self.rows * self.repeats * (self.prompt + self.answer)


def stage_work(recipe: Recipe, counts: Counts, stages: Collection[str]) -> dict[str, list[Work]]:
    """The work of each of these kinds of stage."""
    planned = {
        "sft": _sft(recipe, counts),
        "baseline": _baseline(recipe, counts),
        "sample": _sample(recipe, counts),
        "judge_model": _judge_model(recipe, counts),
        "reward": _reward(recipe, counts),
        "policy": _policy(recipe, counts),
        "evaluate": _evaluate(recipe, counts, stages),
    }
    return {stage: list(planned[stage]) for stage in stages if stage in planned}


def answer_length(counts: Counts, longest: int) -> float:
    """Mean tokens of an answer of at most so many."""
    if counts.answer_tokens is not None:
        return min(counts.answer_tokens, longest)
    if counts.demonstrations:
        return min(max(1.0, counts.demonstration_tokens - counts.prompt_tokens), longest)
    return SAMPLED_SHARE * longest


def optimizer_steps(rows: float, batch: int, epochs: float) -> int:
    """Minibatches of all epochs; a fractional last one has fewer."""
    whole = int(epochs)
    return whole * math.ceil(rows / batch) + math.ceil((epochs - whole) * rows / batch)


def sampled_pairs(recipe: Recipe, prompts: int) -> int:
    """Comparisons of a round's completions."""
    cfg = recipe.preferences
    return round(prompts * (math.comb(cfg.completions, 2) + cfg.base_share))


def _compared_prompts(recipe: Recipe, counts: Counts) -> int:
    return min(counts.train, recipe.preferences.prompts or counts.train)


def _decided_pairs(recipe: Recipe, counts: Counts) -> float:
    if counts.pairs is not None:
        return counts.pairs
    share = DECIDED if counts.decided is None else counts.decided
    return share * sampled_pairs(recipe, _compared_prompts(recipe, counts))


def _sft(recipe: Recipe, counts: Counts) -> Iterator[Work]:
    cfg = recipe.sft
    if cfg.method == "none" or not counts.demonstrations:
        return
    held_out = max(1, round(cfg.validation * counts.demonstrations))
    rows = counts.demonstrations - held_out
    answer = counts.demonstration_tokens - counts.prompt_tokens
    steps = optimizer_steps(rows, cfg.batch, cfg.epochs)
    shape: dict[str, Any] = {"prompt": counts.prompt_tokens, "answer": answer}
    yield Work("training", "train", rows, **shape, repeats=cfg.epochs, method=cfg.method, steps=steps)
    yield Work("validation", "score", held_out, **shape, repeats=math.ceil(cfg.epochs / cfg.validate_every))


def _sampled(part: str, rows: float, prompt: float, counts: Counts, longest: int) -> Work:
    return Work(part, "sample", rows, prompt, answer_length(counts, longest), longest)


def _heldout(recipe: Recipe, counts: Counts) -> int:
    return min(counts.heldout, recipe.evaluate.prompts or counts.heldout)


def _baseline(recipe: Recipe, counts: Counts) -> Iterator[Work]:
    heldout = _heldout(recipe, counts)
    longest = recipe.evaluate.max_new_tokens
    if recipe.sft.method != "none" or recipe.sft.compare_with:
        # a model that was not tuned does not end its answers
        yield Work("answers of the base model", "sample", heldout, counts.prompt_tokens, longest, longest)
    yield _sampled("answers of the tuned model", heldout + counts.safety, counts.prompt_tokens, counts, longest)


def _sample(recipe: Recipe, counts: Counts) -> Iterator[Work]:
    cfg = recipe.preferences
    prompts = _compared_prompts(recipe, counts)
    yield _sampled("completions", prompts * cfg.completions, counts.prompt_tokens, counts, cfg.max_new_tokens)
    if cfg.base_share and recipe.sft.method != "none":
        longest = cfg.max_new_tokens
        yield Work(
            "completions of the other model", "sample", prompts * cfg.base_share, counts.prompt_tokens, longest, longest
        )


def _reward(recipe: Recipe, counts: Counts) -> Iterator[Work]:
    cfg = recipe.reward
    if not cfg.is_trained:
        return
    choices = recipe.preferences
    pairs = _decided_pairs(recipe, counts)
    answers: float | None = counts.pair_answers
    if answers is None:
        prompts = _compared_prompts(recipe, counts)
        answers = compared_answers(pairs, prompts, choices.completions, choices.base_share)
    trained = answers * (1 - cfg.validation)
    held_out = answers * cfg.validation
    members = cfg.ensemble_size
    each: dict[str, Any] = {"prompt": counts.prompt_tokens, "answer": answer_length(counts, choices.max_new_tokens)}
    yield Work("frozen layers", "score", answers, **each, repeats=members, unit="reward/frozen")
    probed = min(answers, MAX_PROBED * choices.completions)
    yield Work("features of the untrained model", "score", probed, **each, repeats=members, unit="reward/upper")
    steps = optimizer_steps(pairs * (1 - cfg.validation), cfg.batch, cfg.epochs) * members
    repeats = cfg.epochs * members
    yield Work("training", "train", trained, **each, repeats=repeats, method=cfg.method, steps=steps)
    scored = 2 * held_out + min(NORMALISED, trained) + min(SUBSET * choices.completions, trained)
    yield Work("validation", "score", scored, **each, repeats=members, unit="reward/upper")


def compared_answers(pairs: float, prompts: float, completions: int, base_share: float) -> float:
    """Answers that are in at least one of the pairs, which are a share of all comparisons: each completion is compared
    with the others of its prompt, and an answer of the other model with one of them."""
    comparisons = prompts * (math.comb(completions, 2) + base_share)
    decided = min(1.0, pairs / comparisons) if comparisons else 0.0
    return prompts * (completions * (1 - (1 - decided) ** (completions - 1)) + base_share * decided)


def _judge_model(recipe: Recipe, counts: Counts) -> Iterator[Work]:
    """Another reward model, on the labels that are reserved for it."""
    pairs = round(recipe.evaluate.reserved_labels * _decided_pairs(recipe, counts))
    return _reward(recipe, replace(counts, pairs=pairs, pair_answers=None))


def _policy(recipe: Recipe, counts: Counts) -> Iterator[Work]:
    from towpath.algos import data_of

    cfg = recipe.policy
    shape: dict[str, Any] = {"prompt": counts.prompt_tokens, "answer": answer_length(counts, cfg.max_new_tokens)}
    train: dict[str, Any] = {**shape, "repeats": cfg.epochs, "method": cfg.method}
    if data_of(cfg.algo) == "rollouts":
        steps = cfg.steps
        rows = steps * cfg.rollout
        yield _sampled("rollouts", rows, counts.prompt_tokens, counts, cfg.max_new_tokens)
        yield Work("scores of rollouts", "score", rows, **shape, unit="experience")
        updates = steps * cfg.epochs * math.ceil(cfg.rollout / cfg.batch)
        yield Work("training", "train", rows, **train, steps=updates)
    else:
        rows = 2 * _decided_pairs(recipe, counts) * (1 - recipe.reward.validation)
        steps = optimizer_steps(rows / 2, cfg.batch, cfg.epochs)
        yield Work("reference", "score", rows, **shape)
        yield Work("training", "train", rows, **train, steps=steps)
    validations = 1 + math.ceil(steps / cfg.validate_every)
    rows = validations * cfg.validation_prompts
    probes = validations * min(2 * recipe.health.probes, counts.safety)
    yield _sampled("answers for validation", rows, counts.prompt_tokens, counts, cfg.max_new_tokens)
    yield Work("safety probes", "sample", probes, counts.prompt_tokens, PROBE_TOKENS, PROBE_TOKENS)
    yield Work("validation", "score", rows, **shape, unit="experience")


def _greedy_samples(recipe: Recipe, counts: Counts) -> Iterator[Work]:
    """Of each model, which are compared side by side: a few rows that take as long as the longest."""
    longest = recipe.evaluate.max_new_tokens
    tuned = min(longest, LONGEST_OF_FEW * answer_length(counts, longest))
    lengths = [tuned, tuned, *([longest] if recipe.sft.method != "none" else [])]
    for length in lengths:
        yield Work("greedy samples", "greedy", 1, counts.prompt_tokens, length, length)


def _evaluate(recipe: Recipe, counts: Counts, stages: Collection[str]) -> Iterator[Work]:
    cfg = recipe.evaluate
    heldout = _heldout(recipe, counts)
    longest = cfg.max_new_tokens
    yield _sampled("answers of the policy", heldout + counts.safety, counts.prompt_tokens, counts, longest)
    if cfg.jailbreaks and counts.harmful:
        disguised = min(cfg.jailbreak_prompts, counts.harmful) * len(TRANSFORMS)
        prompt = counts.prompt_tokens + DISGUISE_TOKENS
        yield Work("answers to disguised requests", "sample", 2 * disguised, prompt, longest, longest)
    yield from _greedy_samples(recipe, counts)
    shape: dict[str, Any] = {"prompt": counts.prompt_tokens, "answer": answer_length(counts, longest)}
    yield Work("KL", "score", heldout, **shape, repeats=2)
    held_out = round(recipe.sft.validation * counts.demonstrations)
    answer = max(0.0, counts.demonstration_tokens - counts.prompt_tokens)
    yield Work("perplexity", "score", held_out, counts.prompt_tokens, answer, repeats=2)
    if "reward" in stages:
        rows = 2 * heldout + 2 * cfg.disagreements
        yield Work("reward model", "score", rows, **shape, repeats=recipe.reward.ensemble_size, unit="reward")
