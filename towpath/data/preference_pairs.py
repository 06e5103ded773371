"""What files of other tools say of two answers, made into records of the ledger; what cannot be used is named."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from towpath.data.row_files import UnusableRow
from towpath.data.texts import normalise, require_text
from towpath.records import Choice, Comparison, Completion, Judgement, Prompt, Split, as_row

Kind = Literal["person", "judge", "rule", "simulated"]
_OTHER: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie", "both_bad": "both_bad"}


@dataclass(frozen=True)
class SourceRecords:
    """The records that a row was made from, as the ledger that wrote it had them."""

    prompt: Prompt
    a: Completion
    b: Completion
    comparison: Comparison
    judgements: tuple[Judgement, ...] = ()
    choice: Choice | None = None

    def light(self) -> "SourceRecords":
        """Without the tokens of the answers, for tools that have no use for them."""
        bare = [replace(c, token_ids=(), logprobs=()) for c in (self.a, self.b)]
        return replace(self, a=bare[0], b=bare[1])


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, the row's own verdict, and what named raters said; judgements here have no key and
    comparison yet."""

    prompt: str
    a: str
    b: str
    verdict: Judgement | None = None
    said: tuple[Judgement, ...] = ()
    domain: str = ""
    group: str = ""
    known: SourceRecords | None = None


