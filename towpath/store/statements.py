"""SQL statements and conditions that several modules share. Statements of the rating page are built once, because
building one costs more than running it."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, bindparam, func, select

from towpath.records import Completion, Judgement, Prompt, messages_of
from towpath.store import schema

T = TypeVar("T")
Query = Any
"""A Select with any columns; the type `Select` is invariant in their number."""

SCAN_LIMIT = 64  # partly rated tasks that are scanned before a new one is assigned
BLOCK = 500  # rows or parameters of one statement
_SHARED = ("rater", "kind", "choice", "shown", "guideline", "at", "comment")
_TOKENS: dict[int, int] = {}
"""Each token id that was read, once: a list of a million answers has few different ones."""
SETTLED_STATES = ("judged", "skipped", "flagged")

_rater = bindparam("rater")
_comparison = bindparam("comparison")
_at = bindparam("at")
_seats = schema.seats
_tasks = schema.tasks
_queues = schema.queues
_gold = schema.gold
_judgements = schema.judgements
_comparisons = schema.comparisons
_prompts = schema.prompts
_completions = schema.completions


def _had_lease(comparison: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether the rater has had a lease that did not just expire."""
    own = select(_seats.c.rater).where(_seats.c.comparison == comparison, _seats.c.rater == _rater)
    return own.where(_seats.c.state != "lapsed").exists()


LEASE = select(_seats).where(_seats.c.comparison == _comparison, _seats.c.rater == _rater)
UPDATE_LEASE = _seats.update().where(
    _seats.c.comparison == bindparam("lease_comparison"), _seats.c.rater == bindparam("lease_rater")
)
TASK = select(_tasks).where(_tasks.c.comparison == _comparison)
UPDATE_TASK = _tasks.update().where(_tasks.c.number == bindparam("task_number"))

# The active leases of a rater, the newest first.
ACTIVE_LEASES = (
    select(_seats, _tasks.c.group_id, _tasks.c.state.label("task_state"))
    .outerjoin(_tasks, _tasks.c.comparison == _seats.c.comparison)
    .where(_seats.c.rater == _rater, _seats.c.state == "leased", _seats.c.until > _at)
    .order_by(_seats.c.until.desc())
    .limit(BLOCK)
)
EXPIRED_LEASES = (
    select(_seats.c.comparison, _seats.c.rater).where(_seats.c.state == "leased", _seats.c.until < _at).limit(BLOCK)
)
LAST_SETTLED = (
    select(_seats.c.comparison, _seats.c.state)
    .where(_seats.c.rater == _rater, _seats.c.state.in_(SETTLED_STATES))
    .order_by(_seats.c.at.desc())
    .limit(1)
)

# Of the first partly rated tasks (some seats taken, some free), the first that the rater has not rated.
_partly_rated = (
    select(_tasks.c.rank, _tasks.c.number, _tasks.c.comparison, _tasks.c.domain)
    .where(_tasks.c.lane == 2)
    .order_by(_tasks.c.rank, _tasks.c.number)
    .limit(SCAN_LIMIT)
    .subquery()
)
FIRST_PARTLY_RATED = (
    select(_partly_rated.c.rank, _partly_rated.c.number, _partly_rated.c.comparison)
    .join(_queues, _queues.c.domain == _partly_rated.c.domain)
    .where(_queues.c.paused == 0, ~_had_lease(_partly_rated.c.comparison))
    .order_by(_partly_rated.c.rank, _partly_rated.c.number)
    .limit(1)
)

# The first task of a lane in every domain that is not paused, one index lookup each; and the most urgent of those.
_first = (
    select(_tasks.c.number)
    .where(_tasks.c.domain == _queues.c.domain, _tasks.c.lane == bindparam("lane"), ~_had_lease(_tasks.c.comparison))
    .order_by(_tasks.c.rank, _tasks.c.number)
    .limit(1)
    .correlate(_queues)
    .scalar_subquery()
)
FIRST_PER_DOMAIN = select(_first).select_from(_queues).where(_queues.c.paused == 0, _queues.c.waiting > 0)
MOST_URGENT = (
    select(_tasks.c.rank, _tasks.c.number, _tasks.c.comparison)
    .where(_tasks.c.number.in_(bindparam("numbers", expanding=True)))
    .order_by(_tasks.c.rank, _tasks.c.number)
    .limit(1)
)

# Arena comparisons, which labels, exports and demonstrations exclude.
IN_ARENAS = select(schema.matches.c.comparison)
IS_MATCH = select(func.count()).select_from(schema.matches).where(schema.matches.c.comparison == _comparison)

IS_GOLD = select(func.count()).select_from(_gold).where(_gold.c.comparison == _comparison)
_had_gold = (
    select(_seats.c.comparison).where(_seats.c.comparison == _gold.c.comparison, _seats.c.rater == _rater).exists()
)
NEXT_GOLD = select(_gold.c.comparison).where(~_had_gold).order_by(_gold.c.comparison).limit(1)

