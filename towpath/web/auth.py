"""Authentication: sessions, one-time links, and access by role."""

import secrets
from dataclasses import dataclass
from threading import Lock
from time import monotonic, time
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from towpath.errors import RowRefused, TowpathError
from towpath.store import account_names, audit, people, sessions
from towpath.store.people import Account
from towpath.store.sessions import Session, token_digest
from towpath.store.store import Store
from towpath.web.passwords import Hasher, TooManyAttempts
from towpath.web.throttle import FixedWindow, Throttle

CACHE_SECONDS = 5.0
"""Seconds for which a session is cached; another process may have ended it."""
MAX_CACHED = 10_000
DEVICE_COOKIE_AGE = 365 * 86400
OWNER = "owner"
UNKNOWN_ACCOUNT = "(unknown)"
MAX_LOGGED_FAILURES = 60
"""Failed sign-ins per minute in the audit log; the next row has the number of omitted ones."""


class SignInNeeded(Exception):
    """No one is signed in."""


class NotAllowed(Exception):
    """The account has no access."""


def cookie_name(request: Request, what: str = "") -> str:
    """Return a cookie's name: with the port, to separate two servers of one machine, and with the __Host- prefix under
    TLS."""
    server = request.scope.get("server") or ("", 0)
    return f"{'__Host-' if request.url.scheme == 'https' else ''}towpath{what}-{server[1] or 0}"


@dataclass(frozen=True, slots=True)
class CachedSession:
    """A session as last read; `changes` is the number of account changes seen before."""

    changes: int
    at: float
    session: Session
    account: Account


class Authenticator:
    """Signs people in: with accounts in a team, otherwise the owner by a one-time link."""

    def __init__(self, store: Store, team: bool) -> None:
        self.team = team
        self.throttle = Throttle()
        self.hasher = Hasher()
        self._store = store
        self._token = token_digest(secrets.token_urlsafe(16))
        self._link = Lock()
        self._read: dict[str, CachedSession] = {}
        self._changes = 0
        self._failures = FixedWindow(MAX_LOGGED_FAILURES, 60.0)

    def link_token(self) -> str:
        """Return a new token that signs the owner in once; earlier tokens become invalid."""
        token = secrets.token_urlsafe(24)
        self._token = token_digest(token)
        return token

    def redeem_link(self, token: str) -> Account | None:
        """Return the owner for a valid one-time token."""
        with self._link:
            if self.team or not secrets.compare_digest(token_digest(token), self._token):
                return None
            self._token = token_digest(secrets.token_urlsafe(16))
        account = self._store.read(people.get_account, OWNER)
        return account or self._store.submit_write(people.add_account, OWNER, "owner", "").result()

    def sign_in(self, name: str, password: str, address: str, device: str = "") -> Account | None:
        """Return the account for a name and password; the attempt is counted before the password is checked."""
        if not self.team:
            return None
        name = account_names.normalize(name)
        account = (
            self._store.read(people.get_account, name)
            if 0 < len(name) <= account_names.MAX_LENGTH and name.isprintable()
            else None
        )
        stored = account.password if account is not None and account.active else ""
        known = bool(device and stored) and self._store.read(sessions.is_known_device, device, name)
        device = device if known else ""
        self.throttle.count_attempt(name[: account_names.MAX_LENGTH], address, device)
        try:
            right = self.hasher.verify(stored, password, known)
        except TooManyAttempts:  # the server is busy; the password was not checked
            self.throttle.refund(name[: account_names.MAX_LENGTH], address, device)
            raise
        if not right:
            self._failed(account.name if account is not None else UNKNOWN_ACCOUNT, address)
            return None
        self.throttle.record_success(name[: account_names.MAX_LENGTH], address, device)
        return account

    def _failed(self, name: str, address: str) -> None:
        """Log a failed sign-in, rate limited; an unknown name is not logged, since it may be a mistyped password."""
        before = self._failures.take(monotonic())
        if before is not None:
            more = {"omitted before": before} if before else {}
            self._store.submit_write(audit.record, name, "sign in failed", after={"from": address} | more).result()

    def hash_password(self, password: str, name: str = "") -> str:
        """Validate and hash a new password."""
        return self.hasher.hash(password, name)

    def start_session(self, request: Request, response: Response, account: Account, address: str = "") -> None:
        """Start a new session for a browser and remember the browser; `address` goes to the audit log."""
        device = self._device(request) if self.team else ""
        work = self._store.submit_write(
            people.start_session, account, time(), self.session_of(request), device, address
        )
        lasting: dict[str, Any] = {
            "httponly": True,
            "samesite": "lax",
            "secure": request.url.scheme == "https",
            "path": "/",
        }
        response.set_cookie(cookie_name(request), work.result(), max_age=int(sessions.SESSION_LIFETIME), **lasting)
        if device:
            response.set_cookie(cookie_name(request, "-device"), device, max_age=DEVICE_COOKIE_AGE, **lasting)
        self.invalidate_cache()

    def _device(self, request: Request) -> str:
        """Return the browser's token if it is ours, or a new one."""
        device = request.cookies.get(cookie_name(request, "-device"), "")
        return device if device and self._store.read(sessions.is_known_device, device) else secrets.token_urlsafe(24)

    def end_session(self, request: Request, response: Response, account: Account) -> None:
        """End a browser's session, so that copies of its cookie are useless."""
        self._store.submit_write(people.sign_out, account.name, self.session_of(request)).result()
        self.invalidate_cache()
        response.delete_cookie(
            cookie_name(request), path="/", secure=request.url.scheme == "https", httponly=True, samesite="lax"
        )

    def session_of(self, request: Request) -> str:
        """Return the digest of a browser's session cookie."""
        return token_digest(request.cookies.get(cookie_name(request), ""))

    def invalidate_cache(self) -> None:
        """Invalidate the session cache: a session has ended, or an account has changed."""
        self._changes += 1

    async def session_account(self, request: Request) -> Account | None:
        """Return the account of a request's session."""
        key = self.session_of(request)
        now = time()
        changes = self._changes
        known = self._read.get(key)
        if known is None or known.changes != changes or monotonic() - known.at > CACHE_SECONDS:
            current = await run_in_threadpool(self._store.read, people.find_session, key)
            if current is None:
                self._read.pop(key, None)
                return None
            if len(self._read) > MAX_CACHED:
                self._read.clear()
            known = self._read[key] = CachedSession(changes, monotonic(), *current)
        if not known.session.alive(now):
            return None
        if now - known.session.last_used > sessions.TOUCH_INTERVAL:
            self._read.pop(key, None)
            self._store.submit_write(sessions.touch, key, now)
        return known.account


