"""Judgements into the table, and the counters beside them in the same transaction."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from towpath.records import Judgement
from towpath.store import ledger, schema

MAX_MILLISECONDS = 600_000  # milliseconds of one judgement that count as work; a page left open over lunch is not
ZERO_COUNTS = {"judged": 0, "retracted": 0, "milliseconds": 0, "cost": 0.0}


def timestamp() -> str:
    """The time, as the ledger writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def insert_judgements(connection: Connection, judgements: Sequence[Judgement]) -> None:
    """Insert judgements that are known to be new, and count them."""
    if not judgements:
        return
    at = timestamp()
    connection.execute(schema.judgements.insert(), [asdict(j) | {"at": j.at or at} for j in judgements])
    counted: dict[tuple[str, str], dict[str, Any]] = {}
    for j in judgements:
        row = counted.setdefault((j.rater, j.kind), {"rater": j.rater, "kind": j.kind} | ZERO_COUNTS)
        row["judged"] += 1
        row["milliseconds"] += min(MAX_MILLISECONDS, j.milliseconds or 0)
        row["cost"] += j.cost
    ledger.upsert(connection, schema.tallies, list(counted.values()), added=list(ZERO_COUNTS))


def retract(connection: Connection, keys: Sequence[str], takeout: int | None = None) -> int:
    """Retract judgements: they stay in the ledger and count no longer. How many were not retracted before."""
    table = schema.judgements
    taken = schema.retractions
    query = (
        select(table.c.key, table.c.rater, table.c.kind)
        .where(table.c.key.in_(keys))
        .where(table.c.key.not_in(select(taken.c.key)))
    )
    found = connection.execute(query).all()
    if found:
        at = timestamp()
        connection.execute(taken.insert(), [{"key": key, "at": at, "takeout": takeout} for key, _, _ in found])
        _count_retracted(connection, Counter((rater, kind) for _, rater, kind in found), 1)
    return len(found)


def restore(connection: Connection, takeout: int) -> int:
    """Reverse the retractions of a take-out; how many."""
    table = schema.judgements
    taken = schema.retractions
    query = (
        select(table.c.rater, table.c.kind).join(taken, taken.c.key == table.c.key).where(taken.c.takeout == takeout)
    )
    found = Counter((rater, kind) for rater, kind in connection.execute(query))
    connection.execute(taken.delete().where(taken.c.takeout == takeout))
    _count_retracted(connection, found, -1)
    return found.total()


def _count_retracted(connection: Connection, found: Counter[tuple[str, str]], sign: int) -> None:
    rows = [
        {"rater": rater, "kind": kind} | ZERO_COUNTS | {"retracted": sign * count}
        for (rater, kind), count in found.items()
    ]
    ledger.upsert(connection, schema.tallies, rows, added=list(ZERO_COUNTS))
