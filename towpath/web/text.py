"""Text of models and strangers, made safe to show: Markdown without raw HTML or pictures, and the words in which two answers differ."""

import re
from difflib import SequenceMatcher
from functools import lru_cache
from html import escape

import nh3
from markdown_it import MarkdownIt

LONGEST = 60_000  # characters shown as Markdown; more is shown as it is
MATCHED = 3_000  # words compared exactly; beyond, frequent words are passed over to stay quick

TAGS = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "h4", "h5", "h6",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
SCHEMES = {"http", "https", "mailto"}

_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
_WORD = re.compile(r"(\S+)(\s*)")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):(?=\s|\Z)")


@lru_cache(maxsize=2048)
def markdown(text: str) -> str:
    """Markdown as safe HTML. Headings start at the fourth level, below those of the page."""
    if len(text) > LONGEST:
        return f"<pre>{escape(text)}</pre>"
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 3)}"
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return nh3.clean(html, tags=TAGS, attributes=ATTRIBUTES, url_schemes=SCHEMES, link_rel="noopener noreferrer nofollow")


def turns(prompt: str) -> list[tuple[str, str]]:
    """A conversation as (speaker, text); a prompt that is no transcript is one turn."""
    parts = _TURN.split(prompt)
    if len(parts) == 1 or parts[0].strip():
        return [("Prompt", prompt)]
    who = {"Human": "Person", "Assistant": "Assistant"}
    return [(who[name], text.strip()) for name, text in zip(parts[1::2], parts[2::2], strict=True) if text.strip()]


def differences(left: str, right: str) -> tuple[str, str]:
    """Both texts as HTML, the words that the other has not in `<mark>`."""
    ours, theirs = _WORD.findall(left), _WORD.findall(right)
    quick = max(len(ours), len(theirs)) > MATCHED
    matcher = SequenceMatcher(None, [word for word, _ in ours], [word for word, _ in theirs], autojunk=quick)
    one, two = [], []
    for kind, a, b, c, d in matcher.get_opcodes():
        one.append(_marked(ours[a:b], kind != "equal"))
        two.append(_marked(theirs[c:d], kind != "equal"))
    return "".join(one), "".join(two)


def _marked(words: list[tuple[str, str]], differs: bool) -> str:
    if not words:
        return ""
    text = escape("".join(word + space for word, space in words[:-1]) + words[-1][0])
    space = escape(words[-1][1])
    return f"<mark>{text}</mark>{space}" if differs else text + space
