"""Accounts, invitations, password resets and guidelines. Passwords arrive hashed, and tokens are stored as digests."""

import secrets
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Connection, func, select

from towpath.errors import DataError
from towpath.store import account_names, audit, schema, sessions, statements, tallies
from towpath.store.sessions import token_digest

Role = Literal["owner", "rater", "viewer"]

INVITATION_LIFETIME = 7 * 24 * 3600.0
"""Seconds for which an invitation link is valid."""
RESET_LIFETIME = 24 * 3600.0
"""Seconds for which a password reset link is valid."""


@dataclass(frozen=True, slots=True)
class Account:
    """A person who may sign in; `password` is the hash."""

    name: str
    role: Role
    password: str
    active: bool = True
    at: str = ""


@dataclass(frozen=True, slots=True)
class Invitation:
    """A link that creates one account."""

    digest: str
    role: Role
    by: str
    until: float
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class PasswordReset:
    """A link that resets one password."""

    digest: str
    account: str
    by: str
    until: float


@dataclass(frozen=True, slots=True)
class Guideline:
    """One version of the rating guidelines."""

    version: int
    text: str
    by: str
    at: str


def get_account(connection: Connection, name: str) -> Account | None:
    """Return an account by name."""
    row = connection.execute(select(schema.accounts).where(schema.accounts.c.name == name)).mappings().one_or_none()
    return Account(**dict(row, active=bool(row["active"]))) if row is not None else None


def list_accounts(connection: Connection) -> list[Account]:
    """Return all accounts by name."""
    rows = connection.execute(select(schema.accounts).order_by(schema.accounts.c.name)).mappings()
    return [Account(**dict(row, active=bool(row["active"]))) for row in rows]


def add_account(connection: Connection, name: str, role: Role, password: str) -> Account:
    """Add an account; the password is a hash."""
    if get_account(connection, name) is not None:
        raise DataError(f"{name}: taken", "account names are unique", "choose another")
    account = Account(name, role, password, True, tallies.timestamp())
    connection.execute(schema.accounts.insert(), asdict(account) | {"active": 1})
    return account


def change_account(
    connection: Connection,
    name: str,
    role: Role | None = None,
    active: bool | None = None,
    password: str | None = None,
    by: str = "",
) -> None:
    """Change role or password, or close or reopen an account, and end its sessions; one owner must remain."""
    current = _require_account(connection, name)
    new_role = role or current.role
    new_active = current.active if active is None else active
    others = [
        other for other in list_accounts(connection) if other.role == "owner" and other.active and other.name != name
    ]
    if current.role == "owner" and not others and (new_role != "owner" or not new_active):
        raise DataError(f"{name}: the last owner", "one owner must remain", "make another owner first")
    new = {"role": new_role, "active": int(new_active), "password": password or current.password}
    connection.execute(schema.accounts.update().where(schema.accounts.c.name == name).values(**new))
    sessions.end_all(connection, name)
    if not new_active:
        sessions.forget_devices(connection, name)
        _drop_resets(connection, name)
    if by:
        before = {"role": current.role, "may sign in": current.active}
        after = {"role": new_role, "may sign in": new_active}
        audit.record(connection, by, "change account", name, before, after)


def set_password(connection: Connection, name: str, password: str, by: str, action: str = "change password") -> None:
    """Set a hashed password, end the account's sessions and drop its reset links."""
    _require_account(connection, name)
    connection.execute(schema.accounts.update().where(schema.accounts.c.name == name).values(password=password))
    ended = sessions.end_all(connection, name)
    _drop_resets(connection, name)
    audit.record(connection, by, action, name, after={"sessions ended": ended})


def _require_account(connection: Connection, name: str) -> Account:
    existing = get_account(connection, name)
    if existing is None:
        raise DataError(
            f"{name}: no such account",
            "only existing accounts can be changed",
            "see `towpath people list RUN` or the page People",
        )
    return existing


def start_session(
    connection: Connection, account: Account, at: float, old: str = "", device: str = "", address: str = ""
) -> str:
    """Start a session for an account as it was when its password was checked, end the browser's old one, and return the
    token."""
    current = _require_account(connection, account.name)
    if not current.active or current.password != account.password:
        raise DataError(
            f"{account.name}: changed meanwhile", "the account was closed or its password changed", "sign in again"
        )
    sessions.end(connection, old)
    if device:
        sessions.remember_device(connection, device, account.name, at)
    if address:
        audit.record(connection, account.name, "sign in", after={"from": address})
    return sessions.start(connection, account.name, at)


def find_session(connection: Connection, session: str) -> tuple[sessions.Session, Account] | None:
    """Return a session by its token's digest, with its account if that is active."""
    current = sessions.get_session(connection, session)
    account = get_account(connection, current.account) if current is not None else None
    return (current, account) if current is not None and account is not None and account.active else None


def sign_out(connection: Connection, account: str, session: str) -> None:
    """End one browser's session."""
    sessions.end(connection, session)
    audit.record(connection, account, "sign out")


