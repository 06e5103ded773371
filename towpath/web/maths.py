"""TeX to MathML. Elements and attributes come from an allow list, so hostile TeX cannot inject markup."""

import re
from html import escape, unescape
from xml.etree.ElementTree import Element

from latex2mathml import converter
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

MAX_CHARACTERS = 1000  # of one formula; a longer one is shown as source
MAX_DEPTH = 60  # of nested elements

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
    """Return a formula as MathML; None if it is invalid, too long, or defines macros."""
    if len(tex) > MAX_CHARACTERS or _MACROS.search(tex):
        return None
    try:
        return _markup(converter.convert_to_element(tex, display=display), 0)
    except Exception:
        # boundary to a parser of untrusted text, which fails in many ways; the TeX source stays readable
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
    """Parse formulas between $…$, $$…$$, \\(…\\) and \\[…\\]."""
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
    """Return whether dollar signs enclose a formula and not prices or code: no space inside them, no digit after them,
    no backtick."""
    return not tex[0].isspace() and not tex[-1].isspace() and not following.isdigit() and "`" not in tex


def placeholder(number: int) -> str:
    """Return the placeholder of a formula during sanitising."""
    return f"\ue000{number}\ue001"


def strip_placeholders(text: str) -> str:
    """Remove placeholder characters from a text."""
    return text.replace("\ue000", "\ufffd").replace("\ue001", "\ufffd")


def insert_formulas(html: str, formulas: list[str]) -> str:
    """Replace placeholders by their formulas."""
    return _PLACEHOLDER.sub(lambda match: formulas[int(match[1])] if int(match[1]) < len(formulas) else "", html)
