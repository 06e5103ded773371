"""Coming in: the one-time link, names and passwords, invitations."""

from time import time
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from towpath.errors import DataError
from towpath.store import people
from towpath.store.people import Account
from towpath.web import pages
from towpath.web.auth import COOKIE, SHORTEST, TheDoor, TheStore, Visitor, told

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
        return pages.page(request, "message.html", status=403, title="The link is spent", message=message)
    return _welcome(request, door, account)


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """Name and password."""
    return pages.page(request, "sign_in.html")


@router.post("/sign-in")
def sign_in(request: Request, door: TheDoor, name: Field, password: Field) -> Response:
    """Let someone in by name and password."""
    account = door.sign_in(name.strip(), password, request.client.host if request.client else "")
    if account is None:
        return pages.page(request, "sign_in.html", status=401, error="Name and password do not belong together.", name=name)
    return _welcome(request, door, account)


@router.post("/sign-out")
async def sign_out() -> Response:
    """Forget who was here."""
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE, path="/")
    return response


@router.get("/join/{token}")
def join_page(request: Request, store: TheStore, token: str) -> Response:
    """What an invited person sees first."""
    found = store.read(people.invitation, token, time())
    if found is None:
        message = "It was used before, or is older than seven days. Ask the owner for another."
        return pages.page(request, "message.html", status=410, title="The invitation is spent", message=message)
    return pages.page(request, "join.html", invitation=found, shortest=SHORTEST)


@router.post("/join/{token}")
def join(request: Request, store: TheStore, door: TheDoor, token: str, name: Field, password: Field) -> Response:
    """Make the account that was promised, and let it in."""
    try:
        account = door.join(token, name, password)
    except DataError as error:
        found = store.read(people.invitation, token, time())
        return pages.page(request, "join.html", status=409, invitation=found, shortest=SHORTEST, error=told(error), name=name)
    return _welcome(request, door, account)


def _welcome(request: Request, door: TheDoor, account: Account) -> Response:
    response = RedirectResponse("/", 303)
    door.remember(response, account, request.url.scheme == "https")
    return response
