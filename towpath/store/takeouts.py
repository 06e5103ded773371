"""An owner retracts everything that one rater judged, and may reverse that. Judgements stay in the ledger; their
pairs wait for others.

Every function here is work on a connection; hand it to `Store.later` or `Store.read`.

"""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from towpath.errors import DataError
from towpath.store import rating, schema, statements, tallies

SEAT = "removed"
"""State of a seat whose verdict was taken out."""
BLOCK = 500


@dataclass(frozen=True, slots=True)
class Takeout:
    """One take-out: whose judgements, by whom, how many; `restored` is when it was reversed."""

    number: int
    rater: str
    by: str
    at: str
    judgements: int
    restored: str


def take_out(connection: Connection, rater: str, by: str) -> Takeout:
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
    row = {"rater": rater, "by": by, "at": tallies.now(), "judgements": len(keys), "restored": ""}
    number = int(connection.execute(schema.takeouts.insert().returning(schema.takeouts.c.number), row).scalar_one())
    for begin in range(0, len(keys), BLOCK):
        tallies.retract(connection, keys[begin : begin + BLOCK], number)
    _move_seats(connection, rater, "judged", SEAT, -1)
    return Takeout(number=number, **row)


def restore(connection: Connection, number: int) -> int:
    """Reverse a take-out: its judgements count again. How many."""
    table = schema.takeouts
    found = connection.execute(select(table).where(table.c.number == number, table.c.restored == "")).one_or_none()
    if found is None:
        raise DataError("This take-out was reversed before", "a take-out is reversed once", "load the page again")
    restored = tallies.restore(connection, number)
    connection.execute(table.update().where(table.c.number == number).values(restored=tallies.now()))
    _move_seats(connection, found.rater, SEAT, "judged", 1)
    return restored


def takeouts(connection: Connection) -> list[Takeout]:
    """Take-outs that were not reversed, the newest first."""
    table = schema.takeouts
    rows = connection.execute(select(table).where(table.c.restored == "").order_by(table.c.number.desc()))
    return [Takeout(**dict(row)) for row in rows.mappings()]


def _move_seats(connection: Connection, rater: str, before: str, after: str, step: int) -> None:
    seats = schema.seats
    for name in connection.scalars(
        select(seats.c.comparison).where(seats.c.rater == rater, seats.c.state == before)
    ).all():
        rating.move(connection, name, rater, state=after)
        task = connection.execute(statements.TASK, {"comparison": name}).one_or_none()
        if task is not None:
            rating.turn(connection, task, taken=step, judged=step)
