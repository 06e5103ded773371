"""What calls of judges cost: a row a call, written at its worst price before it begins and at its true price when it
has ended.

A call that was under way when the process was killed stays at its worst price: the ceiling holds whatever happens.

"""

from sqlalchemy import Connection, func, select

from towpath.store import schema, tallies


def rater_dollars(connection: Connection, rater: str) -> float:
    """Dollars that a judge has cost, judgements, abstentions, repairs, refusal checks and failed calls alike."""
    table = schema.spending
    return float(connection.scalar(select(func.sum(table.c.dollars)).where(table.c.rater == rater)) or 0.0)


def total_dollars(connection: Connection) -> float:
    """Dollars that all judges have cost."""
    return float(connection.scalar(select(func.sum(schema.spending.c.dollars))) or 0.0)


def reserve(connection: Connection, rater: str, dollars: float) -> int:
    """Note a call about to be made, at its worst price; the number of its row."""
    row = {"rater": rater, "dollars": dollars, "at": tallies.timestamp()}
    key = connection.execute(schema.spending.insert().values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def commit(connection: Connection, number: int, dollars: float) -> None:
    """Put the true price of a call in place of the worst; a call that cost nothing leaves no row."""
    table = schema.spending
    if dollars:
        connection.execute(table.update().where(table.c.number == number).values(dollars=dollars))
    else:
        connection.execute(table.delete().where(table.c.number == number))
