"""A person renamed or removed: one name is replaced by another wherever the ledger has it, so that all rows of a person keep one id.

This is the one change of rows that are otherwise append-only: whose judgement it is stays told apart, what was judged stays as it was.
"""

import secrets

from sqlalchemy import Connection, func, select, text

from towpath.errors import DataError
from towpath.store import schema

NAMED = (
    ("seats", "rater"), ("tallies", "rater"), ("flags", "rater"), ("written", "rater"), ("trials", "rater"), ("acknowledgements", "rater"),
    ("takeouts", "rater"), ("takeouts", "by"), ("guidelines", "by"), ("invitations", "by"), ("invitations", "used_by"), ("arenas", "by"),
    ("sessions", "account"), ("accounts", "name"),
)  # fmt: skip
"""Tables and columns that hold names of people, `judgements` apart; those that a ledger does not have are passed over."""


def rename(connection: Connection, old: str, new: str) -> None:
    """Give a person another name in every row."""
    if _known(connection, new) or not new.strip():
        raise DataError(f"{new}: taken", "every person has a name of their own", "choose another")
    if not _known(connection, old):
        raise DataError(f"{old}: no such person", "a person who is renamed has an account or has judged", "load the page again")
    _rename_judge(connection, old, new)
    for name, column in NAMED:
        table = schema.metadata.tables.get(name)
        if table is not None:
            connection.execute(table.update().where(table.c[column] == old).values({column: new}))


def remove(connection: Connection, name: str) -> str:
    """Close an account for good and put a pseudonym in the place of its name, which is returned."""
    accounts = schema.accounts
    role = connection.scalar(select(accounts.c.role).where(accounts.c.name == name, accounts.c.active == 1))
    owners = connection.scalar(select(func.count()).select_from(accounts).where(accounts.c.role == "owner", accounts.c.active == 1))
    if role == "owner" and owners == 1:
        raise DataError(f"{name}: the last owner", "someone must be able to invite and to set", "make another owner first")
    pseudonym = f"person-{secrets.token_hex(4)}"
    rename(connection, name, pseudonym)
    if "sessions" in schema.metadata.tables:
        sessions = schema.metadata.tables["sessions"]
        connection.execute(sessions.delete().where(sessions.c.account == pseudonym))
    connection.execute(accounts.delete().where(accounts.c.name == pseudonym))
    return pseudonym


def _known(connection: Connection, name: str) -> bool:
    places = (schema.accounts.c.name, schema.judgements.c.rater, schema.seats.c.rater, schema.tallies.c.rater)
    return any(connection.scalar(select(func.count()).where(column == name)) for column in places)


def _rename_judge(connection: Connection, old: str, new: str) -> None:
    """Judgements are guarded against changes by triggers, which are lifted for this statement within the same transaction."""
    table = schema.judgements
    change = table.update().where(table.c.rater == old, table.c.kind == "person").values(rater=new)
    if connection.dialect.name == "postgresql":
        connection.execute(text("ALTER TABLE judgements DISABLE TRIGGER USER"))
        connection.execute(change)
        connection.execute(text("ALTER TABLE judgements ENABLE TRIGGER USER"))
        return
    guards = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'judgements'")).all()
    for name, _ in guards:
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
    connection.execute(change)
    for _, sql in guards:
        connection.exec_driver_sql(sql)
