"""Coming in: the one-time link, names and passwords, invitations."""

from time import time
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from towpath.errors import DataError
from towpath.store import people
from towpath.store.people import Account, Reset
from towpath.web import pages
from towpath.web.auth import TheDoor, TheStore, Visitor, cookie_name, team_only, told
from towpath.web.passwords import SHORTEST, TooMany

router = APIRouter()

FIRST_PAGE = {"owner": "/owner", "viewer": "/owner", "rater": "/rate"}

Field = Annotated[str, Form(max_length=1000)]


@router.get("/")
async def first(account: Visitor) -> Response:
    """Everyone's first page."""
    return RedirectResponse(FIRST_PAGE[account.role], 303)


@router.get("/enter")
def enter(request: Request, door: TheDoor, token: str = "") -> Response:
    """The owner comes in by the link from the terminal."""
    account = door.enter(token)
    if account is None:
        message = "This link was used before, or is not of this server. Start `towpath serve` again for a new one."
        return pages.page(request, "message.html", status=403, title="The link is no longer good", message=message)
    return _welcome(request, door, account, request.client.host if request.client else "unknown")


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """Name and password."""
    return pages.page(request, "sign_in.html")


@router.post("/sign-in")
def sign_in(request: Request, door: TheDoor, name: Field, password: Field) -> Response:
    """Let someone in by name and password."""
    address = request.client.host if request.client else ""
    try:
        account = door.sign_in(name, password, address, request.cookies.get(cookie_name(request, "-device"), ""))
    except TooMany as error:
        message = (
            f"There were too many tries. The next one may come in {error.seconds} seconds; the password is not "
            "checked before."
        )
        headers = {"retry-after": str(error.seconds)}
        return pages.page(request, "sign_in.html", status=429, error=message, name=name, headers=headers)
    if account is None:
        return pages.page(
            request, "sign_in.html", status=401, error="Name and password do not belong together.", name=name
        )
    return _welcome(request, door, account, address or "unknown")


@router.post("/sign-out")
def sign_out(request: Request, account: Visitor, door: TheDoor) -> Response:
    """End the session of this browser."""
    response = RedirectResponse("/sign-in", 303)
    door.leave(request, response, account)
    return response


@router.get("/join/{token}", dependencies=[Depends(team_only)])
def join_page(request: Request, store: TheStore, token: str) -> Response:
    """What an invited person sees first."""
    found = store.read(people.invitation, token, time())
    if found is None:
        message = "It was used before, was withdrawn, or is older than seven days. Ask the owner for another."
        return pages.page(
            request, "message.html", status=410, title="The invitation is no longer good", message=message
        )
    return pages.page(request, "join.html", invitation=found, shortest=SHORTEST)


@router.post("/join/{token}", dependencies=[Depends(team_only)])
def join(request: Request, store: TheStore, door: TheDoor, token: str, name: Field, password: Field) -> Response:
    """Make the account that was promised, and sign it in. The password is hashed last, when nothing else is wrong."""
    try:
        invited = store.read(people.invited, token, name, time())
    except DataError as error:
        found = store.read(people.invitation, token, time())
        if found is None:
            return join_page(request, store, token)
        return pages.page(
            request, "join.html", status=409, invitation=found, shortest=SHORTEST, error=told(error), name=name
        )
    try:
        account = store.submit_write(people.join, token, name, door.hashed(password, name), time()).result()
    except DataError as error:
        return pages.page(
            request, "join.html", status=409, invitation=invited, shortest=SHORTEST, error=told(error), name=name
        )
    return _welcome(request, door, account)


@router.get("/reset/{token}", dependencies=[Depends(team_only)])
def reset_page(request: Request, store: TheStore, token: str) -> Response:
    """What someone sees first who has a link to set a password anew."""
    return _reset_page(request, store.read(people.reset_of, token, time()))


def _reset_page(request: Request, found: Reset | None, error: str = "") -> Response:
    if found is None:
        message = "It was used before, another was made after it, or it is older than a day. Ask the owner for another."
        return pages.page(request, "message.html", status=410, title="The link is no longer good", message=message)
    return pages.page(
        request, "reset.html", status=409 if error else 200, name=found.account, shortest=SHORTEST, error=error
    )


@router.post("/reset/{token}", dependencies=[Depends(team_only)])
def reset(request: Request, store: TheStore, door: TheDoor, token: str, password: Field) -> Response:
    """Set the password anew, end every session of the account, and sign this browser in."""
    found = store.read(people.reset_of, token, time())
    if found is None:
        return _reset_page(request, found)
    try:
        account = store.submit_write(people.reset, token, door.hashed(password, found.account), time()).result()
    except DataError as error:
        return _reset_page(request, found, told(error))
    return _welcome(request, door, account)


def _welcome(request: Request, door: TheDoor, account: Account, address: str = "") -> Response:
    response = RedirectResponse("/", 303)
    door.remember(request, response, account, address)
    return response
