"""The audit log: which account changed what, with values before and after. Rows are append-only, enforced by the
database."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from towpath.store import schema, tallies

PAGE_SIZE = 100
T = TypeVar("T")
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An entry of the log: `account` did `action` to `object`."""

    number: int
    at: str
    account: str
    action: str
    object: str
    before: dict[str, Any]
    after: dict[str, Any]


def record(
    connection: Connection,
    account: str,
    action: str,
    object: str = "",
    before: Values | None = None,
    after: Values | None = None,
) -> None:
    """Add a row in the transaction of the change; of `before` and `after` only differing values are stored."""
    old = dict(before or {})
    new = dict(after or {})
    row = {
        "at": tallies.timestamp(),
        "account": account,
        "action": action,
        "object": object,
        "before": {name: value for name, value in old.items() if name not in new or new[name] != value},
        "after": {name: value for name, value in new.items() if name not in old or old[name] != value},
    }
    connection.execute(schema.audit.insert(), row)


def run_audited(
    connection: Connection, account: str, action: str, object: str, after: Values, work: Callable[[Connection], T]
) -> T:
    """Run a change and add its row in the same transaction."""
    result = work(connection)
    record(connection, account, action, object, after=after)
    return result


def list_entries(
    connection: Connection, account: str = "", action: str = "", before: int = 0, limit: int = PAGE_SIZE
) -> list[AuditEntry]:
    """Return the newest rows, filtered by account and action; `before` is the last number of the previous page."""
    table = schema.audit
    query = select(table).order_by(table.c.number.desc()).limit(limit)
    for column, wanted in ((table.c.account, account), (table.c.action, action)):
        if wanted:
            query = query.where(column == wanted)
    if before:
        query = query.where(table.c.number < before)
    return [AuditEntry(**row) for row in connection.execute(query).mappings()]


def accounts_and_actions(connection: Connection) -> tuple[list[str], list[str]]:
    """Return the accounts and actions that occur in the log."""
    table = schema.audit
    columns = (table.c.account, table.c.action)
    accounts, actions = (list(connection.scalars(select(column).distinct().order_by(column))) for column in columns)
    return accounts, actions