RATER_TALLY = select(schema.tallies).where(schema.tallies.c.rater == _rater, schema.tallies.c.kind == "person")
WAITING = select(func.sum(_queues.c.waiting)).where(_queues.c.paused == 0)

JUDGED_BY_KEY = select(_judgements).where(_judgements.c.key == bindparam("key"))
LAST_ROUND = select(func.max(_judgements.c.round)).where(
    _judgements.c.comparison == _comparison, _judgements.c.rater == _rater
)
FIRST_ROUND = select(_comparisons.c.round).where(_comparisons.c.id == _comparison)

PAIR = (
    select(_comparisons.c.a, _comparisons.c.b, _prompts.c.prompt, _prompts.c.history, _prompts.c.domain)
    .join(_prompts, _prompts.c.id == _comparisons.c.prompt_id)
    .where(_comparisons.c.id == _comparison)
)
TEXTS = select(_completions.c.id, _completions.c.text).where(_completions.c.id.in_(bindparam("ids", expanding=True)))
SETTINGS = select(schema.settings)
NEWEST_GUIDELINE = select(schema.guidelines).order_by(schema.guidelines.c.version.desc()).limit(1)

NOT_RETRACTED = ~select(schema.retractions.c.key).where(schema.retractions.c.key == _judgements.c.key).exists()


def load_judgements(connection: Connection, query: Query) -> list[Judgement]:
    """Run a query for rows of `judgements`; what many rows share is one object."""
    shared: dict[str, str] = {}

    def compact(row: Any) -> dict[str, Any]:
        values = without_number(row)
        return values | {name: shared.setdefault(values[name], values[name]) for name in _SHARED if name in values}

    rows = connection.execute(query).yield_per(BLOCK).mappings()
    return [Judgement(**compact(row)) for row in rows]


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a row of `prompts`."""
    lists = {"about": list(prompt.about), "history": [asdict(message) for message in prompt.history]}
    return asdict(prompt) | lists | {"harmful": int(prompt.harmful)}


def prompt_of(row: Any) -> Prompt:
    """Return the prompt in a row of `prompts`."""
    about = tuple(row["about"])
    return Prompt(**dict(row, about=about, harmful=bool(row["harmful"]), history=messages_of(row["history"])))


def load_answers(connection: Connection, ids: Collection[str], tokens: bool) -> dict[str, Completion]:
    """Return completions by id, without log-probabilities and decoding."""
    table = _completions
    columns = [table.c.id, table.c.prompt_id, table.c.source, table.c.text, table.c.finish]
    columns += [table.c.token_ids] if tokens else []
    completions: dict[str, Completion] = {}
    for block in blocks(list(ids)):
        for row in connection.execute(select(*columns).where(table.c.id.in_(block))).mappings():
            # equal tokens are one object
            token_ids = tuple(_TOKENS.setdefault(token, token) for token in row["token_ids"]) if tokens else ()
            completions[row["id"]] = Completion(
                row["id"], row["prompt_id"], row["source"], row["text"], token_ids, (), row["finish"]
            )
    return completions


def load_prompts(connection: Connection, ids: Collection[str]) -> dict[str, Prompt]:
    """Return prompts by id."""
    rows = (
        row
        for block in blocks(list(ids))
        for row in connection.execute(select(_prompts).where(_prompts.c.id.in_(block))).mappings()
    )
    return {row["id"]: prompt_of(row) for row in rows}


def without_number(row: Any) -> dict[str, Any]:
    """Return a row without its primary key."""
    return {name: value for name, value in row.items() if name != "number"}


def join_prompts(query: Query, comparison: ColumnElement[Any]) -> Query:
    """Join `comparisons` and `prompts` to a query by a column of comparison ids."""
    query = query.join(_comparisons, _comparisons.c.id == comparison)
    return query.join(_prompts, _prompts.c.id == _comparisons.c.prompt_id)


def join_answers(query: Query) -> Query:
    """Join both answers to a query that has `comparisons`, as columns a, b, source_a and source_b."""
    a = _completions.alias()
    b = _completions.alias()
    query = query.add_columns(
        a.c.text.label("a"), b.c.text.label("b"), a.c.source.label("source_a"), b.c.source.label("source_b")
    )
    return query.join(a, a.c.id == _comparisons.c.a).join(b, b.c.id == _comparisons.c.b)


def read_blocks(items: Iterable[T]) -> Iterator[list[T]]:
    """Read items in blocks of at most BLOCK."""
    rest = iter(items)
    while block := list(islice(rest, BLOCK)):
        yield block


def blocks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split items into blocks of at most BLOCK."""
    return (items[start : start + BLOCK] for start in range(0, len(items), BLOCK))
