"""Rendering of templates."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader

from towpath import __version__
from towpath.data.intervals import wilson
from towpath.feedback.agreement import Estimate, proportion
from towpath.reasoning import split_reasoning
from towpath.store.people import Account
from towpath.web import safe_html

EXCERPT = 70
"""Characters of the first turn that the summary of earlier turns quotes."""
_ENVIRONMENT = Environment(loader=PackageLoader("towpath.web"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["markdown"] = safe_html.markdown


def _hours(value: float) -> str:
    """Format hours."""
    return f"{value:.1f} h" if value >= 1 else f"{value * 60:.0f} min"


def _when(value: str) -> str:
    """Format a ledger time to the minute."""
    return value[:16].replace("T", " ")


def _estimate(right: tuple[int, int]) -> Estimate:
    """Return the proportion of (correct, all)."""
    return proportion(*right)


def _interval(share: tuple[float, int]) -> tuple[float, float]:
    """Return Wilson's interval of (rate, count)."""
    return wilson(share[0] * share[1], share[1])


def _moment(value: float | str) -> str:
    """Format a time in UTC; seconds since 1970 or the ledger's text."""
    time = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT].rstrip()}…"


_ENVIRONMENT.filters |= {
    "excerpt": _excerpt,
    "reasoning": split_reasoning,
    "hours": _hours,
    "moment": _moment,
    "when": _when,
    "estimate": _estimate,
    "interval": _interval,
}


def render_fragment(template: str, **context: Any) -> str:
    """Render part of a page."""
    return _ENVIRONMENT.get_template(template).render(context)


def render_page(
    request: Request,
    template: str,
    account: Account | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """Render a whole page."""
    shared = {"account": account, "team": request.app.state.auth.team, "version": __version__, "path": request.url.path}
    return HTMLResponse(render_fragment(template, **shared, **context), status, headers)
