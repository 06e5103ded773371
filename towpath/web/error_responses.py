"""Error responses: a page for people, JSON for the pages' scripts."""

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

RETRY_AFTER_SECONDS = 5

LOG = logging.getLogger("towpath.web")

MESSAGES = {
    400: ("Bad request", "The server could not read this request."),
    404: ("Page not found", "There is no page at this address."),
    405: ("Method not allowed", "This address does not accept this method."),
    408: ("Request timeout", "The request did not arrive in time. Try again."),
    411: ("Bad request", "A request needs a Content-Length."),
    413: ("Request too large", "The request is larger than this page accepts."),
}


class RateLimited(Exception):
    """A limit was exceeded; try again after `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def add_handlers(app: FastAPI) -> None:
    """Register a handler for every kind of error."""
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
    """Return a message as a page, or as JSON for a script."""
    if is_script_request(request):
        response: Response = JSONResponse({"error": message}, status)
    else:
        response = pages.render_page(request, "message.html", status=status, title=title, message=message)
    response.headers.update(headers or {})
    return response


def is_script_request(request: Request) -> bool:
    """Return whether a page's script sent the request."""
    return "application/json" in request.headers.get("accept", "")


def early_refusal(request: Request, status: int) -> Response:
    """Return the response to a request that is refused before any route; it closes the connection, so no body is
    read."""
    return error_response(request, status, *MESSAGES[status], {"connection": "close"})


def sign_in_response(request: Request, _error: Exception | None = None) -> Response:
    """Ask for sign-in."""
    if is_script_request(request):
        return JSONResponse({"error": "You are signed out. Sign in again."}, 401)
    return RedirectResponse("/sign-in", 303)


def internal_error(request: Request, error: Exception) -> Response:
    """Log an internal error and return a page that says so."""
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(
        request, 500, "Internal server error", "This is a bug in Towpath. The server's log has the details."
    )


def unavailable(request: Request, error: Exception) -> Response:
    """Log a storage failure and return 503 without details."""
    LOG.error("%s", error)
    message = "The server cannot read or save data. Nothing was changed; try again in a moment."
    return error_response(request, 503, "Temporarily unavailable", message, {"retry-after": str(RETRY_AFTER_SECONDS)})


def rate_limited(request: Request, error: Exception) -> Response:
    """Return 429 with the time to wait."""
    seconds = error.seconds if isinstance(error, RateLimited) else 1.0
    return error_response(request, 429, "Too many requests", str(error), {"retry-after": str(max(1, round(seconds)))})


def _not_allowed(request: Request, _error: Exception) -> Response:
    return error_response(request, 403, "No access", "Your account does not have permission for this.")


def _too_many(request: Request, error: Exception) -> Response:
    seconds = error.seconds if isinstance(error, TooManyAttempts) else 1
    message = f"Too many attempts. Try again in {seconds} seconds."
    return error_response(request, 429, "Too many requests", message, {"retry-after": str(seconds)})


def _refused(request: Request, error: Exception) -> Response:
    """Return value, rule and fix of an error."""
    if isinstance(error, ResourceError):
        return unavailable(request, error)
    return error_response(
        request, 409, "Request failed", format_error(error) if isinstance(error, TowpathError) else str(error)
    )


def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    title, message = MESSAGES.get(status, ("Request failed", "The server did not accept this request."))
    headers: dict[str, str] = dict((error.headers or {}) if isinstance(error, HTTPException) else {})
    return error_response(request, status, title, message, headers)


def _invalid(request: Request, error: Exception) -> Response:
    """Return which fields are invalid and why, without their content."""
    problems = _problems(error.errors() if isinstance(error, RequestValidationError) else [])
    if is_script_request(request):
        return JSONResponse({"error": f"Not accepted: {'; '.join(problems)}."}, 422)
    return error_response(
        request, 422, "Request failed", f"Not accepted: {'; '.join(problems)}. Go back and correct it."
    )


def _problems(errors: Sequence[Any]) -> list[str]:
    problems = []
    for error in errors[:10]:
        location = [str(part) for part in error.get("loc", ()) if part not in ("body", "query", "path")]
        name = " ".join(part for part in location if part.isidentifier() or part.isdecimal())[:80]
        if error.get("type") == "json_invalid":
            problems.append("the body is not JSON")
            continue
        reason = str(error.get("msg", "not valid")).replace("Input should", "should").removeprefix("Value error, ")
        problems.append(f"{name or 'a field'}: {reason[0].lower()}{reason[1:]}")
    return list(dict.fromkeys(problems)) or ["a field is missing"]
