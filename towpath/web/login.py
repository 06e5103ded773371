"""Sign-in: the one-time link, names and passwords, invitations, password resets."""

from time import time
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from towpath.errors import DataError
from towpath.store import people
from towpath.store.people import Account, PasswordReset
from towpath.web import pages
from towpath.web.auth import Auth, SignedIn, StoreDependency, cookie_name, format_error, require_team
from towpath.web.passwords import MIN_LENGTH, TooManyAttempts

router = APIRouter()

FIRST_PAGE = {"owner": "/owner", "viewer": "/owner", "rater": "/rate"}

Field = Annotated[str, Form(max_length=1000)]


@router.get("/")
async def first_page(account: SignedIn) -> Response:
    """Redirect to the role's first page."""
    return RedirectResponse(FIRST_PAGE[account.role], 303)


@router.get("/enter")
def enter_by_link(request: Request, auth: Auth, token: str = "") -> Response:
    """Sign the owner in by the link from the terminal."""
    account = auth.redeem_link(token)
    if account is None:
        message = "This link was used before or belongs to another server. Restart `towpath serve` for a new one."
        return pages.render_page(
            request, "message.html", status=403, title="The link is no longer valid", message=message
        )
    return _start_session(request, auth, account, request.client.host if request.client else "unknown")


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """Show the sign-in form."""
    return pages.render_page(request, "sign_in.html")


@router.post("/sign-in")
def sign_in(request: Request, auth: Auth, name: Field, password: Field) -> Response:
    """Sign in by name and password."""
    address = request.client.host if request.client else ""
    try:
        account = auth.sign_in(name, password, address, request.cookies.get(cookie_name(request, "-device"), ""))
    except TooManyAttempts as error:
        message = f"Too many attempts. Try again in {error.seconds} seconds; the password is not checked before."
        headers = {"retry-after": str(error.seconds)}
        return pages.render_page(request, "sign_in.html", status=429, error=message, name=name, headers=headers)
    if account is None:
        return pages.render_page(request, "sign_in.html", status=401, error="Wrong name or password.", name=name)
    return _start_session(request, auth, account, address or "unknown")


@router.post("/sign-out")
def sign_out(request: Request, account: SignedIn, auth: Auth) -> Response:
    """End the browser's session."""
    response = RedirectResponse("/sign-in", 303)
    auth.end_session(request, response, account)
    return response


@router.get("/join/{token}", dependencies=[Depends(require_team)])
def join_page(request: Request, store: StoreDependency, token: str) -> Response:
    """Show an invitation."""
    invitation = store.read(people.find_invitation, token, time())
    if invitation is None:
        message = "It was used, was revoked, or is older than seven days. Ask the owner for a new one."
        return pages.render_page(
            request, "message.html", status=410, title="The invitation is no longer valid", message=message
        )
    return pages.render_page(request, "join.html", invitation=invitation, shortest=MIN_LENGTH)


@router.post("/join/{token}", dependencies=[Depends(require_team)])
def join(request: Request, store: StoreDependency, auth: Auth, token: str, name: Field, password: Field) -> Response:
    """Create the account of an invitation and sign it in; the password is hashed last, after all other checks."""
    try:
        invited = store.read(people.check_invitation, token, name, time())
    except DataError as error:
        invitation = store.read(people.find_invitation, token, time())
        if invitation is None:
            return join_page(request, store, token)
        return pages.render_page(
            request,
            "join.html",
            status=409,
            invitation=invitation,
            shortest=MIN_LENGTH,
            error=format_error(error),
            name=name,
        )
    try:
        account = store.submit_write(
            people.accept_invitation, token, name, auth.hash_password(password, name), time()
        ).result()
    except DataError as error:
        return pages.render_page(
            request,
            "join.html",
            status=409,
            invitation=invited,
            shortest=MIN_LENGTH,
            error=format_error(error),
            name=name,
        )
    return _start_session(request, auth, account)


@router.get("/reset/{token}", dependencies=[Depends(require_team)])
def reset_page(request: Request, store: StoreDependency, token: str) -> Response:
    """Show a password reset form."""
    return _reset_page(request, store.read(people.find_reset, token, time()))


def _reset_page(request: Request, pending: PasswordReset | None, error: str = "") -> Response:
    if pending is None:
        message = "It was used, was replaced by a newer one, or is older than a day. Ask the owner for a new one."
        return pages.render_page(
            request, "message.html", status=410, title="The link is no longer valid", message=message
        )
    return pages.render_page(
        request, "reset.html", status=409 if error else 200, name=pending.account, shortest=MIN_LENGTH, error=error
    )


@router.post("/reset/{token}", dependencies=[Depends(require_team)])
def reset(request: Request, store: StoreDependency, auth: Auth, token: str, password: Field) -> Response:
    """Set the password, end all sessions of the account, and sign this browser in."""
    pending = store.read(people.find_reset, token, time())
    if pending is None:
        return _reset_page(request, pending)
    try:
        account = store.submit_write(
            people.reset_password, token, auth.hash_password(password, pending.account), time()
        ).result()
    except DataError as error:
        return _reset_page(request, pending, format_error(error))
    return _start_session(request, auth, account)


def _start_session(request: Request, auth: Auth, account: Account, address: str = "") -> Response:
    response = RedirectResponse("/", 303)
    auth.start_session(request, response, account, address)
    return response