@dataclass(frozen=True)
class Imported:
    """The records in files, ready for a Store, and every row that could not be used with its place and reason."""

    prompts: tuple[Prompt, ...] = ()
    completions: tuple[Completion, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    refused: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """File and line of the first row of each comparison."""


def draft_judgement(choice: Choice, rater: str = "", **more: Any) -> Judgement:
    """What somebody said of a pair, before it is known which comparison that is."""
    return Judgement("", "", rater, more.pop("kind", "person"), choice, **more)


def format_provenance(known: SourceRecords) -> str:
    """The records behind a row, as the text that travels with it."""
    told = {
        "prompt": as_row(known.prompt),
        "a": as_row(known.a),
        "b": as_row(known.b),
        "comparison": as_row(known.comparison),
    }
    judged = [as_row(j) for j in known.judgements]
    return json.dumps(told | {"judgements": judged, "choice": known.choice}, ensure_ascii=False)


def parse_provenance(text: Any) -> SourceRecords | None:
    """The records in a row's provenance; none where it has none, Unusable where it is broken."""
    if text is None or text == "":
        return None
    try:
        return _KNOWN.validate_json(text) if isinstance(text, str) else _KNOWN.validate_python(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UnusableRow(
            f"provenance cannot be read: {where}: {first['msg']}; remove the cell to import the row without it"
        ) from None


_KNOWN = TypeAdapter(SourceRecords)


def content_id(*parts: str) -> str:
    """A short name made from content."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


class PairImporter:
    """Takes pairs one by one and makes of them records that fit together."""

    def __init__(self, source: str, kind: Kind = "person", rater: str = "", prompts: Iterable[Prompt] = ()) -> None:
        self.source = source
        self.kind = kind
        self.rater = rater or source
        self._ours = {p.prompt: p for p in prompts}
        self._splits: dict[str, Split] = {
            normalise(p.prompt): p.split for p in self._ours.values() if p.split != "train"
        }
        self._prompts: dict[str, Prompt] = {}
        self._completions: dict[str, Completion] = {}
        self._comparisons: dict[str, Comparison] = {}
        self._turns: dict[tuple[str, str, int], tuple[str, Judgement]] = {}
        self._refused: list[str] = []
        self._places: dict[str, str] = {}

    def add(self, place: str, pair: PreferencePair | str) -> None:
        """One more pair, or why there is none at that place."""
        if isinstance(pair, str):
            return self._refuse(place, pair)
        try:
            _require_texts(pair)
            comparison, swapped, ours = self._placed(pair)
            self._places.setdefault(comparison.id, place)
            self._hear(place, pair, comparison, swapped, ours)
        except UnusableRow as reason:
            self._refuse(place, str(reason))

    def imported(self) -> Imported:
        """All that was gathered."""
        judgements = tuple(j for _, j in self._turns.values())
        prompts = self._prompts.values()
        completions = self._completions.values()
        comparisons = self._comparisons.values()
        return Imported(tuple(prompts), tuple(completions), tuple(comparisons), judgements, self._refused, self._places)

    def _refuse(self, place: str, reason: str) -> None:
        told = f"{place}: {reason}"
        if told not in self._refused[-1:]:
            self._refused.append(told)

    def _placed(self, pair: PreferencePair) -> tuple[Comparison, bool, SourceRecords | None]:
        """The comparison of a pair, whether its sides are the other way round there, and its own records where the
        texts are still theirs."""
        known = pair.known
        if known is not None and _fits(known, pair):
            prompt = known.prompt
            a = known.a
            b = known.b
            comparison = known.comparison
            swapped = a.text.strip() != pair.a.strip()
        else:
            known = None
            prompt = self._prompt(pair)
            sides = [self._completion(prompt, text) for text in (pair.a, pair.b)]
            a, b = sorted(sides, key=lambda c: c.id)  # by content, so that the better answer stands on either side
            swapped = a is not sides[0]
            comparison = Comparison(f"i-{content_id(prompt.id, a.id, b.id)}", prompt.id, a.id, b.id)
        for kept, record in (
            (self._prompts, prompt),
            (self._completions, a),
            (self._completions, b),
            (self._comparisons, comparison),
        ):
            if kept.get(record.id, record) != record:
                raise UnusableRow(f"id {record.id!r} is used already for something else")
        self._prompts[prompt.id], self._completions[a.id], self._completions[b.id] = prompt, a, b
        self._comparisons[comparison.id] = comparison
        return comparison, swapped, known

    def _prompt(self, pair: PreferencePair) -> Prompt:
        if pair.prompt in self._ours:
            return self._ours[pair.prompt]
        name = f"p-{content_id(pair.prompt)}"
        split: Split = self._splits.get(normalise(pair.prompt), "train")
        return self._prompts.get(name) or Prompt(name, pair.prompt, pair.domain or "general", split=split)

    def _completion(self, prompt: Prompt, text: str) -> Completion:
        return Completion(f"c-{content_id(prompt.id, text)}", prompt.id, self.source, text, (), (), "stop")

    def _hear(
        self, place: str, pair: PreferencePair, comparison: Comparison, swapped: bool, known: SourceRecords | None
    ) -> None:
        for j in known.judgements if known else ():
            self._keep(place, j)
        told = list(pair.said)
        if pair.verdict and not (known and known.choice == _seen(pair.verdict, swapped).choice):
            told.append(pair.verdict)
        for j in told:
            said = _seen(j, swapped)
            details = said.details | ({"group": pair.group} if pair.group else {}) | {"import": self.source}
            kind = self.kind if said.kind == "person" else said.kind
            said = replace(
                said,
                comparison=comparison.id,
                rater=said.rater or self.rater,
                kind=kind,
                round=comparison.round,
                details=details,
            )
            self._keep(place, said, known.judgements if known else ())

    def _keep(self, place: str, said: Judgement, before: Sequence[Judgement] = ()) -> None:
        """One turn of a rater; beside what the ledger that wrote the row knows of them, a change of mind is a new
        round."""
        earlier = [j for j in before if j.rater == said.rater]
        if any(j.choice == said.choice for j in earlier[-1:]):
            return
        if earlier:
            said = replace(said, round=max(j.round for j in earlier) + 1)
        said = said if said.key else replace(said, key=f"{said.comparison}/{said.rater}/{said.round}")
        turn = (said.comparison, said.rater, said.round)
        if turn in self._turns:
            where, other = self._turns[turn]
            if other.choice != said.choice:
                raise UnusableRow(
                    f"{where} says {other.choice} of this pair and here it is {said.choice}; a column `rater` keeps "
                    "both"
                )
            raise UnusableRow(f"the same judgement as {where}")
        self._turns[turn] = (place, said)


def _require_texts(pair: PreferencePair) -> None:
    for what, text in (("prompt", pair.prompt), ("answer", pair.a), ("answer", pair.b)):
        require_text(what, text)
    if pair.a.strip() == pair.b.strip():
        raise UnusableRow("identical answers")


def _fits(known: SourceRecords, pair: PreferencePair) -> bool:
    """Whether the records of a row belong to each other and to its texts, blanks around them aside."""
    c = known.comparison
    whole = (c.prompt_id, c.a, c.b) == (
        known.prompt.id,
        known.a.id,
        known.b.id,
    ) and known.a.prompt_id == known.b.prompt_id == known.prompt.id
    whole = whole and all(j.comparison == c.id and j.key for j in known.judgements)
    texts = [{text.strip() for text in both} for both in ((known.a.text, known.b.text), (pair.a, pair.b))]
    return whole and known.prompt.prompt.strip() == pair.prompt.strip() and texts[0] == texts[1]


def _seen(j: Judgement, swapped: bool) -> Judgement:
    """A judgement from the other side; where nobody knows which answer stood first, that stays so."""
    if not swapped:
        return j
    turned = replace(j, choice=_OTHER[j.choice])
    return turned if j.details.get("shown") == "unknown" else replace(turned, shown="ba" if j.shown == "ab" else "ab")
