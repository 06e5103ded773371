"""The owner's review of judged pairs, written answers and flags, and a rater's own history."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from towpath.records import Choice, Conversation, messages_of
from towpath.store import schema, sides, statements

PAGE_SIZE = 20
HISTORY = 20

_judgements = schema.judgements
_comparisons = schema.comparisons
_prompts = schema.prompts
_written = schema.written
_flags = schema.flags
_seats = schema.seats


@dataclass(frozen=True, slots=True)
class PairFilter:
    """A filter for judged pairs; empty fields match all. `having` is comment, written or flag."""

    text: str = ""
    rater: str = ""
    kind: str = ""
    choice: str = ""
    domain: str = ""
    having: str = ""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One comparison with its texts, judgements, written answers and flags."""

    comparison: str
    prompt: str
    domain: str
    a: str
    b: str
    sources: tuple[str, str]
    judgements: list[dict[str, Any]] = field(default_factory=list)
    written: list[dict[str, Any]] = field(default_factory=list)
    flags: list[dict[str, Any]] = field(default_factory=list)
    history: Conversation = ()


@dataclass(frozen=True, slots=True)
class PairPage:
    """One page of a list, and whether there are more."""

    pairs: list[JudgedPair]
    number: int
    more: bool


def list_judged_pairs(connection: Connection, wanted: PairFilter, number: int = 1) -> PairPage:
    """Return matching pairs, most recently judged first, without arena pairs, so that rating owners stay blind."""
    query = select(_judgements.c.comparison).where(
        *_conditions(wanted), _judgements.c.comparison.not_in(statements.IN_ARENAS)
    )
    query = _filter_texts(query.group_by(_judgements.c.comparison), wanted)
    query = query.order_by(func.max(_judgements.c.number).desc())
    names = connection.scalars(query.limit(PAGE_SIZE + 1).offset((number - 1) * PAGE_SIZE)).all()
    return PairPage(_load_pairs(connection, names[:PAGE_SIZE]), number, len(names) > PAGE_SIZE)


def _conditions(wanted: PairFilter) -> list[ColumnElement[bool]]:
    """Return the conditions that one judgement of a pair must all meet."""
    equal = (
        (_judgements.c.rater, wanted.rater),
        (_judgements.c.kind, wanted.kind),
        (_judgements.c.choice, wanted.choice),
    )
    conditions = [statements.NOT_RETRACTED, *(column == value for column, value in equal if value)]
    if wanted.having == "comment":
        conditions.append(_judgements.c.comment != "")
    if wanted.having == "written":
        own = and_(_written.c.comparison == _judgements.c.comparison, _written.c.state != "replaced")
        conditions.append(select(_written.c.key).where(own).exists())
    if wanted.having == "flag":
        conditions.append(select(_flags.c.number).where(_flags.c.comparison == _judgements.c.comparison).exists())
    return conditions


def _filter_texts(query: "Select[Any]", wanted: PairFilter) -> "Select[Any]":
    if not (wanted.text or wanted.domain):
        return query
    query = statements.join_prompts(query, _judgements.c.comparison)
    if wanted.domain:
        query = query.where(_prompts.c.domain == wanted.domain)
    if wanted.text:
        a = schema.completions.alias()
        b = schema.completions.alias()
        query = query.join(a, a.c.id == _comparisons.c.a).join(b, b.c.id == _comparisons.c.b)
        columns = (_prompts.c.prompt, a.c.text, b.c.text, _judgements.c.comment)
        written = select(_written.c.key).where(
            _written.c.comparison == _judgements.c.comparison, _written.c.text.icontains(wanted.text, autoescape=True)
        )
        contains = (column.icontains(wanted.text, autoescape=True) for column in columns)
        query = query.where(or_(*contains, written.exists()))
    return query


