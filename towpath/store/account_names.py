"""Account names: one normal form each, distinct from look-alikes and reserved names."""

import re
import unicodedata
from collections.abc import Iterable

from towpath.errors import DataError

MAX_LENGTH = 40
RESERVED = ("owner",)
RESERVED_PREFIXES = ("judge:", "rule:", "simulated", "recorded", "import:", "towpath")
"""Judges, rules and other sources are raters in the ledger under such names; `owner` is the only account without
--team."""

# Scripts that may be mixed in one name; the first word of a character's Unicode name is its script.
MIXED_SCRIPTS = ({"CJK", "HIRAGANA", "KATAKANA"}, {"CJK", "HANGUL"}, {"CJK", "BOPOMOFO"})
ALPHABETS = ("LATIN", "GREEK", "CYRILLIC")
"""Scripts whose accents are dropped when names are compared; in other scripts a mark makes another letter."""

# Each word is a letter and its look-alikes from Unicode's confusables (UTS 39), and letters with a stroke.
CONFUSABLES = """
AΑАᎪ BꞴΒВᏴ CϹСᏟ DᎠĐ EΕЕᎬ FꞘϜ GԌᏀᏳ HΗНᎻĦ JꞲͿЈᎫ KΚКᏦ LᏞŁ MΜϺМᎷ NΝ OΟОՕ0Ø PΡРᏢ RƦᎡᏒ SЅՏᏕᏚ TΤТᎢŦ UՍ VѴᏙ WԜᎳᏔ XꞳΧХ YΥϒУҮᎩᎽ ZΖᏃ
aɑαа bƄЬᏏ cᴄϲсꮯ dԁᏧđ eꬲеҽ fꬵꞙẝք gɡᶃƍց hһհᏂħ iıɪɩιіꙇӏꭵᎥ jϳј lƖǀΙІӀI1|ł nոռ oᴏᴑꬽοσоօø pρϱр qԛգզ rꭇꭈᴦгꮁ sꜱƽѕꮪ uꞟᴜꭎꭒʋυս vᴠνѵꮩ
wɯᴡѡԝաꮃ xх yɣᶌʏỿꭚγуү zᴢꮓ
"""
_CONFUSABLE_MAP = str.maketrans({other: word[0] for word in CONFUSABLES.split() for other in word[1:]})
_JOINERS = str.maketrans("", "", "\u200c\u200d")
_SEPARATORS = re.compile(r"[\s._'’-]+")


def normalize(name: str) -> str:
    """Return the stored form of a name: NFKC, without joiners, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", name.translate(_JOINERS)).split())


def validate(name: str, taken: Iterable[str] = ()) -> str:
    """Return the stored form of a new account's name, or raise; `taken` are the existing names."""
    normalized = normalize(name)
    if (
        not 1 <= len(normalized) <= MAX_LENGTH
        or not normalized.isprintable()
        or not any(letter.isalnum() for letter in normalized)
    ):
        raise DataError(
            f"{name[:80]!r}",
            f"a name has 1 to {MAX_LENGTH} printable characters, one of them a letter or digit",
            "choose another",
        )
    if any(skeleton in RESERVED or skeleton.startswith(RESERVED_PREFIXES) for skeleton in skeletons(normalized)):
        raise DataError(f"{normalized}: reserved", "judges, rules and the server use such names", "choose another")
    scripts = {_script(letter) for letter in normalized if letter.isalpha()}
    if len(scripts) > 1 and not any(scripts <= allowed for allowed in MIXED_SCRIPTS):
        listed = ", ".join(sorted(word.lower() for word in scripts))
        raise DataError(
            f"{normalized}: letters of several scripts ({listed})", "a name is written in one script", "write it in one"
        )
    for other in taken:
        if normalized == normalize(other):
            raise DataError(f"{normalized}: taken", "account names are unique", "choose another")
        if skeletons(normalized) & skeletons(other):
            raise DataError(
                f"{normalized}: taken, or too similar to {other!r}",
                "names must differ by more than case, accents and look-alikes",
                "choose another",
            )
    return normalized


def skeletons(name: str) -> set[str]:
    """Return what a name looks like (UTS 39 skeletons); two names that share one are confusable."""
    composed = normalize(name)
    folded = _fold(composed)
    return {folded, folded.translate(_CONFUSABLE_MAP), _fold(composed.translate(_CONFUSABLE_MAP)).replace("rn", "m")}


def _fold(name: str) -> str:
    """Drop case, separators, and the accents of alphabets."""
    letters = []
    script = ""
    for letter in unicodedata.normalize("NFKD", name).casefold():
        if unicodedata.category(letter) == "Cf":  # invisible
            continue
        if not unicodedata.combining(letter):
            script = _script(letter)
            letters.append(letter)
        elif script not in ALPHABETS:
            letters.append(letter)
    return _SEPARATORS.sub("", "".join(letters))


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]
