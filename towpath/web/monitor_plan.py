"""The plan of the run, its critical path and its cheapest changes, and what its stages took."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from towpath.errors import DataError
from towpath.planning.run_plan import best_changes
from towpath.recipe import load
from towpath.run.live_record import LiveRun
from towpath.run.loading import recorded_summary
from towpath.run.plan_changes import planned_changes
from towpath.run.plan_record import read_progress
from towpath.run.run_plan import plan_run
from towpath.run.what_if import WhatIf
from towpath.store.read_once import ReadOnce
from towpath.store.store import Store
from towpath.view.plan_page import content, progress_rows
from towpath.web import pages
from towpath.web.auth import StatsViewer, StoreDependency
from towpath.web.monitor import CurrentRun

router = APIRouter(prefix="/monitor/plan")

Words = Annotated[str, Query(max_length=60)]


@router.get("")
def plan_page(
    request: Request,
    account: StatsViewer,
    run: CurrentRun,
    store: StoreDependency,
    on: Words = "",
    model_size: Words = "",
    pairs: Words = "",
    completions: Words = "",
) -> HTMLResponse:
    """Show the plan, or that of what is asked for."""
    wanted = WhatIf(on.strip(), model_size.strip(), _count("pairs", pairs), _count("completions", completions))
    wanted.require_on()
    planned = _planned(run, store, wanted)
    progress = read_progress(run.run)
    actual = progress_rows(progress) if progress and not on else []
    return pages.render_page(request, "plan.html", account, wanted=wanted, actual=actual, **planned)


def _count(name: str, text: str) -> int:
    """A number from the form; an empty field is none."""
    plain = text.replace(",", "").replace(" ", "")
    if plain and not (plain.isdecimal() and len(plain) <= 10):
        raise DataError(f"{name} = {text!r}", "a whole number, as in 50000", "change it, or leave it empty")
    return int(plain or 0)


def _planned(run: LiveRun, store: Store, wanted: WhatIf) -> dict[str, Any]:
    recipe = load(run.run, run.assignments)
    data = recorded_summary(recipe, run.run)
    store = ReadOnce(store)
    planned = plan_run(recipe, run.run, data, store, wanted)
    changes = planned_changes(planned, wanted, lambda other, what: plan_run(other, run.run, data, store, what))
    return content(run.run.resolve().name, planned.run, best_changes(planned.run, changes))