async def get_authenticator(request: Request) -> Authenticator:
    """Return the server's authenticator."""
    return request.app.state.auth


async def get_store(request: Request) -> Store:
    """Return the server's store."""
    return request.app.state.store


async def require_signed_in(request: Request) -> Account:
    """Require any signed-in account."""
    account = await request.app.state.auth.session_account(request)
    if account is None:
        raise SignInNeeded
    return account


async def require_team(request: Request) -> None:
    """Require a server with accounts."""
    if not request.app.state.auth.team:
        raise NotAllowed


async def require_rater(account: Annotated[Account, Depends(require_signed_in)]) -> Account:
    """Require an account that may rate."""
    if account.role == "viewer":
        raise NotAllowed
    return account


async def require_owner(account: Annotated[Account, Depends(require_signed_in)]) -> Account:
    """Require an owner."""
    if account.role != "owner":
        raise NotAllowed
    return account


async def require_stats_viewer(account: Annotated[Account, Depends(require_signed_in)]) -> Account:
    """Require an account that may see statistics."""
    if account.role == "rater":
        raise NotAllowed
    return account


SignedIn = Annotated[Account, Depends(require_signed_in)]
Rater = Annotated[Account, Depends(require_rater)]
Owner = Annotated[Account, Depends(require_owner)]
StatsViewer = Annotated[Account, Depends(require_stats_viewer)]
StoreDependency = Annotated[Store, Depends(get_store)]
Auth = Annotated[Authenticator, Depends(get_authenticator)]


def format_error(error: TowpathError) -> str:
    """Format an error as one line for a page, without the database's address."""
    if isinstance(error, RowRefused):
        return f"{error.rule}: {error.fix}"
    return ": ".join(part for part in (error.value, error.rule, error.fix) if part)
