"""The same prompts answered by the tuned model, by each checkpoint and, once evaluated, by base, tuned model and
policy."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from towpath.store.jsonl import Following, is_number, rows

TUNED = 0
"""The step of the tuned model, before any training of the policy."""
EVALUATED = {"base": "base model", "sft": "tuned model, evaluated", "policy": "policy, evaluated"}
Sort = Literal["order", "rise", "fall"]


@dataclass(frozen=True, slots=True)
class Version:
    """One answer to a prompt."""

    key: str
    label: str
    text: str
    scores: dict[str, float]

    @property
    def reward(self) -> float | None:
        """What the prompts are sorted by."""
        return next((self.scores[name] for name in ("reward", "score", "rubric") if name in self.scores), None)


@dataclass
class Asked:
    """A prompt and its answers: those of steps first, in their order."""

    id: str
    prompt: str
    domain: str
    steps: dict[int, Version] = field(default_factory=dict)
    evaluated: dict[str, Version] = field(default_factory=dict)

    @property
    def versions(self) -> list[Version]:
        """Every answer there is: base model, steps, evaluation."""
        base = [self.evaluated[name] for name in ("base",) if name in self.evaluated]
        return [
            *base,
            *(self.steps[step] for step in sorted(self.steps)),
            *(self.evaluated[name] for name in ("sft", "policy") if name in self.evaluated),
        ]

    @property
    def change(self) -> float | None:
        """How much the reward rose from the tuned model, or the first look, to the last."""
        told = [
            version.reward
            for version in (self.steps[step] for step in sorted(self.steps))
            if version.reward is not None
        ]
        if len(told) < 2:
            ends = [self.evaluated[name].reward if name in self.evaluated else None for name in ("sft", "policy")]
            told = [end for end in ends if end is not None]
        return told[-1] - told[0] if len(told) > 1 else None


class Samples:
    """samples.jsonl of a policy stage as it grows, and answers.jsonl of an evaluation."""

    def __init__(self, looks: Path | None, answers: Path | None) -> None:
        self._looks = Following(looks) if looks else None
        self._answers = Following(answers) if answers else None
        self.asked: dict[str, Asked] = {}

    def refresh(self) -> None:
        """Read what was added."""
        told = [following.read() if following else (b"", False) for following in (self._looks, self._answers)]
        if any(again for _, again in told):
            for following in (self._looks, self._answers):
                if following:
                    following.forget()
            self.asked = {}
            told = [following.read() if following else (b"", False) for following in (self._looks, self._answers)]
        for row in rows(told[0][0]):
            self._look(row)
        for row in rows(told[1][0]):
            self._answer(row)

    def _of(self, row: dict[str, Any]) -> Asked:
        name = str(row.get("prompt_id", row.get("prompt", "")))
        return self.asked.setdefault(name, Asked(name, str(row.get("prompt", "")), str(row.get("domain") or "")))

    def _look(self, row: dict[str, Any]) -> None:
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            return
        step += 1
        # What a resumed run says of a step again takes the place of what was said before.
        self._of(row).steps[step] = Version(
            str(step), model_at(step), str(row.get("text", "")), _scores(row, ("reward", "score"))
        )

    def _answer(self, row: dict[str, Any]) -> None:
        asked = self._of(row)
        for name, label in EVALUATED.items():
            if isinstance(row.get(name), str):
                scores = {
                    kind: row[f"{kind}_{name}"] for kind in ("reward", "rubric") if is_number(row.get(f"{kind}_{name}"))
                }
                asked.evaluated[name] = Version(name, label, row[name], scores)

    @property
    def domains(self) -> list[str]:
        """The domains that prompts belong to."""
        return sorted({asked.domain for asked in self.asked.values()} - {""})

    def listed(self, domain: str = "", sort: Sort = "order") -> list[Asked]:
        """Prompts of a domain; those whose reward fell, or rose, the most come first where that is asked."""
        found = [asked for asked in self.asked.values() if domain in ("", asked.domain)]
        if sort == "order":
            return found
        sign = -1.0 if sort == "rise" else 1.0
        return sorted(found, key=lambda asked: (asked.change is None, sign * (asked.change or 0.0)))

    def wins(self) -> list[tuple[int, float, int]]:
        """(step, share of prompts with a higher reward than the tuned model's answer got, prompts); ties count half."""
        steps = sorted({step for asked in self.asked.values() for step in asked.steps} - {TUNED})
        found = []
        for step in steps:
            outcomes = list(_outcomes(self.asked.values(), step))
            if outcomes:
                found.append((step, sum(outcomes) / len(outcomes), len(outcomes)))
        return found


def _outcomes(asked: Iterable[Asked], step: int) -> Iterable[float]:
    for one in asked:
        if step in one.steps and TUNED in one.steps:
            ours = one.steps[step].reward
            theirs = one.steps[TUNED].reward
            if ours is not None and theirs is not None:
                yield 0.5 if ours == theirs else float(ours > theirs)


def model_at(step: int) -> str:
    """The model after so many steps."""
    return "tuned model" if step == TUNED else f"step {step}"


def _scores(row: dict[str, Any], names: Iterable[str]) -> dict[str, float]:
    return {name: float(row[name]) for name in names if is_number(row.get(name))}
