"""Sessions and known browsers. Tokens stay in the browser; the ledger stores their SHA-256."""

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, func, or_, select

from towpath.store import audit, schema

IDLE_LIMIT = 7 * 24 * 3600.0
SESSION_LIFETIME = 30 * 24 * 3600.0
"""Seconds after which a session ends in any case; IDLE_LIMIT applies without requests."""
TOUCH_INTERVAL = 600.0
"""Seconds between updates of a session's last use."""
MAX_DEVICES = 20
"""Known browsers of an account; the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class Session:
    """One signed-in browser."""

    digest: str
    account: str
    created: float
    last_used: float
    expires: float

    def alive(self, at: float) -> bool:
        """Return whether the session is within both limits."""
        return at < self.expires and at - self.last_used < IDLE_LIMIT


def token_digest(token: str) -> str:
    """Return the stored digest of a token; tokens are random and long, so no slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def start(connection: Connection, account: str, at: float) -> str:
    """Start a session, delete expired ones, and return its token."""
    table = schema.sessions
    connection.execute(table.delete().where(or_(table.c.expires <= at, table.c.seen <= at - IDLE_LIMIT)))
    token = secrets.token_urlsafe(32)
    row = {
        "digest": token_digest(token),
        "account": account,
        "created": at,
        "seen": at,
        "expires": at + SESSION_LIFETIME,
    }
    connection.execute(table.insert(), row)
    return token


def get_session(connection: Connection, digest_: str) -> Session | None:
    """Return the session of a token's digest."""
    row = (
        connection.execute(select(schema.sessions).where(schema.sessions.c.digest == digest_)).mappings().one_or_none()
    )
    if row is None:
        return None
    return Session(row["digest"], row["account"], row["created"], row["seen"], row["expires"])


def touch(connection: Connection, digest_: str, at: float) -> None:
    """Record a session's use."""
    connection.execute(schema.sessions.update().where(schema.sessions.c.digest == digest_).values(seen=at))


def end(connection: Connection, digest_: str) -> None:
    """End one session."""
    connection.execute(schema.sessions.delete().where(schema.sessions.c.digest == digest_))


def end_all(connection: Connection, account: str, but: str = "") -> int:
    """End all sessions of an account, except one if given, and return how many."""
    table = schema.sessions
    return connection.execute(table.delete().where(table.c.account == account, table.c.digest != but)).rowcount


def sign_out(connection: Connection, account: str, by: str, but: str = "") -> int:
    """End an account's sessions and record who did it."""
    count = end_all(connection, account, but)
    audit.record(connection, by, "sign out everywhere", account, after={"sessions": count})
    return count


def open_sessions(connection: Connection, at: float) -> dict[str, tuple[int, float]]:
    """Return each account's number of open sessions and the time of the last use."""
    table = schema.sessions
    query = select(table.c.account, func.count(), func.max(table.c.seen)).where(
        table.c.expires > at, table.c.seen > at - IDLE_LIMIT
    )
    return {account: (count, last) for account, count, last in connection.execute(query.group_by(table.c.account))}


def is_known_device(connection: Connection, device: str, account: str = "") -> bool:
    """Return whether an account, or any, has signed in from a browser before."""
    table = schema.devices
    query = select(func.count()).select_from(table).where(table.c.digest == token_digest(device))
    return bool(connection.scalar(query.where(table.c.account == account) if account else query))


def remember_device(connection: Connection, device: str, account: str, at: float) -> None:
    """Remember a browser of an account."""
    table = schema.devices
    mine = table.c.account == account
    connection.execute(table.delete().where(mine, table.c.digest == token_digest(device)))
    connection.execute(table.insert(), {"digest": token_digest(device), "account": account, "at": at})
    newest = list(connection.scalars(select(table.c.digest).where(mine).order_by(table.c.at.desc()).limit(MAX_DEVICES)))
    connection.execute(table.delete().where(mine, table.c.digest.not_in(newest)))


def forget_devices(connection: Connection, account: str) -> None:
    """Forget all browsers of an account."""
    connection.execute(schema.devices.delete().where(schema.devices.c.account == account))
