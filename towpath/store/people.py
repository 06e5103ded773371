"""Accounts, invitations and guidelines. Passwords and tokens are kept as digests only; hashing passwords is the caller's."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, func, select

from towpath.errors import DataError
from towpath.store import schema, statements, tallies

Role = Literal["owner", "rater", "viewer"]

INVITED_FOR = 7 * 24 * 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class Account:
    """A person who may sign in. A cookie is good while `session` is what it was when it was made."""

    name: str
    role: Role
    password: str
    session: int = 1
    active: bool = True
    at: str = ""


@dataclass(frozen=True, slots=True)
class Invitation:
    """A link that makes one account."""

    digest: str
    role: Role
    by: str
    until: float
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class Guideline:
    """What raters are asked to go by; every change is a new version."""

    version: int
    text: str
    by: str
    at: str


def account(connection: Connection, name: str) -> Account | None:
    """One account by name."""
    row = connection.execute(select(schema.accounts).where(schema.accounts.c.name == name)).mappings().one_or_none()
    return Account(**dict(row, active=bool(row["active"]))) if row is not None else None


def accounts(connection: Connection) -> list[Account]:
    """All accounts by name."""
    rows = connection.execute(select(schema.accounts).order_by(schema.accounts.c.name)).mappings()
    return [Account(**dict(row, active=bool(row["active"]))) for row in rows]


def add_account(connection: Connection, name: str, role: Role, password: str) -> Account:
    """A new account; its password comes hashed."""
    if account(connection, name) is not None:
        raise DataError(f"{name}: taken", "every account has a name of its own", "choose another")
    made = Account(name, role, password, 1, True, tallies.now())
    row = {"name": name, "role": role, "password": password, "session": 1, "active": 1, "at": made.at}
    connection.execute(schema.accounts.insert(), row)
    return made


def change_account(connection: Connection, name: str, role: Role | None = None, active: bool | None = None, password: str | None = None) -> None:
    """Another role or password, closed, or open again; whoever is signed in under it must sign in anew. One owner stays."""
    found = account(connection, name)
    if found is None:
        raise DataError(f"{name}: no such account", "an account that is changed exists", "load the page again")
    new_role, new_active = role or found.role, found.active if active is None else active
    others = [other for other in accounts(connection) if other.role == "owner" and other.active and other.name != name]
    if found.role == "owner" and not others and (new_role != "owner" or not new_active):
        raise DataError(f"{name}: the last owner", "someone must be able to invite and to set", "make another owner first")
    new = {"role": new_role, "active": int(new_active), "session": found.session + 1, "password": password or found.password}
    connection.execute(schema.accounts.update().where(schema.accounts.c.name == name).values(**new))


def invite(connection: Connection, role: Role, by: str, at: float) -> str:
    """A new invitation's token, which is told once and not kept."""
    token = secrets.token_urlsafe(24)
    row = {"digest": digest(token), "role": role, "by": by, "until": at + INVITED_FOR, "used_by": ""}
    connection.execute(schema.invitations.insert(), row)
    return token


def invitation(connection: Connection, token: str, at: float) -> Invitation | None:
    """The invitation of a token, while it is good."""
    table = schema.invitations
    row = connection.execute(select(table).where(table.c.digest == digest(token), table.c.used_by == "", table.c.until > at)).mappings().one_or_none()
    return Invitation(**row) if row is not None else None


def invitations(connection: Connection, at: float) -> list[Invitation]:
    """Those that are good and unused."""
    table = schema.invitations
    query = select(table).where(table.c.used_by == "", table.c.until > at).order_by(table.c.until)
    return [Invitation(**row) for row in connection.execute(query).mappings()]


def withdraw(connection: Connection, digest_: str) -> None:
    """An invitation is good no longer."""
    connection.execute(schema.invitations.delete().where(schema.invitations.c.digest == digest_, schema.invitations.c.used_by == ""))


def join(connection: Connection, token: str, name: str, password: str, at: float) -> Account:
    """Make the account that an invitation promises; the link is spent with it."""
    found = invitation(connection, token, at)
    if found is None:
        raise DataError("this invitation", "a link makes one account, within seven days", "ask the owner for another")
    made = add_account(connection, name, found.role, password)
    connection.execute(schema.invitations.update().where(schema.invitations.c.digest == found.digest).values(used_by=name))
    return made


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def guideline(connection: Connection, version: int | None = None) -> Guideline:
    """A version of the guidelines, or the newest; version 0 is empty."""
    table = schema.guidelines
    query = statements.NEWEST_GUIDELINE if version is None else select(table).where(table.c.version == version)
    row = connection.execute(query).mappings().one_or_none()
    return Guideline(**row) if row is not None else Guideline(0, "", "", "")


def guidelines(connection: Connection) -> list[Guideline]:
    """All versions, the newest first."""
    return [Guideline(**row) for row in connection.execute(select(schema.guidelines).order_by(schema.guidelines.c.version.desc())).mappings()]


def put_guideline(connection: Connection, text: str, by: str) -> Guideline:
    """A new version, unless nothing changed."""
    newest = guideline(connection)
    if newest.text == text:
        return newest
    last = connection.scalar(select(func.max(schema.guidelines.c.version))) or 0
    made = Guideline(last + 1, text, by, tallies.now())
    connection.execute(schema.guidelines.insert(), {"version": made.version, "text": text, "by": by, "at": made.at})
    return made
