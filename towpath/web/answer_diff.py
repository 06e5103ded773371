"""Differences between two answers, marked in their rendered Markdown: by word where the texts are similar, else by
sentence."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from towpath.web import safe_html

WORD_DIFF_RATIO = 0.6  # share of equal words from which words are marked
SENTENCE_OVERLAP = 0.5  # share of common words from which two sentences are variants of each other
MAX_WORDS = 3_000  # longer texts are compared by sentence
MAX_SENTENCES = 300  # beyond, only equal sentences are matched

DiffMode = Literal["same", "words", "sentences", "unlike"]

_PIECE = re.compile(r"""(<math[ >].*?</math>|<(?:"[^"]*"|'[^']*'|[^'">])*>)""", re.DOTALL)
_WORDS = re.compile(r"\S+|\s+")
_END = re.compile(r"""[.!?…。！？]["'”’)\]]*\Z""")
_INLINE = re.compile(r"</?(?:em|strong|s|code|a|span)\b")


@dataclass(slots=True)
class Piece:
    """A piece of HTML: a tag, white space, or a word (a formula is one word)."""

    html: str
    word: bool = False
    breaks: bool = False
    marked: bool = False


def rendered_diff(left: str, right: str) -> tuple[str, str, DiffMode]:
    """Return both texts as safe HTML with `<mark>` around differences, and how they were compared."""
    left_pieces = _pieces(safe_html.markdown(left))
    right_pieces = _pieces(safe_html.markdown(right))
    left_words, right_words = ([piece for piece in side if piece.word] for side in (left_pieces, right_pieces))
    if [piece.html for piece in left_words] == [piece.html for piece in right_words]:
        return _html(left_pieces), _html(right_pieces), "same"
    if max(len(left_words), len(right_words)) <= MAX_WORDS and _highlight_words(
        left_words, right_words, WORD_DIFF_RATIO
    ):
        return _html(left_pieces), _html(right_pieces), "words"
    matched = _highlight_sentences(_sentences(left_pieces), _sentences(right_pieces))
    return _html(left_pieces), _html(right_pieces), "sentences" if matched else "unlike"


def _pieces(html: str) -> list[Piece]:
    pieces: list[Piece] = []
    for number, part in enumerate(_PIECE.split(html)):
        if number % 2:
            formula = part.startswith("<math")
            pieces.append(Piece(part, word=formula, breaks=not formula and not _INLINE.match(part)))
        else:
            pieces += [Piece(word, word=not word.isspace()) for word in _WORDS.findall(part)]
    return pieces


def _highlight_words(one: list[Piece], two: list[Piece], least: float) -> bool:
    """Mark words that are not in both, if at least the share `least` is."""
    matcher = SequenceMatcher(None, [piece.html for piece in one], [piece.html for piece in two], autojunk=False)
    if matcher.ratio() < least:
        return False
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            for piece in [*one[a:b], *two[c:d]]:
                piece.marked = True
    return True


def _sentences(pieces: list[Piece]) -> list[list[Piece]]:
    """Return the words of each sentence; a full stop, paragraph, item, cell or line ends one."""
    sentences: list[list[Piece]] = [[]]
    for piece in pieces:
        if piece.breaks:
            sentences.append([])
        elif piece.word:
            sentences[-1].append(piece)
            if _END.search(piece.html):
                sentences.append([])
    return [sentence for sentence in sentences if sentence]


def _highlight_sentences(left: list[list[Piece]], right: list[list[Piece]]) -> int:
    """Mark sentences that the other text lacks, and differing words in similar ones; return how many match."""
    matched = 0
    free = list(right)
    names = {id(sentence): [piece.html.lower() for piece in sentence] for sentence in [*left, *right]}
    for sentence in left:
        partner = _best_match(
            names[id(sentence)], free, names, len(left) <= MAX_SENTENCES and len(right) <= MAX_SENTENCES
        )
        if partner is None:
            _highlight(sentence)
            continue
        free.remove(partner)
        matched += 1
        _highlight_words(sentence, partner, 0.0)
    for sentence in free:
        _highlight(sentence)
    return matched


def _best_match(
    words: list[str], free: list[list[Piece]], names: dict[int, list[str]], alike: bool
) -> list[Piece] | None:
    best = None
    share = 0.0
    for other in free:
        other_words = names[id(other)]
        if words == other_words:
            return other
        if alike:
            both = len({*words} & {*other_words}) / max(1, len({*words} | {*other_words}))
            best, share = (other, both) if both >= SENTENCE_OVERLAP and both > share else (best, share)
    return best


def _highlight(sentence: list[Piece]) -> None:
    for piece in sentence:
        piece.marked = True


def _html(pieces: list[Piece]) -> str:
    """Join the pieces; marks enclose words and the space between two marked words, never a tag."""
    out: list[str] = []
    inside = False
    for number, piece in enumerate(pieces):
        follows = pieces[number + 1] if number + 1 < len(pieces) else None
        spans = inside and not piece.word and piece.html.isspace() and follows is not None and follows.marked
        wanted = piece.marked or spans
        if wanted != inside:
            out.append("<mark>" if wanted else "</mark>")
            inside = wanted
        out.append(piece.html)
    return "".join(out) + ("</mark>" if inside else "")
