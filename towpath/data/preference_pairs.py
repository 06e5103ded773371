"""Convert imported pairs of answers to records of the ledger; unusable rows are listed with their reason."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from towpath.data.row_files import UnusableRow
from towpath.data.texts import normalise, require_text
from towpath.records import Choice, Comparison, Completion, Conversation, Judgement, Prompt, Split, as_row, transcript

Kind = Literal["person", "judge", "rule", "simulated"]
_OPPOSITE: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie", "both_bad": "both_bad"}


@dataclass(frozen=True)
class SourceRecords:
    """The ledger records from which a row was exported."""

    prompt: Prompt
    a: Completion
    b: Completion
    comparison: Comparison
    judgements: tuple[Judgement, ...] = ()
    choice: Choice | None = None

    def light(self) -> "SourceRecords":
        """Without the tokens of the answers, for tools that do not use them."""
        bare = [replace(c, token_ids=(), logprobs=()) for c in (self.a, self.b)]
        return replace(self, a=bare[0], b=bare[1])


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, the row's own verdict, and judgements of named raters, without key and comparison."""

    prompt: Conversation
    a: str
    b: str
    verdict: Judgement | None = None
    judgements: tuple[Judgement, ...] = ()
    domain: str = ""
    group: str = ""
    known: SourceRecords | None = None


