"""Readings of judgements whose cost does not grow with the ledger: digests that continue, and samples of the newest."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, false, func, or_, select

from towpath.records import Judgement
from towpath.store import schema, statements

_table = schema.judgements
_BITS = (1 << 128) - 1
_COLUMNS = [column for column in _table.c if column.name not in ("comment", "details")]


@dataclass(frozen=True, slots=True)
class ChoicesDigest:
    """A hash of the keys and choices of judgements, whatever their order, and how far in the ledger it reaches."""

    total: int = 0
    last: int = 0
    """Number of the last judgement that is in it."""
    last_key: str = ""
    retracted: str = ""
    """The retractions that it leaves out."""

    @property
    def hex(self) -> str:
        return f"{self.total:032x}"


def choices_digest(connection: Connection, prefixes: Sequence[str], earlier: ChoicesDigest) -> ChoicesDigest:
    """The digest of all judgements on comparisons whose ids begin so; only those after `earlier` are read, unless
    judgements were retracted or the ledger is another one."""
    retracted = _retracted(connection)
    at_last = select(_table.c.key).where(_table.c.number == earlier.last)
    if retracted != earlier.retracted or (earlier.last and connection.scalar(at_last) != earlier.last_key):
        earlier = ChoicesDigest()
    begins = or_(false(), *(_table.c.comparison.startswith(prefix) for prefix in prefixes))
    query = (
        select(_table.c.number, _table.c.key, _table.c.choice)
        .where(_table.c.number > earlier.last, begins)
        .where(statements.NOT_RETRACTED, _table.c.comparison.not_in(statements.IN_ARENAS))
        .order_by(_table.c.number)
    )
    total = earlier.total
    last = earlier.last
    last_key = earlier.last_key
    for number, key, choice in connection.execute(query).yield_per(statements.BLOCK):
        total += int.from_bytes(hashlib.blake2b((key + choice).encode(), digest_size=16).digest(), "little")
        last = number
        last_key = key
    return ChoicesDigest(total & _BITS, last, last_key, retracted)


def newest(connection: Connection, kinds: Collection[str], limit: int) -> tuple[list[Judgement], int]:
    """The newest judgements of these kinds in insertion order, without comments and details, and the number of all."""
    counted = [_table.c.kind.in_(kinds), *_COUNTED]
    query = select(*_COLUMNS).where(*counted).order_by(_table.c.number.desc()).limit(limit)
    judgements = statements.load_judgements(connection, query)[::-1]
    if len(judgements) < limit:
        return judgements, len(judgements)
    tallies = schema.tallies
    every = select(func.sum(tallies.c.judged - tallies.c.retracted)).where(tallies.c.kind.in_(kinds))
    return judgements, connection.scalar(every) or 0


def beside_people(connection: Connection, rater: str, kinds: Collection[str], limit: int) -> list[Judgement]:
    """The newest judgements of a rater on comparisons that people judged, too."""
    people = _table.alias()
    shared = select(people.c.number).where(people.c.comparison == _table.c.comparison, people.c.kind.in_(kinds))
    query = select(_table).where(_table.c.rater == rater, shared.exists(), *_COUNTED)
    return statements.load_judgements(connection, query.order_by(_table.c.number.desc()).limit(limit))[::-1]


def mean_cost(connection: Connection, kind: str, limit: int) -> tuple[float, int]:
    """Mean dollars of the newest judgements of a kind that cost something, and their number."""
    query = select(_table.c.cost).where(_table.c.kind == kind, _table.c.cost > 0).order_by(_table.c.number.desc())
    costs = connection.scalars(query.limit(limit)).all()
    return (sum(costs) / len(costs) if costs else 0.0), len(costs)


def _retracted(connection: Connection) -> str:
    """What identifies the present retractions: they are added, and removed when a bulk retraction is reversed."""
    table = schema.retractions
    count, last = connection.execute(select(func.count(), func.max(table.c.at)).select_from(table)).one()
    restored = connection.scalar(select(func.max(schema.takeouts.c.restored)))
    return f"{count} {last or ''} {restored or ''}"


_COUNTED: tuple[ColumnElement[bool], ...] = (statements.NOT_RETRACTED, _table.c.comparison.not_in(statements.IN_ARENAS))
