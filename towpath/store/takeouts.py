"""Bulk retraction: an owner retracts all judgements of one rater, and may restore them. The pairs wait for other
raters.

The functions take a connection; pass them to `Store.submit_write` or `Store.read`.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from towpath.errors import DataError
from towpath.store import schema, statements, tallies, task_queue

REMOVED_STATE = "removed"
"""State of a lease whose judgement was retracted in bulk."""


@dataclass(frozen=True, slots=True)
class BulkRetraction:
    """One bulk retraction; `restored` is the time when it was reversed, or empty."""

    number: int
    rater: str
    by: str
    at: str
    judgements: int
    restored: str


def retract_all(connection: Connection, rater: str, by: str) -> BulkRetraction:
    """Retract all judgements of a person and release their leases."""
    table = schema.judgements
    own = select(table.c.key).where(table.c.rater == rater, table.c.kind == "person", statements.NOT_RETRACTED)
    keys = list(connection.scalars(own))
    if not keys:
        raise DataError(f"{rater}: no judgements", "a bulk retraction needs judgements of a person", "reload the page")
    row = {"rater": rater, "by": by, "at": tallies.timestamp(), "judgements": len(keys), "restored": ""}
    number = int(connection.execute(schema.takeouts.insert().returning(schema.takeouts.c.number), row).scalar_one())
    for block in statements.blocks(keys):
        tallies.retract(connection, block, number)
    _move_leases(connection, rater, "judged", REMOVED_STATE, -1)
    return BulkRetraction(number=number, **row)


def restore(connection: Connection, number: int) -> int:
    """Reverse a bulk retraction and return how many judgements count again."""
    table = schema.takeouts
    retraction = connection.execute(select(table).where(table.c.number == number, table.c.restored == "")).one_or_none()
    if retraction is None:
        raise DataError("This retraction is restored already", "a bulk retraction is restored once", "reload the page")
    restored = tallies.restore(connection, number)
    connection.execute(table.update().where(table.c.number == number).values(restored=tallies.timestamp()))
    _move_leases(connection, retraction.rater, REMOVED_STATE, "judged", 1)
    return restored


def list_retractions(connection: Connection) -> list[BulkRetraction]:
    """Return bulk retractions that are not reversed, newest first."""
    table = schema.takeouts
    rows = connection.execute(select(table).where(table.c.restored == "").order_by(table.c.number.desc()))
    return [BulkRetraction(**dict(row)) for row in rows.mappings()]


def _move_leases(connection: Connection, rater: str, before: str, after: str, step: int) -> None:
    seats = schema.seats
    for name in connection.scalars(
        select(seats.c.comparison).where(seats.c.rater == rater, seats.c.state == before)
    ).all():
        task_queue.update_lease(connection, name, rater, state=after)
        task = connection.execute(statements.TASK, {"comparison": name}).one_or_none()
        if task is not None:
            task_queue.update_task(connection, task, taken=step, judgements=step)
