"""What an owner looks through: judged pairs with texts, comments, better answers and flags; and what a rater did
last."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from towpath.records import Choice
from towpath.store import schema, sides, statements

PAGE_SIZE = 20
HISTORY = 20

_judgements = schema.judgements
_comparisons = schema.comparisons
_prompts = schema.prompts
_written = schema.written
_flags = schema.flags
_seats = schema.seats
_not_retracted = _judgements.c.key.not_in(select(schema.retractions.c.key))


@dataclass(frozen=True, slots=True)
class PairFilter:
    """Which judged pairs are listed; empty fields match all. `having` is comment, written or flag."""

    text: str = ""
    rater: str = ""
    kind: str = ""
    choice: str = ""
    domain: str = ""
    having: str = ""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One comparison with its texts and everything said of it."""

    comparison: str
    prompt: str
    domain: str
    a: str
    b: str
    sources: tuple[str, str]
    judgements: list[dict[str, Any]] = field(default_factory=list)
    written: list[dict[str, Any]] = field(default_factory=list)
    flags: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PairPage:
    """Part of a list, and whether it goes on after it."""

    pairs: list[JudgedPair]
    number: int
    more: bool


def list_judged_pairs(connection: Connection, wanted: PairFilter, number: int = 1) -> PairPage:
    """The pairs that match, the newest judged first. Pairs of arenas are not listed, so that an owner who rates
    stays blind."""
    a = schema.completions.alias()
    b = schema.completions.alias()
    newest = select(_judgements.c.comparison).where(*_conditions(wanted))
    newest = newest.where(_judgements.c.comparison.not_in(statements.IN_ARENAS)).group_by(_judgements.c.comparison)
    found = _filter_texts(newest, wanted, a, b).order_by(func.max(_judgements.c.number).desc())
    names = connection.scalars(found.limit(PAGE_SIZE + 1).offset((number - 1) * PAGE_SIZE)).all()
    return PairPage(_load_pairs(connection, names[:PAGE_SIZE]), number, len(names) > PAGE_SIZE)


def _conditions(wanted: PairFilter) -> list[ColumnElement[bool]]:
    """The judgement that a pair is listed for must match all of these at once."""
    equal = (
        (_judgements.c.rater, wanted.rater),
        (_judgements.c.kind, wanted.kind),
        (_judgements.c.choice, wanted.choice),
    )
    found: list[ColumnElement[bool]] = [_not_retracted, *(column == value for column, value in equal if value)]
    if wanted.having == "comment":
        found.append(_judgements.c.comment != "")
    if wanted.having == "written":
        own = and_(_written.c.comparison == _judgements.c.comparison, _written.c.state != "replaced")
        found.append(select(_written.c.key).where(own).exists())
    if wanted.having == "flag":
        found.append(select(_flags.c.number).where(_flags.c.comparison == _judgements.c.comparison).exists())
    return found


def _filter_texts(newest: "Select[Any]", wanted: PairFilter, a: Any, b: Any) -> "Select[Any]":
    query = newest
    if not (wanted.text or wanted.domain):
        return query
    query = query.join(_comparisons, _comparisons.c.id == _judgements.c.comparison).join(
        _prompts, _prompts.c.id == _comparisons.c.prompt_id
    )
    if wanted.domain:
        query = query.where(_prompts.c.domain == wanted.domain)
    if wanted.text:
        query = query.join(a, a.c.id == _comparisons.c.a).join(b, b.c.id == _comparisons.c.b)
        columns = (_prompts.c.prompt, a.c.text, b.c.text, _judgements.c.comment)
        better = select(_written.c.key).where(
            _written.c.comparison == _judgements.c.comparison, _written.c.text.icontains(wanted.text, autoescape=True)
        )
        query = query.where(
            or_(*(column.icontains(wanted.text, autoescape=True) for column in columns), better.exists())
        )
    return query


