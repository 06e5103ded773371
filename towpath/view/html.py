"""HTML pages from templates, each in one file that loads nothing else."""

import hashlib
from base64 import b64encode
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from towpath.reasoning import split_reasoning
from towpath.view.format import duration, number, percent, percents, size

BASE = "report.html"
"""The template whose style and script all pages have."""
_ENVIRONMENT = Environment(
    loader=PackageLoader("towpath.view"), autoescape=True, trim_blocks=True, lstrip_blocks=True, auto_reload=False
)
_ENVIRONMENT.filters |= {write.__name__: write for write in (number, percent, percents, duration, size)}
_ENVIRONMENT.filters["reasoning"] = split_reasoning


def render(template: str, content: dict[str, Any]) -> str:
    """A page. Its content security policy allows only its own style and script, by their hashes, so that markup in an
    answer cannot run."""
    base = _ENVIRONMENT.get_template(BASE)
    blocks: dict[str, str] = {}
    for name in ("style", "script"):
        text = "".join(base.blocks[name](base.new_context()))
        blocks |= {name: Markup(text), f"{name}_hash": _hash(text)}
    html = _ENVIRONMENT.get_template(template).render(content | blocks)
    # Half a surrogate pair has no encoding: it becomes a question mark.
    return html.encode("utf-8", "replace").decode()


def _hash(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()
