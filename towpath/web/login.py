"""Coming in: the one-time link, names and passwords, invitations."""

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
    """Everyone's first page."""
    return RedirectResponse(FIRST_PAGE[account.role], 303)


@router.get("/enter")
def enter_by_link(request: Request, door: Auth, token: str = "") -> Response:
    """The owner comes in by the link from the terminal."""
    account = door.enter(token)
    if account is None:
        message = "This link was used before, or is not of this server. Start `towpath serve` again for a new one."
        return pages.render_page(
            request, "message.html", status=403, title="The link is no longer good", message=message
        )
    return _start_session(request, door, account, request.client.host if request.client else "unknown")


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """Name and password."""
    return pages.render_page(request, "sign_in.html")


@router.post("/sign-in")
def sign_in(request: Request, door: Auth, name: Field, password: Field) -> Response:
    """Let someone in by name and password."""
    address = request.client.host if request.client else ""
    try:
        account = door.sign_in(name, password, address, request.cookies.get(cookie_name(request, "-device"), ""))
    except TooManyAttempts as error:
        message = (
            f"There were too many tries. The next one may come in {error.seconds} seconds; the password is not "
            "checked before."
        )
        headers = {"retry-after": str(error.seconds)}
        return pages.render_page(request, "sign_in.html", status=429, error=message, name=name, headers=headers)
    if account is None:
        return pages.render_page(
            request, "sign_in.html", status=401, error="Name and password do not belong together.", name=name
        )
    return _start_session(request, door, account, address or "unknown")


@router.post("/sign-out")
def sign_out(request: Request, account: SignedIn, door: Auth) -> Response:
    """End the session of this browser."""
    response = RedirectResponse("/sign-in", 303)
    door.leave(request, response, account)
    return response


@router.get("/join/{token}", dependencies=[Depends(require_team)])
def join_page(request: Request, store: StoreDependency, token: str) -> Response:
    """What an invited person sees first."""
    found = store.read(people.find_invitation, token, time())
    if found is None:
        message = "It was used before, was withdrawn, or is older than seven days. Ask the owner for another."
        return pages.render_page(
            request, "message.html", status=410, title="The invitation is no longer good", message=message
        )
    return pages.render_page(request, "join.html", invitation=found, shortest=MIN_LENGTH)


@router.post("/join/{token}", dependencies=[Depends(require_team)])
def join(request: Request, store: StoreDependency, door: Auth, token: str, name: Field, password: Field) -> Response:
    """Make the account that was promised, and sign it in. The password is hashed last, when nothing else is wrong."""
    try:
        invited = store.read(people.check_invitation, token, name, time())
    except DataError as error:
        found = store.read(people.find_invitation, token, time())
        if found is None:
            return join_page(request, store, token)
        return pages.render_page(
            request,
            "join.html",
            status=409,
            invitation=found,
            shortest=MIN_LENGTH,
            error=format_error(error),
            name=name,
        )
    try:
        account = store.submit_write(
            people.accept_invitation, token, name, door.hashed(password, name), time()
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
    return _start_session(request, door, account)


@router.get("/reset/{token}", dependencies=[Depends(require_team)])
def reset_page(request: Request, store: StoreDependency, token: str) -> Response:
    """What someone sees first who has a link to set a password anew."""
    return _reset_page(request, store.read(people.find_reset, token, time()))


def _reset_page(request: Request, found: PasswordReset | None, error: str = "") -> Response:
    if found is None:
        message = "It was used before, another was made after it, or it is older than a day. Ask the owner for another."
        return pages.render_page(
            request, "message.html", status=410, title="The link is no longer good", message=message
        )
    return pages.render_page(
        request, "reset.html", status=409 if error else 200, name=found.account, shortest=MIN_LENGTH, error=error
    )


@router.post("/reset/{token}", dependencies=[Depends(require_team)])
def reset(request: Request, store: StoreDependency, door: Auth, token: str, password: Field) -> Response:
    """Set the password anew, end every session of the account, and sign this browser in."""
    found = store.read(people.find_reset, token, time())
    if found is None:
        return _reset_page(request, found)
    try:
        account = store.submit_write(
            people.reset_password, token, door.hashed(password, found.account), time()
        ).result()
    except DataError as error:
        return _reset_page(request, found, format_error(error))
    return _start_session(request, door, account)


def _start_session(request: Request, door: Auth, account: Account, address: str = "") -> Response:
    response = RedirectResponse("/", 303)
    door.remember(request, response, account, address)
    return response
