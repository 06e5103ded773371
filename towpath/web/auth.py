"""Who is there: sessions, one-time links, and what each role may open."""

import secrets
from dataclasses import dataclass
from threading import Lock
from time import monotonic, time
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from towpath.errors import RowRefused, TowpathError
from towpath.store import audit, names, people, sessions
from towpath.store.people import Account
from towpath.store.sessions import Session, digest
from towpath.store.store import Store
from towpath.web.passwords import Hasher, TooMany
from towpath.web.throttle import Ration, Throttle

FRESH = 5.0
"""Seconds for which a session is taken to be as it was last read; another process may have ended it."""
REMEMBERED = 10_000
DEVICE_LASTS = 365 * 86400
OWNER = "owner"
UNKNOWN = "(unknown)"
FAILURES = 60
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
class Known:
    """A session as it was read, and the number of changes that were made before."""

    changes: int
    at: float
    session: Session
    account: Account


class Door:
    """Lets people in. In a team by name and password; alone by a link that is good once, as the owner."""

    def __init__(self, store: Store, team: bool) -> None:
        self.team = team
        self.throttle = Throttle()
        self.hasher = Hasher()
        self._store = store
        self._token = digest(secrets.token_urlsafe(16))
        self._link = Lock()
        self._read: dict[str, Known] = {}
        self._changes = 0
        self._failures = Ration(FAILURES, 60.0)

    def link_token(self) -> str:
        """A token that lets the owner in once; an earlier one is good no longer."""
        token = secrets.token_urlsafe(24)
        self._token = digest(token)
        return token

    def enter(self, token: str) -> Account | None:
        """The owner, by the one-time link."""
        with self._link:
            if self.team or not secrets.compare_digest(digest(token), self._token):
                return None
            self._token = digest(secrets.token_urlsafe(16))
        found = self._store.read(people.account, OWNER)
        return found or self._store.submit_write(people.add_account, OWNER, "owner", "").result()

    def sign_in(self, name: str, password: str, address: str, device: str = "") -> Account | None:
        """The account of a name and its password; a try is counted before the password is checked."""
        if not self.team:
            return None
        name = names.normal(name)
        account = (
            self._store.read(people.account, name) if 0 < len(name) <= names.LONGEST and name.isprintable() else None
        )
        stored = account.password if account is not None and account.active else ""
        known = bool(device and stored) and self._store.read(sessions.knows, device, name)
        device = device if known else ""
        self.throttle.enter(name[: names.LONGEST], address, device)
        try:
            right = self.hasher.matches(stored, password, known)
        except TooMany:  # the server is busy, and the password was not checked
            self.throttle.take_back(name[: names.LONGEST], address, device)
            raise
        if not right:
            self._failed(account.name if account is not None else UNKNOWN, address)
            return None
        self.throttle.right(name[: names.LONGEST], address, device)
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
            people.begin_session, account, time(), self.session_of(request), device, address
        )
        lasting: dict[str, Any] = {
            "httponly": True,
            "samesite": "lax",
            "secure": request.url.scheme == "https",
            "path": "/",
        }
        response.set_cookie(cookie_name(request), work.result(), max_age=int(sessions.LASTS), **lasting)
        if device:
            response.set_cookie(cookie_name(request, "-device"), device, max_age=DEVICE_LASTS, **lasting)
        self.forget()

    def _device(self, request: Request) -> str:
        """The token of a browser: the one that it has, if it is from here, or a new one."""
        device = request.cookies.get(cookie_name(request, "-device"), "")
        return device if device and self._store.read(sessions.knows, device) else secrets.token_urlsafe(24)

    def leave(self, request: Request, response: Response, account: Account) -> None:
        """End the session of a browser, so that a copy of its cookie is good for nothing."""
        self._store.submit_write(people.leave, account.name, self.session_of(request)).result()
        self.forget()
        response.delete_cookie(
            cookie_name(request), path="/", secure=request.url.scheme == "https", httponly=True, samesite="lax"
        )

    def session_of(self, request: Request) -> str:
        """What the ledger keeps of a browser's cookie."""
        return digest(request.cookies.get(cookie_name(request), ""))

    def forget(self) -> None:
        """Read every session again at its next request: one has ended, or an account has changed."""
        self._changes += 1

    async def visitor(self, request: Request) -> Account | None:
        """Whose session this is."""
        key = self.session_of(request)
        now = time()
        changes = self._changes
        known = self._read.get(key)
        if known is None or known.changes != changes or monotonic() - known.at > FRESH:
            found = await run_in_threadpool(self._store.read, people.visitor, key)
            if found is None:
                self._read.pop(key, None)
                return None
            if len(self._read) > REMEMBERED:
                self._read.clear()
            known = self._read[key] = Known(changes, monotonic(), *found)
        if not known.session.alive(now):
            return None
        if now - known.session.seen > sessions.TOUCH:
            self._read.pop(key, None)
            self._store.submit_write(sessions.touch, key, now)
        return known.account


async def door(request: Request) -> Door:
    """The door of this server."""
    return request.app.state.door


async def store(request: Request) -> Store:
    """The store of this server."""
    return request.app.state.store


async def signed_in(request: Request) -> Account:
    """Anyone who is signed in."""
    account = await request.app.state.door.visitor(request)
    if account is None:
        raise SignInNeeded
    return account


async def team_only(request: Request) -> None:
    """Pages of accounts; a server without accounts has none."""
    if not request.app.state.door.team:
        raise NotAllowed


async def rater(account: Annotated[Account, Depends(signed_in)]) -> Account:
    """One who may rate."""
    if account.role == "viewer":
        raise NotAllowed
    return account


async def owner(account: Annotated[Account, Depends(signed_in)]) -> Account:
    """One who may set and invite."""
    if account.role != "owner":
        raise NotAllowed
    return account


async def onlooker(account: Annotated[Account, Depends(signed_in)]) -> Account:
    """One who may see the figures."""
    if account.role == "rater":
        raise NotAllowed
    return account


Visitor = Annotated[Account, Depends(signed_in)]
Rater = Annotated[Account, Depends(rater)]
Owner = Annotated[Account, Depends(owner)]
Onlooker = Annotated[Account, Depends(onlooker)]
TheStore = Annotated[Store, Depends(store)]
TheDoor = Annotated[Door, Depends(door)]


def told(error: TowpathError) -> str:
    """An error in one line for a page, without the database's address."""
    if isinstance(error, RowRefused):
        return f"{error.rule}: {error.fix}"
    return ": ".join(part for part in (error.value, error.rule, error.fix) if part)
