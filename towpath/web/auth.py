"""Who is there: signed cookies, passwords, one-time links, and how often one may try."""

import secrets
from collections import deque
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Annotated

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from fastapi import Depends, Request, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.concurrency import run_in_threadpool

from towpath.errors import DataError, RowRefused, TowpathError
from towpath.store import people
from towpath.store.people import Account
from towpath.store.store import Store

COOKIE = "towpath"
DAYS = 30
TRIES, WINDOW = 5, 300.0  # wrong passwords for one name from one place, in so many seconds
TRIES_FROM_ONE_PLACE = 30
FRESH = 5.0  # seconds for which an account is taken to be as it was last read
SHORTEST = 10  # characters of a password
LONGEST_NAME = 40
OWNER = "owner"


class SignInNeeded(Exception):
    """Nobody is signed in."""


class NotAllowed(Exception):
    """Someone is signed in who may not."""


class TooMany(Exception):
    """Too many wrong passwords."""


@dataclass
class Attempts:
    """Wrong tries by (name, place) and by place; old ones are forgotten."""

    _failed: dict[tuple[str, str], deque[float]] = field(default_factory=dict)

    def check(self, name: str, place: str) -> None:
        """Raise when there were too many lately."""
        now = monotonic()
        for key, most in (((name, place), TRIES), (("", place), TRIES_FROM_ONE_PLACE)):
            times = self._failed.get(key, deque())
            while times and times[0] < now - WINDOW:
                times.popleft()
            if len(times) >= most:
                raise TooMany

    def failed(self, name: str, place: str) -> None:
        """Remember a wrong try."""
        if len(self._failed) > 10_000:
            self._failed.clear()
        for key in ((name, place), ("", place)):
            self._failed.setdefault(key, deque(maxlen=TRIES_FROM_ONE_PLACE)).append(monotonic())


class Door:
    """Lets people in. In a team by name and password; alone by a link that is good once, as the owner."""

    def __init__(self, store: Store, secret: str, team: bool) -> None:
        self.team = team
        self._store = store
        self._signer = URLSafeTimedSerializer(secret, salt="towpath session")
        self._hasher = PasswordHasher()
        self._nobody = self._hasher.hash(secrets.token_hex(8))
        self._attempts = Attempts()
        self._token = people.digest(secrets.token_urlsafe(16))
        self._read: dict[str, tuple[float, Account | None]] = {}

    def link_token(self) -> str:
        """A token that lets the owner in once; an earlier one is good no longer."""
        token = secrets.token_urlsafe(24)
        self._token = people.digest(token)
        return token

    def enter(self, token: str) -> Account | None:
        """The owner, by the one-time link."""
        if self.team or not secrets.compare_digest(people.digest(token), self._token):
            return None
        self._token = people.digest(secrets.token_urlsafe(16))
        found = self._store.read(people.account, OWNER)
        return found or self._store.later(people.add_account, OWNER, "owner", "").result()

    def sign_in(self, name: str, password: str, place: str) -> Account | None:
        """The account of a name and its password."""
        self._attempts.check(name, place)
        account = self._store.read(people.account, name)
        known = account is not None and account.active and bool(account.password)
        try:
            self._hasher.verify(account.password if account is not None and known else self._nobody, password)
        except (VerificationError, InvalidHashError):
            known = False
        if not known:
            self._attempts.failed(name, place)
            return None
        return account

    def join(self, token: str, name: str, password: str) -> Account:
        """A new account by invitation."""
        name = name.strip()
        if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
            raise DataError(f"{name!r}", f"a name has 1 to {LONGEST_NAME} printable characters", "choose another")
        return self._store.later(people.join, token, name, self.hashed(password), time()).result()

    def hashed(self, password: str) -> str:
        """What is kept of a password."""
        if not SHORTEST <= len(password) <= 1000:
            raise DataError("this password", f"a password has at least {SHORTEST} characters", "choose a longer one")
        return self._hasher.hash(password)

    def remember(self, response: Response, account: Account, secure: bool) -> None:
        """Sign an account in."""
        response.set_cookie(COOKIE, self.cookie(account), max_age=DAYS * 86400, httponly=True, samesite="lax", secure=secure, path="/")

    def cookie(self, account: Account) -> str:
        """What the browser of an account keeps."""
        value = self._signer.dumps([account.name, account.session])
        return value if isinstance(value, str) else value.decode()

    def forget(self, name: str) -> None:
        """Read an account anew at its next request."""
        self._read.pop(name, None)

    async def visitor(self, request: Request) -> Account | None:
        """Whose cookie this is."""
        try:
            name, session = self._signer.loads(request.cookies.get(COOKIE, ""), max_age=DAYS * 86400)
        except (BadSignature, ValueError, TypeError):
            return None
        read, account = self._read.get(name, (0.0, None))
        if monotonic() - read > FRESH:
            account = await run_in_threadpool(self._store.read, people.account, name)
            self._read[name] = (monotonic(), account)
        return account if account is not None and account.active and account.session == session else None


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
