"""Password rules and argon2 hashes; at most two hashes are computed at a time."""

import re
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from math import ceil
from threading import BoundedSemaphore, Lock

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from towpath.errors import DataError

MIN_LENGTH = 12
MAX_LENGTH = 1000
MIN_OWN_CHARACTERS = 8
"""Characters of a password besides the account's and the product's name."""
KEYBOARD_ROWS = (
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890123456789",
    "qwertyuiop[]",
    "asdfghjkl;'",
    "zxcvbnm,./",
    "qwertzuiop",
    "azertyuiop",
)
LEET = str.maketrans("013457@$!", "oleastasi")
MAX_WAITING = 4
"""Requests that may wait for one of the two hashes; each takes about 64 MiB and 50 ms."""
HASH_TIMEOUT = 2.0


class TooManyAttempts(Exception):
    """Too many attempts; the next one is allowed after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(1, ceil(seconds))
        super().__init__(f"try again in {self.seconds} s")


def validate(password: str, name: str = "") -> None:
    """Refuse a password that is short, common, or made of a name, a sequence or one repeated part."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise DataError(
            "this password",
            f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters",
            "choose a longer one, such as a few words",
        )
    folded = unicodedata.normalize("NFKC", password).casefold()
    if _is_common(folded):
        raise DataError("this password", "it is a common password", "choose another, such as a few unrelated words")
    rest = folded
    for part in (name.casefold(), "towpath"):
        rest = rest.replace(part, "") if len(part) > 2 else rest
    if len(rest) < MIN_OWN_CHARACTERS:
        raise DataError("this password", "it is little more than the account's or the product's name", "choose another")


@cache
def _common_passwords() -> frozenset[str]:
    lines = files("towpath.web").joinpath("common_passwords.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("# "))


def _is_common(folded: str) -> bool:
    """Return whether a password is common, or a common one with digits and signs around it, repeated, or a keyboard
    row."""
    part = _repeated_part(folded)
    stem = re.sub(r"^[\W\d_]+|[\W\d_]+$", "", part)
    if not _common_passwords().isdisjoint({folded, part, stem, stem.translate(LEET)}):
        return True
    repeats = part != folded and len(part) < MIN_OWN_CHARACTERS
    return repeats or any(part in row * 2 or part[::-1] in row * 2 for row in KEYBOARD_ROWS)


def _repeated_part(text: str) -> str:
    """Return the shortest part that a text repeats, or the text itself."""
    length = (text + text).find(text, 1)
    return text[:length]


class Hasher:
    """Hashes and verifies passwords. Unknown and known browsers have one slot each, so that neither delays the
    other."""

    def __init__(self) -> None:
        self._argon2 = PasswordHasher()
        self._nobody = self._argon2.hash(secrets.token_hex(8))
        self._lanes = {known: (BoundedSemaphore(1), Lock(), [0]) for known in (False, True)}

    def hash(self, password: str, name: str = "") -> str:
        """Validate and hash a new password."""
        validate(password, name)
        with self._lane(True):
            return self._argon2.hash(password)

    def verify(self, stored: str, password: str, known: bool = False) -> bool:
        """Return whether a password matches the stored hash; without one it takes the same time and returns False."""
        with self._lane(known):
            try:
                return self._argon2.verify(stored or self._nobody, password) and bool(stored)
            except (VerificationError, InvalidHashError):
                return False

    @contextmanager
    def _lane(self, known: bool) -> Iterator[None]:
        semaphore, lock, waiting = self._lanes[known]
        with lock:
            if waiting[0] > MAX_WAITING:
                raise TooManyAttempts(HASH_TIMEOUT)
            waiting[0] += 1
        try:
            if not semaphore.acquire(timeout=HASH_TIMEOUT):
                raise TooManyAttempts(HASH_TIMEOUT)
            try:
                yield
            finally:
                semaphore.release()
        finally:
            with lock:
                waiting[0] -= 1
