"""Every route with every role on the real server; routes come from the router, so that a route without a row fails."""

from collections.abc import Iterator
from time import time
from typing import Any

import httpx
import pytest
from conftest import running

from towpath.store import people
from towpath.store.store import Store
from towpath.web.server import create_server

ROLES = ("nobody", "rater", "viewer", "owner")
ALL = ROLES
SIGNED_IN = ROLES[1:]
RATERS = ("rater", "owner")
VIEWERS = ("viewer", "owner")
OWNERS = ("owner",)

ACCESS = {
    "GET /": SIGNED_IN,
    "GET /static": ALL,
    "GET /enter": ALL,
    "GET /sign-in": ALL,
    "POST /sign-in": ALL,
    "POST /sign-out": SIGNED_IN,
    "GET /join/{token}": ALL,
    "POST /join/{token}": ALL,
    "GET /reset/{token}": ALL,
    "POST /reset/{token}": ALL,
    "GET /account": SIGNED_IN,
    "POST /account/password": SIGNED_IN,
    "POST /account/sign-out": SIGNED_IN,
    "GET /rate": RATERS,
    "GET /rate/next": RATERS,
    "GET /rate/differences": RATERS,
    "POST /rate/judge": RATERS,
    "POST /rate/rank": RATERS,
    "POST /rate/skip": RATERS,
    "POST /rate/flag": RATERS,
    "POST /rate/undo": RATERS,
    "POST /rate/write": RATERS,
    "GET /rate/history": RATERS,
    "POST /rate/trial": RATERS,
    "POST /rate/guidelines": RATERS,
    "GET /owner/pairs": OWNERS,
    "GET /owner/answers": OWNERS,
    "POST /owner/answers": OWNERS,
    "POST /owner/takeout": OWNERS,
    "POST /owner/restore": OWNERS,
    "POST /owner/rename": OWNERS,
    "POST /owner/remove": OWNERS,
    "GET /owner/export/pairs.{kind}": OWNERS,
    "GET /owner": VIEWERS,
    "GET /owner/stats": VIEWERS,
    "GET /owner/settings": OWNERS,
    "POST /owner/settings": OWNERS,
    "POST /owner/queue": OWNERS,
    "POST /owner/rankings": OWNERS,
    "GET /owner/guidelines": OWNERS,
    "POST /owner/guidelines": OWNERS,
    "GET /owner/gold": OWNERS,
    "POST /owner/gold": OWNERS,
    "POST /owner/gold/drop": OWNERS,
    "GET /owner/flags": OWNERS,
    "POST /owner/flags": OWNERS,
    "GET /owner/export.jsonl": OWNERS,
    "GET /owner/people": OWNERS,
    "POST /owner/invite": OWNERS,
    "POST /owner/withdraw": OWNERS,
    "POST /owner/account": OWNERS,
    "POST /owner/reset": OWNERS,
    "POST /owner/sign-out": OWNERS,
    "GET /owner/audit": OWNERS,
    "GET /arena": OWNERS,
    "POST /arena": OWNERS,
    "GET /arena/disagreements": OWNERS,
    "POST /arena/disagreements": OWNERS,
    "GET /arena/{number}": OWNERS,
    "GET /arena/{number}/live": OWNERS,
    "POST /arena/{number}/stop": OWNERS,
    "GET /monitor": VIEWERS,
    "GET /monitor/curves": VIEWERS,
    "GET /monitor/step": VIEWERS,
    "GET /monitor/events": VIEWERS,
    "GET /monitor/samples": VIEWERS,
    "GET /monitor/samples/list": VIEWERS,
    "GET /monitor/samples/prompt": VIEWERS,
    "GET /monitor/samples/differences": VIEWERS,
    "GET /monitor/compare": VIEWERS,
    "GET /monitor/plan": VIEWERS,
    "GET /monitor/compare/curves": VIEWERS,
    "GET /monitor/compare/frontier": VIEWERS,
    "GET /monitor/sweep": VIEWERS,
}
"""The roles with access to a route, by method and path."""


def routes(prefix: Any) -> Iterator[str]:
    """Return methods and paths of an application or router, including nested routers and mounted applications."""
    for route in prefix.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from routes(included)
        elif getattr(route, "methods", None):
            yield from (f"{method} {route.path}" for method in route.methods if method != "HEAD")
        else:
            yield f"GET {route.path}"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("run") / "towpath.db") as opened:
        for role in ROLES[1:]:
            opened.submit_write(people.add_account, role, role, "a hash").result()
        opened.submit_write(people.add_account, "another owner", "owner", "a hash").result()
        yield opened


@pytest.fixture(scope="module")
def team(store):
    with running(store, team=True) as (url, _):
        yield url


def known_routes(tmp_path) -> list[str]:
    with Store.open(tmp_path / "towpath.db") as store:
        server, _ = create_server(store, team=True)
        return list(routes(server.config.app))


def test_route_table_is_complete(tmp_path):
    routes_ = known_routes(tmp_path)
    assert len(routes_) == len(set(routes_)), "two routes have the same method and path"
    assert not set(routes_) - set(ACCESS), "add the roles of these routes to ACCESS"
    assert not set(ACCESS) - set(routes_), "these routes do not exist"


@pytest.mark.parametrize("role", ROLES)
def test_roles_have_access_to_their_routes_only(team, store, role):
    """Requests are empty: roles with access get 4xx for the content, others 401 or 403."""
    wrong = []
    port = team.rpartition(":")[2]
    with httpx.Client(base_url=team, headers={"origin": team, "accept": "application/json"}) as visitor:
        for row, allowed in ACCESS.items():
            method, path = row.split(" ")
            path = path.replace("{token}", "nonsense").replace("{number}", "1")
            headers = {}
            if role != "nobody":
                account = store.read(people.get_account, role)
                headers["cookie"] = (
                    f"towpath-{port}={store.submit_write(people.start_session, account, time()).result()}"
                )
            with visitor.stream(method, path, headers=headers) as answer:
                status = answer.status_code
            refused = 401 if role == "nobody" else 403
            if (role in allowed) == (status == refused) or status >= 500:
                wrong.append(f"{row}: {status}, {'allowed' if role in allowed else 'not allowed'}")
    # Sign-in routes return 401 and 403 themselves, for a wrong link or password.
    assert set(wrong) <= {"GET /enter: 403, allowed"}, wrong
