"""Refusals by patterns of their opening words, for the languages that the patterns were written for."""

from collections import Counter
from collections.abc import Mapping, Sequence

from towpath.feedback.rubric import is_refusal
from towpath.feedback.text_features import language

PATTERN_LANGUAGES = ("en",)
"""Languages whose refusals the patterns know."""
NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "ru": "Russian", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ar": "Arabic", "he": "Hebrew",
    "hi": "Hindi", "el": "Greek", "th": "Thai",
}  # fmt: skip
NAME = f"refusal patterns ({', '.join(NAMES[code] for code in PATTERN_LANGUAGES)})"


def prompt_languages(texts: Sequence[str], named: Sequence[str] = ()) -> list[str]:
    """The two-letter code of each text's language: as its row names it, by script or common words, or for a text that
    is too short to tell the language of all of them together; empty if that is unclear, too."""
    detected = [language(text) for text in texts]
    together = language("\n".join(texts))
    if not together and any(detected):
        together = Counter(code for code in detected if code).most_common(1)[0][0]
    names = named or [""] * len(texts)
    return [name[:2].lower() or code or together for name, code in zip(names, detected, strict=True)]


def match_refusals(answers: Sequence[str], languages: Sequence[str]) -> list[bool | None]:
    """Whether each answer is a refusal; None where the language of its prompt has no patterns."""
    return [
        is_refusal(answer) if code in PATTERN_LANGUAGES else None
        for answer, code in zip(answers, languages, strict=True)
    ]


def uncovered(languages: Sequence[str]) -> Mapping[str, int]:
    """The number of prompts in each language without patterns, by its name."""
    codes = Counter(code for code in languages if code not in PATTERN_LANGUAGES)
    return {NAMES.get(code, code) or "an unknown language": n for code, n in codes.most_common()}
