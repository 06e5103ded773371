"""The pages put together: routes, errors, and the guard before them."""

from collections.abc import Iterable
from pathlib import Path

from fastapi import Depends, FastAPI
from starlette.staticfiles import StaticFiles

from towpath.store.store import Store
from towpath.web import account, admin, arena, error_responses, login, monitor, rater_reports, rating, review
from towpath.web.auth import Authenticator
from towpath.web.guard import Guard
from towpath.web.limits import OpenStreams

STATIC = Path(__file__).parent / "static"


def application(store: Store, door: Authenticator, names: Iterable[str], addresses: bool = False) -> FastAPI:
    """The server's application; `names` are the hosts it answers for, `addresses` whether addresses in numbers will
    do too."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store = store
    app.state.door = door
    app.state.looks = arena.DecisionCheck()
    app.state.streams = OpenStreams()
    app.state.concerns = rater_reports.RaterReportCache()
    for part in (login, account, admin, review, arena, monitor):
        app.include_router(part.router)
    app.include_router(rating.router, dependencies=[Depends(arena.close_decided_arenas)])
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    error_responses.add_handlers(app)
    app.add_middleware(Guard, names=list(names), addresses=addresses)
    return app
