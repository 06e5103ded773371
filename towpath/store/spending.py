"""Cost of judge calls: one row a call, reserved at the maximum price and committed at the actual price.

A call that was running when the process was killed stays at the maximum price, so that the budget holds.
"""

from sqlalchemy import Connection, func, select

from towpath.store import schema, tallies


def rater_dollars(connection: Connection, rater: str) -> float:
    """Return the dollars spent by a judge, including failed calls."""
    table = schema.spending
    return float(connection.scalar(select(func.sum(table.c.dollars)).where(table.c.rater == rater)) or 0.0)


def total_dollars(connection: Connection) -> float:
    """Return the dollars spent by all judges."""
    return float(connection.scalar(select(func.sum(schema.spending.c.dollars))) or 0.0)


def reserve(connection: Connection, rater: str, dollars: float) -> int:
    """Reserve the maximum price of a call and return its row's number."""
    row = {"rater": rater, "dollars": dollars, "at": tallies.timestamp()}
    primary_key = connection.execute(schema.spending.insert().values(row)).inserted_primary_key
    assert primary_key is not None
    return int(primary_key[0])


def commit(connection: Connection, number: int, dollars: float) -> None:
    """Replace the reserved price by the actual price; a call without cost leaves no row."""
    table = schema.spending
    if dollars:
        connection.execute(table.update().where(table.c.number == number).values(dollars=dollars))
    else:
        connection.execute(table.delete().where(table.c.number == number))