def create_reset(connection: Connection, name: str, by: str, at: float) -> str:
    """Return the token of a new password reset link; earlier links become invalid."""
    account = _require_account(connection, name)
    if not account.active:
        raise DataError(f"{name}: closed", "a closed account cannot sign in", "open it first")
    _drop_resets(connection, name)
    token = secrets.token_urlsafe(24)
    connection.execute(
        schema.resets.insert(), {"digest": token_digest(token), "account": name, "by": by, "until": at + RESET_LIFETIME}
    )
    audit.record(connection, by, "reset link", name)
    return token


def find_reset(connection: Connection, token: str, at: float) -> PasswordReset | None:
    """Return the valid password reset of a token."""
    table = schema.resets
    row = (
        connection.execute(select(table).where(table.c.digest == token_digest(token), table.c.until > at))
        .mappings()
        .one_or_none()
    )
    return PasswordReset(**row) if row is not None else None


def reset_password(connection: Connection, token: str, password: str, at: float) -> Account:
    """Set the password of a reset link, use the link up, and forget the account's known browsers."""
    pending = find_reset(connection, token, at)
    if pending is None:
        raise DataError("this link", "a link resets one password within a day", "ask the owner for another")
    set_password(connection, pending.account, password, pending.account, "reset password")
    sessions.forget_devices(connection, pending.account)
    return _require_account(connection, pending.account)


def _drop_resets(connection: Connection, name: str) -> None:
    connection.execute(schema.resets.delete().where(schema.resets.c.account == name))


def create_invitation(connection: Connection, role: Role, by: str, at: float) -> str:
    """Return the token of a new invitation; it is not stored."""
    token = secrets.token_urlsafe(24)
    row = {"digest": token_digest(token), "role": role, "by": by, "until": at + INVITATION_LIFETIME, "used_by": ""}
    connection.execute(schema.invitations.insert(), row)
    audit.record(connection, by, "invite", after={"role": role})
    return token


def find_invitation(connection: Connection, token: str, at: float) -> Invitation | None:
    """Return the valid invitation of a token."""
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
    """Return valid, unused invitations."""
    table = schema.invitations
    query = select(table).where(table.c.used_by == "", table.c.until > at).order_by(table.c.until)
    return [Invitation(**row) for row in connection.execute(query).mappings()]


def revoke_invitation(connection: Connection, digest_: str, by: str = "") -> None:
    """Revoke an invitation."""
    table = schema.invitations
    gone = connection.execute(table.delete().where(table.c.digest == digest_, table.c.used_by == "")).rowcount
    if gone and by:
        audit.record(connection, by, "withdraw invitation")


def accept_invitation(connection: Connection, token: str, name: str, password: str, at: float) -> Account:
    """Create the account of an invitation and use the link up."""
    invitation = check_invitation(connection, token, name, at)
    account = add_account(
        connection,
        account_names.validate(name, (known.name for known in list_accounts(connection))),
        invitation.role,
        password,
    )
    connection.execute(
        schema.invitations.update().where(schema.invitations.c.digest == invitation.digest).values(used_by=account.name)
    )
    audit.record(
        connection, account.name, "join", account.name, after={"role": account.role, "invited by": invitation.by}
    )
    return account


def check_invitation(connection: Connection, token: str, name: str, at: float) -> Invitation:
    """Return the valid invitation of a token and check the name: everything that can fail before a password is
    hashed."""
    invitation = find_invitation(connection, token, at)
    if invitation is None:
        raise DataError("this invitation", "a link creates one account within seven days", "ask the owner for another")
    account_names.validate(name, (known.name for known in list_accounts(connection)))
    return invitation


def get_guideline(connection: Connection, version: int | None = None) -> Guideline:
    """Return a version of the guidelines, or the newest; version 0 is empty."""
    table = schema.guidelines
    query = statements.NEWEST_GUIDELINE if version is None else select(table).where(table.c.version == version)
    row = connection.execute(query).mappings().one_or_none()
    return Guideline(**row) if row is not None else Guideline(0, "", "", "")


def list_guidelines(connection: Connection) -> list[Guideline]:
    """Return all versions, newest first."""
    return [
        Guideline(**row)
        for row in connection.execute(select(schema.guidelines).order_by(schema.guidelines.c.version.desc())).mappings()
    ]


def add_guideline(connection: Connection, text: str, by: str) -> Guideline:
    """Add a version, unless the text is unchanged."""
    newest = get_guideline(connection)
    if newest.text == text:
        return newest
    last = connection.scalar(select(func.max(schema.guidelines.c.version))) or 0
    guideline = Guideline(last + 1, text, by, tallies.timestamp())
    connection.execute(
        schema.guidelines.insert(), {"version": guideline.version, "text": text, "by": by, "at": guideline.at}
    )
    audit.record(
        connection, by, "guidelines", str(guideline.version), {"version": last}, {"version": guideline.version}
    )
    return guideline