def _load_pairs(connection: Connection, names: Sequence[str]) -> list[JudgedPair]:
    a = schema.completions.alias()
    b = schema.completions.alias()
    query = select(_comparisons.c.id, _prompts.c.prompt, _prompts.c.domain, a.c.text.label("a"), b.c.text.label("b"))
    query = query.add_columns(a.c.source.label("source_a"), b.c.source.label("source_b")).select_from(_comparisons)
    query = (
        query.join(_prompts, _prompts.c.id == _comparisons.c.prompt_id)
        .join(a, a.c.id == _comparisons.c.a)
        .join(b, b.c.id == _comparisons.c.b)
    )
    found = {
        row.id: JudgedPair(row.id, row.prompt, row.domain, row.a, row.b, (row.source_a, row.source_b))
        for row in connection.execute(query.where(_comparisons.c.id.in_(names)))
    }
    for row in connection.execute(
        select(_judgements).where(_judgements.c.comparison.in_(names), _not_retracted).order_by(_judgements.c.number)
    ).mappings():
        found[row["comparison"]].judgements.append(dict(row))
    drafts = (
        select(_written).where(_written.c.comparison.in_(names), _written.c.state != "replaced").order_by(_written.c.at)
    )
    for row in connection.execute(drafts).mappings():
        found[row["comparison"]].written.append(dict(row))
    for row in connection.execute(
        select(_flags).where(_flags.c.comparison.in_(names)).order_by(_flags.c.number)
    ).mappings():
        found[row["comparison"]].flags.append(dict(row))
    return [found[name] for name in names]


def list_written_answers(connection: Connection, state: str, number: int = 1) -> tuple[list[dict[str, Any]], bool]:
    """Better answers of one state with the pair they belong to, the oldest first, a page at a time; and whether
    there are more."""
    a = schema.completions.alias()
    b = schema.completions.alias()
    query = select(
        _written, _prompts.c.prompt, _prompts.c.domain, a.c.text.label("a"), b.c.text.label("b")
    ).select_from(_written)
    query = query.join(_comparisons, _comparisons.c.id == _written.c.comparison).join(
        _prompts, _prompts.c.id == _written.c.prompt_id
    )
    query = (
        query.join(a, a.c.id == _comparisons.c.a).join(b, b.c.id == _comparisons.c.b).where(_written.c.state == state)
    )
    rows = connection.execute(
        query.order_by(_written.c.at, _written.c.key).limit(PAGE_SIZE + 1).offset((number - 1) * PAGE_SIZE)
    ).mappings()
    found = [dict(row) for row in rows]
    return found[:PAGE_SIZE], len(found) > PAGE_SIZE


def list_domains(connection: Connection) -> list[str]:
    """The domains of all prompts."""
    return list(connection.scalars(select(_prompts.c.domain).distinct().order_by(_prompts.c.domain)))


def list_raters(connection: Connection) -> list[str]:
    """Everyone who has judged: people, judges, rules."""
    return list(connection.scalars(select(schema.tallies.c.rater).distinct().order_by(schema.tallies.c.rater)))


def rater_history(connection: Connection, rater: str) -> list[dict[str, Any]]:
    """What a rater did last, the newest first: prompt, what was done, and the verdict as they saw it."""
    query = select(_seats.c.comparison, _seats.c.state, _seats.c.shown, _seats.c.at, _prompts.c.prompt).select_from(
        _seats
    )
    query = query.join(_comparisons, _comparisons.c.id == _seats.c.comparison).join(
        _prompts, _prompts.c.id == _comparisons.c.prompt_id
    )
    query = (
        query.where(_seats.c.rater == rater, _seats.c.state.in_(statements.SETTLED_STATES))
        .order_by(_seats.c.at.desc())
        .limit(HISTORY)
    )
    rows = [dict(row) for row in connection.execute(query).mappings()]
    names = [row["comparison"] for row in rows]
    own = select(_judgements.c.comparison, _judgements.c.choice, _judgements.c.strength, _judgements.c.comment)
    own = own.where(_judgements.c.comparison.in_(names), _judgements.c.rater == rater, _not_retracted).order_by(
        _judgements.c.number
    )
    said = {row.comparison: row for row in connection.execute(own)}
    for row in rows:
        row["verdict"] = said.get(row["comparison"])
        row["side"] = _side(row["verdict"].choice, row["shown"]) if row["verdict"] is not None else ""
    return rows


def _side(choice: Choice, shown: str) -> str:
    return sides.side_of(choice, shown) if choice in ("tie", "both_bad") or shown in ("ab", "ba") else "ranking"


def answer_texts(connection: Connection, comparisons: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Both answers (a, b) of comparisons."""
    a = schema.completions.alias()
    b = schema.completions.alias()
    query = select(_comparisons.c.id, a.c.text.label("a"), b.c.text.label("b")).select_from(_comparisons)
    query = query.join(a, a.c.id == _comparisons.c.a).join(b, b.c.id == _comparisons.c.b)
    found: dict[str, tuple[str, str]] = {}
    for begin in range(0, len(comparisons), statements.BLOCK):
        part = comparisons[begin : begin + statements.BLOCK]
        found |= {row.id: (row.a, row.b) for row in connection.execute(query.where(_comparisons.c.id.in_(part)))}
    return found
