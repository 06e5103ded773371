"""What the server answers where it does not do what was asked: a page for people, JSON for the pages' scripts."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from towpath.errors import ResourceError, TowpathError
from towpath.web import pages
from towpath.web.auth import NotAllowed, SignInNeeded, format_error
from towpath.web.passwords import TooManyAttempts

RETRY_AFTER_SECONDS = 5  # seconds

LOG = logging.getLogger("towpath.web")

MESSAGES = {
    400: ("Not understood", "The server could not read this request."),
    404: ("No such page", "There is no page at this address."),
    405: ("No such page", "This address does not answer to that."),
    408: ("Too slow", "The request did not arrive in time. Try again."),
    411: ("Not understood", "A request states its length."),
    413: ("Too large", "The request is larger than this page accepts."),
}


class RateLimited(Exception):
    """Too much of something; allowed again after some seconds."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def add_handlers(app: FastAPI) -> None:
    """Register an answer for every kind of error."""
    app.add_exception_handler(SignInNeeded, sign_in_response)
    app.add_exception_handler(NotAllowed, _not_allowed)
    app.add_exception_handler(TooManyAttempts, _too_many)
    app.add_exception_handler(RateLimited, rate_limited)
    app.add_exception_handler(TowpathError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def error_response(
    request: Request, status: int, title: str, message: str, headers: dict[str, str] | None = None
) -> Response:
    """A message as a page, or as JSON where a script asked."""
    if is_script_request(request):
        response: Response = JSONResponse({"error": message}, status)
    else:
        response = pages.render_page(request, "message.html", status=status, title=title, message=message)
    response.headers.update(headers or {})
    return response


def is_script_request(request: Request) -> bool:
    """Whether a script of a page asks, not a person's browser."""
    return "application/json" in request.headers.get("accept", "")


def early_refusal(request: Request, status: int) -> Response:
    """The answer to a request that is refused before any route sees it; the connection ends with it, so that no body
    is read."""
    return error_response(request, status, *MESSAGES[status], {"connection": "close"})


def sign_in_response(request: Request, _error: Exception | None = None) -> Response:
    """Nobody is signed in."""
    if is_script_request(request):
        return JSONResponse({"error": "You are signed out. Sign in again to go on."}, 401)
    return RedirectResponse("/sign-in", 303)


def internal_error(request: Request, error: Exception) -> Response:
    """An error of our own: the log has it, the page says that it is not the reader's fault."""
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(
        request,
        500,
        "An error of this server",
        "This is a bug in Towpath, not something you did. The server's log has the details.",
    )


def unavailable(request: Request, error: Exception) -> Response:
    """Storage fails; only the log says which and why."""
    LOG.error("%s", error)
    message = "The server cannot read or save just now. Nothing of yours was changed; try again in a moment."
    return error_response(request, 503, "Not available just now", message, {"retry-after": str(RETRY_AFTER_SECONDS)})


def rate_limited(request: Request, error: Exception) -> Response:
    """Too much of something."""
    seconds = error.seconds if isinstance(error, RateLimited) else 1.0
    return error_response(request, 429, "Wait a little", str(error), {"retry-after": str(max(1, round(seconds)))})


def _not_allowed(request: Request, _error: Exception) -> Response:
    return error_response(request, 403, "Not for this account", "Your account may not do this.")


def _too_many(request: Request, error: Exception) -> Response:
    seconds = error.seconds if isinstance(error, TooManyAttempts) else 1
    message = f"There were too many tries. The next one may come in {seconds} seconds."
    return error_response(request, 429, "Wait a little", message, {"retry-after": str(seconds)})


def _refused(request: Request, error: Exception) -> Response:
    """An error with value, rule and fix."""
    if isinstance(error, ResourceError):
        return unavailable(request, error)
    return error_response(
        request, 409, "That did not work", format_error(error) if isinstance(error, TowpathError) else str(error)
    )


def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    title, message = MESSAGES.get(status, ("That did not work", "The server did not accept this request."))
    headers: dict[str, str] = dict((error.headers or {}) if isinstance(error, HTTPException) else {})
    return error_response(request, status, title, message, headers)


def _invalid(request: Request, error: Exception) -> Response:
    """Which fields are wrong and why, never what was sent."""
    problems = _problems(error.errors() if isinstance(error, RequestValidationError) else [])
    if is_script_request(request):
        return JSONResponse({"error": f"Not accepted: {'; '.join(problems)}."}, 422)
    return error_response(
        request, 422, "That did not work", f"Not accepted: {'; '.join(problems)}. Go back and correct it."
    )


def _problems(errors: Sequence[Any]) -> list[str]:
    found = []
    for error in errors[:10]:
        place = [str(part) for part in error.get("loc", ()) if part not in ("body", "query", "path")]
        name = " ".join(part for part in place if part.isidentifier() or part.isdecimal())[:80]
        if error.get("type") == "json_invalid":
            found.append("the body is not JSON")
            continue
        reason = str(error.get("msg", "not valid")).replace("Input should", "should").removeprefix("Value error, ")
        found.append(f"{name or 'a field'}: {reason[0].lower()}{reason[1:]}")
    return list(dict.fromkeys(found)) or ["a field is missing"]