@dataclass(frozen=True)
class Imported:
    """The imported records, ready for a Store, and every unusable row with its location and reason."""

    prompts: tuple[Prompt, ...] = ()
    completions: tuple[Completion, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    refused: list[str] = field(default_factory=list)
    locations: dict[str, str] = field(default_factory=dict)
    """File and line of the first row of each comparison."""


def draft_judgement(choice: Choice, rater: str = "", **more: Any) -> Judgement:
    """A judgement whose comparison is not known yet."""
    return Judgement("", "", rater, more.pop("kind", "person"), choice, **more)


def format_provenance(known: SourceRecords) -> str:
    """The records behind a row, as JSON text in a cell of the row."""
    rows = {
        "prompt": as_row(known.prompt),
        "a": as_row(known.a),
        "b": as_row(known.b),
        "comparison": as_row(known.comparison),
    }
    judgements = [as_row(j) for j in known.judgements]
    return json.dumps(rows | {"judgements": judgements, "choice": known.choice}, ensure_ascii=False)


def parse_provenance(text: Any) -> SourceRecords | None:
    """The records in a row's provenance; None if absent, UnusableRow if damaged."""
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
    """A short id derived from content."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def prompt_id(messages: Conversation) -> str:
    """The id of an imported prompt, from its content."""
    return f"p-{content_id(transcript(messages))}"


class PairImporter:
    """Converts pairs to consistent records, one at a time."""

    def __init__(
        self,
        source: str,
        kind: Kind = "person",
        rater: str = "",
        prompts: Iterable[Prompt] = (),
        cut: Callable[[Conversation], Conversation] = lambda messages: messages,
    ) -> None:
        self.source = source
        self.cut = cut
        """Shortens conversations that are too long."""
        self.kind = kind
        self.rater = rater or source
        self._ours = {p.messages: p for p in prompts}
        self._splits: dict[str, Split] = {normalise(p.text): p.split for p in self._ours.values() if p.split != "train"}
        self._prompts: dict[str, Prompt] = {}
        self._completions: dict[str, Completion] = {}
        self._comparisons: dict[str, Comparison] = {}
        self._turns: dict[tuple[str, str, int], tuple[str, Judgement]] = {}
        self._refused: list[str] = []
        self._locations: dict[str, str] = {}

    def add(self, location: str, pair: PreferencePair | str) -> None:
        """Add a pair, or the reason why there is none at this location."""
        if isinstance(pair, str):
            return self._refuse(location, pair)
        try:
            _require_texts(pair)
            pair = replace(pair, prompt=self.cut(pair.prompt))
            comparison, swapped, ours = self._comparison_of(pair)
            self._locations.setdefault(comparison.id, location)
            self._add_judgements(location, pair, comparison, swapped, ours)
        except UnusableRow as reason:
            self._refuse(location, str(reason))

    def imported(self) -> Imported:
        """All records."""
        judgements = tuple(j for _, j in self._turns.values())
        prompts = self._prompts.values()
        completions = self._completions.values()
        comparisons = self._comparisons.values()
        return Imported(
            tuple(prompts), tuple(completions), tuple(comparisons), judgements, self._refused, self._locations
        )

    def _refuse(self, location: str, reason: str) -> None:
        row = f"{location}: {reason}"
        if row not in self._refused[-1:]:
            self._refused.append(row)

    def _comparison_of(self, pair: PreferencePair) -> tuple[Comparison, bool, SourceRecords | None]:
        """The comparison of a pair, whether its sides are swapped, and the source records if their texts are
        unchanged."""
        known = pair.known
        if known is not None and _matches_texts(known, pair):
            prompt = known.prompt
            a = known.a
            b = known.b
            comparison = known.comparison
            swapped = a.text.strip() != pair.a.strip()
        else:
            known = None
            prompt = self._prompt(pair)
            sides = [self._completion(prompt, text) for text in (pair.a, pair.b)]
            a, b = sorted(sides, key=lambda c: c.id)  # sorted by content: the better answer may be a or b
            swapped = a is not sides[0]
            comparison = Comparison(f"i-{content_id(prompt.id, a.id, b.id)}", prompt.id, a.id, b.id)
        for stored, record in (
            (self._prompts, prompt),
            (self._completions, a),
            (self._completions, b),
            (self._comparisons, comparison),
        ):
            if stored.get(record.id, record) != record:
                raise UnusableRow(f"id {record.id!r} is used already for something else")
        self._prompts[prompt.id], self._completions[a.id], self._completions[b.id] = prompt, a, b
        self._comparisons[comparison.id] = comparison
        return comparison, swapped, known

    def _prompt(self, pair: PreferencePair) -> Prompt:
        if pair.prompt in self._ours:
            return self._ours[pair.prompt]
        name = prompt_id(pair.prompt)
        split: Split = self._splits.get(normalise(transcript(pair.prompt)), "train")
        *history, last = pair.prompt
        prompt = Prompt(name, last.content, pair.domain or "general", split=split, history=tuple(history))
        return self._prompts.get(name) or prompt

    def _completion(self, prompt: Prompt, text: str) -> Completion:
        return Completion(f"c-{content_id(prompt.id, text)}", prompt.id, self.source, text, (), (), "stop")

    def _add_judgements(
        self, location: str, pair: PreferencePair, comparison: Comparison, swapped: bool, known: SourceRecords | None
    ) -> None:
        for j in known.judgements if known else ():
            self._add_judgement(location, j)
        judgements = list(pair.judgements)
        if pair.verdict and not (known and known.choice == _swap_sides(pair.verdict, swapped).choice):
            judgements.append(pair.verdict)
        for j in judgements:
            judgement = _swap_sides(j, swapped)
            details = judgement.details | ({"group": pair.group} if pair.group else {}) | {"import": self.source}
            kind = self.kind if judgement.kind == "person" else judgement.kind
            judgement = replace(
                judgement,
                comparison=comparison.id,
                rater=judgement.rater or self.rater,
                kind=kind,
                round=comparison.round,
                details=details,
            )
            self._add_judgement(location, judgement, known.judgements if known else ())

    def _add_judgement(self, location: str, judgement: Judgement, before: Sequence[Judgement] = ()) -> None:
        """Add one judgement; a changed choice of a rater in the source ledger becomes a new round."""
        earlier = [j for j in before if j.rater == judgement.rater]
        if any(j.choice == judgement.choice for j in earlier[-1:]):
            return
        if earlier:
            judgement = replace(judgement, round=max(j.round for j in earlier) + 1)
        judgement = (
            judgement
            if judgement.key
            else replace(judgement, key=f"{judgement.comparison}/{judgement.rater}/{judgement.round}")
        )
        turn = (judgement.comparison, judgement.rater, judgement.round)
        if turn in self._turns:
            where, other = self._turns[turn]
            if other.choice != judgement.choice:
                conflict = f"{where} has choice {other.choice} for this pair, this row {judgement.choice}"
                raise UnusableRow(f"{conflict}; a column `rater` keeps both")
            raise UnusableRow(f"the same judgement as {where}")
        self._turns[turn] = (location, judgement)


def _require_texts(pair: PreferencePair) -> None:
    prompt = [("prompt", message.content) for message in pair.prompt]
    for what, text in (*prompt, ("answer", pair.a), ("answer", pair.b)):
        require_text(what, text)
    if pair.a.strip() == pair.b.strip():
        raise UnusableRow("identical answers")


def _matches_texts(known: SourceRecords, pair: PreferencePair) -> bool:
    """Whether a row's source records are consistent and match its texts, ignoring surrounding blanks."""
    c = known.comparison
    whole = (c.prompt_id, c.a, c.b) == (
        known.prompt.id,
        known.a.id,
        known.b.id,
    ) and known.a.prompt_id == known.b.prompt_id == known.prompt.id
    whole = whole and all(j.comparison == c.id and j.key for j in known.judgements)
    texts = [{text.strip() for text in both} for both in ((known.a.text, known.b.text), (pair.a, pair.b))]
    # tools without conversations hold the transcript as the text of one turn
    same_prompt = normalise(known.prompt.text) == normalise(transcript(pair.prompt))
    return whole and same_prompt and texts[0] == texts[1]


def _swap_sides(j: Judgement, swapped: bool) -> Judgement:
    """A judgement with sides swapped; an unknown display order stays unknown."""
    if not swapped:
        return j
    turned = replace(j, choice=_OPPOSITE[j.choice])
    return turned if j.details.get("shown") == "unknown" else replace(turned, shown="ba" if j.shown == "ab" else "ab")
