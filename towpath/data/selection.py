"""Leave out rows by the recipe: quality filters, duplicates, leaks and balance, each with its reason."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from towpath.data import curate
from towpath.data.corpus import Corpus
from towpath.data.curate import DEMONSTRATION, HELDOUT, SAFETY, TRAIN, SameQuestions
from towpath.data.refused_rows import Part, format_summary, refused_row
from towpath.data.text_quality import prompt_problem, response_problem
from towpath.data.texts import normalise
from towpath.errors import RecipeError
from towpath.hashing import hash_uniform
from towpath.progress import progress
from towpath.recipe.data import Balance, Data, Filters
from towpath.records import Demonstration, Finding, Prompt

Reasons = dict[tuple[Part, str], str]
"""Why records are left out, by part and id."""
PARTS: dict[int, Part] = {TRAIN: "prompts", HELDOUT: "prompts", DEMONSTRATION: "demonstrations", SAFETY: "safety"}


def select(corpus: Corpus, data: Data, seed: int, cache: Path | None = None) -> Corpus:
    """The corpus without the rows that `[data.filters]` and `[data.balance]` leave out; they are in `filtered`."""
    if data.filters == Filters() and data.balance == Balance():
        return corpus
    corpus = _leave_out(corpus, _with_demonstrations(corpus, _failing(corpus, data.filters), {}))
    if data.filters.duplicates != "keep" or data.filters.leaks == "drop":
        corpus = _without_copies(corpus, data.filters, cache)
    if data.balance.cap or data.balance.weights:
        corpus = _leave_out(corpus, surplus(corpus.train, data.balance, seed))
    finding = Finding("rows-filtered", "info", _evidence(corpus), "[data.filters] and [data.balance] of the recipe", "")
    return replace(corpus, findings=(*corpus.findings, finding)) if corpus.filtered else corpus


def _evidence(corpus: Corpus) -> str:
    return f"{len(corpus.filtered)} rows are left out: {format_summary(corpus.filtered)}"


def _failing(corpus: Corpus, filters: Filters) -> Reasons:
    """Records that fail a filter of their text; the safety set is not filtered, since its texts are unusual."""
    reasons: Reasons = {}
    with progress("filters", len(corpus.prompts) + len(corpus.demonstrations), "rows") as work:
        for prompt in corpus.prompts:
            if reason := prompt_problem(prompt, filters):
                reasons["prompts", prompt.id] = reason
            work.advance()
        for demonstration in corpus.demonstrations:
            if reason := prompt_problem(demonstration, filters) or response_problem(demonstration, filters):
                reasons["demonstrations", demonstration.id] = reason
            work.advance()
    return reasons


def _leave_out(corpus: Corpus, reasons: Reasons, links: Mapping[str, str] | None = None) -> Corpus:
    """The corpus without these records; demonstrations of prompts in `links` belong to the prompt that is kept."""
    rows = [refused_row(part, corpus.locations.get(part, name), reason) for (part, name), reason in reasons.items()]
    demonstrations = (d for d in corpus.demonstrations if ("demonstrations", d.id) not in reasons)
    return replace(
        corpus,
        prompts=tuple(p for p in corpus.prompts if ("prompts", p.id) not in reasons),
        safety=tuple(p for p in corpus.safety if ("safety", p.id) not in reasons),
        demonstrations=tuple(_linked(d, links or {}) for d in demonstrations),
        filtered=(*corpus.filtered, *rows),
    )


def _linked(demonstration: Demonstration, links: Mapping[str, str]) -> Demonstration:
    owner = links.get(demonstration.prompt_id)
    return replace(demonstration, prompt_id=owner) if owner else demonstration


def _with_demonstrations(corpus: Corpus, reasons: Reasons, links: Mapping[str, str]) -> Reasons:
    """The reasons with the demonstrations of prompts that are left out and have no copy that is kept."""
    orphans: Reasons = {
        ("demonstrations", d.id): "a demonstration of a prompt that is left out"
        for d in corpus.demonstrations
        if ("prompts", d.prompt_id) in reasons and d.prompt_id not in links
    }
    return orphans | reasons


def _without_copies(corpus: Corpus, filters: Filters, cache: Path | None) -> Corpus:
    same = curate.same_questions(corpus, cache)
    copies = _Copies(corpus, same, near=filters.duplicates == "near")
    reasons: Reasons = {}
    if filters.leaks == "drop":
        reasons |= copies.leaks()
    if filters.duplicates != "keep":
        reasons |= copies.duplicates(reasons)
    return _leave_out(corpus, _with_demonstrations(corpus, reasons, copies.links), copies.links)


class _Copies:
    """Duplicates and leaks of a corpus, by question."""

    def __init__(self, corpus: Corpus, same: SameQuestions, near: bool) -> None:
        self.corpus = corpus
        self.same = same
        self.near = near
        self.groups = same.shared()
        self.neighbours: dict[int, list[int]] = {}
        self.links: dict[str, str] = {}
        for one, other in same.similar:
            self.neighbours.setdefault(one, []).append(other)
            self.neighbours.setdefault(other, []).append(one)

    def leaks(self) -> Reasons:
        """Records to train on whose question is held out, and training prompts in the safety set."""
        reasons: Reasons = {}
        for question, members in self.groups.items():
            for position in members:
                side = self.same.side_R[position]
                outside = {TRAIN: (HELDOUT, SAFETY), DEMONSTRATION: (HELDOUT,)}.get(int(side), ())
                copy = next(self._records((question, *self.neighbours.get(question, ())), outside), None)
                if copy is not None:
                    reasons[self._key(position)] = f"a leak (the question of {self._location(copy)})"
        return reasons

    def duplicates(self, left_out: Reasons) -> Reasons:
        """Records whose question another record of the same side, kept before it, has."""
        reasons: Reasons = {}
        keepers: dict[tuple[int, int, str], int] = {}
        for question, members in sorted(self.groups.items()):
            similar = self.neighbours.get(question, ()) if self.near else ()
            for position in members:
                key = self._key(position)
                if key in left_out:
                    continue
                side = int(self.same.side_R[position])
                answer = self._answer(position)
                first = keepers.get((question, side, answer))
                near = next((keepers[slot] for other in similar if (slot := (other, side, answer)) in keepers), None)
                if first is None and near is None:
                    keepers[question, side, answer] = position
                    continue
                copy = first if first is not None else near
                assert copy is not None
                reasons[key] = f"{'an exact' if first is not None else 'a near'} duplicate (of {self._location(copy)})"
                if side in (TRAIN, HELDOUT):
                    self.links[self.same.records[position].id] = self.same.records[copy].id
        return reasons

    def _records(self, questions: Sequence[int], sides: Sequence[int]) -> Iterator[int]:
        for question in questions:
            yield from (position for position in self.groups[question] if self.same.side_R[position] in sides)

    def _answer(self, position: int) -> str:
        record = self.same.records[position]
        return normalise(record.response) if isinstance(record, Demonstration) else ""

    def _key(self, position: int) -> tuple[Part, str]:
        return PARTS[int(self.same.side_R[position])], self.same.records[position].id

    def _location(self, position: int) -> str:
        return self.corpus.locations.get(*self._key(position))


GROUPS: dict[str, Callable[[Prompt], str]] = {
    "domain": lambda p: p.domain,
    "difficulty": lambda p: p.difficulty,
    "domain/difficulty": lambda p: f"{p.domain}/{p.difficulty}",
}


def surplus(train: Sequence[Prompt], balance: Balance, seed: int) -> Reasons:
    """Training prompts of a group beyond its cap, or beyond its weight; which ones depends on the ids alone."""
    groups: dict[str, list[str]] = {}
    for prompt in train:
        groups.setdefault(GROUPS[balance.by](prompt), []).append(prompt.id)
    sizes = _sizes({name: len(ids) for name, ids in groups.items()}, balance)
    reasons: Reasons = {}
    for name, ids in groups.items():
        if len(ids) > sizes[name]:
            draws = np.array([hash_uniform(seed, "balance", one) for one in ids])
            for position in np.argsort(draws, kind="stable")[sizes[name] :].tolist():
                reasons["prompts", ids[position]] = f"left out by data.balance ({name})"
    return reasons


def _sizes(counts: dict[str, int], balance: Balance) -> dict[str, int]:
    """The number of prompts that each group keeps: in proportion to the weights as many as possible."""
    unknown = sorted(set(balance.weights) - set(counts))
    if unknown:
        rule = f"a {balance.by} of the training prompts: {', '.join(sorted(counts)) or 'none'}"
        raise RecipeError(f"data.balance.weights names {unknown[0]!r}", rule, "fix the name, or remove it")
    sizes = dict(counts)
    if balance.weights:
        weights = {name: balance.weights.get(name, 1.0) for name in counts}
        scale = min((count / weights[name] for name, count in counts.items() if weights[name]), default=0.0)
        sizes = {name: min(counts[name], round(scale * weight)) for name, weight in weights.items()}
    return {name: min(size, balance.cap or size) for name, size in sizes.items()}
