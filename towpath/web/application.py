"""The web application: routes, error handlers, and the guard in front of them."""

from collections.abc import Iterable
from pathlib import Path

from fastapi import Depends, FastAPI
from starlette.staticfiles import StaticFiles

from towpath.store.store import Store
from towpath.web import (
    account,
    admin,
    arena,
    error_responses,
    login,
    monitor,
    monitor_compare,
    monitor_plan,
    monitor_samples,
    monitor_sweep,
    rater_reports,
    rating,
    review,
)
from towpath.web.auth import Authenticator
from towpath.web.guard import Guard
from towpath.web.limits import OpenStreams

STATIC = Path(__file__).parent / "static"


def application(store: Store, auth: Authenticator, names: Iterable[str], addresses: bool = False) -> FastAPI:
    """Return the application; `names` are the accepted host names, `addresses` whether IP addresses are accepted as
    hosts."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store = store
    app.state.auth = auth
    app.state.decision_check = arena.DecisionCheck()
    app.state.streams = OpenStreams()
    app.state.rater_reports = rater_reports.RaterReportCache()
    monitor_parts = (monitor, monitor_samples, monitor_compare, monitor_plan, monitor_sweep)
    for part in (login, account, admin, review, arena, *monitor_parts):
        app.include_router(part.router)
    app.include_router(rating.router, dependencies=[Depends(arena.close_decided_arenas)])
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    error_responses.add_handlers(app)
    app.add_middleware(Guard, names=list(names), addresses=addresses)
    return app
