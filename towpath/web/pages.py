"""Templates to pages."""

from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader

from towpath import __version__
from towpath.data.intervals import wilson
from towpath.feedback.agreement import Estimate, proportion
from towpath.store.people import Account
from towpath.web import text

_ENVIRONMENT = Environment(loader=PackageLoader("towpath.web"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["markdown"] = text.markdown


def _hours(value: float) -> str:
    """Hours as people say them."""
    return f"{value:.1f} h" if value >= 1 else f"{value * 60:.0f} min"


def _when(value: str) -> str:
    """A time of the ledger, to the minute."""
    return value[:16].replace("T", " ")


def _estimate(right: tuple[int, int]) -> Estimate:
    """A share of counts (right, of)."""
    return proportion(*right)


def _interval(share: tuple[float, int]) -> tuple[float, float]:
    """Wilson's interval of a share (rate, of)."""
    return wilson(share[0] * share[1], share[1])


_ENVIRONMENT.filters |= {"hours": _hours, "when": _when, "estimate": _estimate, "interval": _interval}


def fragment(template: str, **context: Any) -> str:
    """Part of a page."""
    return _ENVIRONMENT.get_template(template).render(context)


def page(request: Request, template: str, account: Account | None = None, status: int = 200, **context: Any) -> HTMLResponse:
    """A whole page."""
    shared = {"account": account, "team": request.app.state.door.team, "version": __version__, "path": request.url.path}
    return HTMLResponse(fragment(template, **shared, **context), status)
