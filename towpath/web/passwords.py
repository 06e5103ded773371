"""Passwords: which are accepted, and their argon2 hashes, of which two at most are computed at once."""

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
"""Characters that must be left of a password without the account's name and without the product's."""
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
    """More tries than are allowed; the next one may come after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(1, ceil(seconds))
        super().__init__(f"try again in {self.seconds} s")


def validate(password: str, name: str = "") -> None:
    """Refuse a password that is short, common, or made of a name, a sequence or one repeated part."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise DataError(
            "this password",
            f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters",
            "choose a longer one; a few words will do",
        )
    folded = unicodedata.normalize("NFKC", password).casefold()
    if _is_common(folded):
        raise DataError(
            "this password", "it is one of those that are tried first", "choose another; a few unrelated words will do"
        )
    rest = folded
    for part in (name.casefold(), "towpath"):
        rest = rest.replace(part, "") if len(part) > 2 else rest
    if len(rest) < MIN_OWN_CHARACTERS:
        raise DataError(
            "this password", "it is little more than the name of the account or of this product", "choose another"
        )


@cache
def _common_passwords() -> frozenset[str]:
    lines = files("towpath.web").joinpath("common_passwords.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("# "))


def _is_common(folded: str) -> bool:
    """Whether a password is a known one, or a short known one with digits and signs around it, repeated, or a row of
    keys."""
    part = _repeated_part(folded)
    stem = re.sub(r"^[\W\d_]+|[\W\d_]+$", "", part)
    if not _common_passwords().isdisjoint({folded, part, stem, stem.translate(LEET)}):
        return True
    repeats = part != folded and len(part) < MIN_OWN_CHARACTERS
    return repeats or any(part in row * 2 or part[::-1] in row * 2 for row in KEYBOARD_ROWS)


def _repeated_part(text: str) -> str:
    """The shortest part that a text is a repetition of; the text itself if it repeats nothing."""
    length = (text + text).find(text, 1)
    return text[:length]


class Hasher:
    """Hashes and checks passwords. Strangers share one hash at a time, known browsers another, so that neither waits
    for the other."""

    def __init__(self) -> None:
        self._argon2 = PasswordHasher()
        self._nobody = self._argon2.hash(secrets.token_hex(8))
        self._lanes = {known: (BoundedSemaphore(1), Lock(), [0]) for known in (False, True)}

    def hashed(self, password: str, name: str = "") -> str:
        """What is stored of a new password."""
        validate(password, name)
        with self._lane(True):
            return self._argon2.hash(password)

    def matches(self, stored: str, password: str, known: bool = False) -> bool:
        """Whether a password is the stored one. Without a stored one it takes the same time and is not."""
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
