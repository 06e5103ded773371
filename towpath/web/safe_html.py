"""Untrusted text as safe HTML: Markdown without raw HTML or images, highlighted code, formulas, and text
differences."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from html import escape

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

from towpath.web import maths

MAX_MARKDOWN = 60_000  # characters; longer text is shown as source
MAX_CODE = 10_000  # characters of a highlighted block
MAX_EXACT_WORDS = 3_000  # words compared exactly; beyond, frequent words are skipped for speed

TAGS = {
    "p",
    "br",
    "hr",
    "em",
    "strong",
    "s",
    "code",
    "pre",
    "blockquote",
    "ul",
    "ol",
    "li",
    "a",
    "h4",
    "h5",
    "h6",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "span",
}
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
CLASSES = {"span": {name for name in STANDARD_TYPES.values() if name}}
SCHEMES = {"http", "https", "mailto"}
LANGUAGES = {
    "bash",
    "c",
    "c++",
    "cpp",
    "csharp",
    "css",
    "diff",
    "go",
    "html",
    "ini",
    "java",
    "javascript",
    "js",
    "json",
    "julia",
    "kotlin",
    "latex",
    "lua",
    "php",
    "py",
    "python",
    "r",
    "ruby",
    "rust",
    "scala",
    "sh",
    "sql",
    "swift",
    "tex",
    "toml",
    "ts",
    "typescript",
    "xml",
    "yaml",
}

_WORD = re.compile(r"(\S+)(\s*)")


def _highlight_code(code: str, language: str, _attributes: str) -> str:
    """Highlight a code block; empty for an unknown language, which leaves it unchanged."""
    if language.lower() not in LANGUAGES or len(code) > MAX_CODE:
        return ""
    try:
        lexer = get_lexer_by_name(language.lower(), stripnl=False)
    except ClassNotFound:
        return ""
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _formula(_renderer: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    formulas = env["formulas"]
    formulas.append(maths.mathml(token.content, token.info) or f"<code>{escape(token.meta['source'])}</code>")
    return maths.placeholder(len(formulas) - 1)


_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True, "highlight": _highlight_code})
_MARKDOWN.enable(["table", "strikethrough"]).disable("image")
maths.install(_MARKDOWN)
_MARKDOWN.add_render_rule("maths", _formula)


@lru_cache(maxsize=2048)
def markdown(text: str) -> str:
    """Render Markdown as safe HTML; headings start at level four, below those of the page."""
    if len(text) > MAX_MARKDOWN:
        return f"<pre>{escape(text)}</pre>"
    tokens = _MARKDOWN.parse(maths.strip_placeholders(text))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 3)}"
    env: dict[str, list[str]] = {"formulas": []}
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env)
    safe = nh3.clean(
        html,
        tags=TAGS,
        attributes=ATTRIBUTES,
        allowed_classes=CLASSES,
        url_schemes=SCHEMES,
        link_rel="noopener noreferrer nofollow",
    )
    return maths.insert_formulas(safe, env["formulas"])


def text_diff(left: str, right: str) -> tuple[str, str]:
    """Return both texts escaped, with differing words in `<mark>`."""
    left_words = _WORD.findall(left)
    right_words = _WORD.findall(right)
    quick = max(len(left_words), len(right_words)) > MAX_EXACT_WORDS
    matcher = SequenceMatcher(None, [word for word, _ in left_words], [word for word, _ in right_words], autojunk=quick)
    one = []
    two = []
    for kind, a, b, c, d in matcher.get_opcodes():
        one.append(_mark_words(left_words[a:b], kind != "equal"))
        two.append(_mark_words(right_words[c:d], kind != "equal"))
    return "".join(one), "".join(two)


def _mark_words(words: list[tuple[str, str]], differs: bool) -> str:
    if not words:
        return ""
    text = escape("".join(word + space for word, space in words[:-1]) + words[-1][0])
    space = escape(words[-1][1])
    return f"<mark>{text}</mark>{space}" if differs else text + space
