"""Each comparison of a ledger with its judgements, label and source records, for export."""

from collections.abc import Iterator
from dataclasses import dataclass

from towpath.data.preference_pairs import SourceRecords, format_provenance
from towpath.records import Choice, Completion, Judgement, Label, Prompt
from towpath.store.store import Store


@dataclass(frozen=True)
class PreferenceRecord:
    """One comparison with its judgements; `chance` is P(a is better), `margin` the strength from 1 to 3."""

    known: SourceRecords
    chance: float = 0.5
    margin: float = 1.0

    @property
    def prompt(self) -> Prompt:
        """The prompt."""
        return self.known.prompt

    @property
    def choice(self) -> Choice | None:
        """The label; None without judgements."""
        return self.known.choice

    @property
    def ordered(self) -> tuple[Completion, Completion]:
        """The better answer and the other; a and b if neither is better."""
        return (self.known.b, self.known.a) if self.choice == "b" else (self.known.a, self.known.b)

    @property
    def weight(self) -> float:
        """|2 P - 1|: 1 when certain, 0 when undecided."""
        return abs(2 * self.chance - 1)

    @property
    def source(self) -> str:
        """The kinds of raters, such as judge+person."""
        return "+".join(sorted({j.kind for j in self.known.judgements}))

    @property
    def group(self) -> str:
        """The ranking that the pair comes from, if any."""
        return next((str(j.details["group"]) for j in self.known.judgements if "group" in j.details), "")

    def provenance(self, tokens: bool = True) -> str:
        """The records behind this comparison, as JSON text."""
        return format_provenance(self.known if tokens else self.known.light())


def preference_records(store: Store) -> Iterator[PreferenceRecord]:
    """Every comparison of a Store in insertion order, with its stored label, or a vote where there is none."""
    prompts = store.prompts()
    completions = store.completions()
    labels = {label.comparison: label for label in store.labels()}
    by_comparison: dict[str, list[Judgement]] = {}
    for j in store.judgements():
        by_comparison.setdefault(j.comparison, []).append(j)
    for c in store.comparisons():
        judgements = by_comparison.get(c.id, [])
        label = labels.get(c.id) or _vote(c.id, judgements)
        known = SourceRecords(
            prompts[c.prompt_id],
            completions[c.a],
            completions[c.b],
            c,
            tuple(judgements),
            label.choice if label else None,
        )
        yield PreferenceRecord(known, _chance(label, judgements), label.strength) if label else PreferenceRecord(known)


def _latest_by_rater(judgements: list[Judgement]) -> list[Judgement]:
    """The latest judgement of each rater."""
    return list({j.rater: j for j in sorted(judgements, key=lambda j: j.round)}.values())


def _vote(comparison: str, judgements: list[Judgement]) -> Label | None:
    """The label of a plain vote; an even split between a and b is a tie."""
    votes = _latest_by_rater(judgements)
    if not votes:
        return None
    bad = sum(j.choice == "both_bad" for j in votes)
    lead = sum((j.choice == "a") - (j.choice == "b") for j in votes)
    choice: Choice = "both_bad" if 2 * bad > len(votes) else "a" if lead > 0 else "b" if lead < 0 else "tie"
    strengths = [j.strength for j in votes if j.choice == choice] or [1]
    return Label(comparison, choice, sum(strengths) / len(strengths), len(votes))


def _chance(label: Label, judgements: list[Judgement]) -> float:
    if label.chance is not None:
        return label.chance
    votes = _latest_by_rater(judgements)
    if not votes:
        return {"a": 1.0, "b": 0.0}.get(label.choice, 0.5)
    return sum({"a": 1.0, "b": 0.0}.get(j.choice, 0.5) for j in votes) / len(votes)
