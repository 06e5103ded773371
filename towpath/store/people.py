"""Accounts, invitations, resets of passwords, and guidelines. Passwords and tokens are kept as digests only; hashing
passwords is the caller's."""

import secrets
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Connection, func, select

from towpath.errors import DataError
from towpath.store import account_names, audit, schema, sessions, statements, tallies
from towpath.store.sessions import token_digest

Role = Literal["owner", "rater", "viewer"]

INVITATION_LIFETIME = 7 * 24 * 3600.0
RESET_LIFETIME = 24 * 3600.0
"""Seconds for which a link is good."""


@dataclass(frozen=True, slots=True)
class Account:
    """A person who may sign in."""

    name: str
    role: Role
    password: str
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
class PasswordReset:
    """A link that sets one password anew."""

    digest: str
    account: str
    by: str
    until: float


@dataclass(frozen=True, slots=True)
class Guideline:
    """What raters go by; every change is a new version."""

    version: int
    text: str
    by: str
    at: str


def get_account(connection: Connection, name: str) -> Account | None:
    """One account by name."""
    row = connection.execute(select(schema.accounts).where(schema.accounts.c.name == name)).mappings().one_or_none()
    return Account(**dict(row, active=bool(row["active"]))) if row is not None else None


def list_accounts(connection: Connection) -> list[Account]:
    """All accounts by name."""
    rows = connection.execute(select(schema.accounts).order_by(schema.accounts.c.name)).mappings()
    return [Account(**dict(row, active=bool(row["active"]))) for row in rows]


def add_account(connection: Connection, name: str, role: Role, password: str) -> Account:
    """A new account; its password comes hashed."""
    if get_account(connection, name) is not None:
        raise DataError(f"{name}: taken", "every account has a name of its own", "choose another")
    made = Account(name, role, password, True, tallies.timestamp())
    connection.execute(schema.accounts.insert(), asdict(made) | {"active": 1})
    return made


def change_account(
    connection: Connection,
    name: str,
    role: Role | None = None,
    active: bool | None = None,
    password: str | None = None,
    by: str = "",
) -> None:
    """Another role or password, closed, or open again; the account is signed out everywhere. One owner stays."""
    found = _require_account(connection, name)
    new_role = role or found.role
    new_active = found.active if active is None else active
    others = [
        other for other in list_accounts(connection) if other.role == "owner" and other.active and other.name != name
    ]
    if found.role == "owner" and not others and (new_role != "owner" or not new_active):
        raise DataError(
            f"{name}: the last owner", "someone must be able to invite and to set", "make another owner first"
        )
    new = {"role": new_role, "active": int(new_active), "password": password or found.password}
    connection.execute(schema.accounts.update().where(schema.accounts.c.name == name).values(**new))
    sessions.end_all(connection, name)
    if not new_active:
        sessions.forget_devices(connection, name)
        _drop_resets(connection, name)
    if by:
        old, now = (
            {"role": one, "may sign in": open_} for one, open_ in ((found.role, found.active), (new_role, new_active))
        )
        audit.record(connection, by, "change account", name, old, now)


def set_password(connection: Connection, name: str, password: str, by: str, action: str = "change password") -> None:
    """Another password, which comes hashed; the account is signed out everywhere and open links to reset it are
    dropped."""
    _require_account(connection, name)
    connection.execute(schema.accounts.update().where(schema.accounts.c.name == name).values(password=password))
    ended = sessions.end_all(connection, name)
    _drop_resets(connection, name)
    audit.record(connection, by, action, name, after={"sessions ended": ended})


def _require_account(connection: Connection, name: str) -> Account:
    found = get_account(connection, name)
    if found is None:
        raise DataError(
            f"{name}: no such account",
            "an account that is changed exists",
            "see `towpath people list RUN` or the page People",
        )
    return found


def start_session(
    connection: Connection, account: Account, at: float, old: str = "", device: str = "", address: str = ""
) -> str:
    """A session's token for an account as it was when its password was checked. The browser's old session ends, and
    it is known from now on."""
    found = _require_account(connection, account.name)
    if not found.active or found.password != account.password:
        raise DataError(
            f"{account.name}: changed meanwhile", "the account was closed or has another password", "sign in again"
        )
    sessions.end(connection, old)
    if device:
        sessions.remember_device(connection, device, account.name, at)
    if address:
        audit.record(connection, account.name, "sign in", after={"from": address})
    return sessions.start(connection, account.name, at)


def find_session(connection: Connection, session: str) -> tuple[sessions.Session, Account] | None:
    """A session by its digest, with its account while that may sign in."""
    found = sessions.get_session(connection, session)
    owner = get_account(connection, found.account) if found is not None else None
    return (found, owner) if found is not None and owner is not None and owner.active else None


def sign_out(connection: Connection, account: str, session: str) -> None:
    """Sign one browser out."""
    sessions.end(connection, session)
    audit.record(connection, account, "sign out")


