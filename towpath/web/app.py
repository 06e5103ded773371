"""The pages put together: routes, errors, and the guard before them."""

from collections.abc import Iterable
from pathlib import Path

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from towpath.errors import TowpathError
from towpath.store.store import Store
from towpath.web import account, arena, entrance, monitor, owning, pages, rating
from towpath.web.auth import Door, NotAllowed, SignInNeeded, TooMany, told
from towpath.web.guard import Guard

STATIC = Path(__file__).parent / "static"


def application(store: Store, door: Door, names: Iterable[str], addresses: bool = False) -> FastAPI:
    """The server's application; `names` are the hosts it answers for, `addresses` whether addresses in numbers will do too."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store, app.state.door = store, door
    app.state.looks = arena.Looks()
    for part in (entrance, account, owning, arena, monitor):
        app.include_router(part.router)
    app.include_router(rating.router, dependencies=[Depends(arena.watched)])
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(SignInNeeded, _sign_in)
    app.add_exception_handler(NotAllowed, _not_allowed)
    app.add_exception_handler(TooMany, _too_many)
    app.add_exception_handler(TowpathError, _refused)
    app.add_middleware(Guard, names=list(names), addresses=addresses)
    return app


def _from_script(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _sign_in(request: Request, _error: Exception) -> Response:
    if _from_script(request):
        return JSONResponse({"error": "Sign in again; what you have rated is kept on this device."}, 401)
    return RedirectResponse("/sign-in", 303)


def _not_allowed(request: Request, _error: Exception) -> Response:
    if _from_script(request):
        return JSONResponse({"error": "Your account may not do this."}, 403)
    return pages.page(request, "message.html", status=403, title="Not for this account", message="Your account may not open this page.")


def _too_many(request: Request, error: Exception) -> Response:
    seconds = error.seconds if isinstance(error, TooMany) else 1
    message = f"There were too many tries. The next one may come in {seconds} seconds."
    headers = {"retry-after": str(seconds)}
    if _from_script(request):
        return JSONResponse({"error": message}, 429, headers)
    return pages.page(request, "message.html", status=429, headers=headers, title="Wait a little", message=message)


def _refused(request: Request, error: Exception) -> Response:
    message = told(error) if isinstance(error, TowpathError) else str(error)
    if _from_script(request):
        return JSONResponse({"error": message}, 409)
    return pages.page(request, "message.html", status=409, title="That did not work", message=message)
