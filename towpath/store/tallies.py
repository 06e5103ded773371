"""Insertion and retraction of judgements, with each rater's counters in the same transaction."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from towpath.records import Judgement
from towpath.store import ledger, schema

MAX_MILLISECONDS = 600_000  # of one judgement that count as work; an open page during a break does not count
ZERO_COUNTS = {"judged": 0, "retracted": 0, "milliseconds": 0, "cost": 0.0}


def timestamp() -> str:
    """Return the current time in the ledger's format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def insert_judgements(connection: Connection, judgements: Sequence[Judgement]) -> None:
    """Insert new judgements and count them."""
    if not judgements:
        return
    at = timestamp()
    connection.execute(schema.judgements.insert(), [asdict(j) | {"at": j.at or at} for j in judgements])
    tallies: dict[tuple[str, str], dict[str, Any]] = {}
    for j in judgements:
        row = tallies.setdefault((j.rater, j.kind), {"rater": j.rater, "kind": j.kind} | ZERO_COUNTS)
        row["judged"] += 1
        row["milliseconds"] += min(MAX_MILLISECONDS, j.milliseconds or 0)
        row["cost"] += j.cost
    ledger.upsert(connection, schema.tallies, list(tallies.values()), added=list(ZERO_COUNTS))


def retract(connection: Connection, keys: Sequence[str], takeout: int | None = None) -> int:
    """Retract judgements, which stay in the ledger, and return how many were not retracted before."""
    table = schema.judgements
    taken = schema.retractions
    query = (
        select(table.c.key, table.c.rater, table.c.kind)
        .where(table.c.key.in_(keys))
        .where(table.c.key.not_in(select(taken.c.key)))
    )
    retracted = connection.execute(query).all()
    if retracted:
        at = timestamp()
        connection.execute(taken.insert(), [{"key": key, "at": at, "takeout": takeout} for key, _, _ in retracted])
        _count_retracted(connection, Counter((rater, kind) for _, rater, kind in retracted), 1)
    return len(retracted)


def restore(connection: Connection, takeout: int) -> int:
    """Reverse the retractions of a bulk retraction and return how many."""
    table = schema.judgements
    taken = schema.retractions
    query = (
        select(table.c.rater, table.c.kind).join(taken, taken.c.key == table.c.key).where(taken.c.takeout == takeout)
    )
    restored = Counter((rater, kind) for rater, kind in connection.execute(query))
    connection.execute(taken.delete().where(taken.c.takeout == takeout))
    _count_retracted(connection, restored, -1)
    return restored.total()


def _count_retracted(connection: Connection, counts: Counter[tuple[str, str]], sign: int) -> None:
    rows = [
        {"rater": rater, "kind": kind} | ZERO_COUNTS | {"retracted": sign * count}
        for (rater, kind), count in counts.items()
    ]
    ledger.upsert(connection, schema.tallies, rows, added=list(ZERO_COUNTS))
