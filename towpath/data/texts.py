"""Normalised text, by which two prompts are the same question, and checks of text."""

import unicodedata

from towpath.data.row_files import UnusableRow


def normalise(text: str) -> str:
    """Remove what does not change a question: case, spacing, Unicode variants, the final punctuation mark."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(" .?!") or plain


def require_text(what: str, text: str) -> None:
    """Raise UnusableRow for blank text, or text that a ledger cannot store."""
    if not text.strip():
        raise UnusableRow(f"empty {what}")
    require_characters(what, text)


def require_characters(what: str, text: str) -> None:
    """Raise UnusableRow for characters that a database or UTF-8 cannot store."""
    if "\x00" in text:
        raise UnusableRow(f"{what} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnusableRow(f"{what} holds half a character (a lone surrogate)") from None
