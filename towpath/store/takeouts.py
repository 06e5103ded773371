"""An owner retracts everything that one rater judged, and may reverse that. Judgements stay in the ledger; their
pairs wait for others.

Every function here is work on a connection; hand it to `Store.later` or `Store.read`.

"""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from towpath.errors import DataError
from towpath.store import schema, statements, tallies, task_queue

REMOVED_STATE = "removed"
"""State of a seat whose verdict was taken out."""
BLOCK = 500


@dataclass(frozen=True, slots=True)
class BulkRetraction:
    """One take-out: whose judgements, by whom, how many; `restored` is when it was reversed."""

    number: int
    rater: str
    by: str
    at: str
    judgements: int
    restored: str


def retract_all(connection: Connection, rater: str, by: str) -> BulkRetraction:
    """Retract all judgements of a person that still count, and free their seats."""
    table = schema.judgements
    back = schema.retractions.c.key
    standing = select(table.c.key).where(
        table.c.rater == rater, table.c.kind == "person", table.c.key.not_in(select(back))
    )
    keys = list(connection.scalars(standing))
    if not keys:
        raise DataError(
            f"{rater}: no judgement that counts", "a take-out retracts a person's judgements", "load the page again"
        )
    row = {"rater": rater, "by": by, "at": tallies.timestamp(), "judgements": len(keys), "restored": ""}
    number = int(connection.execute(schema.takeouts.insert().returning(schema.takeouts.c.number), row).scalar_one())
    for begin in range(0, len(keys), BLOCK):
        tallies.retract(connection, keys[begin : begin + BLOCK], number)
    _move_leases(connection, rater, "judged", REMOVED_STATE, -1)
    return BulkRetraction(number=number, **row)


def restore(connection: Connection, number: int) -> int:
    """Reverse a take-out: its judgements count again. How many."""
    table = schema.takeouts
    found = connection.execute(select(table).where(table.c.number == number, table.c.restored == "")).one_or_none()
    if found is None:
        raise DataError("This take-out was reversed before", "a take-out is reversed once", "load the page again")
    restored = tallies.restore(connection, number)
    connection.execute(table.update().where(table.c.number == number).values(restored=tallies.timestamp()))
    _move_leases(connection, found.rater, REMOVED_STATE, "judged", 1)
    return restored


def list_retractions(connection: Connection) -> list[BulkRetraction]:
    """Take-outs that were not reversed, the newest first."""
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
            task_queue.update_task(connection, task, taken=step, judged=step)
