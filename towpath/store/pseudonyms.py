"""Renaming and removal of people: a name is replaced everywhere in the ledger, so that all rows of a person keep one
id.

This is the only change to append-only rows: judgements stay distinguishable by person and otherwise unchanged.
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
"""Columns that hold names of people, except those of `judgements` and of the audit log, which keeps the original
names."""


def rename(connection: Connection, old: str, new: str) -> str:
    """Rename a person in every row, and return the stored form of the name."""
    others = connection.scalars(select(schema.accounts.c.name).where(schema.accounts.c.name != old)).all()
    name = account_names.validate(new, others)
    if _name_exists(connection, name):
        raise DataError(f"{name}: taken", "names of people are unique", "choose another")
    _replace(connection, old, name)
    return name


def remove(connection: Connection, name: str) -> str:
    """Delete an account and replace its name by a pseudonym, which is returned."""
    accounts = schema.accounts
    role = connection.scalar(select(accounts.c.role).where(accounts.c.name == name, accounts.c.active == 1))
    owners = connection.scalar(
        select(func.count()).select_from(accounts).where(accounts.c.role == "owner", accounts.c.active == 1)
    )
    if role == "owner" and owners == 1:
        raise DataError(f"{name}: the last owner", "one owner must remain", "make another owner first")
    pseudonym = f"person-{secrets.token_hex(4)}"
    _replace(connection, name, pseudonym)
    for table in (schema.sessions, schema.devices, schema.resets):
        connection.execute(table.delete().where(table.c.account == pseudonym))
    connection.execute(accounts.delete().where(accounts.c.name == pseudonym))
    return pseudonym


def _replace(connection: Connection, old: str, new: str) -> None:
    if not _name_exists(connection, old):
        raise DataError(
            f"{old}: no such person", "only a person with an account or judgements can be renamed", "reload the page"
        )
    _rename_judgements(connection, old, new)
    for table, column in NAME_COLUMNS:
        connection.execute(table.update().where(column == old).values({column.name: new}))


def _name_exists(connection: Connection, name: str) -> bool:
    columns = (schema.accounts.c.name, schema.judgements.c.rater, schema.seats.c.rater, schema.tallies.c.rater)
    return any(connection.scalar(select(func.count()).where(column == name)) for column in columns)


def _rename_judgements(connection: Connection, old: str, new: str) -> None:
    """Rename the rater of judgements; the triggers that forbid changes are lifted for this statement in the same
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
