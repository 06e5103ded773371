"""Features of a text for rule expressions: counts, format, language."""

import json
import re
from collections import Counter

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f]+(?=\s|$)")
_LIST = re.compile(r"^\s*(?:[-*+\u2022]|\d{1,3}[.)])\s", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}\s", re.MULTILINE)
_MARKDOWN = (
    _LIST,
    _HEADING,
    re.compile(r"^\s*(?:```|~~~|>|\|.*\|\s*$)", re.MULTILINE),
    re.compile(r"\*\*[^*\n]+\*\*|`[^`\n]+`|\[[^\]\n]+\]\([^)\s]+\)"),
)

_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
)
"""Japanese comes before Chinese, since it uses characters of both."""

_COMMON = {
    "en": "the of and to in is that it you for was with are this not be as on have your can what if but they or an do "
    "a i how why when where who does my me from at by without about should would",
    "de": "der die das und ist nicht ein eine zu den mit von sie ich auf es dem für auch sich wie wir aber oder wenn "
    "sind",
    "fr": "le la les et est un une des que pour dans pas vous avec sur qui ce au plus je ne nous mais ou sont cette",
    "es": "el la los que y es en un una para con no por las se su como más pero está si del al lo muy este",
    "it": "il la che e di un una per non con sono le si del come più ma della questo gli nel anche alla ci o",
    "pt": "o a os que e é um uma para com não por as se do da em mais como mas você na no ao ou isso",
    "nl": "de het een en van is dat niet in te op je met voor zijn maar er aan ook als dit ik of wat naar",
}
_WORDS = {language: frozenset(count_words.split()) for language, count_words in _COMMON.items()}


def count_words(text: str) -> int:
    """Number of words."""
    return len(_WORD.findall(text))


def count_lines(text: str) -> int:
    """Number of non-blank lines."""
    return sum(bool(line.strip()) for line in text.splitlines())


def count_sentences(text: str) -> int:
    """Number of sentences; a text without an end mark is one."""
    return max(len(_SENTENCE.findall(text.strip())), int(bool(text.strip())))


def has_phrase(text: str, *parts: str) -> bool:
    """Whether one of these words or phrases occurs in the text, as whole words, ignoring case."""
    return any(count_phrase(text, part) for part in parts)


def count_phrase(text: str, part: str) -> int:
    """Number of occurrences of a word or phrase, as whole words, ignoring case."""
    if not part.strip():
        return 0
    head = r"(?<!\w)" if part[0].isalnum() else ""
    tail = r"(?!\w)" if part[-1].isalnum() else ""
    return len(re.findall(head + re.escape(part) + tail, text, re.IGNORECASE))


def is_json(text: str) -> bool:
    """Whether the text is a JSON object or list and nothing else."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def has_markdown(text: str) -> bool:
    """Whether the text uses Markdown: lists, headings, code, quotes, tables, bold, links."""
    return any(pattern.search(text) for pattern in _MARKDOWN)


def count_list_items(text: str) -> int:
    """Number of list items."""
    return len(_LIST.findall(text))


def repetition_rate(text: str) -> float:
    """Share of three-word sequences that occurred before in the text."""
    words = [word.lower() for word in _WORD.findall(text)]
    trigrams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def language(text: str) -> str:
    """Two-letter language code from the script or the most common words; empty if unclear."""
    letters = sum(letter.isalpha() for letter in text)
    for name, script in _SCRIPTS:
        if letters and len(script.findall(text)) > 0.3 * letters:
            return name
    words = [word.lower() for word in _WORD.findall(text)]
    counts = Counter({name: sum(word in known for word in words) for name, known in _WORDS.items()}).most_common(2)
    (best, best_count), (_, second_count) = counts
    return best if best_count >= 2 and best_count > 1.2 * second_count else ""
