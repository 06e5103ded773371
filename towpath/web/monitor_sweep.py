"""The monitor's page of the sweep: win rate by KL, importance, trials with findings, and the winner's settings."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse

from towpath.run.live_record import LiveRun
from towpath.view.report.sweep import sweep_section
from towpath.web import pages
from towpath.web.auth import StatsViewer
from towpath.web.monitor import live_run

router = APIRouter(prefix="/monitor/sweep")
REFRESH = 10
"""Seconds after which the page of a sweep without a verdict is loaded again."""


@router.get("")
def sweep_page(request: Request, account: StatsViewer, run: Annotated[LiveRun, Depends(live_run)]) -> HTMLResponse:
    """Show the sweep as its folder has it now."""
    content = sweep_section(run.run)
    refresh = REFRESH if content and not content["verdict"] else 0
    return pages.render_page(request, "sweep.html", account, sweep=content, refresh=refresh)