def create_reset(connection: Connection, name: str, by: str, at: float) -> str:
    """The token of a link that sets an account's password anew; an earlier one is good no longer."""
    found = _require_account(connection, name)
    if not found.active:
        raise DataError(f"{name}: closed", "a closed account signs in with no password", "open it first")
    _drop_resets(connection, name)
    token = secrets.token_urlsafe(24)
    connection.execute(
        schema.resets.insert(), {"digest": token_digest(token), "account": name, "by": by, "until": at + RESET_LIFETIME}
    )
    audit.record(connection, by, "reset link", name)
    return token


def find_reset(connection: Connection, token: str, at: float) -> PasswordReset | None:
    """What a link resets, while it is good."""
    table = schema.resets
    row = (
        connection.execute(select(table).where(table.c.digest == token_digest(token), table.c.until > at))
        .mappings()
        .one_or_none()
    )
    return PasswordReset(**row) if row is not None else None


def reset_password(connection: Connection, token: str, password: str, at: float) -> Account:
    """Set the password that a link is for; the link is used up, and browsers known before are not known any more."""
    found = find_reset(connection, token, at)
    if found is None:
        raise DataError("this link", "a link resets one password, within a day", "ask the owner for another")
    set_password(connection, found.account, password, found.account, "reset password")
    sessions.forget_devices(connection, found.account)
    return _require_account(connection, found.account)


def _drop_resets(connection: Connection, name: str) -> None:
    connection.execute(schema.resets.delete().where(schema.resets.c.account == name))


def create_invitation(connection: Connection, role: Role, by: str, at: float) -> str:
    """A new invitation's token, which is returned once and not stored."""
    token = secrets.token_urlsafe(24)
    row = {"digest": token_digest(token), "role": role, "by": by, "until": at + INVITATION_LIFETIME, "used_by": ""}
    connection.execute(schema.invitations.insert(), row)
    audit.record(connection, by, "invite", after={"role": role})
    return token


def find_invitation(connection: Connection, token: str, at: float) -> Invitation | None:
    """The invitation of a token, while it is good."""
    table = schema.invitations
    row = (
        connection.execute(
            select(table).where(table.c.digest == token_digest(token), table.c.used_by == "", table.c.until > at)
        )
        .mappings()
        .one_or_none()
    )
    return Invitation(**row) if row is not None else None


def list_invitations(connection: Connection, at: float) -> list[Invitation]:
    """Those that are good and unused."""
    table = schema.invitations
    query = select(table).where(table.c.used_by == "", table.c.until > at).order_by(table.c.until)
    return [Invitation(**row) for row in connection.execute(query).mappings()]


def revoke_invitation(connection: Connection, digest_: str, by: str = "") -> None:
    """An invitation is good no longer."""
    table = schema.invitations
    gone = connection.execute(table.delete().where(table.c.digest == digest_, table.c.used_by == "")).rowcount
    if gone and by:
        audit.record(connection, by, "withdraw invitation")


def accept_invitation(connection: Connection, token: str, name: str, password: str, at: float) -> Account:
    """Make the account that an invitation promises; the link is used up with it."""
    found = check_invitation(connection, token, name, at)
    made = add_account(
        connection,
        account_names.validate(name, (known.name for known in list_accounts(connection))),
        found.role,
        password,
    )
    connection.execute(
        schema.invitations.update().where(schema.invitations.c.digest == found.digest).values(used_by=made.name)
    )
    audit.record(connection, made.name, "join", made.name, after={"role": made.role, "invited by": found.by})
    return made


def check_invitation(connection: Connection, token: str, name: str, at: float) -> Invitation:
    """The invitation of a token, which must be good, as the name must be free: all that can be refused before a
    password is hashed."""
    found = find_invitation(connection, token, at)
    if found is None:
        raise DataError("this invitation", "a link makes one account, within seven days", "ask the owner for another")
    account_names.validate(name, (known.name for known in list_accounts(connection)))
    return found


def get_guideline(connection: Connection, version: int | None = None) -> Guideline:
    """A version of the guidelines, or the newest; version 0 is empty."""
    table = schema.guidelines
    query = statements.NEWEST_GUIDELINE if version is None else select(table).where(table.c.version == version)
    row = connection.execute(query).mappings().one_or_none()
    return Guideline(**row) if row is not None else Guideline(0, "", "", "")


def list_guidelines(connection: Connection) -> list[Guideline]:
    """All versions, the newest first."""
    return [
        Guideline(**row)
        for row in connection.execute(select(schema.guidelines).order_by(schema.guidelines.c.version.desc())).mappings()
    ]


def add_guideline(connection: Connection, text: str, by: str) -> Guideline:
    """A new version, unless nothing changed."""
    newest = get_guideline(connection)
    if newest.text == text:
        return newest
    last = connection.scalar(select(func.max(schema.guidelines.c.version))) or 0
    made = Guideline(last + 1, text, by, tallies.timestamp())
    connection.execute(schema.guidelines.insert(), {"version": made.version, "text": text, "by": by, "at": made.at})
    audit.record(connection, by, "guidelines", str(made.version), {"version": last}, {"version": made.version})
    return made
