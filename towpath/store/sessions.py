"""Who is signed in, and from which browsers. Tokens stay with the browser; the ledger keeps their sha256."""

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, func, or_, select

from towpath.store import audit, schema

IDLE_LIMIT = 7 * 24 * 3600.0
SESSION_LIFETIME = 30 * 24 * 3600.0
"""Seconds after which a session ends: without a request, and in any case."""
TOUCH_INTERVAL = 600.0
"""Seconds between two notes of when a session was last used."""
MAX_DEVICES = 20
"""Browsers remembered for an account; the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class Session:
    """One browser that is signed in."""

    digest: str
    account: str
    created: float
    seen: float
    expires: float

    def alive(self, at: float) -> bool:
        """Whether neither limit has passed."""
        return at < self.expires and at - self.seen < IDLE_LIMIT


def token_digest(token: str) -> str:
    """What is kept of a token. Tokens are random and long, so that no slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def start(connection: Connection, account: str, at: float) -> str:
    """A new session's token. Sessions that are over are removed by the way."""
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
    """The session of a token's digest."""
    row = (
        connection.execute(select(schema.sessions).where(schema.sessions.c.digest == digest_)).mappings().one_or_none()
    )
    return Session(**row) if row is not None else None


def touch(connection: Connection, digest_: str, at: float) -> None:
    """Note that a session was used."""
    connection.execute(schema.sessions.update().where(schema.sessions.c.digest == digest_).values(seen=at))


def end(connection: Connection, digest_: str) -> None:
    """Sign one browser out."""
    connection.execute(schema.sessions.delete().where(schema.sessions.c.digest == digest_))


def end_all(connection: Connection, account: str, but: str = "") -> int:
    """Sign an account out everywhere, or everywhere but here; how many sessions that were."""
    table = schema.sessions
    return connection.execute(table.delete().where(table.c.account == account, table.c.digest != but)).rowcount


def sign_out(connection: Connection, account: str, by: str, but: str = "") -> int:
    """End an account's sessions and note who did it."""
    count = end_all(connection, account, but)
    audit.record(connection, by, "sign out everywhere", account, after={"sessions": count})
    return count


def open_sessions(connection: Connection, at: float) -> dict[str, tuple[int, float]]:
    """For each account its open sessions and when one was last used."""
    table = schema.sessions
    query = select(table.c.account, func.count(), func.max(table.c.seen)).where(
        table.c.expires > at, table.c.seen > at - IDLE_LIMIT
    )
    return {account: (count, seen) for account, count, seen in connection.execute(query.group_by(table.c.account))}


def is_known_device(connection: Connection, device: str, account: str = "") -> bool:
    """Whether an account, or any, has signed in from a browser before."""
    table = schema.devices
    query = select(func.count()).select_from(table).where(table.c.digest == token_digest(device))
    return bool(connection.scalar(query.where(table.c.account == account) if account else query))


def remember_device(connection: Connection, device: str, account: str, at: float) -> None:
    """Know a browser from now on; of an account the newest few are known."""
    table = schema.devices
    mine = table.c.account == account
    connection.execute(table.delete().where(mine, table.c.digest == token_digest(device)))
    connection.execute(table.insert(), {"digest": token_digest(device), "account": account, "at": at})
    newest = list(connection.scalars(select(table.c.digest).where(mine).order_by(table.c.at.desc()).limit(MAX_DEVICES)))
    connection.execute(table.delete().where(mine, table.c.digest.not_in(newest)))


def forget_devices(connection: Connection, account: str) -> None:
    """Know no browser of an account any more."""
    connection.execute(schema.devices.delete().where(schema.devices.c.account == account))
