"""Text of prompts and answers: the form in which two questions are the same, and what a ledger can hold."""

import unicodedata

from towpath.data.row_files import UnusableRow


def normalise(text: str) -> str:
    """Text without what does not change a question: case, spacing, forms of a letter, the mark at its end."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(" .?!") or plain


def require_text(what: str, text: str) -> None:
    """Text that a ledger can hold, and that says something."""
    if not text.strip():
        raise UnusableRow(f"empty {what}")
    require_characters(what, text)


def require_characters(what: str, text: str) -> None:
    """No character that a database or UTF-8 cannot hold."""
    if "\x00" in text:
        raise UnusableRow(f"{what} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnusableRow(f"{what} holds half a character (a lone surrogate)") from None