def _load_pairs(connection: Connection, names: Sequence[str]) -> list[JudgedPair]:
    columns = (_comparisons.c.id, _prompts.c.prompt, _prompts.c.history, _prompts.c.domain)
    query = select(*columns).select_from(_comparisons)
    query = statements.join_answers(query.join(_prompts, _prompts.c.id == _comparisons.c.prompt_id))
    pairs = {
        row.id: JudgedPair(
            row.id, row.prompt, row.domain, row.a, row.b, (row.source_a, row.source_b), history=messages_of(row.history)
        )
        for row in connection.execute(query.where(_comparisons.c.id.in_(names)))
    }
    judgements = select(_judgements).where(_judgements.c.comparison.in_(names), statements.NOT_RETRACTED)
    for row in connection.execute(judgements.order_by(_judgements.c.number)).mappings():
        pairs[row["comparison"]].judgements.append(dict(row))
    written = select(_written).where(_written.c.comparison.in_(names), _written.c.state != "replaced")
    for row in connection.execute(written.order_by(_written.c.at)).mappings():
        pairs[row["comparison"]].written.append(dict(row))
    flags = select(_flags).where(_flags.c.comparison.in_(names))
    for row in connection.execute(flags.order_by(_flags.c.number)).mappings():
        pairs[row["comparison"]].flags.append(dict(row))
    return [pairs[name] for name in names]


def list_written_answers(connection: Connection, state: str, number: int = 1) -> tuple[list[dict[str, Any]], bool]:
    """Return one page of written answers in a state with their pairs, oldest first, and whether there are more."""
    query = select(_written, _prompts.c.prompt, _prompts.c.history, _prompts.c.domain).select_from(_written)
    query = query.join(_comparisons, _comparisons.c.id == _written.c.comparison)
    query = query.join(_prompts, _prompts.c.id == _written.c.prompt_id)
    query = statements.join_answers(query).where(_written.c.state == state).order_by(_written.c.at, _written.c.key)
    rows = connection.execute(query.limit(PAGE_SIZE + 1).offset((number - 1) * PAGE_SIZE)).mappings()
    answers = [dict(row) for row in rows]
    return answers[:PAGE_SIZE], len(answers) > PAGE_SIZE


def list_domains(connection: Connection) -> list[str]:
    """Return the domains of all prompts."""
    return list(connection.scalars(select(_prompts.c.domain).distinct().order_by(_prompts.c.domain)))


def list_raters(connection: Connection) -> list[str]:
    """Return everyone who has judged: people, judges and rules."""
    return list(connection.scalars(select(schema.tallies.c.rater).distinct().order_by(schema.tallies.c.rater)))


def rater_history(connection: Connection, rater: str) -> list[dict[str, Any]]:
    """Return a rater's last actions, newest first: prompt, action, and the verdict by sides of the page."""
    query = select(_seats.c.comparison, _seats.c.state, _seats.c.shown, _seats.c.at, _prompts.c.prompt)
    query = statements.join_prompts(query.select_from(_seats), _seats.c.comparison)
    query = query.where(_seats.c.rater == rater, _seats.c.state.in_(statements.SETTLED_STATES))
    rows = [dict(row) for row in connection.execute(query.order_by(_seats.c.at.desc()).limit(HISTORY)).mappings()]
    own = select(_judgements.c.comparison, _judgements.c.choice, _judgements.c.strength, _judgements.c.comment)
    own = own.where(
        _judgements.c.comparison.in_([row["comparison"] for row in rows]),
        _judgements.c.rater == rater,
        statements.NOT_RETRACTED,
    )
    verdicts = {row.comparison: row for row in connection.execute(own.order_by(_judgements.c.number))}
    for row in rows:
        row["verdict"] = verdicts.get(row["comparison"])
        row["side"] = _side(row["verdict"].choice, row["shown"]) if row["verdict"] is not None else ""
    return rows


def _side(choice: Choice, order: str) -> str:
    return sides.side_of(choice, order) if choice in ("tie", "both_bad") or order in ("ab", "ba") else "ranking"


def answer_texts(connection: Connection, comparisons: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return both answers (a, b) of comparisons."""
    query = statements.join_answers(select(_comparisons.c.id).select_from(_comparisons))
    texts: dict[str, tuple[str, str]] = {}
    for block in statements.blocks(comparisons):
        texts |= {row.id: (row.a, row.b) for row in connection.execute(query.where(_comparisons.c.id.in_(block)))}
    return texts
