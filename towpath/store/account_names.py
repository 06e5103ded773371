"""Names of accounts: one form for each, none that looks like another or stands for something else."""

import re
import unicodedata
from collections.abc import Iterable

from towpath.errors import DataError

MAX_LENGTH = 40
RESERVED = ("owner",)
RESERVED_PREFIXES = ("judge:", "rule:", "simulated", "recorded", "import:", "towpath")
"""Judges, rules and other sources are raters of the ledger under such names; `owner` is who serves the pages alone."""

# Scripts that are written together in one name; the first word of a character's Unicode name tells its script.
MIXED_SCRIPTS = ({"CJK", "HIRAGANA", "KATAKANA"}, {"CJK", "HANGUL"}, {"CJK", "BOPOMOFO"})
ALPHABETS = ("LATIN", "GREEK", "CYRILLIC")
"""Scripts whose accents are dropped when names are compared; in others a mark is another letter."""

# Each word is a letter and what looks like it, taken from Unicode's confusables (UTS 39), and letters with a stroke.
CONFUSABLES = """
AΑАᎪ BꞴΒВᏴ CϹСᏟ DᎠĐ EΕЕᎬ FꞘϜ GԌᏀᏳ HΗНᎻĦ JꞲͿЈᎫ KΚКᏦ LᏞŁ MΜϺМᎷ NΝ OΟОՕ0Ø PΡРᏢ RƦᎡᏒ SЅՏᏕᏚ TΤТᎢŦ UՍ VѴᏙ WԜᎳᏔ XꞳΧХ YΥϒУҮᎩᎽ ZΖᏃ
aɑαа bƄЬᏏ cᴄϲсꮯ dԁᏧđ eꬲеҽ fꬵꞙẝք gɡᶃƍց hһհᏂħ iıɪɩιіꙇӏꭵᎥ jϳј lƖǀΙІӀI1|ł nոռ oᴏᴑꬽοσоօø pρϱр qԛգզ rꭇꭈᴦгꮁ sꜱƽѕꮪ uꞟᴜꭎꭒʋυս vᴠνѵꮩ
wɯᴡѡԝաꮃ xх yɣᶌʏỿꭚγуү zᴢꮓ
"""
_CONFUSABLE_MAP = str.maketrans({other: word[0] for word in CONFUSABLES.split() for other in word[1:]})
_JOINERS = str.maketrans("", "", "\u200c\u200d")
_SEPARATORS = re.compile(r"[\s._'’-]+")


def normalize(name: str) -> str:
    """The one form of a name that is stored: composed (NFKC), without joiners, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", name.translate(_JOINERS)).split())


def validate(name: str, taken: Iterable[str] = ()) -> str:
    """The stored form of a name that a new account may have, beside the names that are taken."""
    found = normalize(name)
    if not 1 <= len(found) <= MAX_LENGTH or not found.isprintable() or not any(letter.isalnum() for letter in found):
        raise DataError(
            f"{name[:80]!r}",
            f"a name has 1 to {MAX_LENGTH} printable characters, one of them a letter or digit",
            "choose another",
        )
    if any(look in RESERVED or look.startswith(RESERVED_PREFIXES) for look in skeletons(found)):
        raise DataError(f"{found}: reserved", "judges, rules and the server itself have such names", "choose another")
    scripts = {_script(letter) for letter in found if letter.isalpha()}
    if len(scripts) > 1 and not any(scripts <= allowed for allowed in MIXED_SCRIPTS):
        listed = ", ".join(sorted(word.lower() for word in scripts))
        raise DataError(
            f"{found}: letters of several scripts ({listed})", "a name is written in one script", "write it in one"
        )
    for other in taken:
        if found == normalize(other):
            raise DataError(f"{found}: taken", "every account has a name of its own", "choose another")
        if skeletons(found) & skeletons(other):
            raise DataError(
                f"{found}: taken, or too like {other!r}",
                "names differ by more than case, accents and look-alikes",
                "choose another",
            )
    return found


def skeletons(name: str) -> set[str]:
    """What a name looks like; two names that share one of these are taken for each other."""
    composed = normalize(name)
    folded = _fold(composed)
    return {folded, folded.translate(_CONFUSABLE_MAP), _fold(composed.translate(_CONFUSABLE_MAP)).replace("rn", "m")}


def _fold(name: str) -> str:
    """Without case, separators, and the accents of alphabets."""
    kept = []
    script = ""
    for letter in unicodedata.normalize("NFKD", name).casefold():
        if unicodedata.category(letter) == "Cf":  # shows nothing
            continue
        if not unicodedata.combining(letter):
            script = _script(letter)
            kept.append(letter)
        elif script not in ALPHABETS:
            kept.append(letter)
    return _SEPARATORS.sub("", "".join(kept))


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]
