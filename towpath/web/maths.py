"""TeX in answers as MathML. The markup is built here from a list of elements and attributes, so nothing else can
come of hostile TeX."""

import re
from html import escape, unescape
from xml.etree.ElementTree import Element

from latex2mathml import converter
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

MAX_CHARACTERS = 1000  # characters of one formula; a longer one is shown as it is
MAX_DEPTH = 60  # elements within each other

ELEMENTS = {
    "math",
    "mrow",
    "mi",
    "mn",
    "mo",
    "mtext",
    "mspace",
    "msup",
    "msub",
    "msubsup",
    "mfrac",
    "msqrt",
    "mroot",
    "munder",
    "mover",
    "munderover",
    "mtable",
    "mtr",
    "mtd",
    "mstyle",
    "mpadded",
    "menclose",
    "mmultiscripts",
    "mprescripts",
    "none",
}
ATTRIBUTES = {
    "display": r"inline|block",
    "displaystyle": r"true|false",
    "stretchy": r"true|false",
    "fence": r"true|false",
    "form": r"prefix|infix|postfix",
    "accent": r"true|false",
    "linethickness": r"0|\d(\.\d+)?(em|px|pt)?",
    "columnalign": r"(left|right|center)( (left|right|center))*",
    "mathvariant": r"[a-z-]{1,30}",
    "width": r"-?\d?(\.\d+)?em",
    "notation": r"[a-z ]{1,40}",
    "scriptlevel": r"[0-3]",
}

_DELIMITERS = (("$$", "$$", "block"), ("\\[", "\\]", "block"), ("\\(", "\\)", "inline"), ("$", "$", "inline"))
_MACROS = re.compile(
    r"\\(?:re|provide)?newcommand|\\[egx]?def|\\let|\\DeclareMathOperator|\\href|\\style|\\class|\\require"
)
_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")


def mathml(tex: str, display: str) -> str | None:
    """A formula as MathML; None where it cannot be read, is too long, or defines commands of its own."""
    if len(tex) > MAX_CHARACTERS or _MACROS.search(tex):
        return None
    try:
        return _markup(converter.convert_to_element(tex, display=display), 0)
    except Exception:
        # the boundary to a parser of strangers' text: it fails in many ways, and TeX as it is stays readable
        return None


def _markup(element: Element, depth: int) -> str:
    if depth > MAX_DEPTH or element.tag not in ELEMENTS:
        raise ValueError(element.tag)
    known = [
        (name, value)
        for name, value in element.attrib.items()
        if name in ATTRIBUTES and re.fullmatch(ATTRIBUTES[name], value)
    ]
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in known)
    inner = escape(unescape(element.text or ""), quote=False) + "".join(_markup(child, depth + 1) for child in element)
    return f"<{element.tag}{attributes}>{inner}</{element.tag}>"


def install(parser: MarkdownIt) -> None:
    """Read formulas between $…$, $$…$$, \\(…\\) and \\[…\\]."""
    parser.inline.ruler.before("escape", "maths", _rule)


def _rule(state: StateInline, silent: bool) -> bool:
    for opening, closing, display in _DELIMITERS:
        if not state.src.startswith(opening, state.pos):
            continue
        begin = state.pos + len(opening)
        end = state.src.find(closing, begin, state.posMax)
        tex = state.src[begin:end] if end > begin else ""
        if not tex.strip() or (opening == "$" and not _is_formula(tex, state.src[end + 1 : end + 2])):
            continue
        if not silent:
            token = state.push("maths", "", 0)
            token.content = tex
            token.info = display
            token.meta = {"source": state.src[state.pos : end + len(closing)]}
        state.pos = end + len(closing)
        return True
    return False


def _is_formula(tex: str, following: str) -> bool:
    """Whether dollars are no prices and hold no code: no space just inside them, no digit after the last, no
    backtick."""
    return not tex[0].isspace() and not tex[-1].isspace() and not following.isdigit() and "`" not in tex


def placeholder(number: int) -> str:
    """What stands for a formula while the rest is sanitised."""
    return f"\ue000{number}\ue001"


def strip_placeholders(text: str) -> str:
    """A text that holds no such mark of its own."""
    return text.replace("\ue000", "\ufffd").replace("\ue001", "\ufffd")


def insert_formulas(html: str, formulas: list[str]) -> str:
    """Put the formulas in the place of their marks."""
    return _PLACEHOLDER.sub(lambda found: formulas[int(found[1])] if int(found[1]) < len(formulas) else "", html)
