"""Sampled answers: the same prompts answered by the tuned model, by each checkpoint, and in the evaluation by base
model, tuned model and policy."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from towpath.store.jsonl import JsonlTail, is_number, objects

TUNED = 0
"""The step of the tuned model, before any training of the policy."""
EVALUATED = {"base": "base model", "sft": "tuned model, evaluated", "policy": "policy, evaluated"}
REWARD_NAMES = ("reward", "score")
Sort = Literal["order", "rise", "fall"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt."""

    key: str
    label: str
    text: str
    scores: dict[str, float]

    @property
    def reward(self) -> float | None:
        """The score that prompts are sorted by."""
        return next((self.scores[name] for name in REWARD_NAMES if name in self.scores), None)


@dataclass
class PromptSamples:
    """A prompt and its answers, by step and in the evaluation."""

    id: str
    prompt: str
    domain: str
    history: list[dict[str, str]] = field(default_factory=list)
    """System prompt and earlier turns."""
    steps: dict[int, Answer] = field(default_factory=dict)
    evaluated: dict[str, Answer] = field(default_factory=dict)

    @property
    def answers(self) -> list[Answer]:
        """All answers: base model, steps in their order, evaluation."""
        base = [self.evaluated[name] for name in ("base",) if name in self.evaluated]
        evaluated = [self.evaluated[name] for name in ("sft", "policy") if name in self.evaluated]
        return [*base, *self._by_step(), *evaluated]

    @property
    def change(self) -> float | None:
        """The change of the reward from the tuned model, or the first validation, to the last."""
        rewards = [answer.reward for answer in self._by_step() if answer.reward is not None]
        if len(rewards) < 2:
            ends = [self.evaluated[name].reward if name in self.evaluated else None for name in ("sft", "policy")]
            rewards = [reward for reward in ends if reward is not None]
        return rewards[-1] - rewards[0] if len(rewards) > 1 else None

    def _by_step(self) -> list[Answer]:
        return [self.steps[step] for step in sorted(self.steps)]


class Samples:
    """samples.jsonl of a policy stage while it grows, and answers.jsonl of an evaluation."""

    def __init__(self, samples: Path | None, answers: Path | None) -> None:
        self._samples = JsonlTail(samples) if samples else None
        self._answers = JsonlTail(answers) if answers else None
        self.prompts: dict[str, PromptSamples] = {}

    def refresh(self) -> None:
        """Read the rows that were appended."""
        tails = (self._samples, self._answers)
        data = [tail.read() if tail else (b"", False) for tail in tails]
        if any(replaced for _, replaced in data):
            for tail in tails:
                if tail:
                    tail.reset()
            self.prompts = {}
            data = [tail.read() if tail else (b"", False) for tail in tails]
        for row in objects(data[0][0]):
            self._add_sample(row)
        for row in objects(data[1][0]):
            self._add_evaluated(row)

    def _prompt(self, row: dict[str, Any]) -> PromptSamples:
        name = str(row.get("prompt_id", row.get("prompt", "")))
        history = row.get("history")
        turns = [turn for turn in history if isinstance(turn, dict)] if isinstance(history, list) else []
        new = PromptSamples(name, str(row.get("prompt", "")), str(row.get("domain") or ""), turns)
        return self.prompts.setdefault(name, new)

    def _add_sample(self, row: dict[str, Any]) -> None:
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            return
        step += 1
        scores = {name: float(row[name]) for name in ("reward", "score") if is_number(row.get(name))}
        # A resumed run samples a step again: the later answer counts.
        self._prompt(row).steps[step] = Answer(str(step), model_at(step), str(row.get("text", "")), scores)

    def _add_evaluated(self, row: dict[str, Any]) -> None:
        prompt = self._prompt(row)
        for name, label in EVALUATED.items():
            if isinstance(row.get(name), str):
                columns = {kind: f"{kind}_{name}" for kind in ("reward", "score")}
                scores = {kind: row[column] for kind, column in columns.items() if is_number(row.get(column))}
                prompt.evaluated[name] = Answer(name, label, row[name], scores)

    @property
    def domains(self) -> list[str]:
        """The domains of the prompts."""
        return sorted({prompt.domain for prompt in self.prompts.values()} - {""})

    def sorted_prompts(self, domain: str = "", sort: Sort = "order") -> list[PromptSamples]:
        """Prompts of a domain; optionally those whose reward fell, or rose, the most first."""
        prompts = [prompt for prompt in self.prompts.values() if domain in ("", prompt.domain)]
        if sort == "order":
            return prompts
        sign = -1.0 if sort == "rise" else 1.0
        return sorted(prompts, key=lambda prompt: (prompt.change is None, sign * (prompt.change or 0.0)))

    def win_rates(self) -> list[tuple[int, float, int]]:
        """(step, share of prompts with a higher reward than the tuned model's answer, prompts); ties count half."""
        steps = sorted({step for prompt in self.prompts.values() for step in prompt.steps} - {TUNED})
        rates = []
        for step in steps:
            outcomes = list(_outcomes(self.prompts.values(), step))
            if outcomes:
                rates.append((step, sum(outcomes) / len(outcomes), len(outcomes)))
        return rates


def _outcomes(prompts: Iterable[PromptSamples], step: int) -> Iterable[float]:
    for prompt in prompts:
        if step not in prompt.steps or TUNED not in prompt.steps:
            continue
        reward = prompt.steps[step].reward
        tuned_reward = prompt.steps[TUNED].reward
        if reward is not None and tuned_reward is not None:
            yield 0.5 if reward == tuned_reward else float(reward > tuned_reward)


def model_at(step: int) -> str:
    """The name of the model after so many steps."""
    return "tuned model" if step == TUNED else f"step {step}"
