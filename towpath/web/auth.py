"""Who is there: sessions, one-time links, and what each role may open."""

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
"""Seconds for which a session is taken to be as it was last read; another process may have ended it."""
MAX_CACHED = 10_000
DEVICE_COOKIE_AGE = 365 * 86400
OWNER = "owner"
UNKNOWN_ACCOUNT = "(unknown)"
MAX_LOGGED_FAILURES = 60
"""Failed sign-ins that go to the audit log in a minute; of the rest the next row has the number."""


class SignInNeeded(Exception):
    """Nobody is signed in."""


class NotAllowed(Exception):
    """Someone is signed in who may not."""


def cookie_name(request: Request, what: str = "") -> str:
    """A cookie's name: with the port, so that two servers of one machine keep theirs apart, and under TLS bound to
    this host."""
    server = request.scope.get("server") or ("", 0)
    return f"{'__Host-' if request.url.scheme == 'https' else ''}towpath{what}-{server[1] or 0}"


@dataclass(frozen=True, slots=True)
class CachedSession:
    """A session as it was read, and the number of changes that were made before."""

    changes: int
    at: float
    session: Session
    account: Account


class Authenticator:
    """Lets people in. In a team by name and password; alone by a link that is good once, as the owner."""

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
        """A token that lets the owner in once; an earlier one is good no longer."""
        token = secrets.token_urlsafe(24)
        self._token = token_digest(token)
        return token

    def enter(self, token: str) -> Account | None:
        """The owner, by the one-time link."""
        with self._link:
            if self.team or not secrets.compare_digest(token_digest(token), self._token):
                return None
            self._token = token_digest(secrets.token_urlsafe(16))
        found = self._store.read(people.get_account, OWNER)
        return found or self._store.submit_write(people.add_account, OWNER, "owner", "").result()

    def sign_in(self, name: str, password: str, address: str, device: str = "") -> Account | None:
        """The account of a name and its password; a try is counted before the password is checked."""
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
        self.throttle.enter(name[: account_names.MAX_LENGTH], address, device)
        try:
            right = self.hasher.matches(stored, password, known)
        except TooManyAttempts:  # the server is busy, and the password was not checked
            self.throttle.take_back(name[: account_names.MAX_LENGTH], address, device)
            raise
        if not right:
            self._failed(account.name if account is not None else UNKNOWN_ACCOUNT, address)
            return None
        self.throttle.right(name[: account_names.MAX_LENGTH], address, device)
        return account

    def _failed(self, name: str, address: str) -> None:
        """Write a failed sign-in to the audit log, which nobody may fill; what was typed as an unknown name may be a
        password."""
        before = self._failures.take(monotonic())
        if before is not None:
            more = {"not listed before": before} if before else {}
            self._store.submit_write(audit.record, name, "sign in failed", after={"from": address} | more).result()

    def hashed(self, password: str, name: str = "") -> str:
        """What is stored of a new password."""
        return self.hasher.hashed(password, name)

    def remember(self, request: Request, response: Response, account: Account, address: str = "") -> None:
        """Sign a browser in under a new session, and know it from now on; `address` goes to the audit log."""
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
        self.forget()

    def _device(self, request: Request) -> str:
        """The token of a browser: the one that it has, if it is from here, or a new one."""
        device = request.cookies.get(cookie_name(request, "-device"), "")
        return device if device and self._store.read(sessions.is_known_device, device) else secrets.token_urlsafe(24)

    def leave(self, request: Request, response: Response, account: Account) -> None:
        """End the session of a browser, so that a copy of its cookie is good for nothing."""
        self._store.submit_write(people.sign_out, account.name, self.session_of(request)).result()
        self.forget()
        response.delete_cookie(
            cookie_name(request), path="/", secure=request.url.scheme == "https", httponly=True, samesite="lax"
        )

    def session_of(self, request: Request) -> str:
        """What the ledger keeps of a browser's cookie."""
        return token_digest(request.cookies.get(cookie_name(request), ""))

    def forget(self) -> None:
        """Read every session again at its next request: one has ended, or an account has changed."""
        self._changes += 1

    async def visitor(self, request: Request) -> Account | None:
        """Whose session this is."""
        key = self.session_of(request)
        now = time()
        changes = self._changes
        known = self._read.get(key)
        if known is None or known.changes != changes or monotonic() - known.at > CACHE_SECONDS:
            found = await run_in_threadpool(self._store.read, people.find_session, key)
            if found is None:
                self._read.pop(key, None)
                return None
            if len(self._read) > MAX_CACHED:
                self._read.clear()
            known = self._read[key] = CachedSession(changes, monotonic(), *found)
        if not known.session.alive(now):
            return None
        if now - known.session.seen > sessions.TOUCH_INTERVAL:
            self._read.pop(key, None)
            self._store.submit_write(sessions.touch, key, now)
        return known.account


async def get_authenticator(request: Request) -> Authenticator:
    """The door of this server."""
    return request.app.state.door


async def get_store(request: Request) -> Store:
    """The store of this server."""
    return request.app.state.store


async def require_signed_in(request: Request) -> Account:
    """Anyone who is signed in."""
    account = await request.app.state.door.visitor(request)
    if account is None:
        raise SignInNeeded
    return account


async def require_team(request: Request) -> None:
    """Pages of accounts; a server without accounts has none."""
    if not request.app.state.door.team:
        raise NotAllowed


async def require_rater(account: Annotated[Account, Depends(require_signed_in)]) -> Account:
    """One who may rate."""
    if account.role == "viewer":
        raise NotAllowed
    return account


async def require_owner(account: Annotated[Account, Depends(require_signed_in)]) -> Account:
    """One who may set and invite."""
    if account.role != "owner":
        raise NotAllowed
    return account


async def require_stats_viewer(account: Annotated[Account, Depends(require_signed_in)]) -> Account:
    """One who may see the figures."""
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
    """An error in one line for a page, without the database's address."""
    if isinstance(error, RowRefused):
        return f"{error.rule}: {error.fix}"
    return ": ".join(part for part in (error.value, error.rule, error.fix) if part)
