"""A person renamed or removed: one name is replaced by another wherever the ledger has it, so that all rows of a
person keep one id.

This is the one change of rows that are otherwise append-only: whose judgement it is stays told apart, what was
judged stays as it was.
"""

import secrets

from sqlalchemy import Connection, func, select, text

from towpath.errors import DataError
from towpath.store import account_names, schema

NAME_COLUMNS = tuple(
    (table, table.c[column])
    for table, columns in (
        (schema.seats, "rater"),
        (schema.tallies, "rater"),
        (schema.flags, "rater"),
        (schema.written, "rater"),
        (schema.trials, "rater"),
        (schema.acknowledgements, "rater"),
        (schema.takeouts, "rater by"),
        (schema.guidelines, "by"),
        (schema.invitations, "by used_by"),
        (schema.arenas, "by"),
        (schema.sessions, "account"),
        (schema.devices, "account"),
        (schema.resets, "account by"),
        (schema.accounts, "name"),
    )
    for column in columns.split()
)
"""Columns that hold names of people, those of `judgements` and of the audit log apart; the log keeps the names that
it was told."""


def rename(connection: Connection, old: str, new: str) -> str:
    """Give a person another name in every row; the name as it is stored."""
    others = connection.scalars(select(schema.accounts.c.name).where(schema.accounts.c.name != old)).all()
    name = account_names.validate(new, others)
    if _name_exists(connection, name):
        raise DataError(f"{name}: taken", "every person has a name of their own", "choose another")
    _replace(connection, old, name)
    return name


def remove(connection: Connection, name: str) -> str:
    """Close an account for good and put a pseudonym in the place of its name, which is returned."""
    accounts = schema.accounts
    role = connection.scalar(select(accounts.c.role).where(accounts.c.name == name, accounts.c.active == 1))
    owners = connection.scalar(
        select(func.count()).select_from(accounts).where(accounts.c.role == "owner", accounts.c.active == 1)
    )
    if role == "owner" and owners == 1:
        raise DataError(
            f"{name}: the last owner", "someone must be able to invite and to set", "make another owner first"
        )
    pseudonym = f"person-{secrets.token_hex(4)}"
    _replace(connection, name, pseudonym)
    for table in (schema.sessions, schema.devices, schema.resets):
        connection.execute(table.delete().where(table.c.account == pseudonym))
    connection.execute(accounts.delete().where(accounts.c.name == pseudonym))
    return pseudonym


def _replace(connection: Connection, old: str, new: str) -> None:
    if not _name_exists(connection, old):
        raise DataError(
            f"{old}: no such person", "a person who is renamed has an account or has judged", "load the page again"
        )
    _rename_judgements(connection, old, new)
    for table, column in NAME_COLUMNS:
        connection.execute(table.update().where(column == old).values({column.name: new}))


def _name_exists(connection: Connection, name: str) -> bool:
    places = (schema.accounts.c.name, schema.judgements.c.rater, schema.seats.c.rater, schema.tallies.c.rater)
    return any(connection.scalar(select(func.count()).where(column == name)) for column in places)


def _rename_judgements(connection: Connection, old: str, new: str) -> None:
    """Judgements are guarded against changes by triggers, which are lifted for this statement within the same
    transaction."""
    table = schema.judgements
    change = table.update().where(table.c.rater == old, table.c.kind == "person").values(rater=new)
    if connection.dialect.name == "postgresql":
        connection.execute(text("ALTER TABLE judgements DISABLE TRIGGER USER"))
        connection.execute(change)
        connection.execute(text("ALTER TABLE judgements ENABLE TRIGGER USER"))
        return
    guards = connection.execute(
        text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'judgements'")
    ).all()
    for name, _ in guards:
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
    connection.execute(change)
    for _, sql in guards:
        connection.exec_driver_sql(sql)
